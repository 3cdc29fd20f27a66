"""What the tests of every Triton kernel share: its values in the interpreter, on CPU tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from op_checks import convolution_strides, expected
from shapes import Case, run
from tolerances import assert_correct
from torch import Tensor

from fastdw.benchmark.error_budget import ACCUMULATOR_EPS, effective_terms
from fastdw.triton_kernels import tiles
from fastdw.triton_kernels.tiles import Tile

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run_interpreted(
    case: Case, args: Any, kwargs: Any, forced: Mapping[str, Tile] | None = None
) -> Tensor:
    """Call the public op on Triton's kernels; ``forced``: tiles by op."""
    with tiles.forced(forced or {}):
        return run(case, args, kwargs, "triton")


def check(
    case: Case,
    kind: str = "normal",
    dtype: torch.dtype = torch.float32,
    roundings: int = 0,
    forced: Mapping[str, Tile] | None = None,
) -> None:
    """Assert that the op's values are correct and that its strides are those of torch.

    ``roundings``: how often values inside the op are rounded to ``dtype`` if it is not fp32.
    """
    args, kwargs, truth, magnitude = expected(case, kind, dtype)
    y = run_interpreted(case, args, kwargs, forced)
    assert y.dtype == dtype
    if case.batch:  # of an empty output torch's own layout depends on the kind of convolution
        assert y.stride() == convolution_strides(case, args, kwargs)
    if dtype != torch.float32:  # as much more as rounded hidden values add to the error
        rounding = roundings * torch.finfo(dtype).eps / 2
        magnitude = magnitude * (1 + rounding / (effective_terms(case.terms) * ACCUMULATOR_EPS))
    assert_correct(y, truth, magnitude, case.terms)
