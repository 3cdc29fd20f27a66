"""stem_conv on Triton against the float64 reference, in the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from op_checks import expected, random_windows, schema_arguments
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, arguments, ids
from tolerances import assert_correct

from fastdw.ops import triton_backend
from fastdw.triton_kernels import launch
from fastdw.triton_kernels.tiles import tile
from triton_interpreter.guarded_checks import check_guarded
from triton_interpreter.interpreted_checks import DTYPES, check, run_interpreted

OP = "stem_conv"
IMAGE = Case(OP, channels=3, channels_out=24, height=11, width=13, stride=2)
ODD_TILE = {OP: tile(1, 1, BLOCK_PIXELS=16, BLOCK_OUT=16, BLOCK_TAPS=16)}
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(replace(IMAGE, channels_out=c) for c in AWKWARD_CHANNELS),
    *(replace(IMAGE, layout=layout) for layout in LAYOUTS),
    *(replace(IMAGE, channels=c, layout=layout) for c in (1, 4, 17) for layout in LAYOUTS[:2]),
    *(replace(IMAGE, stride=s, padding=p) for s in (1, 2, 3, (1, 2)) for p in (0, "same")),
    *(replace(IMAGE, padding=p, height=8) for p in ("keras_v1", (0, 1, 0, 1), (3, 0, 1, 2))),
    *(
        replace(IMAGE, kernel=kernel, padding="same", layout=layout)
        for kernel in ((1, 1), (4, 4), (7, 7), (3, 5))
        for layout in LAYOUTS[:2]
    ),
    *(replace(IMAGE, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (7, 40))),
    replace(IMAGE, channels=70, layout="contiguous"),
    replace(IMAGE, channels=1, kernel=(40, 1), padding=(0, 0, 20, 20), layout="contiguous"),
    replace(IMAGE, epilogue=False, activation="none"),
    replace(IMAGE, batch=0),
    replace(IMAGE, batch=5),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_layout(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_shapes_of_the_networks(layout: str, dtype: torch.dtype) -> None:
    for channels_out, activation in ((32, "relu6"), (8, "hardswish")):
        case = replace(IMAGE, channels_out=channels_out, activation=activation, layout=layout)
        check(replace(case, height=32, width=32), dtype=dtype)
        check(replace(case, channels_out=31, height=17, kernel=(5, 5)), dtype=dtype)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu"])
def test_data(activation: str, kind: str) -> None:
    for layout in LAYOUTS[:2]:
        check(replace(IMAGE, activation=activation, layout=layout), kind)


@pytest.mark.parametrize(
    "case",
    [
        replace(IMAGE, channels_out=33, height=7),
        replace(IMAGE, channels_out=17, kernel=(5, 5), padding="same", layout="sliced"),
    ],
    ids=ids,
)
def test_any_tile_will_do(case: Case) -> None:
    for dtype in DTYPES:
        check(case, dtype=dtype, forced=ODD_TILE)


@settings(max_examples=25)
@given(case=random_windows(OP))
def test_random_shapes(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        *(replace(IMAGE, channels_out=c, layout=la) for c in (1, 17, 32) for la in LAYOUTS[:2]),
        replace(IMAGE, kernel=(5, 5), padding="same"),
        replace(IMAGE, channels=13, width=1, layout="contiguous"),
    ],
    ids=ids,
)
def test_touches_nothing_outside(case: Case) -> None:
    check_guarded(case)


def test_repeats_are_bit_identical() -> None:
    args, kwargs = arguments(IMAGE)
    y = run_interpreted(IMAGE, args, kwargs)
    assert torch.equal(y, run_interpreted(IMAGE, args, kwargs))


def test_tf32_only_where_torch_allows_it() -> None:
    """The interpreter multiplies in fp32 either way, so what is asked for is looked at."""
    args, kwargs, truth, magnitude = expected(IMAGE, "normal", torch.float32)
    y = torch.full(truth.shape, torch.nan).to(memory_format=torch.channels_last)
    call = schema_arguments(IMAGE, args, kwargs)
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for allowed, precision in (("tf32", "tf32"), ("ieee", "ieee")):
            torch.backends.cudnn.conv.fp32_precision = allowed
            [planned] = triton_backend.plan(OP, launch.Target("interpreter"), y, *call)
            assert planned.arguments["PRECISION"] == precision
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_indices_beyond_31_bits() -> None:
    """The path of more pixels than 31 bits can count, on a small tensor."""
    args, kwargs, truth, magnitude = expected(IMAGE, "normal", torch.float32)
    y = torch.full(truth.shape, torch.nan).to(memory_format=torch.channels_last)
    call = schema_arguments(IMAGE, args, kwargs)
    [planned] = triton_backend.plan(OP, launch.Target("interpreter"), y, *call)
    assert planned.arguments["WIDE"] is False
    launch.run([replace(planned, arguments={**planned.arguments, "WIDE": True})])
    assert_correct(y, truth, magnitude, IMAGE.terms)
