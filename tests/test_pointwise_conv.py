"""pointwise_conv against the float64 reference, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import check_case, check_case_on_every_isa, check_guarded, check_repeats
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, ids

from fastdw import ops

OP = "pointwise_conv"
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(OP, channels=c, channels_out=o) for c in AWKWARD_CHANNELS for o in (1, 16, 33)),
    *(Case(OP, channels=20, channels_out=c, residual=True) for c in AWKWARD_CHANNELS),
    *(
        Case(OP, channels=17, channels_out=17, layout=layout, residual=residual)
        for layout in LAYOUTS
        for residual in (False, True)
    ),
    *(Case(OP, activation=a, residual=True) for a in ("none", "relu", "hardswish", "silu")),
    *(Case(OP, channels=13, height=1, width=w) for w in range(1, 19)),  # every tail of a pixel tile
    *(Case(OP, channels=20, height=h, width=w) for h, w in ((9, 1), (1, 1), (13, 29))),
    Case(OP, channels=320, channels_out=200),
    Case(OP, channels=700, channels_out=3),
    Case(OP, epilogue=False, activation="none"),
    Case(OP, batch=0, residual=True),
    Case(OP, batch=5, channels=3),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_layout(case: Case, isa: str) -> None:
    check_case(case)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu"])
def test_data(activation: str, kind: str, isa: str) -> None:
    check_case(Case(OP, channels=19, channels_out=21, activation=activation), kind)
    check_case(Case(OP, channels=6, channels_out=40, activation=activation, residual=True), kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, isa: str) -> None:
    check_case(Case(OP, channels=17, residual=True), dtype=dtype)
    check_case(Case(OP, channels=1, channels_out=1, layout="contiguous"), dtype=dtype)


@settings(max_examples=60)
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    case = Case(
        OP,
        batch=data.draw(st.integers(0, 3)),
        channels=data.draw(st.integers(1, 70)),
        channels_out=data.draw(st.integers(1, 70)),
        height=data.draw(st.integers(1, 8)),
        width=data.draw(st.integers(1, 8)),
        residual=data.draw(st.booleans()),
        epilogue=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from(["none", "relu", "relu6", "hardswish", "silu"])),
        layout=data.draw(st.sampled_from(LAYOUTS)),
    )
    check_case_on_every_isa(case)


def test_repeats_are_bit_identical(isa: str) -> None:
    check_repeats(Case(OP, channels=33, channels_out=50, height=30, width=31))


@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
@pytest.mark.parametrize(
    "case",
    [
        *(
            Case(OP, channels=c, channels_out=c, residual=True, activation=activation)
            for c in AWKWARD_CHANNELS
            for activation in ("none", "relu6")
        ),
        *(Case(OP, channels=9, channels_out=19, layout=layout) for layout in LAYOUTS[:2]),
        *(Case(OP, channels=3, channels_out=5, height=1, width=w) for w in range(1, 10)),
    ],
    ids=ids,
)
def test_reads_nothing_outside(case: Case, at_end: bool, isa: str) -> None:
    check_guarded(case, at_end)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.ones(4, 7, 1, 1)}, ValueError, r"weight: expected .*, 8, 1, 1\], got"),
        ({"weight": torch.ones(4, 8, 3, 3)}, ValueError, "weight"),
        ({"weight": torch.ones(4, 8)}, ValueError, "weight"),
        ({"weight": torch.ones(4, 8, 1, 1).half()}, TypeError, "weight: .*float32.*float16"),
        ({"x": torch.ones(8, 5, 5)}, ValueError, "x: expected .batch, channels"),
        ({"x": torch.ones(2, 8, 5, 5, dtype=torch.complex64)}, TypeError, "x: .*complex64"),
        ({"scale": torch.ones(8)}, ValueError, r"scale: expected \[4\], got \[8\]"),
        ({"bias": 1.0}, TypeError, "bias: expected a torch.Tensor, got float"),
        ({"residual": torch.ones(2, 4, 5, 1)}, ValueError, r"residual: expected \[2, 4, 5, 5\]"),
        ({"residual": torch.ones(2, 4, 5, 5).double()}, TypeError, "residual: .*float64"),
        ({"activation": None}, ValueError, "activation"),
    ],
)
def test_bad_input_names_the_argument(changes: dict, error: type, message: str) -> None:
    good = {"x": torch.ones(2, 8, 5, 5), "weight": torch.ones(4, 8, 1, 1)}
    with pytest.raises(error, match=message):
        ops.pointwise_conv(**{**good, **changes})
