"""Modules to test, random batch norms, and which ops a call runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fastdw.nn

MODULES: dict[str, Callable[[], nn.Module]] = {
    "stem": lambda: fastdw.nn.ConvBNAct(3, 12, stride=2),
    "depthwise": lambda: fastdw.nn.DepthwiseConvBNAct(12, kernel_size=5, multiplier=2),
    "pointwise": lambda: fastdw.nn.PointwiseConvBNAct(12, 20, activation="hardswish"),
    "separable": lambda: fastdw.nn.SeparableBlock(12, 20, stride=2),
    "residual": lambda: fastdw.nn.InvertedResidual(12, 12, expand_ratio=3),
    "unexpanded": lambda: fastdw.nn.InvertedResidual(12, 20, expand_ratio=1, dilation=2),
    "head": lambda: fastdw.nn.ClassifierHead(12, 5),
}
"""Name -> a small module, one or more of every class."""

OPS = {
    "stem": "stem_conv",
    "depthwise": "depthwise_conv",
    "pointwise": "pointwise_conv",
    "separable": "separable_block",
    "residual": "inverted_residual",
    "unexpanded": "inverted_residual",
    "head": "classifier_head",
}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and weights as after training; return ``model``."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.5, generator=generator)
    return model


def module(name: str) -> nn.Module:
    """The module of ``MODULES`` called ``name``, in eval mode, always with the same weights."""
    torch.manual_seed(0)
    return randomize(MODULES[name]()).eval()


def image(name: str = "", size: int = 11, batch: int = 2) -> Tensor:
    """An input for the module called ``name``."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3 if name == "stem" else 12, size, size, generator=generator)


def small_network() -> nn.Module:
    """One module of every class in a row."""
    torch.manual_seed(0)
    network = nn.Sequential(
        fastdw.nn.ConvBNAct(3, 8, stride=2),
        fastdw.nn.SeparableBlock(8, 12),
        fastdw.nn.InvertedResidual(12, 12, expand_ratio=2),
        fastdw.nn.DepthwiseConvBNAct(12),
        fastdw.nn.PointwiseConvBNAct(12, 16),
        fastdw.nn.ClassifierHead(16, 5),
    )
    return randomize(network).eval()


def ops_of(call: Callable[[], Any]) -> dict[str, int]:
    """Run ``call`` and count the ops that it ran, by name."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    return {event.key: event.count for event in profiler.key_averages()}


def fused_ops(call: Callable[[], Any]) -> dict[str, int]:
    """Run ``call`` and count its fastdw ops."""
    return {
        name.removeprefix("fastdw::"): count
        for name, count in ops_of(call).items()
        if name.startswith("fastdw::")
    }


def assert_as_accurate_as_torch(
    fast: Tensor, stock: Tensor, truth: Tensor, layers: int = 2
) -> None:
    """Assert that ``fast`` is at most twice as far from the fp64 ``truth`` as stock torch is.

    Stock torch may be lucky, so one rounding of the largest element a layer is allowed besides.
    """
    assert fast.shape == truth.shape
    assert fast.dtype == stock.dtype
    ours, theirs = ((y.double() - truth).abs().max().item() for y in (fast, stock))
    rounding = torch.finfo(fast.dtype).eps * truth.abs().max().item()
    assert ours <= 2 * theirs + layers * rounding, f"error {ours:.3g}, stock torch {theirs:.3g}"
