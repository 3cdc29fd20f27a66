"""The checks themselves: what they must catch, they catch."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import guarded_memory
import op_checks
import pytest
import torch
from memory_peak import peak_growth_bytes
from shapes import LAYOUTS, Case, laid_out
from tolerances import assert_correct

from fastdw.benchmark.error_budget import budget, effective_terms

CASE = Case("depthwise_conv")


def test_an_error_just_beyond_the_budget_is_seen() -> None:
    truth, magnitude = torch.tensor([1.5, -2.0]).double(), torch.tensor([3.0, 9.0]).double()
    allowed = budget(truth, magnitude, 9, torch.float32)
    assert_correct((truth + 0.9 * allowed).float(), truth, magnitude, 9)
    one_beyond = truth + torch.tensor([0.0, 1.1]) * allowed
    with pytest.raises(AssertionError, match=r"worst error is 1\.[01]"):
        assert_correct(one_beyond.float(), truth, magnitude, 9)


def test_long_sums_get_a_budget_that_grows_slowly() -> None:
    assert [effective_terms(terms) for terms in (1, 9, 16, 100, 10_000)] == [1, 9, 16, 40, 400]


@pytest.mark.parametrize(
    ("value", "instead", "message"),
    [
        (torch.nan, 1.0, "NaN is not where"),
        (1.0, torch.nan, "NaN is not where"),
        (torch.inf, 1e30, "inf is not where"),
        (torch.inf, -torch.inf, "wrong sign"),
    ],
)
def test_misplaced_nan_and_inf_are_seen(value: float, instead: float, message: str) -> None:
    truth = torch.tensor([0.0, value]).double()
    with pytest.raises(AssertionError, match=message):
        assert_correct(torch.tensor([0.0, instead]), truth, torch.ones(2).double(), 3)


@pytest.mark.parametrize("what", ["value", "stride", "dtype"])
def test_check_case_sees_a_wrong_result(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = op_checks.run

    def wrong(*args: object) -> torch.Tensor:
        y = right(*args)  # type: ignore[arg-type]
        if what == "value":
            y[-1, -1, -1, -1] += 1e-3
        return {"value": y, "stride": y.contiguous(), "dtype": y.double()}[what]

    op_checks.check_case(CASE)
    monkeypatch.setattr(op_checks, "run", wrong)
    with pytest.raises(AssertionError):
        op_checks.check_case(CASE)


@pytest.mark.parametrize("at_end", [False, True])
def test_reading_past_a_guarded_buffer_kills_the_process(at_end: bool) -> None:
    code = f"""
import ctypes, guarded_memory, torch
with guarded_memory.Arena() as arena:
    x = arena.copy(torch.ones(3, 5), {at_end})
    assert x.sum() == 15
    ctypes.c_float.from_address(x.data_ptr() + ({60 if at_end else -4})).value
"""
    tests = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, check=False)
    assert done.returncode == -signal.SIGSEGV


def test_guarded_copies_keep_values_and_strides() -> None:
    x = torch.randn(2, 3, 4, 5)
    with guarded_memory.Arena() as arena:
        for layout in LAYOUTS:
            view = laid_out(x, layout)
            for at_end in (False, True):
                copy = arena.copy(view, at_end)
                assert torch.equal(copy, x) and copy.stride() == view.stride()


def test_peak_growth_sees_memory_that_is_freed_again() -> None:
    assert peak_growth_bytes(lambda: None) < 1 << 20
    assert peak_growth_bytes(lambda: torch.ones(1 << 23).sum()) > 3 << 23
