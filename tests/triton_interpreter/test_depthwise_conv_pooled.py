"""depthwise_conv_pooled on Triton: y as without means, bit for bit; the means against float64."""

from __future__ import annotations

import pooled_checks
import pytest
import torch
from pooled_checks import PLAIN
from shapes import KINDS, LAYOUTS, Case, arguments, ids

from fastdw import ops
from fastdw.triton_kernels import tiles
from fastdw.triton_kernels.tiles import Tile, tile
from triton_interpreter.interpreted_checks import DTYPES

ODD_TILE = tile(1, 1, ROWS=3, BLOCK_GROUPS=16, BLOCK_CHANNELS=16)
LARGE_TILE = tile(4, 1, ROWS=4, BLOCK_GROUPS=128, BLOCK_CHANNELS=128)  # few programs
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(PLAIN, channels=c, height=5, width=9) for c in (1, 8, 17, 100)),
    *(Case(PLAIN, channels=c, stride=2, height=9, width=7) for c in (16, 33)),
    *(Case(PLAIN, channels=17, layout=layout) for layout in LAYOUTS[1:3]),
    *(Case(PLAIN, channels=9, kernel=(k, k), padding="same", width=10) for k in (1, 5, 7, 8)),
    *(Case(PLAIN, channels=c, multiplier=m) for c, m in ((1, 2), (5, 3))),
    *(Case(PLAIN, channels=20, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1))),
    Case(PLAIN, kernel=(8, 2), dilation=(2, 3), stride=(1, 2), padding=7, activation="silu"),
    Case(PLAIN, batch=0),
    Case(PLAIN, batch=5, channels=3, activation="none"),
]


def check(
    case: Case,
    kind: str = "normal",
    dtype: torch.dtype = torch.float32,
    forced: Tile | None = None,
) -> None:
    with tiles.forced({} if forced is None else {PLAIN: forced}):
        pooled_checks.check(case, kind, dtype, "triton")


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case: Case) -> None:
    check(case, forced=LARGE_TILE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_programs_of_an_image(stride: int, dtype: torch.dtype) -> None:
    """Several programs an image, the last with idle lanes, and the tiles that are shipped."""
    case = Case(PLAIN, channels=17, height=7, width=9, batch=2, stride=stride)
    check(case, dtype=dtype, forced=ODD_TILE)
    if dtype == torch.float16:
        check(case, dtype=dtype)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_data(kind: str) -> None:
    for activation, kernel in (("relu6", (3, 3)), ("hardswish", (5, 5)), ("silu", (8, 1))):
        case = Case(PLAIN, channels=19, height=9, kernel=kernel, padding=1, activation=activation)
        check(case, kind, forced=ODD_TILE if kernel[0] < 8 else LARGE_TILE)


def test_repeats_are_bit_identical() -> None:
    args, kwargs = arguments(Case(PLAIN, channels=33, height=20))
    first, second = (
        ops.depthwise_conv_pooled(*args, **kwargs, backend="triton")[1] for _ in range(2)
    )
    assert torch.equal(first, second)
