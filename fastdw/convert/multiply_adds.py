"""Multiply-adds of a model's convolutions for one image, by running a copy of it on shapes
alone."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdw.nn.fused_module import FusedModule

log = logging.getLogger(__name__)
DEFAULT_SIZE = (224, 224)
Size = tuple[int, int, int]


def input_size_of(model: nn.Module) -> Size | None:
    """Return (channels of the first convolution, 224, 224), or None for a model without one."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return (module.in_channels, *DEFAULT_SIZE)
    return None


def count_multiply_adds(
    model: nn.Module, revert: Callable[[nn.Module], nn.Module]
) -> tuple[dict[int, int], Size | None]:
    """Count by `id` of the convolution; ({}, None) if the model does not run on such an image.

    Args:
        model: the model; neither it nor its hooks are run.
        revert: how to unfuse the copy, so that each convolution runs by itself.
    """
    size = input_size_of(model)
    if size is None:
        return {}, None
    try:
        meta = revert(_meta_copy(model)).eval()
        counts: dict[int, int] = {}
        for original, module in zip(model.modules(), meta.modules(), strict=True):
            _clear_hooks(module)
            if isinstance(module, FusedModule):
                module.__dict__["forward"] = module._unfused_forward
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(_counter(counts, id(original)))
        with torch.device("meta"), torch.no_grad():
            meta(torch.empty(1, *size))
    except Exception as error:  # a copy of somebody's model may fail in any way
        log.debug("no multiply-adds for %s: %s", type(model).__name__, error)
        return {}, None
    return counts, size


def _meta_copy(model: nn.Module) -> nn.Module:
    """Copy the modules, but put meta tensors in the place of parameters and buffers."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, memo)


def _clear_hooks(module: nn.Module) -> None:
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(module, name).clear()


def _counter(counts: dict[int, int], key: int) -> Callable[[nn.Conv2d, Any, Tensor], None]:
    def count(conv: nn.Conv2d, _: Any, output: Tensor) -> None:
        taps = math.prod(conv.kernel_size) * conv.in_channels // conv.groups
        counts[key] = counts.get(key, 0) + output[0].numel() * taps

    return count
