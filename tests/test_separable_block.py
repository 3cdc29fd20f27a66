"""separable_block against the float64 reference, on every instruction set."""

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
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, arguments, ids, run, truth_of
from tolerances import assert_correct

from fastdw import ops

OP = "separable_block"
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(OP, channels=c, channels_out=c) for c in AWKWARD_CHANNELS),
    *(Case(OP, channels=c, channels_out=50 - c, stride=2) for c in (1, 7, 16, 33)),
    *(Case(OP, channels=17, channels_out=9, layout=layout) for layout in LAYOUTS),
    *(
        Case(OP, kernel=kernel, padding="same", height=11, width=10, stride=stride)
        for kernel in ((1, 1), (2, 2), (4, 4), (5, 5), (7, 7), (3, 5))
        for stride in (1, 2)
    ),
    *(Case(OP, activation=a) for a in ("none", "relu", "hardswish", "silu")),
    *(Case(OP, channels=9, dilation=d, padding=d) for d in (2, (1, 3))),
    *(Case(OP, channels=9, padding=p) for p in (0, "keras_v1", (0, 2, 1, 3))),
    *(Case(OP, channels=20, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (12, 40))),
    Case(OP, epilogue=False, activation="none"),
    Case(OP, batch=0),
    Case(OP, batch=5, channels=3),
]

# Too much filtered data for one band of rows (kernels/cpu/blocking.h).
TALL = Case(OP, channels=72, height=61, width=60)
SEVERAL_BANDS = [
    TALL,
    replace(TALL, stride=2, height=122, padding="keras_v1"),
    replace(TALL, kernel=(5, 5), dilation=2, padding=(0, 3, 30, 40)),
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
    check_case(Case(OP, channels=19, channels_out=21, activation=activation), kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, isa: str) -> None:
    check_case(Case(OP, channels=17, stride=2), dtype=dtype)


@settings(max_examples=60)
@given(case=random_windows(OP))
def test_random_shapes(case: Case) -> None:
    check_case_on_every_isa(case)


def test_repeats_are_bit_identical(isa: str) -> None:
    check_repeats(Case(OP, channels=33, channels_out=40, height=30, width=31))


@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
@pytest.mark.parametrize(
    "case",
    [
        *(Case(OP, channels=c, channels_out=c) for c in AWKWARD_CHANNELS),
        *(Case(OP, channels=17, stride=2, layout=layout) for layout in LAYOUTS[:2]),
        *(Case(OP, channels=7, kernel=(k, k), padding=k // 2) for k in (1, 2, 5)),
        Case(OP, channels=9, dilation=2, padding=2),
        Case(OP, channels=3, height=1, width=1),
    ],
    ids=ids,
)
def test_reads_nothing_outside(case: Case, at_end: bool, isa: str) -> None:
    check_guarded(case, at_end)


def test_hidden_tensor_is_never_stored_whole(isa: str) -> None:
    """The tensor between the two convolutions has ten times the bytes that the call may add."""
    case = Case(OP, channels=64, channels_out=1, height=500, width=500, batch=1)
    hidden_bytes = 4 * 64 * 500 * 500
    args, kwargs = arguments(case)
    values: list[torch.Tensor] = []
    stock_bytes = peak_growth_bytes(lambda: values.append(run(case, args, kwargs, "torch")))
    our_bytes = peak_growth_bytes(lambda: values.append(run(case, args, kwargs)))
    assert our_bytes < hidden_bytes // 10 < hidden_bytes < stock_bytes
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-3)


def test_a_depth_multiplier_runs_on_torch() -> None:
    case = Case(OP, channels=5, multiplier=2)
    args, kwargs = arguments(case)
    y = run(case, args, kwargs, "auto")
    assert_correct(y, *truth_of(case, args, kwargs), 2 * case.terms)
    with pytest.raises(ops.BackendRefused, match="depth multiplier"):
        run(case, args, kwargs, "cpp")


def _conv(*shape: int) -> tuple:
    return torch.ones(shape), torch.ones(shape[0]), None, "relu6"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"depthwise": _conv(8, 8, 3, 3)}, ValueError, "depthwise_weight: .*not a depthwise"),
        ({"pointwise": _conv(4, 7, 1, 1)}, ValueError, "pointwise_weight: expected .*, 8, 1, 1"),
        ({"pointwise": _conv(4, 8, 3, 3)}, ValueError, "pointwise_weight"),
        ({"pointwise": torch.ones(4, 8, 1, 1)}, TypeError, "pointwise: expected .weight, scale"),
        ({"depthwise": (*_conv(8, 1, 3, 3)[:3], "elu")}, ValueError, "depthwise_activation: .*elu"),
        ({"x": torch.ones(8, 5, 5)}, ValueError, "x: expected .batch, channels"),
        ({"x": None}, TypeError, "x: expected a torch.Tensor, got NoneType"),
        ({"stride": 0}, ValueError, "stride"),
        ({"padding": (1, 2, 3)}, ValueError, "padding"),
    ],
)
def test_bad_input_names_the_argument(changes: dict, error: type, message: str) -> None:
    good = {
        "x": torch.ones(2, 8, 5, 5),
        "depthwise": _conv(8, 1, 3, 3),
        "pointwise": _conv(4, 8, 1, 1),
    }
    with pytest.raises(error, match=message):
        ops.separable_block(**{**good, **changes})
