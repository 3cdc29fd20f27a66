"""What the Triton kernels would launch for a call, found without a GPU and without data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdw.ops
from fastdw.benchmark.cases import OpCase, OpTensors, dense, depthwise
from fastdw.benchmark.network_cases import network_cases
from fastdw.ops import triton_backend
from fastdw.ops.registration import OPS, VARIANTS
from fastdw.triton_kernels import tiles

GRADIENTS = ("depthwise_conv_input_grad", "depthwise_conv_weight_grad")


class Launch(NamedTuple):
    """One kernel of a call."""

    op: str  # or gradient
    case: str
    rows: tuple[tiles.Key, ...]  # of the table of tiles
    launch: Any  # ``KernelLaunch``


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
    residual = None
    if case.residual and case.convs[-1]:
        residual = empty((case.x[0], case.convs[-1][0][0], *case.x[2:]), dtype)
    return OpTensors(x, tuple(spec and conv(*spec) for spec in case.convs), residual)


def schema_arguments(case: OpCase, dtype: torch.dtype) -> tuple[Any, ...]:
    """The arguments of ``torch.ops.fastdw.<op>`` for a case, on meta tensors."""
    with _Recorder() as recorder:
        case.call(getattr(fastdw.ops, case.op), meta_tensors(case, dtype), backend="cpp")
    [arguments] = recorder.calls
    return arguments


def launches(case: OpCase, dtype: torch.dtype, target: Any, planes: bool = False) -> list[Any]:
    """What a forward call launches on ``target``; ``planes``: on an NCHW image."""
    x, *rest = schema_arguments(case, dtype)
    y = OPS[case.op].fake(x, *rest)
    return triton_backend.plan(case.op, target, y, x.contiguous() if planes else x, *rest)


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


def all_launches(case: OpCase, dtype: torch.dtype, target: Any, label: str) -> Iterator[Launch]:
    """Yield what a call and, for a depthwise convolution, its gradients launch."""
    planned: dict[str, list[Any]] = {}
    with tiles.recorded() as chosen:
        planned[case.op] = launches(case, dtype, target)
        if case.op == "stem_conv":
            planned[case.op] += launches(case, dtype, target, planes=True)
    rows = {case.op: tuple(chosen)}
    if case.op == "depthwise_conv":
        with tiles.recorded() as chosen:
            planned |= gradient_launches(case, dtype, target)
        rows |= {name: tuple(key for key in chosen if key[0] == name) for name in GRADIENTS}
    for op, of_op in planned.items():
        yield from (Launch(op, label, rows[op], launch) for launch in of_op)


def _window(kernel: int, stride: int, batch: int, size: int) -> OpCase:
    options = {"stride": stride, "padding": kernel // 2}
    label = f"{kernel}x{kernel}, stride {stride}, {size}x{size}, batch {batch}"
    return OpCase(
        "depthwise_conv", label, (batch, 96, size, size), (depthwise(96, kernel),), options
    )


def pooled_launches(dtype: torch.dtype, target: Any) -> Iterator[Launch]:
    """Yield what depthwise convolutions before squeeze-excites launch, one of each kind."""
    op = "depthwise_conv_pooled"
    for kernel, stride, batch in ((3, 1, 1), (3, 2, 32), (5, 1, 32), (5, 2, 1), (9, 1, 1)):
        case = _window(kernel, stride, batch, 28)
        x, *rest = schema_arguments(case, dtype)
        y, means = VARIANTS[op].fake(x, *rest)
        with tiles.recorded() as chosen:
            planned = triton_backend.plan(op, target, y, x, *rest, means)
        yield from (Launch(op, case.label, tuple(chosen), launch) for launch in planned)


def other_cases() -> Iterator[OpCase]:
    """Yield layers whose tiles or kernels MobileNet V1 and V2 at 224x224 do not need."""
    for kernel, stride in ((5, 1), (5, 2), (7, 1), (7, 2), (9, 1), (9, 2)):
        yield _window(kernel, stride, 1, 14)
        yield _window(kernel, stride, 32, 56)
    convs = dense(576, 96, "relu6"), depthwise(576), dense(128, 576)
    for batch in (1, 32):
        label, options = f"96 to 128, stride 2, batch {batch}", {"stride": 2, "padding": 1}
        yield OpCase("inverted_residual", label, (batch, 96, 28, 28), convs, options)
    for size, hidden, out in ((56, 144, 24), (14, 384, 64), (14, 576, 96), (7, 960, 160)):
        for batch in (1, 32):  # what ends a block whose convolutions are a kernel each
            label = f"{size}x{size}, {hidden} to {out}, residual, batch {batch}"
            x, project = (batch, hidden, size, size), (dense(out, hidden),)
            yield OpCase("pointwise_conv", label, x, project, residual=True)
    linear = (((1000, 1280), "none"),)
    yield OpCase("classifier_head", "batch 128", (128, 1280, 7, 7), linear)


def network_launches(
    dtype: torch.dtype, target: Any, batches: Sequence[int] = (1, 32)
) -> Iterator[Launch]:
    """Every launch of every layer of MobileNet V1 and V2, of ``other_cases``, and with sums."""
    cases = [
        (f"{case.label}, batch {batch}", case)
        for op in OPS
        for batch in batches
        for case in network_cases(op, batch)
    ]
    for label, case in (*cases, *((case.label, case) for case in other_cases())):
        yield from all_launches(case, dtype, target, label)
    yield from pooled_launches(dtype, target)
