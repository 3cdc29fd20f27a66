"""depthwise_conv on Triton against the float64 reference, in the interpreter."""

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

OP = "depthwise_conv"
ODD_TILE = {OP: tile(1, 1, ROWS=3, BLOCK_GROUPS=16, BLOCK_CHANNELS=16)}
LARGE_TILE = {OP: tile(4, 1, ROWS=4, BLOCK_GROUPS=128, BLOCK_CHANNELS=128)}  # few programs
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(OP, channels=c, height=5, width=9) for c in AWKWARD_CHANNELS),
    *(Case(OP, channels=c, stride=2, height=9, width=7) for c in (1, 16, 33)),
    *(Case(OP, channels=17, layout=layout) for layout in LAYOUTS[1:]),
    *(
        Case(OP, channels=9, kernel=kernel, padding="same", height=11, width=10, stride=stride)
        for kernel in ((1, 1), (2, 2), (5, 5), (7, 7), (3, 5), (8, 2))
        for stride in (1, 2)
    ),
    *(Case(OP, channels=c, multiplier=m) for c, m in ((1, 2), (5, 3), (16, 2))),
    Case(OP, kernel=(8, 2), dilation=(2, 3), stride=(1, 2), padding=7),
    *(Case(OP, channels=9, dilation=d, padding=p) for d, p in ((2, 2), ((1, 3), (1, 3)), (3, 3))),
    *(Case(OP, channels=9, padding=p) for p in (0, (0, 2, 1, 3), (5, 0, 0, 4))),
    *(Case(OP, stride=s, padding="keras_v1", height=9, width=8) for s in (1, 2)),
    *(Case(OP, stride=s, height=11, width=11) for s in ((1, 2), (3, 1), 4)),
    *(Case(OP, channels=20, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1))),
    Case(OP, epilogue=False, activation="none"),
    Case(OP, batch=0),
    Case(OP, batch=5, channels=3),
]
MOBILENET = [  # as in the networks, with fewer pixels or channels
    Case(OP, channels=32, height=16, width=16, activation="relu"),
    Case(OP, channels=96, height=15, width=15, stride=2, batch=1),
    Case(OP, channels=144, height=7, width=7, batch=1),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_and_layout(case: Case) -> None:
    check(case, forced=LARGE_TILE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", MOBILENET, ids=ids)
def test_shapes_of_the_networks(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype=dtype)  # with the tiles that are shipped
    check(replace(case, channels=15, height=7), dtype=dtype)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu"])
def test_data(activation: str, kind: str) -> None:
    for kernel, stride in (((3, 3), 1), ((5, 5), 2), ((8, 1), 1)):
        case = Case(OP, channels=19, height=9, kernel=kernel, stride=stride, padding=1)
        check(replace(case, activation=activation), kind, forced=LARGE_TILE)


@pytest.mark.parametrize(
    "case",
    [
        Case(OP, channels=33, height=8, width=5),
        Case(OP, channels=17, height=9, width=7, stride=2, kernel=(5, 5), padding="same"),
        Case(OP, channels=5, height=8, multiplier=3, stride=(3, 1), dilation=(1, 2)),
    ],
    ids=ids,
)
def test_any_tile_will_do(case: Case) -> None:
    for dtype in DTYPES:
        check(case, dtype=dtype, forced=ODD_TILE)
    check(
        replace(case, batch=1), forced={OP: tile(2, 1, ROWS=5, BLOCK_GROUPS=4, BLOCK_CHANNELS=64)}
    )


@settings(max_examples=15)
@given(case=random_windows(OP))
def test_random_shapes(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        *(Case(OP, channels=c, height=5, width=4) for c in (1, 8, 17)),
        Case(OP, channels=9, kernel=(5, 5), padding=2, stride=2),
        Case(OP, channels=7, kernel=(9, 2), padding=4),
        Case(OP, channels=5, multiplier=3, dilation=2, padding=2),
    ],
    ids=ids,
)
def test_touches_nothing_outside(case: Case) -> None:
    check_guarded(case)


def test_repeats_are_bit_identical() -> None:
    case = Case(OP, channels=33)
    args, kwargs = arguments(case)
    y = run_interpreted(case, args, kwargs)
    assert torch.equal(y, run_interpreted(case, args, kwargs))


@pytest.mark.parametrize("kernel", [(3, 3), (8, 1)], ids=str)
def test_indices_beyond_31_bits(kernel: tuple[int, int]) -> None:
    """The path of more groups than 31 bits can count, on a small tensor."""
    case = Case(OP, channels=9, kernel=kernel, padding="same", batch=3)
    args, kwargs, truth, magnitude = expected(case, "normal", torch.float32)
    y = torch.full(truth.shape, torch.nan).to(memory_format=torch.channels_last)
    call = schema_arguments(case, args, kwargs)
    [planned] = triton_backend.plan(OP, launch.Target("interpreter"), y, *call)
    assert planned.arguments["WIDE"] is False
    wide = replace(planned, arguments={**planned.arguments, "WIDE": True})
    launch.run([wide])
    assert_correct(y, truth, magnitude, case.terms)
