"""What the Triton kernels would launch for a call, found without a GPU and without data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdw.ops
from fastdw.benchmark.cases import OpCase, OpTensors
from fastdw.benchmark.network_cases import network_cases
from fastdw.ops import triton_backend
from fastdw.ops.registration import OPS

GRADIENTS = ("depthwise_conv_input_grad", "depthwise_conv_weight_grad")
Launch = tuple[str, str, Any]
"""(op or gradient, label of the case, ``KernelLaunch``)."""


class _Recorder(TorchDispatchMode):
    """Keeps the arguments of the calls of fastdw's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "fastdw":
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


def meta_tensors(case: OpCase, dtype: torch.dtype) -> OpTensors:
    """The operands of a case without values."""

    def empty(shape: Sequence[int], kind: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=kind, device="meta")

    def conv(shape: Sequence[int], activation: str) -> tuple[Tensor, Tensor, Tensor, str]:
        per_channel = empty(shape[:1], torch.float32)
        return empty(shape, dtype), per_channel, per_channel, activation

    x = empty(case.x, dtype).to(memory_format=torch.channels_last)
    return OpTensors(x, tuple(spec and conv(*spec) for spec in case.convs))


def schema_arguments(case: OpCase, dtype: torch.dtype) -> tuple[Any, ...]:
    """The arguments of ``torch.ops.fastdw.<op>`` for a case, on meta tensors."""
    with _Recorder() as recorder:
        case.call(getattr(fastdw.ops, case.op), meta_tensors(case, dtype), backend="cpp")
    [arguments] = recorder.calls
    return arguments


def launches(case: OpCase, dtype: torch.dtype, target: Any) -> list[Any]:
    """What a forward call launches on ``target``."""
    x, *rest = schema_arguments(case, dtype)
    y = OPS[case.op].fake(x, *rest)
    return triton_backend.plan(case.op, target, y, x, *rest)


def gradient_launches(case: OpCase, dtype: torch.dtype, target: Any) -> dict[str, list[Any]]:
    """What the gradients of a depthwise convolution launch on ``target``."""
    x, weight, scale, bias, *geometry, _ = schema_arguments(case, dtype)
    grad = OPS[case.op].fake(x, weight, scale, bias, *geometry, "none")
    weight_grad = torch.empty(weight.shape, dtype=torch.float32, device="meta")
    planned = (
        triton_backend.plan_input_grad(target, torch.empty_like(x), grad, weight, *geometry),
        triton_backend.plan_weight_grad(target, weight_grad, grad, x, *geometry),
    )
    return dict(zip(GRADIENTS, planned, strict=True))


def network_launches(
    dtype: torch.dtype, target: Any, batches: Sequence[int] = (1, 32)
) -> Iterator[Launch]:
    """Every launch of every layer of MobileNet V1 and V2, gradients included."""
    for op in OPS:
        for batch in batches:
            for case in network_cases(op, batch):
                label = f"{case.label}, batch {batch}"
                yield from ((op, label, launch) for launch in launches(case, dtype, target))
                if op == "depthwise_conv":
                    for name, planned in gradient_launches(case, dtype, target).items():
                        yield from ((name, label, launch) for launch in planned)
