"""pointwise_conv on Triton against the float64 reference, in the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import AWKWARD_CHANNELS, KINDS, Case, ids

from fastdw.triton_kernels import tiles
from triton_interpreter.interpreted_checks import DTYPES, check
from triton_interpreter.recorded_launches import recorded

OP = "pointwise_conv"
PLAIN = Case(OP, channels=40, channels_out=24, residual=True)
SIZES = {"BLOCK_PIXELS": 16, "BLOCK_OUT": 16, "BLOCK_IN": 16, "NEIGHBOURS": 3}
WHOLE = {OP: tiles.tile(4, 2, **SIZES, LEAST_BLOCKS=99)}
SPLIT = {OP: tiles.tile(4, 2, **SIZES, LEAST_BLOCKS=1)}
CASES = [
    *(replace(PLAIN, channels=c) for c in AWKWARD_CHANNELS),
    *(replace(PLAIN, channels_out=c) for c in AWKWARD_CHANNELS),
    *(replace(PLAIN, activation=a) for a in ("none", "relu", "hardswish", "silu")),
    *(replace(PLAIN, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1))),
    replace(PLAIN, layout="sliced"),
    replace(PLAIN, epilogue=False, residual=False, activation="none"),
    replace(PLAIN, batch=0),
    replace(PLAIN, batch=1, height=20, width=30, channels_out=200),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_layout(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [(16, 96, 14), (24, 144, 10), (144, 24, 10), (192, 32, 7), (64, 384, 5), (320, 160, 4)],
    ids=str,
)
def test_shapes_of_mobilenet(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    channels, channels_out, side = sizes
    case = replace(PLAIN, channels=channels, channels_out=channels_out, height=side, width=side)
    check(replace(case, batch=1, residual=channels > channels_out), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu6", "silu"])
def test_data(activation: str, kind: str, dtype: torch.dtype) -> None:
    check(replace(PLAIN, activation=activation), kind, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_tile(dtype: torch.dtype) -> None:
    check(replace(PLAIN, channels_out=41, batch=3), dtype=dtype, forced=WHOLE)


@pytest.mark.parametrize("channels", [100, 128, 129, 160])
def test_input_channels_are_split_where_tiles_are_few(channels: int) -> None:
    case = replace(PLAIN, batch=1, channels=channels, channels_out=20, activation="silu")
    with recorded() as launches:
        check(case, forced=SPLIT)
    assert len(launches) == 2
    assert launches[0].grid[1] > 1
    check(case, "special", torch.float16, forced=SPLIT)


@settings(max_examples=25)
@given(
    case=st.builds(
        Case,
        op=st.just(OP),
        batch=st.integers(0, 3),
        channels=st.integers(1, 70),
        channels_out=st.integers(1, 70),
        height=st.integers(1, 9),
        width=st.integers(1, 9),
        residual=st.booleans(),
        activation=st.sampled_from(["none", "relu", "relu6", "hardswish", "silu"]),
        epilogue=st.booleans(),
        layout=st.sampled_from(["channels_last", "contiguous", "sliced", "transposed"]),
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_random_shapes(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype=dtype)
