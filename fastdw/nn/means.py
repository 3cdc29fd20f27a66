"""The means of a depthwise convolution's result, on their way to the pooling that reads it next."""

from __future__ import annotations

import torch
from torch import Tensor


def hand_over(results: tuple[Tensor, Tensor]) -> Tensor:
    """Return y of (y, its means); `means_of(y)` then gives the means."""
    y, means = results
    if torch.compiler.is_compiling():
        y = torch.ops.aten.alias(y)  # torch.compile sets no attributes on one of several results
    y._fastdw_means = (means, _version(y))  # type: ignore[attr-defined]
    return y


def means_of(x: Tensor) -> Tensor | None:
    """Return what was handed over with `x`, [batch, channels], if nothing was written to it since.

    Writes to inference tensors are not counted: see `convert.handover.Handover.active`.
    """
    means, version = getattr(x, "_fastdw_means", (None, None))
    return means if version == _version(x) else None


def _version(tensor: Tensor) -> int | None:
    uncounted = torch.compiler.is_compiling() or tensor.is_inference()
    return None if uncounted else tensor._version
