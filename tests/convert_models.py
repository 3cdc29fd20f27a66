"""Models that convert and optimize are tried on, and how close their outputs must stay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from nn_checks import randomize
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fastdw.models


@dataclass(frozen=True)
class Expected:
    """A model and what convert finds in it; 0 depthwise or blocks where nothing is fused."""

    make: Callable[[], nn.Module]
    depthwise: int
    blocks: int
    planned: bool = True
    left: dict[str, int] | None = None


def _timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **settings)


_tv = torchvision.models

FULLY_FUSED: dict[str, Expected] = {
    "torchvision:mobilenet_v2": Expected(_tv.mobilenet_v2, 17, 17),
    "torchvision:shufflenet_v2_x0_5": Expected(_tv.shufflenet_v2_x0_5, 19, 19),
    "timm:mobilenetv1_100": Expected(_timm("mobilenetv1_100"), 13, 13),
    "timm:mobilenetv2_050": Expected(_timm("mobilenetv2_050"), 17, 17),
    "timm:mobilenetv2_100": Expected(_timm("mobilenetv2_100"), 17, 17),
    "timm:mobilenetv2_140": Expected(_timm("mobilenetv2_140"), 17, 17),
    "timm:mobilenetv2_120d": Expected(_timm("mobilenetv2_120d"), 26, 26),  # depth x 1.4
    "timm:output_stride": Expected(_timm("mobilenetv2_100", output_stride=16), 17, 17),
    "timm:drop_path": Expected(_timm("mobilenetv2_100", drop_path_rate=0.2), 17, 17),
    "timm:pad_same": Expected(_timm("mobilenetv2_100", pad_type="same"), 17, 17),
    "timm:features_only": Expected(_timm("mobilenetv2_100", features_only=True), 17, 17),
    "fastdw:mobilenet_v1": Expected(lambda: fastdw.models.mobilenet_v1(), 13, 13),
    "fastdw:mobilenet_v2": Expected(lambda: fastdw.models.mobilenet_v2(), 17, 17),
}
"""Models in which every convolution is fused, and the whole is planned."""

SQUEEZE_EXCITE: dict[str, Expected] = {
    "torchvision:mobilenet_v3_small": Expected(
        _tv.mobilenet_v3_small, 11, 2, True, {"squeeze_excite": 9, "no_batch_norm": 18}
    ),
    "torchvision:efficientnet_b0": Expected(
        _tv.efficientnet_b0, 16, 0, True, {"no_batch_norm": 32}
    ),
    "timm:lcnet_050": Expected(
        _timm("lcnet_050"), 13, 11, True, {"squeeze_excite": 2, "no_batch_norm": 5}
    ),
}
"""Models whose squeeze-excites convert leaves; the whole is planned all the same."""

PARTLY_FUSED: dict[str, Expected] = {
    "torchvision:resnet18": Expected(
        _tv.resnet18, 0, 0, False, {"dense_convolution": 16, "strided_pointwise": 3}
    ),
}
"""Models with parts that fastdw leaves, and the reasons in the report."""

PLANNED = {**FULLY_FUSED, **SQUEEZE_EXCITE}
ALL = {**PLANNED, **PARTLY_FUSED}


def build(name: str) -> nn.Module:
    """The model of `ALL` called `name`, in eval mode, with statistics as after training."""
    torch.manual_seed(0)
    return calibrate(randomize(ALL[name].make()))


def calibrate(model: nn.Module) -> nn.Module:
    """Set the running statistics to those of random images; return `model` in eval mode.

    Without this the signal dies out layer by layer, and the outputs of a deep network would hardly
    show whether its first blocks are right.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    outputs(model.train(), photo(4))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def photo(batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    """A random image."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, height, width, generator=generator)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All tensors that `model` returns, computed without gradients."""
    with torch.no_grad():
        return [t for t in pytree.tree_leaves(model(x)) if isinstance(t, Tensor)]


def assert_same_answer(fast: nn.Module, original: nn.Module, x: Tensor) -> None:
    """Assert that `fast` is about as close to the fp64 answer as the original is.

    Four times its error is allowed, and 32 roundings of the largest element: the original may be
    lucky, and a deep network turns one other rounding at its start into several at its end.
    """
    truth = outputs(copy.deepcopy(original).double(), x.double())
    ours, theirs = outputs(fast, x), outputs(original, x)
    assert len(ours) == len(theirs) > 0
    for y, stock, exact in zip(ours, theirs, truth, strict=True):
        assert y.shape == stock.shape and y.dtype == stock.dtype
        error, allowed = (y - exact).abs().max().item(), (stock - exact).abs().max().item()
        allowed = 4 * allowed + 32 * torch.finfo(y.dtype).eps * exact.abs().max().item()
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
