"""The tiles that the kernels run with: a shipped table, and the user's own from ``fastdw tune``.

Keyed by op, shape class (each op says which class a call is in) and architecture. Nothing is ever
tuned by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

ANY = "any"
"""The architecture of a row that serves all which have no row of their own."""


@dataclass(frozen=True)
class Tile:
    """Sizes by the name of the kernel's constexpr parameter, warps, pipeline stages."""

    sizes: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2


def tile(num_warps: int, num_stages: int, **sizes: int) -> Tile:
    """A row of the table."""
    return Tile(sizes, num_warps, num_stages)


def _gemm(num_warps: int, num_stages: int, pixels: int, out: int, block_in: int) -> Tile:
    """A row of pointwise_conv; a split has 1024 input channels or more.

    On an H100, splits of CUDA's cost more than they saved (bench/results); Triton's are untimed.
    """
    return tile(
        num_warps,
        num_stages,
        BLOCK_PIXELS=pixels,
        BLOCK_OUT=out,
        BLOCK_IN=block_in,
        NEIGHBOURS=8,
        LEAST_BLOCKS=1024 // block_in,
    )


def _pair(num_warps: int, pixels: int, slab: int, most_out: int) -> Tile:
    """A row of separable_block; a split has 96 channels or more."""
    return tile(num_warps, 1, PIXELS=pixels, SLAB=slab, MOST_OUT=most_out, LEAST_SLABS=96 // slab)


def _block(num_warps: int, slab: int, most_in: int, most_out: int) -> Tile:
    """A row of inverted_residual: 64 pixels of y (8 x 8) over up to 256 of x (17 x 15)."""
    return tile(
        num_warps,
        1,
        MOST_PIXELS=64,
        MOST_PIXELS_IN=256,
        SLAB=slab,
        MOST_IN=most_in,
        MOST_OUT=most_out,
        LEAST_SLABS=96 // slab,
    )


def _window(groups: int = 16, **sizes: int) -> dict[str, Tile]:
    """Rows of the depthwise kernels: a lane has 8 channels of a pixel (of 2 bytes, see there)."""
    return {
        ANY: tile(groups // 8, 1, **sizes, BLOCK_GROUPS=groups, BLOCK_CHANNELS=32),
        "gfx942": tile(1, 1, **sizes, BLOCK_GROUPS=16, BLOCK_CHANNELS=32),
    }


TABLE: dict[str, dict[str, dict[str, Tile]]] = {
    "pointwise_conv": {
        "16bit many out128": {
            ANY: _gemm(8, 4, 128, 128, block_in=32),
            "sm_90": _gemm(8, 3, 128, 128, block_in=64),
            "gfx942": _gemm(8, 2, 128, 128, block_in=32),
        },
        "16bit many out64": {
            ANY: _gemm(4, 4, 128, 64, block_in=32),
            "gfx942": _gemm(4, 2, 128, 64, 32),
        },
        "16bit many out32": {
            ANY: _gemm(4, 4, 128, 32, block_in=32),
            "gfx942": _gemm(4, 2, 128, 32, 32),
        },
        "16bit few out64": {
            ANY: _gemm(4, 4, 64, 64, block_in=32),
            "sm_100": _gemm(4, 3, 64, 64, block_in=64),
            "gfx942": _gemm(4, 2, 64, 64, 32),
        },
        "16bit few out32": {
            ANY: _gemm(4, 3, 64, 32, block_in=64),
            "gfx942": _gemm(4, 2, 64, 32, 64),
        },
        "16bit fewest out32": {
            ANY: _gemm(4, 4, 32, 32, block_in=64),
            "gfx942": _gemm(4, 2, 32, 32, 64),
        },
        "tf32 many out128": {
            ANY: _gemm(8, 3, 128, 128, block_in=32),
            "gfx942": _gemm(8, 2, 128, 128, 32),
        },
        "tf32 many out64": {
            ANY: _gemm(4, 3, 128, 64, block_in=32),
            "gfx942": _gemm(4, 2, 128, 64, 32),
        },
        "tf32 many out32": {
            ANY: _gemm(4, 3, 128, 32, block_in=32),
            "gfx942": _gemm(4, 2, 128, 32, 32),
        },
        "tf32 few out64": {
            ANY: _gemm(4, 3, 64, 64, block_in=32),
            "sm_120": _gemm(4, 2, 64, 64, block_in=32),
            "gfx942": _gemm(4, 2, 64, 64, 32),
        },
        "tf32 few out32": {
            ANY: _gemm(4, 3, 64, 32, block_in=32),
            "gfx942": _gemm(4, 2, 64, 32, 32),
        },
        "tf32 fewest out32": {
            ANY: _gemm(4, 4, 32, 32, block_in=32),
            "gfx942": _gemm(4, 2, 32, 32, 32),
        },
        "fp32 many out64": {
            ANY: _gemm(4, 3, 128, 64, block_in=16),
            "gfx942": _gemm(4, 2, 128, 64, 16),
        },
        "fp32 many out32": {
            ANY: _gemm(4, 3, 128, 32, block_in=16),
            "gfx942": _gemm(4, 2, 128, 32, 16),
        },
        "fp32 few out64": {
            ANY: _gemm(4, 3, 64, 64, block_in=32),
            "gfx942": _gemm(4, 2, 64, 64, 32),
        },
        "fp32 few out32": {
            ANY: _gemm(4, 3, 64, 32, block_in=16),
            "gfx942": _gemm(4, 2, 64, 32, 16),
        },
        "fp32 fewest out32": {
            ANY: _gemm(4, 3, 32, 32, block_in=32),
            "gfx942": _gemm(4, 2, 32, 32, 32),
        },
    },
    "separable_block": {
        "16bit out32": {ANY: _pair(4, pixels=128, slab=32, most_out=32)},
        "16bit out64": {ANY: _pair(4, pixels=64, slab=32, most_out=64)},
        "16bit out128": {ANY: _pair(4, pixels=64, slab=32, most_out=128)},
        "16bit out256": {ANY: _pair(8, pixels=64, slab=32, most_out=256)},
        "tf32 out32": {ANY: _pair(4, pixels=128, slab=16, most_out=32)},
        "tf32 out64": {
            ANY: _pair(4, pixels=128, slab=16, most_out=64),
            "sm_89": _pair(8, pixels=128, slab=16, most_out=64),
        },
        "tf32 out128": {ANY: _pair(8, pixels=64, slab=32, most_out=128)},
        "tf32 out256": {ANY: _pair(8, pixels=64, slab=16, most_out=256)},
        "fp32 out32": {ANY: _pair(4, pixels=64, slab=16, most_out=32)},
        "fp32 out64": {ANY: _pair(4, pixels=64, slab=16, most_out=64)},
        "fp32 out128": {ANY: _pair(8, pixels=64, slab=16, most_out=128)},
    },
    "inverted_residual": {
        "16bit out64 near": {ANY: _block(4, slab=32, most_in=64, most_out=64)},
        "16bit out64 far": {ANY: _block(4, slab=16, most_in=64, most_out=64)},
        "16bit out128 near": {ANY: _block(8, slab=32, most_in=32, most_out=128)},
        "16bit out128 far": {
            ANY: _block(8, slab=16, most_in=32, most_out=128),
            "sm_89": _block(8, slab=32, most_in=32, most_out=128),
        },
        "16bit out192 near": {
            ANY: _block(8, slab=32, most_in=32, most_out=192),
            "sm_120": _block(8, slab=16, most_in=32, most_out=192),
        },
        "16bit out192 far": {
            ANY: _block(8, slab=16, most_in=32, most_out=192),
            "sm_120": _block(8, slab=16, most_in=32, most_out=96),
        },
        "tf32 out64 near": {ANY: _block(4, slab=32, most_in=32, most_out=64)},
        "tf32 out64 far": {ANY: _block(4, slab=16, most_in=32, most_out=64)},
        "tf32 out128 near": {
            ANY: _block(8, slab=16, most_in=32, most_out=128),
            "sm_120": _block(8, slab=16, most_in=16, most_out=128),
        },
        "tf32 out128 far": {ANY: _block(8, slab=16, most_in=32, most_out=128)},
        "tf32 out192 near": {
            ANY: _block(8, slab=16, most_in=32, most_out=192),
            "sm_120": _block(8, slab=16, most_in=32, most_out=96),
        },
        "tf32 out192 far": {
            ANY: _block(8, slab=16, most_in=32, most_out=96),
            "sm_120": _block(8, slab=16, most_in=32, most_out=64),
        },
        "fp32 out64 near": {ANY: _block(4, slab=16, most_in=32, most_out=64)},
        "fp32 out64 far": {ANY: _block(8, slab=16, most_in=32, most_out=64)},
        "fp32 out128 near": {
            ANY: _block(4, slab=16, most_in=32, most_out=128),
            "sm_80": _block(4, slab=16, most_in=16, most_out=128),
        },
        "fp32 out128 far": {ANY: _block(8, slab=16, most_in=32, most_out=128)},
        "fp32 out192 near": {ANY: _block(8, slab=16, most_in=32, most_out=192)},
        "fp32 out192 far": {ANY: _block(8, slab=16, most_in=32, most_out=96)},
    },
    "depthwise_conv": {
        "3 many": _window(ROWS=7),
        "3 few": _window(8, ROWS=2),
        "5 many": _window(ROWS=7),
        "5 few": _window(ROWS=2),
        "7 many": _window(ROWS=4) | {"sm_120": _window(ROWS=3)[ANY]},
        "7 few": _window(ROWS=2),
        "any": _window(),
    },
    "depthwise_conv_input_grad": {
        "3 many": _window(ROWS=7),
        "3 few": _window(8, ROWS=2),
        "3 strided": _window(ROWS=4),
        "5 many": _window(ROWS=7),
        "5 few": _window(ROWS=2),
        "5 strided": _window(ROWS=2),
        "7 many": _window(ROWS=4),
        "7 few": _window(ROWS=2),
        "any": _window(),
    },
    "depthwise_conv_weight_grad": {
        "3": _window(ROWS=4, COLUMNS=3),
        "5": _window(ROWS=4, COLUMNS=2),
        "7": {
            **_window(ROWS=4, COLUMNS=1),
            # Whole 16-byte lanes: two of the sums on the stack where ROWS is cut to 2.
            "sm_100": tile(4, 1, ROWS=4, COLUMNS=1, BLOCK_GROUPS=16, BLOCK_CHANNELS=32),
            "sm_120": _window(ROWS=4, COLUMNS=2)[ANY],
        },
        "any": _window(),
    },
    "stem_conv": {
        "16 bits": {ANY: tile(4, 2, BLOCK_PIXELS=128, BLOCK_OUT=32, BLOCK_TAPS=32)},
        "tf32": {
            ANY: tile(4, 2, BLOCK_PIXELS=128, BLOCK_OUT=32, BLOCK_TAPS=32),
            "sm_120": tile(8, 2, BLOCK_PIXELS=128, BLOCK_OUT=32, BLOCK_TAPS=32),
        },
        "fp32": {ANY: tile(4, 2, BLOCK_PIXELS=64, BLOCK_OUT=32, BLOCK_TAPS=32)},
    },
    "classifier_head": {
        "pool": {ANY: tile(4, 1, BLOCK_PIXELS=64, BLOCK_CHANNELS=32)},
        "to 4 images": {ANY: tile(4, 1, BLOCK_OUT=4, BLOCK_CHANNELS=512)},
        "to 64 images": {ANY: tile(4, 3, BLOCK_IMAGES=16, BLOCK_OUT=16, BLOCK_CHANNELS=32)},
        "more images": {ANY: tile(4, 3, BLOCK_IMAGES=64, BLOCK_OUT=32, BLOCK_CHANNELS=16)},
    },
}
"""op -> shape class -> architecture (``sm_90``, ``gfx942`` or ``any``) -> tile."""

tuned: dict[str, dict[str, dict[str, Tile]]] = {}
"""architecture -> op -> shape class -> tile: measured on the user's own GPU; wins over TABLE."""

Key = tuple[str, str]
"""(op, shape class)."""

_recorded: ContextVar[dict[Key, Tile] | None] = ContextVar("fastdw_recorded_tiles", default=None)
_forced: ContextVar[Mapping[str | Key, Tile] | None] = ContextVar(
    "fastdw_forced_tiles", default=None
)


@contextmanager
def forced(rows: Mapping[str | Key, Tile]) -> Iterator[None]:
    """Run a shape class, or all of an op, with these tiles, whatever the tables say.

    For tuning and tests.
    """
    token = _forced.set(rows)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def recorded() -> Iterator[dict[Key, Tile]]:
    """Yield a dict that collects which tiles are chosen inside."""
    chosen: dict[Key, Tile] = {}
    token = _recorded.set(chosen)
    try:
        yield chosen
    finally:
        _recorded.reset(token)


def choose(op: str, shape_class: str, arch: str) -> Tile:
    """Return the tile of a call: forced, else tuned, else shipped for ``arch`` or for any."""
    in_force = _forced.get() or {}
    tile = in_force.get((op, shape_class)) or in_force.get(op)
    if tile is None:
        tile = tuned.get(arch, {}).get(op, {}).get(shape_class)
    if tile is None:
        rows = TABLE[op][shape_class]
        tile = rows.get(arch) or rows[ANY]
    recorded_tiles = _recorded.get()
    if recorded_tiles is not None:
        recorded_tiles[op, shape_class] = tile
    return tile
