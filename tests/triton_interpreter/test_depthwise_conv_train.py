"""Gradients of the depthwise convolution on Triton against those of float64, in the interpreter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import guarded_memory
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from op_checks import random_windows
from shapes import AWKWARD_CHANNELS, LAYOUTS, Case, arguments, ids
from tolerances import assert_correct
from torch import Tensor

from fastdw import ops, reference
from fastdw.geometry import normalize_padding, normalize_pair, resolve_padding
from fastdw.ops import depthwise_conv_train, triton_backend
from fastdw.triton_kernels import launch, tiles
from fastdw.triton_kernels.depthwise_conv_weight_grad import SUM, plan_sum
from fastdw.triton_kernels.tiles import tile
from triton_interpreter.interpreted_checks import DTYPES

OP = "depthwise_conv"
ODD_TILES = {
    "depthwise_conv_input_grad": tile(1, 1, ROWS=3, BLOCK_GROUPS=8, BLOCK_CHANNELS=16),
    "depthwise_conv_weight_grad": tile(1, 1, ROWS=3, COLUMNS=2, BLOCK_GROUPS=8, BLOCK_CHANNELS=16),
}
LARGE_TILES = {  # few programs: the interpreter's time goes by them
    "depthwise_conv_input_grad": tile(4, 1, ROWS=4, BLOCK_GROUPS=64, BLOCK_CHANNELS=64),
    "depthwise_conv_weight_grad": tile(4, 1, ROWS=4, COLUMNS=3, BLOCK_GROUPS=64, BLOCK_CHANNELS=64),
}
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(OP, channels=c, height=5, width=9) for c in AWKWARD_CHANNELS),
    *(Case(OP, channels=c, stride=2, height=9, width=7) for c in (1, 16, 33)),
    *(Case(OP, channels=17, stride=2, layout=layout) for layout in LAYOUTS[1:]),
    *(
        Case(OP, channels=9, kernel=kernel, padding="same", height=11, width=10, stride=stride)
        for kernel in ((1, 1), (2, 2), (5, 5), (7, 7), (3, 5), (8, 2))
        for stride in (1, 2)
    ),
    *(Case(OP, channels=c, multiplier=m, stride=s) for c, m, s in ((5, 3, 1), (16, 2, 2))),
    Case(OP, kernel=(8, 2), dilation=(2, 3), stride=(1, 2), padding=7),
    *(Case(OP, channels=9, dilation=d, padding=p) for d, p in ((2, 2), ((1, 3), (1, 3)))),
    *(Case(OP, stride=2, dilation=d, padding=p, height=9) for d, p in ((2, 2), (3, (0, 2, 3, 1)))),
    *(Case(OP, channels=9, padding=p) for p in (0, (0, 2, 1, 3), (5, 0, 0, 4))),
    *(Case(OP, stride=s, padding="keras_v1", height=9, width=8) for s in (1, 2)),
    *(Case(OP, stride=s, height=11, width=11) for s in ((1, 2), (2, 1), (3, 1), 4)),
    *(Case(OP, channels=20, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1))),
    Case(OP, batch=0),
    Case(OP, batch=5, channels=3),
]


def geometry_of(case: Case) -> tuple[list[int], list[int], list[int]]:
    """Return stride, padding and dilation in schema form, the padding as four sides."""
    stride = list(normalize_pair(case.stride, "stride"))
    dilation = list(normalize_pair(case.dilation, "dilation"))
    padding = normalize_padding(case.padding, case.kernel, stride, dilation)
    size = (case.height, case.width)
    return stride, list(resolve_padding(padding, case.kernel, stride, dilation, size)), dilation


def gradients(grad: Tensor, x: Tensor, weight: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
    """The gradients by x and weight of torch's own convolution."""
    stride, sides, dilation = geometry
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = F.conv2d(F.pad(x, sides), weight, None, stride, 0, dilation, x.shape[1])
    y.backward(grad)
    assert x.grad is not None and weight.grad is not None
    return x.grad, weight.grad


def tensors_of(
    case: Case, dtypes: Sequence[torch.dtype] = (torch.float32,) * 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (grad, x, weight) of a case in these dtypes."""
    (x, weight, *_), _ = arguments(case, dtype=torch.float32)
    stride, sides, dilation = geometry_of(case)
    shape = F.conv2d(F.pad(x, sides), weight, None, stride, 0, dilation, x.shape[1]).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return tuple(t.to(d) for t, d in zip((grad, x, weight), dtypes, strict=True))


def check(
    case: Case, dtypes: Sequence[torch.dtype] = (torch.float32,) * 3, multiprocessors: int = 108
) -> None:
    """Assert that both gradients are correct. ``dtypes``: of grad, x and weight."""
    grad, x, weight = tensors_of(case, dtypes)
    geometry = geometry_of(case)
    wide = [tensor.double() for tensor in (grad, x, weight)]
    truths = gradients(*wide, geometry)
    magnitudes = gradients(*(tensor.abs() for tensor in wide), geometry)
    x_grad = torch.full(x.shape, torch.nan, dtype=x.dtype).to(memory_format=torch.channels_last)
    weight_grad = torch.full(weight.shape, torch.nan)
    target = launch.Target("interpreter", multiprocessors)
    launch.run(triton_backend.plan_input_grad(target, x_grad, grad, weight, *geometry))
    if case.batch:
        launch.run(triton_backend.plan_weight_grad(target, weight_grad, grad, x, *geometry))
    else:
        weight_grad.zero_()
    terms = (math.prod(case.kernel) * case.multiplier, max(1, grad.numel() // grad.shape[1]))
    assert_correct(x_grad, truths[0], magnitudes[0], terms[0] + 1)
    assert_correct(weight_grad, truths[1], magnitudes[1], terms[1] + 1)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case: Case) -> None:
    with tiles.forced(LARGE_TILES):
        check(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes_of_the_networks(dtype: torch.dtype) -> None:
    for case in (
        Case(OP, channels=32, height=16, width=16),
        Case(OP, channels=96, height=15, width=15, stride=2, batch=1),
        Case(OP, channels=144, height=7, width=7, batch=1),
    ):
        check(case, (dtype,) * 3)  # with the tiles that are shipped


def test_dtypes_may_differ() -> None:
    fp32, fp16, bf16 = DTYPES
    case = Case(OP, channels=17, stride=2)
    check(case, (fp32, fp16, bf16))
    check(replace(case, stride=1), (bf16, fp32, fp32))


@pytest.mark.parametrize(
    "case",
    [
        Case(OP, channels=33, height=9, width=5),
        Case(OP, channels=17, height=9, width=7, stride=2, kernel=(5, 5), padding="same"),
        Case(OP, channels=5, height=8, multiplier=3, stride=(3, 1), dilation=(1, 2)),
    ],
    ids=ids,
)
def test_any_tile_will_do(case: Case) -> None:
    with tiles.forced(ODD_TILES):
        check(case)


def test_chunks_of_many_blocks() -> None:
    """As on a large tensor: every program goes through several blocks of pixels."""
    small = tile(2, 1, ROWS=2, COLUMNS=3, BLOCK_GROUPS=16, BLOCK_CHANNELS=16)
    for case in (Case(OP, channels=9, height=14, width=13), Case(OP, kernel=(8, 1), padding=4)):
        with tiles.forced({"depthwise_conv_weight_grad": small}):
            check(case, multiprocessors=1)


@settings(max_examples=8)
@given(case=random_windows(OP))
def test_random_shapes(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("height", [7, 8])
def test_inf_reaches_its_taps_only(height: int) -> None:
    """Rows of grad that do not exist multiply no inf of x, where that would be NaN."""
    grad, x, weight = tensors_of(Case(OP, channels=4, height=height))
    for row in (0, height // 2, height - 1):
        x[0, row % 4, row, 2] = torch.inf
    geometry = [[1, 1], [1, 1, 1, 1], [1, 1]]
    _, truth = gradients(grad.double(), x.double(), weight.double(), geometry)
    _, magnitude = gradients(
        *(tensor.double().abs().nan_to_num(100.0, 100.0) for tensor in (grad, x, weight)), geometry
    )
    weight_grad = depthwise_conv_train.weight_grad(grad, x, list(weight.shape), geometry)
    assert_correct(weight_grad, truth, magnitude, grad.numel())


@pytest.mark.parametrize("stride", [1, 2])
def test_the_op_uses_them(stride: int) -> None:
    """The registered gradient on the Triton backend, epilogue and all, against the reference's."""
    case = Case(OP, channels=11, stride=stride, activation="silu", epilogue=True)
    args, kwargs = arguments(case)
    leaves = [t.detach().requires_grad_() for t in args]
    y = ops.depthwise_conv(*leaves, **kwargs, backend="triton")
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    y.backward(grad)
    wide = [t.detach().double().requires_grad_() for t in args]
    reference.depthwise_conv(*wide, **kwargs).backward(grad.double())
    for leaf, truth in zip(leaves, wide, strict=True):
        torch.testing.assert_close(leaf.grad.double(), truth.grad, rtol=1e-4, atol=1e-4)


def test_repeats_are_bit_identical() -> None:
    grad, x, weight = tensors_of(Case(OP, channels=33, height=12, width=11))
    geometry = [[1, 1], [1, 1, 1, 1], [1, 1]]
    first = depthwise_conv_train.weight_grad(grad, x, list(weight.shape), geometry)
    again = depthwise_conv_train.weight_grad(grad, x, list(weight.shape), geometry)
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "case",
    [
        *(Case(OP, channels=c, height=5, width=4) for c in (1, 8, 17)),
        Case(OP, channels=9, kernel=(5, 5), padding=2, stride=2),
        Case(OP, channels=7, kernel=(8, 1), padding=4),
        Case(OP, channels=5, multiplier=3, dilation=2, padding=2),
    ],
    ids=ids,
)
def test_touches_nothing_outside(case: Case) -> None:
    """A read or write beyond a buffer ends the process."""
    geometry = geometry_of(case)
    grad, x, weight = tensors_of(case)
    grad, x = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x))
    for at_end in (False, True):
        with guarded_memory.Arena() as arena:
            held = [arena.copy(t, at_end) for t in (grad, x, weight, x, weight)]
            triton_backend.run_input_grad(held[3], held[0], held[2], *geometry)
            triton_backend.run_weight_grad(held[4], held[0], held[1], *geometry)
            assert held[3].isfinite().all() and held[4].isfinite().all()
            del held


def test_indices_beyond_31_bits() -> None:
    """The path of more groups than 31 bits can count, on small tensors."""
    for stride, kernel in ((1, (3, 3)), (2, (3, 3)), (2, (8, 1))):
        case = Case(OP, channels=9, stride=stride, kernel=kernel, padding="same")
        grad, x, weight = tensors_of(case)
        geometry = geometry_of(case)
        target = launch.Target("interpreter")
        x_grad = torch.full_like(x, torch.nan).to(memory_format=torch.channels_last)
        weight_grad = torch.full_like(weight, torch.nan)
        planned = [
            *triton_backend.plan_input_grad(target, x_grad, grad, weight, *geometry),
            *triton_backend.plan_weight_grad(target, weight_grad, grad, x, *geometry),
        ]
        for one in planned:
            wide = {"WIDE": True} if "WIDE" in one.arguments else {}
            launch.run([replace(one, arguments={**one.arguments, **wide})])
        truths = gradients(grad, x, weight, geometry)
        torch.testing.assert_close(x_grad, truths[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(weight_grad, truths[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "chunks", [1, SUM.sizes["BLOCK_CHUNKS"], 2 * SUM.sizes["BLOCK_CHUNKS"] + 1]
)
def test_the_sum_of_many_chunks(chunks: int) -> None:
    """More than the images of the other tests are cut into."""
    elements = SUM.sizes["BLOCK_ELEMENTS"] + 5
    partial = torch.randn(chunks, elements, generator=torch.Generator().manual_seed(0))
    total = torch.full((elements,), torch.nan)
    launch.run([plan_sum(partial, total, chunks, elements)])
    torch.testing.assert_close(total, partial.double().sum(0).float(), rtol=1e-5, atol=1e-5)
