"""Each op x backend x ISA x dtype against the float64 reference, on the machine at hand.

An output passes where each element is within the error budget (`fastdw.benchmark.error_budget`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import fastdw.ops
from fastdw import native, reference
from fastdw.backends import BackendRefused, support_table
from fastdw.benchmark.cases import OP_CASES, OpCase, OpTensors
from fastdw.benchmark.error_budget import budget

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}


@dataclass(frozen=True)
class Verdict:
    """The worst case of one op on one backend, ISA and dtype."""

    op: str
    backend: str
    isa: str  # "-" where the backend has none
    dtype: str
    status: str  # ok, over, failed, refused
    worst: float | None = None  # largest error over its budget; above 1 is wrong
    worst_case: str | None = None
    cases: int = 0
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Truth:
    """Operands in one dtype, the float64 result on them, and what it may be off by."""

    tensors: OpTensors
    result: Tensor
    budget: Tensor


def truth_of(case: OpCase, dtype: torch.dtype) -> Truth:
    tensors = case.tensors(dtype)
    op = getattr(reference, case.op)
    result = case.call(op, tensors.map(Tensor.double))
    magnitude = case.call(op, tensors.map(lambda t: t.double().abs(), activation="none"))
    allowed = budget(result, magnitude, case.sum_length(), dtype)
    return Truth(tensors, result, allowed)


def error_over_budget(out: Tensor, truth: Truth) -> float:
    """The largest element of error / budget; infinite where out is NaN or has another shape."""
    if out.shape != truth.result.shape or out.dtype != truth.tensors.x.dtype:
        return math.inf
    error = (out.double() - truth.result).abs()
    ratio = torch.where(error == 0, 0.0, error / truth.budget)
    return ratio.nan_to_num(nan=math.inf).max().item() if ratio.numel() else 0.0


def verify(on_op: Callable[[str], object] = lambda op: None) -> Iterator[Verdict]:
    """Check everything that this machine can run; yields verdicts as they come.

    Args:
        on_op: told each op before it is checked.
    """
    for op, cases in OP_CASES.items():
        on_op(op)
        backends = dict.fromkeys(row["backend"] for row in support_table() if row["op"] == op)
        for dtype_name, dtype in DTYPES.items():
            truths = [truth_of(case, dtype) for case in cases]
            for backend in backends:
                for isa in isas(backend):
                    yield check(op, backend, isa, dtype_name, truths)


def isas(backend: str) -> list[str]:
    """The instruction sets to check: those of the C++ kernels that this processor has."""
    if backend != "cpp":
        return ["-"]
    try:
        native.load()
    except ImportError:
        return ["-"]
    return native.supported_isas()


def check(op: str, backend: str, isa: str, dtype: str, truths: list[Truth]) -> Verdict:
    """Run the op's cases on one backend and ISA; the worst of them is the verdict."""
    function = getattr(fastdw.ops, op)
    cases = OP_CASES[op]
    worst, worst_case = -1.0, None
    with nullcontext() if isa == "-" else native.force_isa(isa), torch.no_grad():
        for case, truth in zip(cases, truths, strict=True):
            try:
                out = case.call(function, truth.tensors, backend=backend)
            except BackendRefused as refusal:
                return Verdict(op, backend, isa, dtype, "refused", reason=str(refusal))
            except (RuntimeError, ValueError, TypeError, ImportError) as error:
                reason = f"{case.label}: {error}".splitlines()[0]
                return Verdict(op, backend, isa, dtype, "failed", reason=reason)
            ratio = error_over_budget(out, truth)
            if ratio > worst:
                worst, worst_case = ratio, case.label
    where, count = (op, backend, isa, dtype), len(cases)
    if math.isinf(worst):
        reason = f"{worst_case}: NaN, or another shape or dtype"
        return Verdict(*where, "over", None, worst_case, count, reason)
    return Verdict(*where, "ok" if worst <= 1 else "over", worst, worst_case, count)
