"""`fastdw convert-weights`: any format to safetensors, and what is said about the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from nn_checks import randomize
from safetensors import safe_open

from fastdw.models import mobilenet_v1, mobilenet_v2, weights

Run = Callable[..., tuple[int, str, str]]
FOLDER = Path(__file__).with_name("weights_files")

UNSAID, SAME = "not in the file; by its names ", "TensorFlow's SAME"
AFTER = "0 before and 1 after at stride 2"


def of_json(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def test_a_graph_of_tensorflow(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "v1.safetensors"
    found = of_json(run("convert-weights", FOLDER / "v1.pb", out, "--json"))
    assert found["source format"] == "TensorFlow GraphDef"
    assert found["kernel layout"] == "HWIO in the file, OIHW now"
    assert found["batch norm"] == "kept apart: 27 beside 28 convolutions"
    assert found["padding"] == "SAME"
    assert (found["classes"], found["class_offset"]) == (5, 0)
    assert found["tensors"]["stem.conv.weight"] == [1, 3, 3, 3]
    with safe_open(out, "pt") as file:
        assert file.metadata()["padding"] == "SAME" and file.metadata()["format"] == "pt"
    settings: dict[str, Any] = {"eps": 1e-3, "padding": "same", "round_nearest": 1}
    direct = weights.load(mobilenet_v1(1 / 32, 5, **settings), FOLDER / "v1.pb")
    through = weights.load(mobilenet_v1(1 / 32, 5, **settings), out)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(tensor, through.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "format", "norm", "padding"),
    [
        ("v1_fp16.tflite", "TensorFlow Lite (FLOAT16)", "folded into", "same"),
        ("padded.tflite", "TensorFlow Lite (FLOAT32)", "folded into", "(1, 1, 1, 1)"),
        ("slim/model.ckpt.index", "TensorFlow checkpoint", "kept apart: 27", UNSAID + SAME),
        ("tfjs/weights_manifest.json", "TensorFlow.js", "kept apart: 27", UNSAID + AFTER),
        ("v1.caffemodel", "Caffe", "kept apart: 27", UNSAID + "1 all round"),
    ],
)
def test_what_is_said_of_each_format(
    run: Run, tmp_path: Path, name: str, format: str, norm: str, padding: str
) -> None:
    found = of_json(run("convert-weights", FOLDER / name, tmp_path / "o.safetensors", "--json"))
    assert found["source format"] == format
    assert found["batch norm"].startswith(norm)
    assert found["padding"] == padding


def test_the_background_class_is_noticed_and_the_network_found(run: Run, tmp_path: Path) -> None:
    model = randomize(mobilenet_v1(num_classes=1001, eps=1e-3, padding="same"))
    torch.save(model.state_dict(), tmp_path / "in.pt")
    code, out, _ = run("convert-weights", tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert code == 0 and "class 0 is background" in out and "mobilenet-v1-imagenet" in out


def test_torchvisions_names_become_ours(run: Run, tmp_path: Path) -> None:
    source = torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=7)
    torch.save(source.state_dict(), tmp_path / "in.pth")
    out = tmp_path / "out.safetensors"
    found = of_json(run("convert-weights", tmp_path / "in.pth", out, "--json"))
    assert found["names"] == "fastdw's" and found["classes"] == 7
    weights.load(mobilenet_v2(0.25, 7), out)


def test_the_weights_of_another_network_keep_their_names(run: Run, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(4, 3, 3, 3)}, tmp_path / "in.pt")
    command = ("convert-weights", tmp_path / "in.pt", tmp_path / "out.safetensors", "--json")
    found = of_json(run(*command))
    assert found["names"] == "the file's" and list(found["tensors"]) == ["conv1.weight"]
    assert found["network"] == "none of the known ones"


def test_a_network_that_they_do_not_fit_is_no_network(run: Run, tmp_path: Path) -> None:
    torch.save(mobilenet_v2(0.25, 7).state_dict(), tmp_path / "in.pt")
    out = tmp_path / "out.safetensors"
    code, _, err = run("convert-weights", tmp_path / "in.pt", out, "--model", "fastdw:mobilenet_v2")
    assert code == 2 and "expected [" in err and not out.exists()


def test_bad_input_in_one_sentence(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    damaged = tmp_path / "v1.pb"
    damaged.write_bytes((FOLDER / "v1.pb").read_bytes()[:1000])
    for arguments, message in (
        ((damaged, out), "is damaged or truncated"),
        ((tmp_path / "none.pb", out), "is no file, and no name that is known"),
        ((FOLDER / "v1.pb", out, "--model", "fastdw:mobilenet_v2"), "eps=0.001"),
        ((FOLDER / "v1.pb", tmp_path / "no" / "o.safetensors"), "cannot be written"),
    ):
        code, printed, err = run("convert-weights", *arguments)
        assert (code, printed) == (2, "") and message in " ".join(err.split()), arguments
        assert not out.exists()
