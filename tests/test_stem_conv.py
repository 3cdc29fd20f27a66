"""stem_conv against the float64 reference, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

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

OP = "stem_conv"
IMAGE = Case(OP, channels=3, channels_out=24, height=11, width=13, stride=2)
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(
        replace(IMAGE, channels_out=c, layout=layout)
        for c in AWKWARD_CHANNELS
        for layout in LAYOUTS
    ),
    *(replace(IMAGE, channels=c, layout=layout) for c in (1, 2, 4, 17) for layout in LAYOUTS[:2]),
    *(replace(IMAGE, stride=s, padding=p) for s in (1, 2, 3, (1, 2)) for p in (0, 1, "same")),
    *(replace(IMAGE, padding=p, height=8) for p in ("keras_v1", (0, 1, 0, 1), (3, 0, 1, 2))),
    *(
        replace(IMAGE, kernel=kernel, padding="same", layout=layout)
        for kernel in ((1, 1), (2, 2), (4, 4), (5, 5), (7, 7), (3, 5))
        for layout in LAYOUTS[:2]
    ),
    *(replace(IMAGE, activation=a) for a in ("none", "relu", "hardswish", "silu")),
    *(replace(IMAGE, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (2, 2), (7, 40))),
    *(replace(IMAGE, channels=400, layout=layout) for layout in LAYOUTS[:2]),  # many rows at once
    replace(IMAGE, channels=1, kernel=(1100, 1), padding=(0, 0, 600, 600), layout="contiguous"),
    replace(IMAGE, epilogue=False, activation="none"),
    replace(IMAGE, batch=0),
    replace(IMAGE, batch=5),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_layout(case: Case, isa: str) -> None:
    check_case(case)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu"])
def test_data(activation: str, kind: str, isa: str) -> None:
    for layout in LAYOUTS[:2]:
        check_case(replace(IMAGE, activation=activation, layout=layout), kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, isa: str) -> None:
    check_case(IMAGE, dtype=dtype)
    check_case(replace(IMAGE, channels=1, channels_out=1, layout="contiguous"), dtype=dtype)


@settings(max_examples=60)
@given(case=random_windows(OP))
def test_random_shapes(case: Case) -> None:
    check_case_on_every_isa(case)


def test_repeats_are_bit_identical(isa: str) -> None:
    check_repeats(replace(IMAGE, height=40, width=41))


@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
@pytest.mark.parametrize(
    "case",
    [
        *(replace(IMAGE, channels_out=c, layout=la) for c in (1, 7, 17, 32) for la in LAYOUTS[:2]),
        *(replace(IMAGE, width=w, layout=la) for w in range(1, 10) for la in LAYOUTS[:2]),
        *(replace(IMAGE, kernel=k, padding="same") for k in ((1, 1), (2, 2), (5, 5))),
    ],
    ids=ids,
)
def test_reads_nothing_outside(case: Case, at_end: bool, isa: str) -> None:
    check_guarded(case, at_end)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.ones(4, 1, 3, 3)}, ValueError, "weight: expected .*channels_out, 3"),
        ({"weight": torch.ones(4, 3)}, ValueError, "weight"),
        ({"weight": torch.ones(0, 3, 3, 3)}, ValueError, "weight"),
        ({"weight": torch.ones(4, 3, 3, 3).bfloat16()}, TypeError, "weight: .*bfloat16"),
        ({"x": torch.ones(3, 9, 9)}, ValueError, "x: expected .batch, channels"),
        ({"x": torch.ones(1, 3, 9, 9).byte()}, TypeError, "x: .*uint8"),
        ({"bias": torch.ones(3)}, ValueError, r"bias: expected \[4\], got \[3\]"),
        ({"stride": 0}, ValueError, "stride"),
        ({"padding": -1}, ValueError, "padding"),
        ({"x": torch.ones(1, 3, 1, 1), "padding": 0}, ValueError, "x: .*larger than the padded"),
        ({"activation": "swish"}, ValueError, "activation"),
    ],
)
def test_bad_input_names_the_argument(changes: dict, error: type, message: str) -> None:
    good = {"x": torch.ones(1, 3, 9, 9), "weight": torch.ones(4, 3, 3, 3)}
    with pytest.raises(error, match=message):
        ops.stem_conv(**{**good, **changes})
