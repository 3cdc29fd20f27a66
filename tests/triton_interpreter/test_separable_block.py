"""separable_block on Triton against the float64 reference, in the interpreter."""

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

OP = "separable_block"
BLOCK = Case(OP, channels=20, channels_out=24)
SIZES = {"PIXELS": 32, "SLAB": 16, "MOST_OUT": 48}
WHOLE = {OP: tiles.tile(4, 1, **SIZES, LEAST_SLABS=99)}
SPLIT = {OP: tiles.tile(4, 1, **SIZES, LEAST_SLABS=1)}
CASES = [
    *(replace(BLOCK, channels=c) for c in AWKWARD_CHANNELS),
    *(replace(BLOCK, channels_out=c, stride=2) for c in AWKWARD_CHANNELS),
    *(
        replace(BLOCK, kernel=kernel, padding="same", height=9, width=10, stride=stride)
        for kernel in ((1, 1), (2, 2), (5, 5), (7, 7), (3, 5))
        for stride in (1, 2)
    ),
    *(replace(BLOCK, activation=a) for a in ("none", "relu", "hardswish", "silu")),
    *(replace(BLOCK, dilation=d, padding=d) for d in (2, (1, 3))),
    *(replace(BLOCK, padding=p) for p in (0, "keras_v1", (0, 2, 1, 3))),
    *(replace(BLOCK, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1))),
    *(replace(BLOCK, multiplier=m, channels=7) for m in (2, 3)),
    replace(BLOCK, layout="transposed"),
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
    [(32, 64, 14, 1), (64, 128, 14, 2), (128, 128, 10, 1), (128, 256, 9, 2), (256, 512, 7, 1)],
    ids=str,
)
def test_shapes_of_mobilenet(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    channels, channels_out, side, stride = sizes
    case = replace(BLOCK, channels=channels, channels_out=channels_out, batch=1, stride=stride)
    check(replace(case, height=side, width=side), dtype=dtype, roundings=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu6", "silu"])
def test_data(activation: str, kind: str, dtype: torch.dtype) -> None:
    check(replace(BLOCK, activation=activation), kind, dtype, roundings=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_out", [33, 70], ids=str)
def test_another_tile(channels_out: int, dtype: torch.dtype) -> None:
    """Several tiles down and across, several blocks of output channels, one of two parts."""
    case = replace(BLOCK, channels_out=channels_out, height=9, width=11, stride=(1, 2))
    check(case, dtype=dtype, roundings=1, forced=WHOLE)


@pytest.mark.parametrize("channels", [48, 50])
def test_channels_are_split_where_tiles_are_few(channels: int) -> None:
    case = replace(BLOCK, channels=channels, activation="silu")
    with recorded() as launches:
        check(case, forced=SPLIT)
    assert len(launches) == 2
    assert launches[0].grid[2] > 1
    check(case, "special", torch.float16, roundings=1, forced=SPLIT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_convolution_by_convolution(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(block_plan.VARIABLE, "separate")
    case = replace(BLOCK, channels=7, channels_out=33, multiplier=2, stride=(1, 2), height=9)
    with recorded() as launches:
        check(case, dtype=dtype, roundings=1)
        check(replace(BLOCK, kernel=(5, 3), padding="same"), "special", dtype, roundings=1)
    names = [launch.kernel.__name__ for launch in launches]
    assert names == 2 * ["_depthwise_conv", "pointwise_conv_kernel"]


@settings(max_examples=25)
@given(case=random_windows(OP), dtype=st.sampled_from(DTYPES))
def test_random_shapes(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype=dtype, roundings=1)
