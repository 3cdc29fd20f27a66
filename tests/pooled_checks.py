"""A result with its means: that of the op without them, bit for bit; the means against float64."""

from __future__ import annotations

import math

import torch
from op_checks import expected
from shapes import Case
from tolerances import assert_correct
from torch import Tensor

from fastdw import ops, reference

PLAIN = "depthwise_conv"


def assert_means(means: Tensor, case: Case, truth: Tensor, magnitude: Tensor) -> None:
    """Hold the means, sums over all pixels, against those of the true result."""
    terms = case.terms + math.prod(truth.shape[2:])
    assert_correct(means, truth.mean((2, 3)), magnitude.mean((2, 3)), terms)


def check(
    case: Case, kind: str = "normal", dtype: torch.dtype = torch.float32, backend: str = "cpp"
) -> None:
    """Run `depthwise_conv_pooled` on the arguments of a case of `depthwise_conv`."""
    args, kwargs, truth, magnitude = expected(case, kind, dtype)
    y, means = ops.depthwise_conv_pooled(*args, **kwargs, backend=backend)
    plain = ops.depthwise_conv(*args, **kwargs, backend=backend)
    assert y.stride() == plain.stride() and torch.equal(y.nan_to_num(0.25), plain.nan_to_num(0.25))
    assert means.is_contiguous() and means.dtype == reference.compute_dtype(dtype)
    assert_means(means, case, truth, magnitude)
