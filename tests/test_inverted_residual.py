"""inverted_residual against the float64 reference, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from memory_peak import peak_growth_bytes
from op_checks import (
    check_case,
    check_case_on_every_isa,
    check_guarded,
    check_repeats,
    random_windows,
)
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, arguments, ids, run

from fastdw import ops

OP = "inverted_residual"
BLOCK = Case(OP, channels=8, channels_out=8, hidden=24)
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(replace(BLOCK, channels=c, channels_out=c, residual=True) for c in AWKWARD_CHANNELS),
    *(replace(BLOCK, hidden=h) for h in AWKWARD_CHANNELS),
    *(replace(BLOCK, hidden=None, channels=c) for c in AWKWARD_CHANNELS),
    *(replace(BLOCK, channels_out=c, stride=2, hidden=40) for c in (1, 7, 16, 33)),
    *(replace(BLOCK, layout=layout, residual=True) for layout in LAYOUTS),
    *(
        replace(BLOCK, kernel=kernel, padding="same", height=11, width=10, stride=stride)
        for kernel in ((1, 1), (2, 2), (4, 4), (5, 5), (7, 7), (3, 5))
        for stride in (1, 2)
    ),
    *(replace(BLOCK, activation=a, residual=True) for a in ("none", "relu", "hardswish", "silu")),
    *(replace(BLOCK, dilation=d, padding=d, residual=True) for d in (2, (1, 3))),
    *(replace(BLOCK, padding=p) for p in (0, "keras_v1", (0, 2, 1, 3))),
    *(replace(BLOCK, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (12, 40))),
    replace(BLOCK, epilogue=False, activation="none"),
    replace(BLOCK, batch=0, residual=True),
    replace(BLOCK, batch=5),
]

# Too much hidden data for one band of rows (kernels/cpu/blocking.h): bands share rows in a ring.
TALL = replace(BLOCK, hidden=72, height=61, width=60)
SEVERAL_BANDS = [
    replace(TALL, residual=True),
    replace(TALL, stride=2, padding="keras_v1"),
    replace(TALL, stride=3, kernel=(2, 2), height=121),  # rows of x that no output sees
    *(replace(TALL, kernel=(5, 5), padding=2, stride=stride) for stride in (1, 2)),
    replace(TALL, dilation=2, padding=2, residual=True),
    replace(TALL, padding=(0, 3, 30, 40)),  # whole bands above and below the image
    replace(BLOCK, hidden=100, height=9, width=300, residual=True),  # bands of one row
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_layout(case: Case, isa: str) -> None:
    check_case(case)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("case", SEVERAL_BANDS, ids=ids)
def test_several_bands(case: Case, count: int, threads: Callable[[int], None], isa: str) -> None:
    threads(count)
    check_case(case)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu"])
def test_data(activation: str, kind: str, isa: str) -> None:
    check_case(replace(BLOCK, activation=activation, residual=True), kind)
    check_case(replace(BLOCK, activation=activation, hidden=None, stride=2), kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, isa: str) -> None:
    check_case(replace(BLOCK, residual=True), dtype=dtype)
    check_case(replace(BLOCK, hidden=None, stride=2), dtype=dtype)


@settings(max_examples=60)
@given(case=random_windows(OP))
def test_random_shapes(case: Case) -> None:
    check_case_on_every_isa(case)


def test_repeats_are_bit_identical(isa: str) -> None:
    check_repeats(replace(BLOCK, hidden=100, height=30, width=31, residual=True))


@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
@pytest.mark.parametrize(
    "case",
    [
        *(replace(BLOCK, channels=c, channels_out=c, residual=True) for c in AWKWARD_CHANNELS),
        *(replace(BLOCK, hidden=h, stride=2) for h in (1, 7, 17, 33)),
        *(replace(BLOCK, layout=layout) for layout in LAYOUTS[:2]),
        *(replace(BLOCK, kernel=(k, k), padding=k // 2) for k in (1, 2, 5)),
        replace(BLOCK, dilation=2, padding=2),
        replace(BLOCK, hidden=None, channels=3, height=1, width=1),
    ],
    ids=ids,
)
def test_reads_nothing_outside(case: Case, at_end: bool, isa: str) -> None:
    check_guarded(case, at_end)


@pytest.mark.parametrize("stride", [1, 2])
def test_hidden_tensor_is_never_stored_whole(stride: int, isa: str) -> None:
    """The hidden tensor has ten times the bytes that the call may add."""
    case = replace(BLOCK, channels=4, channels_out=1, hidden=96, height=400, width=400, batch=1)
    case = replace(case, stride=stride)
    hidden_bytes = 4 * 96 * 400 * 400
    args, kwargs = arguments(case)
    values: list[torch.Tensor] = []
    stock_bytes = peak_growth_bytes(lambda: values.append(run(case, args, kwargs, "torch")))
    our_bytes = peak_growth_bytes(lambda: values.append(run(case, args, kwargs)))
    assert our_bytes < hidden_bytes // 10 < hidden_bytes < stock_bytes
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-3)


def test_residual_auto_means_that_the_block_keeps_the_shape() -> None:
    (x, *convs), _ = arguments(BLOCK)
    for settings_, adds in (
        ({}, True),
        ({"stride": 2}, False),
        ({"padding": 0}, False),
        ({"padding": "same"}, True),
        ({"padding": 2, "dilation": 2}, True),
        ({"padding": 2}, False),
    ):
        y = ops.inverted_residual(x, *convs, **settings_)
        assert torch.equal(y, ops.inverted_residual(x, *convs, residual=adds, **settings_))
    narrow = (convs[2][0][:7], None, None, "none")
    y = ops.inverted_residual(x, *convs[:2], narrow)
    assert torch.equal(y, ops.inverted_residual(x, *convs[:2], narrow, residual=False))


def _conv(*shape: int) -> tuple:
    return torch.ones(shape), torch.ones(shape[0]), None, "relu6"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"expand": _conv(24, 7, 1, 1)}, ValueError, "expand_weight: expected .*, 8, 1, 1"),
        ({"expand": _conv(23, 8, 1, 1)}, ValueError, "depthwise_weight: expected .23, 1, 3, 3"),
        ({"depthwise": _conv(24, 24, 3, 3)}, ValueError, "depthwise_weight: .*not a depthwise"),
        ({"project": _conv(8, 23, 1, 1)}, ValueError, "project_weight: expected .*, 24, 1, 1"),
        ({"project": None}, TypeError, "project"),
        ({"depthwise": None}, TypeError, "depthwise"),
        ({"expand": (*_conv(24, 8, 1, 1)[:3], "tanh")}, ValueError, "expand_activation: .*tanh"),
        ({"x": torch.ones(8, 5, 5)}, ValueError, "x: expected .batch, channels"),
        ({"x": None}, TypeError, "x: expected a torch.Tensor, got NoneType"),
        ({"residual": True, "stride": 2}, ValueError, "residual: .*shape"),
        ({"residual": True, "project": _conv(7, 24, 1, 1)}, ValueError, "residual: .*shape"),
        ({"stride": -2}, ValueError, "stride"),
    ],
)
def test_bad_input_names_the_argument(changes: dict, error: type, message: str) -> None:
    good = {
        "x": torch.ones(2, 8, 5, 5),
        "expand": _conv(24, 8, 1, 1),
        "depthwise": _conv(24, 1, 3, 3),
        "project": _conv(8, 24, 1, 1),
    }
    with pytest.raises(error, match=message):
        ops.inverted_residual(**{**good, **changes})
