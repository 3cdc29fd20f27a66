"""One op on one backend for pytest-benchmark: checked first, with its share of the peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastdw.ops
from fastdw import native
from fastdw.backends import BackendRefused, support_table
from fastdw.benchmark.cases import OpCase
from fastdw.benchmark.network_cases import network_cases
from fastdw.benchmark.peak import measure_gflops
from fastdw.benchmark.verify import error_over_budget, truth_of
from fastdw.ops.registration import OPS

BATCHES = (1, 8)


def parameters(op: str) -> list[Any]:
    """What a suite is parametrized with: every layer, batch and backend of the op."""
    backends = dict.fromkeys(row["backend"] for row in support_table() if row["op"] == op)
    return [
        pytest.param(case, backend, id=f"{backend}-b{batch}-{case.label}".replace(", ", "-"))
        for batch in BATCHES
        for case in network_cases(op, batch)
        for backend in backends
    ]


def time_op(benchmark: Callable[..., Any], case: OpCase, backend: str) -> None:
    """Compare the op with the float64 reference, then time it; a wrong one fails without a time.

    Args:
        benchmark: pytest-benchmark's fixture; its `extra_info` tells what the time means.
        case: the call, fp32 and channels_last.
        backend: a row of the op's backend table; skipped where it refuses the call.
    """
    function = getattr(fastdw.ops, case.op)
    truth = truth_of(case, torch.float32)
    with torch.no_grad():
        try:
            output = case.call(function, truth.tensors, backend=backend)
        except (BackendRefused, ImportError) as refusal:
            pytest.skip(str(refusal))
        error = error_over_budget(output, truth)
        assert error <= 1, f"{case.label}: error {error:.3g} times what is allowed: not timed"
        benchmark(case.call, function, truth.tensors, backend=backend)
    describe(benchmark, case, backend)


def describe(benchmark: Any, case: OpCase, backend: str) -> None:
    """Put GFLOP/s and the share of the peak beside the time."""
    info: dict[str, Any] = benchmark.extra_info
    info |= {"op": case.op, "case": case.label, "batch": case.x[0], "backend": backend}
    info |= {"threads": torch.get_num_threads(), "multiply_adds": multiply_adds(case)}
    if benchmark.stats is None:  # --benchmark-disable
        return
    info["gflops"] = 2e-9 * info["multiply_adds"] / benchmark.stats.stats.median
    try:
        info["peak_gflops"] = measure_gflops(torch.get_num_threads())
    except ImportError:
        return
    info["isa"] = native.active_isa()
    info["share_of_peak"] = info["gflops"] / info["peak_gflops"]


def multiply_adds(case: OpCase) -> int:
    """Of the call's convolutions, by the op's own FLOP formula."""
    from torch.utils.flop_counter import FlopCounterMode

    assert case.op in OPS
    tensors = case.tensors(torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        case.call(getattr(fastdw.ops, case.op), tensors)
    return counter.get_total_flops() // 2
