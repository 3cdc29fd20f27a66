"""Bad input to the `fastdw` command: one clear sentence, exit code 2, no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastdw.models
from fastdw.cli import main
from fastdw.commands.photos import shipped_photos

PHOTO = str(shipped_photos()[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are not what they should be."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.jpg").write_text("no photo at all")
    (folder / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.zeros(1000)}, folder / "other.pt")
    saved = (folder / "other.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(saved[: len(saved) // 2])
    (folder / "labels.txt").write_text("cat\ndog\n")
    Image.fromarray(noise[..., 0].astype(np.float32)).save(folder / "float.tiff")
    nan = fastdw.models.create("torchvision:mobilenet_v2").state_dict()
    nan["classifier.1.bias"] *= torch.nan
    torch.save(nan, folder / "nan.pt")
    return folder


@pytest.mark.parametrize(
    "command,expected",
    [
        ("explain nonsense", "MODEL: expected fastdw:NAME, torchvision:NAME"),
        ("explain torchvision:mobilenet_v9", "did you mean mobilenet_v"),
        ("explain timm:nonsense", "timm has no model called 'nonsense'"),
        ("explain no.such.module:model", "no module called 'no.such.module'"),
        ("explain os.path:join", "MODEL: "),
        ("summary fastdw:mobilenet_v1 --width 0", "--width: expected more than 0, got 0"),
        ("summary timm:mobilenetv1_100 --width 0.5", "--width: timm models take none"),
        ("summary fastdw:mobilenet_v1 --resolution -5", "--resolution: expected sizes of at least"),
        ("classify {folder}/nowhere.jpg", "nowhere.jpg: no such photo"),
        ("classify {folder}", ": no such photo"),
        ("classify {folder}/text.jpg", "text.jpg: not a photo"),
        ("classify {folder}/empty.png", "empty.png: not a photo"),
        ("classify {folder}/truncated.jpg", "truncated.jpg: the photo cannot be read: "),
        ("classify {folder}/float.tiff", "float.tiff: its pixels are of mode F, expected 8 or 16"),
        ("classify {photo} --weights {folder}/nan.pt --json", "itself answers NaN or inf"),
        ("classify {photo} --weights {folder}/other.pt", "--weights: {folder}/other.pt: Missing"),
        ("classify {photo} --weights {folder}/truncated.pt", "is damaged or truncated"),
        ("classify {photo} --weights {folder}/text.jpg", "--weights: {folder}/text.jpg"),
        ("classify {photo} --weights nothing", "nothing is no file, and no name that is known"),
        ("classify {photo} --model timm:mobilenetv1_100", "--weights: needed for timm:mobilenetv1"),
        ("classify {photo} --model nonsense --weights {folder}/other.pt", "MODEL: expected"),
        ("fetch mobilenet-v9", "no weights called 'mobilenet-v9'"),
        ("tune", "no GPU that torch"),
        ("bench --provider warp-drive", "--provider: expected one of fastdw, "),
        ("bench --device tpu", "--device: expected cpu or cuda, got 'tpu'"),
        ("bench --device cuda", "--device cuda: no GPU that torch"),
        ("bench nonsense", "MODEL: expected fastdw:NAME"),
        ("demo {folder}/text.jpg", "text.jpg: not a photo"),
    ],
)
def test_one_sentence_and_exit_code_2(
    command: str,
    expected: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word.format(folder=folder, photo=PHOTO) for word in command.split()]
    monkeypatch.setattr(sys, "argv", ["fastdw", *words])
    with pytest.raises(SystemExit) as exit_:
        main()
    out, err = capsys.readouterr()
    assert exit_.value.code == 2 and out == ""
    assert err.startswith("fastdw: ") and len(err.splitlines()) == 1
    assert expected.format(folder=folder) in err


@pytest.mark.parametrize("options", [["--class", "unicorn"], ["--labels", "labels.txt"]])
def test_unknown_class_and_wrong_labels(
    options: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import fastdw.models

    torch.manual_seed(0)
    weights = folder / "untrained.pt"
    torch.save(fastdw.models.create("torchvision:mobilenet_v2").state_dict(), weights)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        sys, "argv", ["fastdw", "classify", PHOTO, "--weights", str(weights), *options]
    )
    with pytest.raises(SystemExit) as exit_:
        main()
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    told = {
        "--class": "no class is named 'unicorn' among 1000",
        "--labels": "labels.txt has 2 lines, the model has 1000 classes",
    }
    assert told[options[0]] in err


def test_the_installed_command_prints_no_traceback(folder: Path) -> None:
    command = [sys.executable, "-m", "fastdw.cli", "classify", str(folder / "text.jpg")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "variable"),
    [("demo", "FASTDW_BACKEND"), ("demo", "FASTDW_CPU_ISA"), ("verify", "FASTDW_CPU_ISA")],
)
def test_a_bad_environment_variable_is_one_sentence(command: str, variable: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastdw.cli", command],
        env={**os.environ, variable: "sse9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert variable in done.stderr and "Traceback" not in done.stderr


def test_a_callable_of_the_users_may_print_and_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = """
from torch import nn
def prints():
    print("building")
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
def raises():
    raise KeyError("inside")
"""
    (tmp_path / "users_models.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fastdw", "explain", "users_models:prints", "--json"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr()
    assert json.loads(printed.out)["model"] == "users_models:prints"
    assert "building" in printed.err
    monkeypatch.setattr(sys, "argv", ["fastdw", "explain", "users_models:raises"])
    with pytest.raises(SystemExit):
        main()
    assert "users_models:raises raised KeyError: 'inside'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["nonsense", "classify", "summary fastdw:mobilenet_v1 --what"])
def test_usage_errors_have_exit_code_2(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastdw", *command.split()])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert "Usage" in capsys.readouterr().err
