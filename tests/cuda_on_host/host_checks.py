"""What the tests of every CUDA kernel share: its values on the host against the reference."""

from __future__ import annotations

from typing import Any

import guarded_memory
import torch
from op_checks import expected, schema_arguments
from shapes import Case, arguments
from tolerances import assert_correct
from torch import Tensor
from torch.utils._pytree import tree_map

from cuda_on_host import host_library
from fastdw.benchmark.error_budget import ACCUMULATOR_EPS, effective_terms

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run_on_host(case: Case, args: Any, kwargs: Any) -> Tensor:
    """Call the CUDA op, on CPU tensors, as the public op would."""
    return host_library.op(case.op)(*schema_arguments(case, args, kwargs))


def check_on_host(
    case: Case,
    kind: str = "normal",
    dtype: torch.dtype = torch.float32,
    order: str = "forward",
    device: str = "A100",
    roundings: int = 0,
) -> None:
    """Assert that the CUDA op's values are correct.

    ``roundings``: how often values inside the op are rounded to ``dtype`` if it is not fp32.
    """
    args, kwargs, truth, magnitude = expected(case, kind, dtype)
    with host_library.thread_order(order), host_library.device(device):
        y = run_on_host(case, args, kwargs)
    assert y.dtype == dtype
    if dtype != torch.float32:  # as much more as rounded hidden values add to the error
        rounding = roundings * torch.finfo(dtype).eps / 2
        magnitude = magnitude * (1 + rounding / (effective_terms(case.terms) * ACCUMULATOR_EPS))
    assert_correct(y, truth, magnitude, case.terms)


def check_same_bits(case: Case, dtype: torch.dtype = torch.float32) -> None:
    """Assert that the order in which threads and blocks run does not change a bit."""
    args, kwargs = arguments(case, "normal", dtype)
    first = run_on_host(case, args, kwargs)
    for order in host_library.ORDERS:
        with host_library.thread_order(order):
            assert torch.equal(first, run_on_host(case, args, kwargs)), order


def check_guarded_on_host(case: Case, dtype: torch.dtype, at_end: bool) -> None:
    """Run the CUDA op with every input flush against an inaccessible page.

    A read beyond a buffer ends the process.
    """
    args, kwargs, truth, magnitude = expected(case, "normal", dtype)
    with guarded_memory.Arena() as arena:

        def guarded(leaf: Any) -> Any:
            return arena.copy(leaf, at_end) if isinstance(leaf, Tensor) else leaf

        guarded_args, guarded_kwargs = tree_map(guarded, (args, kwargs))
        y = run_on_host(case, guarded_args, guarded_kwargs)
        assert_correct(y, truth, magnitude, case.terms)
        del guarded_args, guarded_kwargs
