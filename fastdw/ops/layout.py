"""The memory layout of an output: that which torch's conv2d would give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def suggests_channels_last(tensor: Tensor) -> bool:
    """Say whether the strides of a 4-d tensor are those of channels_last, holes allowed.

    The rule of c10's ``suggest_memory_format``, ambiguous shapes included: with one channel and one
    pixel nothing tells the layouts apart, and contiguous wins.
    """
    shape, strides = tensor.shape, tensor.stride()
    if strides[1] == 0:
        return False
    smallest = 0
    for axis in (1, 3, 2, 0):
        if shape[axis] == 0 or strides[axis] < smallest:
            return False
        if axis == 0 and smallest == strides[1]:
            return False
        smallest = strides[axis] * (shape[axis] if shape[axis] > 1 else 1)
    return True


def empty_output(
    x: Tensor, shape: Sequence[int], weights: Sequence[Tensor], channels_last: bool = False
) -> Tensor:
    """Return an empty output: channels_last if x or a weight is, else contiguous."""
    last = channels_last or any(suggests_channels_last(tensor) for tensor in (x, *weights))
    return torch.empty(
        tuple(shape),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
