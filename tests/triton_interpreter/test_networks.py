"""Whole MobileNets on Triton's kernels: modules, `convert` and `optimize`, in the interpreter."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastdw
from fastdw.benchmark.models import calibrate_batch_norm
from fastdw.models import registry
from fastdw.triton_kernels import block_plan

NETWORKS = {
    "fastdw:mobilenet_v2": (0.35, {"stem_conv": 1, "inverted_residual": 17, "pointwise_conv": 1}),
    "fastdw:mobilenet_v1": (0.25, {"stem_conv": 1, "separable_block": 13}),
}
RESOLUTION = 96


class Ops(TorchDispatchMode):
    """Counts the calls of fastdw's ops, and the convolutions that are left to torch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace in ("fastdw", "fastdw_triton") or "convolution" in func.__name__:
            self.calls[f"{func.namespace}.{func.__name__.split('.')[0]}"] += 1
        return func(*args, **(kwargs or {}))


def calibrated(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = registry.create(name, width=NETWORKS[name][0])
    calibrate_batch_norm(model, RESOLUTION)
    return model.eval()


def assert_runs_on_triton(name: str, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with Ops() as ops, torch.no_grad():
        y = model(x)
    wanted = {f"fastdw_triton.{op}": count for op, count in NETWORKS[name][1].items()}
    assert ops.calls == {**wanted, "fastdw_triton.classifier_head": 1}
    return y


@pytest.mark.parametrize("name", NETWORKS)
def test_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(block_plan.VARIABLE, "fused")
    model = calibrated(name)
    x = torch.randn(1, 3, RESOLUTION, RESOLUTION)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
    with fastdw.use_backend("triton"):
        y = assert_runs_on_triton(name, model, x)
        again = assert_runs_on_triton(name, model, x)
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())
    assert torch.equal(y, again)
    with torch.no_grad():
        assert not torch.equal(model(x), y)


def test_kept_weights_serve_one_backend() -> None:
    name = "fastdw:mobilenet_v1"
    model = calibrated(name)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        by_cpp = model(x)
        with fastdw.use_backend("triton"):
            y = model(x)  # keeps the folded weights
            caches = [getattr(module, "_fastdw_cache", None) for module in model.modules()]
            assert {cache.backend for cache in caches if cache is not None} == {"triton"}
            assert torch.equal(model(x), y)
        assert not torch.equal(y, by_cpp)
        assert torch.equal(model(x), by_cpp)


def test_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(block_plan.VARIABLE, "fused")
    name = "fastdw:mobilenet_v2"
    model = calibrated(name).half()
    x = torch.randn(1, 3, RESOLUTION, RESOLUTION, dtype=torch.half)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        with fastdw.use_backend("torch"):
            by_torch = model(x)
    with fastdw.use_backend("triton"):
        y = assert_runs_on_triton(name, model, x)
    error, of_torch = ((output - exact).abs().max() for output in (y, by_torch))
    assert error <= 2 * of_torch <= 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_optimize(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(block_plan.VARIABLE, raising=False)  # so: convolution by convolution
    model = calibrated(name)
    x = torch.randn(1, 3, RESOLUTION, RESOLUTION)
    fast = fastdw.optimize(model, x, backend="triton", strict=False)
    assert {row.backend for row in fast.report if row.fused} == {"triton"}
    y = assert_runs_on_triton(name, fast, x)
    with torch.no_grad():
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-4)


def plain_mobilenet_v1(width: float) -> nn.Module:
    """As a user would write it, of torch's own modules."""
    layers: list[nn.Module] = []

    def conv(channels: int, out: int, kernel: int, stride: int, groups: int = 1) -> int:
        layers.append(nn.Conv2d(channels, out, kernel, stride, kernel // 2, 1, groups, bias=False))
        layers.extend([nn.BatchNorm2d(out), nn.ReLU6()])
        return out

    channels = conv(3, int(32 * width), 3, 2)
    for out, stride in zip((64, 128, 128, 256, 256, *[512] * 6, 1024, 1024), STRIDES, strict=True):
        conv(channels, channels, 3, stride, channels)
        channels = conv(channels, int(out * width), 1, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 100))


def torchvision_mobilenet_v2(width: float) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    return models.mobilenet_v2(width_mult=width)


STRIDES = (1, 2, 1, 2, 1, 2, *[1] * 5, 2, 1)


@pytest.mark.parametrize(
    ("create", "width"), [(plain_mobilenet_v1, 0.25), (torchvision_mobilenet_v2, 0.35)]
)
def test_convert(
    create: Callable[[float], nn.Module], width: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(block_plan.VARIABLE, "fused")
    torch.manual_seed(0)
    model = create(width)
    calibrate_batch_norm(model, RESOLUTION)
    x = torch.randn(1, 3, RESOLUTION, RESOLUTION)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        fastdw.convert(model, backend="triton")
        with Ops() as ops:
            y = model(x)
    assert sum(ops.calls.values()) >= 15
    assert {name.partition(".")[0] for name in ops.calls} == {"fastdw_triton"}
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


def test_convert_and_train() -> None:
    """A converted block's gradients come from Triton's kernels and are those of torch."""
    torch.manual_seed(0)
    block = nn.Sequential(
        nn.Conv2d(6, 6, 3, 2, 1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6()
    ).eval()
    x = torch.randn(2, 6, 9, 9, requires_grad=True)
    block(x).square().sum().backward()
    parameters = [x, *block.parameters()]
    wanted = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    fastdw.convert(block, backend="triton")
    with Ops() as ops:
        block(x).square().sum().backward()
    assert ops.calls["fastdw_triton.depthwise_conv_input_grad"] == 1
    assert ops.calls["fastdw_triton.depthwise_conv_weight_grad"] == 1
    assert ops.calls["aten.convolution_backward"] == 0
    for p, grad in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-4)
