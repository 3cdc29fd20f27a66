"""depthwise_conv against the float64 reference, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from op_checks import (
    check_case,
    check_case_on_every_isa,
    check_guarded,
    check_repeats,
    random_windows,
)
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, ids

from fastdw import ops

OP = "depthwise_conv"
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(OP, channels=c, height=5, width=9) for c in AWKWARD_CHANNELS),
    *(Case(OP, channels=c, stride=2, height=9, width=7) for c in (1, 16, 33)),
    *(Case(OP, channels=17, layout=layout) for layout in LAYOUTS),
    *(
        Case(OP, channels=17, kernel=kernel, padding="same", height=11, width=10, stride=stride)
        for kernel in ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (7, 7), (3, 5))
        for stride in (1, 2)
    ),
    *(
        Case(OP, channels=16, kernel=kernel, padding=kernel[0] // 2, width=33, stride=stride)
        for kernel in ((3, 3), (5, 5), (7, 7))
        for stride in (1, 2)
    ),
    *(Case(OP, channels=8, activation=a) for a in ("none", "relu", "relu6", "hardswish", "silu")),
    *(Case(OP, channels=c, multiplier=m) for c in (1, 5, 16) for m in (2, 3)),
    *(Case(OP, channels=9, dilation=d, padding=p) for d, p in ((2, 2), ((1, 3), (1, 3)), (3, 3))),
    *(Case(OP, channels=9, padding=p) for p in (0, (0, 1), (0, 2, 1, 3), (5, 0, 0, 4))),
    *(Case(OP, stride=s, padding="keras_v1", height=9, width=8) for s in (1, 2)),
    *(Case(OP, stride=s, height=11, width=11) for s in ((1, 2), (3, 1), 4)),
    *(Case(OP, channels=20, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (2, 2))),
    Case(OP, epilogue=False, activation="none"),
    Case(OP, batch=0),
    Case(OP, batch=5, channels=3),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_layout(case: Case, isa: str) -> None:
    check_case(case)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu"])
def test_data(activation: str, kind: str, isa: str) -> None:
    for kernel, stride in (((3, 3), 1), ((5, 5), 2), ((2, 4), 1)):
        case = Case(OP, channels=19, height=11, width=9, kernel=kernel, stride=stride, padding=1)
        check_case(Case(**{**vars(case), "activation": activation}), kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, isa: str) -> None:
    check_case(Case(OP, channels=17, stride=2), dtype=dtype)
    check_case(Case(OP, channels=1, layout="contiguous"), dtype=dtype)


@settings(max_examples=60)
@given(case=random_windows(OP))
def test_random_shapes(case: Case) -> None:
    check_case_on_every_isa(case)


def test_repeats_are_bit_identical(isa: str) -> None:
    check_repeats(Case(OP, channels=33, height=30, width=31))


@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
@pytest.mark.parametrize(
    "case",
    [
        *(Case(OP, channels=c, height=5, width=4) for c in AWKWARD_CHANNELS),
        *(Case(OP, channels=17, stride=2, layout=layout) for layout in LAYOUTS[:2]),
        *(Case(OP, channels=7, kernel=(k, k), padding=k // 2) for k in (1, 2, 5, 7)),
        Case(OP, channels=5, multiplier=3),
        Case(OP, channels=9, dilation=2, padding=2),
        Case(OP, channels=3, height=1, width=1),
    ],
    ids=ids,
)
def test_reads_nothing_outside(case: Case, at_end: bool, isa: str) -> None:
    check_guarded(case, at_end)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.ones(8, 8, 3, 3)}, ValueError, r"weight: .*not a depthwise filter"),
        ({"weight": torch.ones(12, 1, 3, 3)}, ValueError, r"weight: expected \[8, 1, 3, 3\]"),
        ({"weight": torch.ones(8, 1, 3)}, ValueError, "weight"),
        ({"weight": torch.ones(8, 1, 3, 3).double()}, TypeError, "weight: .*float32.*float64"),
        ({"x": torch.ones(2, 8, 5)}, ValueError, "x: expected .batch, channels"),
        ({"x": torch.ones(2, 8, 5, 5).int()}, TypeError, "x: .*int32"),
        ({"x": [1.0]}, TypeError, "x: expected a torch.Tensor, got list"),
        ({"x": torch.ones(2, 8, 0, 5)}, ValueError, "x: expected at least one"),
        ({"x": torch.ones(2, 8, 5, 5).to_sparse()}, ValueError, "x: .*layout"),
        ({"scale": torch.ones(7)}, ValueError, r"scale: expected \[8\], got \[7\]"),
        ({"scale": torch.ones(8).double()}, TypeError, "scale: .*float64"),
        ({"bias": torch.ones(1, 8)}, ValueError, "bias"),
        ({"stride": 0}, ValueError, "stride: expected at least 1, got 0"),
        ({"stride": -1}, ValueError, "stride"),
        ({"stride": (1, 2, 3)}, ValueError, "stride"),
        ({"stride": 1.5}, ValueError, "stride"),
        ({"dilation": 0}, ValueError, "dilation"),
        ({"padding": -1}, ValueError, "padding"),
        ({"padding": (0, -1, 0, 0)}, ValueError, "padding"),
        ({"padding": "valid"}, ValueError, "padding"),
        ({"padding": 0, "dilation": 3}, ValueError, "x: .*larger than the padded input"),
        ({"activation": "gelu"}, ValueError, "activation: .*'gelu'"),
        ({"backend": "fast"}, ValueError, "backend: .*'fast'"),
        ({"weight": torch.ones(8, 1, 3, 3, device="meta")}, ValueError, "weight: .*device"),
    ],
)
def test_bad_input_names_the_argument(changes: dict, error: type, message: str) -> None:
    good = {"x": torch.ones(2, 8, 5, 5), "weight": torch.ones(8, 1, 3, 3), "padding": 1}
    with pytest.raises(error, match=message):
        ops.depthwise_conv(**{**good, **changes})


def test_nan_in_the_weight_reaches_its_channel_only() -> None:
    weight = torch.ones(8, 1, 3, 3)
    weight[3, 0, 1, 1] = torch.nan
    y = ops.depthwise_conv(torch.ones(2, 8, 5, 5), weight, padding=1, activation="relu6")
    assert y[:, 3].isnan().all()
    assert not y[:, [0, 1, 2, 4, 5, 6, 7]].isnan().any()
