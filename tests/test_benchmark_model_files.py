"""The peers' model files: the list of layers they are written from, and where they are kept."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdw import models
from fastdw.benchmark import model_files
from fastdw.benchmark.layer_list import NotListable, list_layers
from fastdw.benchmark.models import calibrate_batch_norm
from fastdw.benchmark.providers.plain_torch import plain

X = torch.zeros(2, 3, 33, 40)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastdw" / "bench"


def run_list(layers: list[dict[str, Any]], weights: dict[str, np.ndarray], x: Tensor) -> Tensor:
    """The list as its words say, one torch function a layer."""
    values: dict[str, Tensor] = {}
    for layer in layers:
        own = {
            key.rpartition("/")[2]: torch.from_numpy(array)
            for key, array in weights.items()
            if key.rpartition("/")[0] == layer["name"]
        }
        inputs = [values[name] for name in layer["inputs"]]
        values[layer["name"]] = y = run_layer(layer, own, x, *inputs)
    return y


def run_layer(layer: dict[str, Any], own: dict[str, Tensor], x: Tensor, *inputs: Tensor) -> Tensor:
    kind = layer["kind"]
    if kind == "input":
        assert layer["shape"] == list(x.shape)
        return x
    if kind == "conv":
        geometry = [layer[name] for name in ("stride", "padding", "dilation", "groups")]
        return F.conv2d(inputs[0], own["weight"], own.get("bias"), *geometry)
    if kind == "batch_norm":
        statistics = own["running_mean"], own["running_var"], own.get("weight"), own.get("bias")
        return F.batch_norm(inputs[0], *statistics, eps=layer["eps"])
    if kind == "clamp":
        return inputs[0].clamp(layer["low"], layer["high"])
    if kind == "activation":
        functions = {"hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "silu": F.silu}
        return {**functions, "sigmoid": torch.sigmoid}[layer["function"]](inputs[0])
    if kind == "add":
        return inputs[0] + inputs[1]
    if kind == "multiply":
        return inputs[0] * inputs[1]
    if kind == "pad":
        return F.pad(inputs[0], layer["sides"])
    if kind == "global_pool":
        return inputs[0].mean((2, 3), keepdim=layer["keep"])
    if kind == "linear":
        return F.linear(inputs[0], own["weight"], own.get("bias"))
    return {"flatten": inputs[0].flatten(1), "identity": inputs[0]}[kind]


class MeanHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.norm = nn.BatchNorm2d(6, eps=0.5, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x))).mean((-1, -2))


class Gated(nn.Module):
    """A squeeze-excite: each channel times a gate that the channels' means decide."""

    def __init__(self, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.activation, self.gate = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm(self.conv(x)))
        return self.gate(F.adaptive_avg_pool2d(y, 1)) * y


@pytest.mark.parametrize(
    "model",
    [
        models.mobilenet_v1(0.25, 7, padding="same"),
        models.mobilenet_v2(0.35, 7, output_stride=16),
        MeanHead(),
        Gated(nn.Hardswish(inplace=True), nn.Hardsigmoid(inplace=True)),
        Gated(nn.SiLU(), nn.Sigmoid()),
    ],
    ids=["v1", "v2", "mean head", "V3's gates", "EfficientNet's gates"],
)
def test_the_list_says_what_the_network_does(model: nn.Module) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 33, 40)
    calibrate_batch_norm(model, 64)
    model = plain(model)
    layers, weights = list_layers(model, x)
    with torch.no_grad():
        torch.testing.assert_close(run_list(layers, weights, x), model(x))
    kinds = [layer["kind"] for layer in layers]
    assert kinds.count("conv") == kinds.count("batch_norm")  # nothing is folded


@pytest.mark.parametrize(
    "module,message",
    [
        (nn.Tanh(), "no layer for aten.tanh.default"),
        (nn.AdaptiveAvgPool2d(2), "a pool to"),
        (nn.Flatten(), "a flatten of more than channels"),
        (nn.BatchNorm2d(3, track_running_stats=False), "a batch norm in training mode"),
        (nn.Dropout().train(), "a dropout in training mode"),
        (nn.ReflectionPad2d(1), "a padding by other than zeros|no layer for"),
        (nn.ConstantPad2d(1, 2.0), "a padding by other than zeros"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_the_list_has_no_word_for_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(NotListable, match=message):
        list_layers(module, X)


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return {
            "add": lambda: x + 1,
            "scaled": lambda: torch.add(x, x * 1, alpha=2),
            "broadcast": lambda: x.relu() + x.relu().mean((2, 3), keepdim=True),
            "square": lambda: (lambda mean: mean * mean)(x.mean((2, 3), keepdim=True)),
            "images": lambda: x.relu() * x.sigmoid(),
            "tripled": lambda: x * 3,
            "rows": lambda: x.mean((2,)),
            "computed": lambda: F.conv2d(x, torch.relu(self.weight)),
            "two": lambda: (x.relu(), x.relu()),
        }[self.kind]()


@pytest.mark.parametrize(
    "kind",
    "add scaled broadcast square images tripled rows computed two".split(),
)
def test_odd_uses_of_known_operations_are_refused(kind: str) -> None:
    with pytest.raises(NotListable):
        list_layers(Odd(kind), X)


def test_relu_has_no_upper_end() -> None:
    layers, _ = list_layers(nn.ReLU(), X)
    assert layers[-1]["high"] is None and layers[-1]["low"] == 0
    assert math.inf not in layers[-1].values()  # JSON has no infinity


def linear(weight: float = 1.0) -> nn.Module:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, weight)
    nn.init.zeros_(model.bias)
    return model


def kept(model: nn.Module, shape: tuple[int, ...] = (1, 2), version: str = "1") -> tuple[Path, int]:
    """The kept file, and how often it had to be written."""
    written = []

    def write(folder: Path) -> None:
        written.append(folder)
        (folder / "model.txt").write_text("text")
        (folder / "model.bin").write_text("weights")
        (folder / "scratch").write_text("not kept")

    path = model_files._cached(model, torch.zeros(shape), "txt", [version], write)
    assert path.read_text() == "text" and path.with_suffix(".bin").read_text() == "weights"
    return path, len(written)


def test_a_file_is_written_once(cache: Path) -> None:
    path, writes = kept(linear())
    assert writes == 1 and path.parent == cache
    assert kept(linear()) == (path, 0)
    assert sorted(cache.iterdir()) == sorted([path, path.with_suffix(".bin")])


def test_another_network_input_or_writer_is_another_file() -> None:
    paths = {
        kept(model, shape, version)[0]
        for model in (linear(), linear(2.0), nn.Sequential(linear()))
        for shape in ((1, 2), (2, 2))
        for version in ("1", "2")
    }
    assert len(paths) == 3 * 2 * 2


def test_a_failed_writer_leaves_nothing(cache: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('a'); sys.exit('no such layer')"]

    def fail(folder: Path) -> None:
        (folder / "model.txt").write_text("half")
        model_files._run("the writer", command, folder, {})

    with pytest.raises(
        model_files.WriterFailed, match="the writer failed, exit code 1: no such layer"
    ):
        model_files._cached(linear(), X, "txt", [], fail)
    with pytest.raises(model_files.WriterFailed, match="left no model.txt"):
        model_files._cached(linear(), X, "txt", [], lambda folder: None)
    assert list(cache.iterdir()) == []
