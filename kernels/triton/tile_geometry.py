"""Rectangles of output pixels: which one a program owns, and which input pixels lie under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels.launch import ceil_div


@triton.jit
def place_tile(
    height_out, width_out, tiles_down, tiles_across, TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr, LANE_COLUMNS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Return this program's (image, first row, first column, row, column, is_pixel) of y.

    Row and column count inside the tile; lanes beyond the tile stand on its first pixel.
    """
    tile = tl.program_id(0)
    image = (tile // (tiles_down * tiles_across)).to(tl.int64)
    first_row = tile // tiles_across % tiles_down * TILE_ROWS
    first_column = tile % tiles_across * TILE_COLUMNS
    lane = tl.arange(0, PIXELS)
    is_lane = (lane // LANE_COLUMNS < TILE_ROWS) & (lane % LANE_COLUMNS < TILE_COLUMNS)
    row = tl.where(is_lane, lane // LANE_COLUMNS, 0)
    column = tl.where(is_lane, lane % LANE_COLUMNS, 0)
    is_pixel = is_lane & (first_row + row < height_out) & (first_column + column < width_out)
    return image, first_row, first_column, row, column, is_pixel


@dataclass(frozen=True)
class Window:
    """The taps of a depthwise convolution; pairs are (vertical, horizontal)."""

    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]  # left, right, top, bottom
    dilation: Sequence[int]

    def pixels_under(self, rows: int, columns: int) -> tuple[int, int]:
        """Return rows and columns of x under so many rows and columns of y."""
        under = (
            (length - 1) * stride + (kernel - 1) * dilation + 1
            for length, stride, kernel, dilation in zip(
                (rows, columns), self.stride, self.kernel_size, self.dilation, strict=True
            )
        )
        return next(under), next(under)

    def arguments(self, x: Any, y: Any) -> dict[str, int]:
        """Return what the kernels with a window have to know of it."""
        return {
            "height": x.shape[2],
            "width": x.shape[3],
            "height_out": y.shape[2],
            "width_out": y.shape[3],
            "stride_h": self.stride[0],
            "stride_w": self.stride[1],
            "pad_top": self.padding[2],
            "pad_left": self.padding[0],
            "dilation_h": self.dilation[0],
            "dilation_w": self.dilation[1],
            "KERNEL_H": self.kernel_size[0],
            "KERNEL_W": self.kernel_size[1],
        }


@dataclass(frozen=True)
class Tiling:
    """Tiles of rows x columns that cover an image of y."""

    rows: int
    columns: int
    down: int
    across: int
    rows_in: int
    columns_in: int

    @property
    def tiles(self) -> int:
        """How many tiles an image has."""
        return self.down * self.across

    def arguments(self) -> dict[str, int]:
        """Return what the kernels have to know of it; lanes of powers of two where they fit."""
        lanes = power_of_two(self.rows * self.columns)
        padded = power_of_two(self.columns, 1)
        return {
            "LANE_COLUMNS": padded if self.rows * padded <= lanes else self.columns,
            "PIXELS": lanes,
            "tiles_down": self.down,
            "tiles_across": self.across,
            "TILE_ROWS": self.rows,
            "TILE_COLUMNS": self.columns,
        }


def best_tiling(
    height_out: int, width_out: int, window: Window, most_out: int, most_in: int | None = None
) -> Tiling | None:
    """Return the fewest tiles of at most so many pixels of y and of x; then the least of x."""
    best = None
    for columns in range(1, min(width_out, most_out) + 1):
        across = ceil_div(width_out, columns)
        if ceil_div(width_out, across) != columns:
            continue  # as many tiles of fewer columns do
        rows = min(height_out, most_out // columns)
        if most_in is not None:
            while rows and _product(window.pixels_under(rows, columns)) > most_in:
                rows -= 1
        if rows == 0:
            continue
        down = ceil_div(height_out, rows)
        rows = ceil_div(height_out, down)
        rows_in, columns_in = window.pixels_under(rows, columns)
        cost = down * across, down * across * rows_in * columns_in
        if best is None or cost < best[0]:
            best = cost, Tiling(rows, columns, down, across, rows_in, columns_in)
    return best and best[1]


def _product(sides: tuple[int, int]) -> int:
    return sides[0] * sides[1]


def power_of_two(least: int, floor: int = 16) -> int:
    """Return the least power of two from ``floor`` on that is not below ``least``."""
    return max(floor, 1 << (least - 1).bit_length())
