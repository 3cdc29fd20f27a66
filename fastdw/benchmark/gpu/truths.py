"""What an op must give on a device: the float64 result, and how far each element may be off.

The budget of `fastdw.benchmark.error_budget` is for one rounding at the end. The kernels of the
GPU round more often: hidden values of a block are kept in the dtype, as eager torch keeps them, and
tf32 rounds both operands of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from fastdw import reference
from fastdw.backends import ROWS, BackendRow
from fastdw.benchmark.cases import OpCase, OpTensors
from fastdw.benchmark.error_budget import budget
from fastdw.benchmark.gpu.device import cuda_reason
from fastdw.benchmark.gpu.settings import DTYPES, TF32_EPS
from fastdw.benchmark.verify import Truth
from fastdw.ops import triton_backend


@dataclass(frozen=True)
class DeviceTruth:
    """Operands on the device, the float64 result on them, and what it may be off by."""

    tensors: OpTensors
    result: Tensor
    allowed: Tensor

    def of_images(self, index: Tensor) -> Truth:
        """The truth of a batch that holds these images."""
        return Truth(self.tensors, self.result[index], self.allowed[index])


def device_truth(case: OpCase, precision: str, device: torch.device) -> DeviceTruth:
    """The truth is computed on the CPU, whatever the device."""
    dtype, op = DTYPES[precision], getattr(reference, case.op)
    tensors = case.tensors(dtype)
    result = case.call(op, tensors.map(Tensor.double))
    magnitude = case.call(op, tensors.map(lambda t: t.double().abs(), activation="none"))
    allowed = budget(result, magnitude, case.sum_length(), dtype)
    if precision == "tf32":
        allowed += dense_convs(case) * TF32_EPS * magnitude  # both operands, half an eps each
    if case.op in ("separable_block", "inverted_residual"):
        allowed += hidden_rounding(case, tensors, torch.finfo(dtype).eps)
    moved = tensors.map(lambda tensor: tensor.to(device))
    return DeviceTruth(moved, result.to(device), allowed.to(device))


def hidden_rounding(case: OpCase, tensors: OpTensors, eps: float) -> Tensor:
    """Six standard deviations of what rounding the hidden values of a block does to its result.

    A rounding is off by up to ``eps / 2`` of the value, uniformly; the variances go through the
    convolutions with squared weights.
    """
    wide = tensors.map(Tensor.double)
    window = {name: case.options[name] for name in ("stride", "padding")}
    x, variance = wide.x, torch.zeros_like(wide.x)
    convs = [conv for conv in wide.convs if conv is not None]
    for number, (weight, scale, bias, activation) in enumerate(convs):
        is_dense = weight.shape[2:] == (1, 1)
        op: Callable[..., Tensor] = reference.pointwise_conv
        if not is_dense:
            op = partial(reference.depthwise_conv, **window)
        x = op(x, weight, scale, bias, activation=activation)
        variance = op(variance, weight**2, None if scale is None else scale**2)
        if number < len(convs) - 1:
            variance = variance + (x * eps / 2) ** 2 / 3
    return 6 * variance.sqrt()


def dense_convs(case: OpCase) -> int:
    """The convolutions and linear layers whose products may be of tf32."""
    shapes = [conv[0] for conv in case.convs if conv is not None]
    return sum(shape[1] > 1 or prod(shape[1:]) == 1 for shape in shapes)


def backends_on(op: str, device: str) -> list[str]:
    """The backends with kernels of their own that can be called on a device, best first."""
    return [row.backend for row in ROWS[op] if _absence(row, device) is None]


def absences(op: str, device: str) -> str:
    """Why other backends than the reference cannot be called, a clause each."""
    reasons = ((row.backend, _absence(row, device)) for row in ROWS[op] if row.backend != "torch")
    return "; ".join(f"{backend}: {reason}" for backend, reason in reasons if reason)


def _absence(row: BackendRow, device: str) -> str | None:
    if row.backend == "torch":
        return "the reference"
    if row.devices and device not in row.devices:
        return f"no row for {device}"
    if row.backend == "triton":
        return triton_backend.reason(device)
    return cuda_reason() if (row.backend, device) == ("cpp", "cuda") else None
