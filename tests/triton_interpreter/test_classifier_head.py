"""classifier_head on Triton against the float64 reference, in the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, arguments, ids

from fastdw.triton_kernels.tiles import tile
from triton_interpreter.guarded_checks import check_guarded
from triton_interpreter.interpreted_checks import DTYPES, check, run_interpreted

OP = "classifier_head"
BATCHES = (2, 5, 70)  # one for each way through the linear layer
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(OP, channels=c, channels_out=o) for c in AWKWARD_CHANNELS for o in (1, 33)),
    *(Case(OP, channels=20, channels_out=c, batch=5) for c in AWKWARD_CHANNELS),
    *(Case(OP, channels=17, channels_out=17, layout=layout) for layout in LAYOUTS[1:]),
    *(Case(OP, channels=20, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (13, 29))),
    *(Case(OP, channels=33, channels_out=10, batch=batch) for batch in (0, 1, 9, 33, 65)),
    Case(OP, epilogue=False),
    Case(OP, epilogue=False, batch=6, height=1, width=1),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_layout(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 5])
def test_shapes_of_the_networks(batch: int, dtype: torch.dtype) -> None:
    check(Case(OP, channels=1280, channels_out=101, height=7, width=7, batch=batch), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
def test_bias_of_either_dtype(batch: int, dtype: torch.dtype) -> None:
    case = Case(OP, channels=24, channels_out=17, batch=batch)
    check(case, dtype=dtype)
    (x, weight, bias), _ = arguments(case, dtype=dtype)
    rounded = bias.to(dtype)
    y = run_interpreted(case, (x, weight, rounded), {})
    assert torch.equal(y, run_interpreted(case, (x, weight, rounded.float()), {}))


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("batch", BATCHES)
def test_data(batch: int, kind: str) -> None:
    check(Case(OP, channels=19, channels_out=21, batch=batch), kind)


@pytest.mark.parametrize("batch", BATCHES)
def test_any_tile_will_do(batch: int) -> None:
    own = {
        "pool": tile(1, 1, BLOCK_PIXELS=4, BLOCK_CHANNELS=64),
        "to 4 images": tile(1, 1, BLOCK_OUT=8, BLOCK_CHANNELS=16),
        "to 64 images": tile(1, 1, BLOCK_IMAGES=32, BLOCK_OUT=16, BLOCK_CHANNELS=16),
        "more images": tile(1, 1, BLOCK_IMAGES=16, BLOCK_OUT=32, BLOCK_CHANNELS=64),
    }
    forced = {(OP, kind): odd for kind, odd in own.items()}
    check(Case(OP, channels=33, channels_out=19, batch=batch), forced=forced)


@settings(max_examples=25)
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    case = Case(
        OP,
        batch=data.draw(st.integers(0, 7)),
        channels=data.draw(st.integers(1, 70)),
        channels_out=data.draw(st.integers(1, 70)),
        height=data.draw(st.integers(1, 8)),
        width=data.draw(st.integers(1, 8)),
        epilogue=data.draw(st.booleans()),
        layout=data.draw(st.sampled_from(LAYOUTS)),
    )
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        *(Case(OP, channels=c, channels_out=c) for c in (1, 8, 17)),
        *(Case(OP, channels=9, channels_out=19, batch=batch) for batch in (1, 7)),
        replace(Case(OP, channels=33, channels_out=5), height=1, width=1),
    ],
    ids=ids,
)
def test_touches_nothing_outside(case: Case) -> None:
    check_guarded(case)


def test_repeats_are_bit_identical() -> None:
    case = Case(OP, channels=130, channels_out=50, height=14, width=15)
    args, kwargs = arguments(case)
    y = run_interpreted(case, args, kwargs)
    assert torch.equal(y, run_interpreted(case, args, kwargs))
