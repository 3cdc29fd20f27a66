"""Tensors larger than the memory: pages are mapped, and taken when they are written."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python's mmap does not name


def zeros(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Zeros that take no memory until they are written: torch.zeros would write them."""
    count = torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags), dtype=dtype).view(shape)
