"""What "correct" means, once for `fastdw verify` and all tests.

An element is correct within ``eps_out * |truth| + k * eps_acc * S`` of the float64 reference: S is
the same reference run on absolute values without activation (a clamp would hide the magnitudes that
were summed), k the length of the sum, ``4 * sqrt(k)`` from 16 on (rounding errors do not all point
the same way).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ACCUMULATOR_EPS = torch.finfo(torch.float32).eps


def effective_terms(terms: int) -> float:
    """Return k for a sum of so many terms."""
    return min(float(terms), 4 * math.sqrt(terms))


def budget(truth: Tensor, magnitude: Tensor, terms: int, dtype: torch.dtype) -> Tensor:
    """Return the error allowed for each element of an output of ``dtype``."""
    info = torch.finfo(dtype)
    accumulator = min(ACCUMULATOR_EPS, info.eps)
    rounding = info.eps * truth.abs() + info.smallest_normal * info.eps
    return rounding + effective_terms(terms) * accumulator * magnitude
