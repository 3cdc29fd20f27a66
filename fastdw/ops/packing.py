"""Sizes of the blobs that ``fastdw::pack_<op>`` returns (layout: ``kernels/params.h``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHANNEL_BLOCK = 16
HEADER_BYTES = 64


def unit_bytes(channels_out: int, terms: int) -> int:
    """Bytes of one convolution of ``terms`` products an output, and its bias, in channel blocks."""
    blocks = (channels_out + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    return 4 * CHANNEL_BLOCK * blocks * (terms + 1)


def depthwise_bytes(weight: Tensor) -> int:
    """Bytes of a packed depthwise weight and its bias, without a header."""
    return unit_bytes(weight.shape[0], math.prod(weight.shape[2:]))


def dense_bytes(weight: Tensor) -> int:
    """Bytes of a packed pointwise, stem or linear weight and its bias, without a header."""
    return unit_bytes(weight.shape[0], math.prod(weight.shape[1:]))


def empty_blob(like: Tensor, *units: int) -> Tensor:
    """Return an empty blob, on the device of ``like``, for units of these sizes in bytes."""
    return torch.empty(HEADER_BYTES + sum(units), dtype=torch.uint8, device=like.device)
