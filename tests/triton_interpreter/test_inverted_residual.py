"""inverted_residual on Triton against the float64 reference, in the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import random_windows
from shapes import AWKWARD_CHANNELS, KINDS, Case, ids

from fastdw.triton_kernels import block_plan, tiles
from triton_interpreter.interpreted_checks import DTYPES, check
from triton_interpreter.recorded_launches import recorded

OP = "inverted_residual"
BLOCK = Case(OP, channels=16, channels_out=16, hidden=40)
SIZES = {"MOST_PIXELS": 32, "MOST_PIXELS_IN": 128, "SLAB": 16, "MOST_IN": 16, "MOST_OUT": 48}
WHOLE = {OP: tiles.tile(4, 1, **SIZES, LEAST_SLABS=99)}
SPLIT = {OP: tiles.tile(4, 1, **SIZES, LEAST_SLABS=1)}
CASES = [
    *(replace(BLOCK, channels=c, channels_out=c, residual=True) for c in AWKWARD_CHANNELS),
    *(replace(BLOCK, hidden=h) for h in AWKWARD_CHANNELS),
    *(replace(BLOCK, channels_out=c, stride=2) for c in (1, 7, 33, 70)),
    *(replace(BLOCK, hidden=None, channels_out=16, residual=r, stride=2 - r) for r in (0, 1)),
    *(
        replace(BLOCK, kernel=kernel, padding="same", height=9, width=10, stride=stride)
        for kernel in ((1, 1), (2, 2), (4, 4), (5, 5), (3, 5))
        for stride in (1, 2)
    ),
    replace(BLOCK, kernel=(7, 7), padding=3, height=8, width=8),
    *(replace(BLOCK, activation=a, residual=True) for a in ("none", "relu", "hardswish", "silu")),
    *(replace(BLOCK, dilation=d, padding=d, residual=True) for d in (2, (1, 3))),
    *(replace(BLOCK, padding=p) for p in (0, "keras_v1", (0, 2, 1, 3), (0, 1, 9, 0))),
    *(replace(BLOCK, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1))),
    replace(BLOCK, stride=3, kernel=(2, 2), height=11),
    replace(BLOCK, layout="sliced"),
    replace(BLOCK, epilogue=False, activation="none"),
    replace(BLOCK, batch=0),
]


@pytest.fixture(autouse=True, scope="module")
def fused_blocks() -> Iterator[None]:
    """One kernel a block: by default small blocks are launched convolution by convolution."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(block_plan.VARIABLE, "fused")
        yield


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_layout(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [
        (16, 96, 24, 14, 2),
        (24, 144, 24, 10, 1),
        (24, 144, 32, 11, 2),
        (32, 192, 64, 8, 2),
        (64, 192, 96, 7, 1),
        (96, 288, 160, 7, 2),
        (160, 480, 320, 4, 1),
    ],
    ids=str,
)
def test_shapes_of_mobilenet(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    channels, hidden, channels_out, side, stride = sizes
    case = replace(BLOCK, channels=channels, channels_out=channels_out, hidden=hidden, batch=1)
    case = replace(case, height=side, width=side, stride=stride, residual=channels == channels_out)
    with recorded() as launches:
        check(case, dtype=dtype, roundings=2)
    assert launches[0].kernel.__name__ == "inverted_residual_kernel", "not in one kernel"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu6", "silu"])
def test_data(activation: str, kind: str, dtype: torch.dtype) -> None:
    check(replace(BLOCK, activation=activation, residual=True), kind, dtype, roundings=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_out", [33, 70], ids=str)
def test_another_tile(channels_out: int, dtype: torch.dtype) -> None:
    """Several tiles, blocks of input channels, blocks of output channels, one of two parts."""
    case = replace(BLOCK, channels=40, channels_out=channels_out, height=9, width=11)
    check(replace(case, stride=(1, 2)), dtype=dtype, roundings=2, forced=WHOLE)


@pytest.mark.parametrize("hidden", [48, 50])
def test_hidden_channels_are_split_where_tiles_are_few(hidden: int) -> None:
    case = replace(BLOCK, hidden=hidden, activation="silu", residual=True)
    with recorded() as launches:
        check(case, forced=SPLIT)
    assert len(launches) == 2
    assert launches[0].grid[2] > 1
    check(case, "special", torch.float16, roundings=2, forced=SPLIT)


@pytest.mark.parametrize(
    "case",
    [
        replace(BLOCK, height=14, width=14, dilation=6, padding=6, residual=True),
        replace(BLOCK, height=18, width=18, kernel=(11, 11), padding=5, batch=1, hidden=20),
    ],
    ids=ids,
)
def test_expansion_apart_where_the_window_reaches_far(case: Case) -> None:
    with recorded() as launches:
        check(case)
    names = [launch.kernel.__name__ for launch in launches]
    assert names == ["pointwise_conv_kernel", "separable_block_kernel"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [33, None])
def test_convolution_by_convolution(
    hidden: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(block_plan.VARIABLE, "separate")
    case = replace(BLOCK, hidden=hidden, height=9, residual=True)
    with recorded() as launches:
        check(case, dtype=dtype, roundings=2)
        check(replace(case, stride=2, residual=False, padding="same"), "special", dtype, 2)
    names = [launch.kernel.__name__ for launch in launches]
    expand = ["pointwise_conv_kernel"] if hidden else []
    assert names == 2 * [*expand, "_depthwise_conv", "pointwise_conv_kernel"]


@settings(max_examples=25)
@given(case=random_windows(OP), dtype=st.sampled_from(DTYPES))
def test_random_shapes(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype=dtype, roundings=2)
