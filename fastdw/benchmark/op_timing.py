"""One op on one backend for pytest-benchmark: checked first, with its share of the peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdw.ops
from fastdw import native
from fastdw.backends import BackendRefused
from fastdw.benchmark.cases import OpCase
from fastdw.benchmark.gpu.settings import products_in
from fastdw.benchmark.gpu.truths import backends_on, device_truth
from fastdw.benchmark.network_cases import network_cases
from fastdw.benchmark.peak import measure_gflops
from fastdw.benchmark.verify import error_over_budget
from fastdw.ops.registration import OPS

BATCHES = (1, 8)


def devices() -> list[str]:
    """Where ops are timed: on the CPU, and on the GPU where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def parameters(op: str) -> list[Any]:
    """What a suite is parametrized with: every layer, batch, backend and device of the op."""
    return [
        pytest.param(
            *(case, backend, device),
            id=f"{device}-{backend}-b{batch}-{case.label}".replace(", ", "-"),
        )
        for device in devices()
        for batch in BATCHES
        for case in network_cases(op, batch)
        for backend in (*backends_on(op, device), "torch")
    ]


def time_op(benchmark: Callable[..., Any], case: OpCase, backend: str, device: str = "cpu") -> None:
    """Compare the op with the float64 reference, then time it; a wrong one fails without a time.

    Args:
        benchmark: pytest-benchmark's fixture; its `extra_info` tells what the time means.
        case: the call, fp32 and channels_last.
        backend: a row of the op's backend table; skipped where it refuses the call.
        device: of the tensors; a call on the GPU is timed with the wait for its end.
    """
    function = getattr(fastdw.ops, case.op)
    truth = device_truth(case, "fp32", torch.device(device))
    tensors = truth.tensors

    def call() -> Tensor:
        y = case.call(function, tensors, backend=backend)
        if device == "cuda":
            torch.cuda.synchronize()
        return y

    with torch.no_grad(), products_in("fp32"):
        try:
            output = call()
        except (BackendRefused, ImportError) as refusal:
            pytest.skip(str(refusal))
        everything = torch.arange(case.x[0], device=device)
        error = error_over_budget(output, truth.of_images(everything))
        assert error <= 1, f"{case.label}: error {error:.3g} times what is allowed: not timed"
        benchmark(call)
    describe(benchmark, case, backend, device)


def describe(benchmark: Any, case: OpCase, backend: str, device: str) -> None:
    """Put GFLOP/s and, on the CPU, the share of the peak beside the time."""
    info: dict[str, Any] = benchmark.extra_info
    info |= {"op": case.op, "case": case.label, "batch": case.x[0], "backend": backend}
    info["device"] = device
    info |= {"threads": torch.get_num_threads(), "multiply_adds": multiply_adds(case)}
    if benchmark.stats is None:  # --benchmark-disable
        return
    info["gflops"] = 2e-9 * info["multiply_adds"] / benchmark.stats.stats.median
    if device != "cpu":
        return
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
