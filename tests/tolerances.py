"""An output held against the float64 reference: within the error budget, NaN and inf where torch
has them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdw.benchmark.error_budget import budget


def assert_correct(actual: Tensor, truth: Tensor, magnitude: Tensor, terms: int) -> None:
    """Assert that ``actual`` is correct, given the float64 reference and its magnitude."""
    assert actual.shape == truth.shape
    wide, dtype = actual.double(), actual.dtype
    assert torch.equal(wide.isnan(), truth.isnan()), "NaN is not where torch has it"
    infinite = truth.isinf()
    assert torch.equal(wide.isinf(), infinite), "inf is not where torch has it"
    assert torch.equal(wide[infinite], truth[infinite]), "inf of the wrong sign"
    finite = truth.isfinite()
    error = (wide - truth).abs()[finite]
    allowed = budget(truth, magnitude, terms, dtype)[finite]
    worst = (error / allowed).max().item() if error.numel() else 0.0
    assert worst <= 1, f"worst error is {worst:.3g} times what is allowed"
