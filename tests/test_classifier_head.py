"""classifier_head against the float64 reference, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import check_case, check_case_on_every_isa, check_guarded, check_repeats
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, ids

from fastdw import ops

OP = "classifier_head"
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(OP, channels=c, channels_out=o) for c in AWKWARD_CHANNELS for o in (1, 16, 33)),
    *(Case(OP, channels=20, channels_out=c) for c in AWKWARD_CHANNELS),
    *(Case(OP, channels=17, channels_out=17, layout=layout) for layout in LAYOUTS),
    *(Case(OP, channels=20, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (13, 29))),
    *(Case(OP, channels=33, channels_out=10, batch=batch) for batch in (0, 1, 3, 9, 33)),
    *(Case(OP, channels=33, channels_out=c, batch=1) for c in (112, 127, 128, 129, 250)),
    Case(OP, channels=1280, channels_out=101, height=7, width=7),
    Case(OP, epilogue=False),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_layout(case: Case, isa: str) -> None:
    check_case(case)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_data(kind: str, isa: str) -> None:
    check_case(Case(OP, channels=19, channels_out=21), kind)
    check_case(Case(OP, channels=50, channels_out=5, layout="contiguous"), kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, isa: str) -> None:
    check_case(Case(OP, channels=17, channels_out=9), dtype=dtype)


@settings(max_examples=60)
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    case = Case(
        OP,
        batch=data.draw(st.integers(0, 5)),
        channels=data.draw(st.integers(1, 70)),
        channels_out=data.draw(st.integers(1, 70)),
        height=data.draw(st.integers(1, 8)),
        width=data.draw(st.integers(1, 8)),
        epilogue=data.draw(st.booleans()),
        layout=data.draw(st.sampled_from(LAYOUTS)),
    )
    check_case_on_every_isa(case)


def test_repeats_are_bit_identical(isa: str) -> None:
    check_repeats(Case(OP, channels=130, channels_out=50, height=14, width=15))


@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
@pytest.mark.parametrize(
    "case",
    [
        *(Case(OP, channels=c, channels_out=c) for c in AWKWARD_CHANNELS),
        *(Case(OP, channels=9, channels_out=19, layout=layout) for layout in LAYOUTS[:2]),
        *(Case(OP, channels=5, channels_out=17, batch=batch) for batch in (1, 4, 7)),
        *(Case(OP, channels=5, channels_out=c, batch=1) for c in (112, 129)),
    ],
    ids=ids,
)
def test_reads_nothing_outside(case: Case, at_end: bool, isa: str) -> None:
    check_guarded(case, at_end)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.ones(4, 7)}, ValueError, r"weight: expected .*, 8\], got \[4, 7\]"),
        ({"weight": torch.ones(4, 8, 1, 1)}, ValueError, "weight"),
        ({"weight": torch.ones(4, 8).double()}, TypeError, "weight: .*float64"),
        ({"x": torch.ones(2, 8)}, ValueError, "x: expected .batch, channels"),
        ({"x": torch.ones(2, 8, 5, 0)}, ValueError, "x: expected at least one"),
        ({"x": torch.ones(2, 8, 5, 5).long()}, TypeError, "x: .*int64"),
        ({"bias": torch.ones(8)}, ValueError, r"bias: expected \[4\], got \[8\]"),
    ],
)
def test_bad_input_names_the_argument(changes: dict, error: type, message: str) -> None:
    good = {"x": torch.ones(2, 8, 5, 5), "weight": torch.ones(4, 8)}
    with pytest.raises(error, match=message):
        ops.classifier_head(**{**good, **changes})
