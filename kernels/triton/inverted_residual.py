"""y = project(depthwise(expand(x))) [+ x], each with scale, bias and activation, in one kernel.

x NHWC; weights [hidden, channels], [hidden, 1, kh, kw], [out, hidden]. A program owns a rectangle
of y: it expands slabs of hidden channels of the pixels under it, filters them on the chip and
multiplies them into its sums. Expansion apart: where ``block_plan`` says so, or (``_tiling``) 256
such pixels are too few for the window or would be expanded over 4 times. Sandler et al.,
MobileNetV2 (2018), 3.3 and 5.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels import block_plan, tiles
from fastdw.triton_kernels.epilogue import finish
from fastdw.triton_kernels.launch import COUNTS, KernelLaunch, Target, ceil_div
from fastdw.triton_kernels.pointwise_conv import (
    new_partial_sums,
    plan_finish,
    plan_pointwise_conv,
    precision_class,
)
from fastdw.triton_kernels.projection import (
    channel_arguments,
    load_slab,
    out_blocks,
    output_arguments,
    splits_of,
    store_sums,
)
from fastdw.triton_kernels.separable_block import new_hidden, plan_separable_block
from fastdw.triton_kernels.shifted_taps import filter_slab
from fastdw.triton_kernels.tile_geometry import (
    Tiling,
    Window,
    best_tiling,
    place_tile,
    power_of_two,
)


@triton.jit
def place_input(
    x_image, first_row, first_column, height, width, channels,
    ROWS_IN: tl.constexpr, COLUMNS_IN: tl.constexpr, PIXELS_IN: tl.constexpr,
):  # fmt: skip
    """Return pointers to the pixels under the tile, [pixels, 1], and which lie in the image."""
    pixel = tl.arange(0, PIXELS_IN)
    row, column = first_row + pixel // COLUMNS_IN, first_column + pixel % COLUMNS_IN
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside &= pixel < ROWS_IN * COLUMNS_IN
    return x_image + ((row.to(tl.int64) * width + column) * channels)[:, None], inside


@triton.jit
def add_expanded(
    total, x_pixels, inside, weight_ptr, hidden, is_hidden, first_in, channels_in,
    BLOCK_IN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add x [pixels, a block of input channels] times its weights to the hidden sums."""
    channel = first_in + tl.arange(0, BLOCK_IN)
    is_channel = channel < channels_in
    x = tl.load(x_pixels + channel[None, :], mask=inside[:, None] & is_channel[None, :], other=0.0)
    weight = tl.load(
        weight_ptr + hidden.to(tl.int64)[None, :] * channels_in + channel[:, None],
        mask=is_channel[:, None] & is_hidden[None, :],
        other=0.0,
    )
    return tl.dot(x, weight, total, input_precision=PRECISION)


@triton.jit
def expand_slab(
    x_pixels, inside, weight_ptr, scale_ptr, bias_ptr, hidden, is_hidden, channels_in,
    BLOCK_IN: tl.constexpr, IN_BLOCKS: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the hidden values, fp32, of a slab: zeros outside the image, not activation(bias)."""
    total = tl.zeros((inside.shape[0], hidden.shape[0]), tl.float32)
    if IN_BLOCKS == 1:
        total = add_expanded(
            total, x_pixels, inside, weight_ptr, hidden, is_hidden, 0, channels_in,
            BLOCK_IN, PRECISION,
        )  # fmt: skip
    else:
        for block in tl.range(0, IN_BLOCKS, num_stages=2):
            total = add_expanded(
                total, x_pixels, inside, weight_ptr, hidden, is_hidden, block * BLOCK_IN,
                channels_in, BLOCK_IN, PRECISION,
            )  # fmt: skip
    total = finish(total, scale_ptr, bias_ptr, hidden, is_hidden, ACTIVATION)
    return tl.where(inside[:, None], total, 0.0)


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def inverted_residual_kernel(
    x_ptr, expand_weight_ptr, expand_scale_ptr, expand_bias_ptr, dw_weight_ptr, dw_scale_ptr,
    dw_bias_ptr, project_weight_ptr, out_scale_ptr, out_bias_ptr, residual_ptr, y_ptr, partial_ptr,
    pixels, height, width, height_out, width_out, tiles_down, tiles_across, groups_in,
    groups_hidden, groups_out, channels_per_split, stride_h, stride_w, pad_top, pad_left,
    dilation_h, dilation_w, GROUP_IN: tl.constexpr, GROUP_HIDDEN: tl.constexpr,
    GROUP_OUT: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    EXPAND_ACTIVATION: tl.constexpr, DW_ACTIVATION: tl.constexpr, OUT_ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
    LANE_COLUMNS: tl.constexpr, ROWS_IN: tl.constexpr, COLUMNS_IN: tl.constexpr,
    PIXELS: tl.constexpr, PIXELS_IN: tl.constexpr, BLOCK_IN: tl.constexpr, IN_BLOCKS: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_REST: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    channels_in = groups_in * GROUP_IN
    hidden_channels = groups_hidden * GROUP_HIDDEN
    channels_out = groups_out * GROUP_OUT
    image, first_row, first_column, row, column, is_pixel = place_tile(
        height_out, width_out, tiles_down, tiles_across, TILE_ROWS, TILE_COLUMNS, LANE_COLUMNS,
        PIXELS,
    )  # fmt: skip
    corner = row * stride_h * COLUMNS_IN + column * stride_w
    x_pixels, inside = place_input(
        x_ptr + image * height * width * channels_in, first_row * stride_h - pad_top,
        first_column * stride_w - pad_left, height, width, channels_in,
        ROWS_IN, COLUMNS_IN, PIXELS_IN,
    )  # fmt: skip
    first_out = tl.program_id(1) * (BLOCK_OUT + BLOCK_REST)
    first_hidden = tl.program_id(2) * channels_per_split
    end_hidden = tl.minimum(first_hidden + channels_per_split, hidden_channels)
    total = tl.zeros((PIXELS, BLOCK_OUT), tl.float32)
    rest = tl.zeros((PIXELS, BLOCK_REST if BLOCK_REST > 0 else BLOCK_OUT), tl.float32)
    for start in range(first_hidden, end_hidden, SLAB):
        hidden = start + tl.arange(0, SLAB)
        is_hidden = hidden < end_hidden
        weight, rest_weight = load_slab(
            project_weight_ptr, hidden, is_hidden, first_out, hidden_channels, channels_out,
            BLOCK_OUT, BLOCK_REST,
        )  # fmt: skip
        expanded = expand_slab(
            x_pixels, inside, expand_weight_ptr, expand_scale_ptr, expand_bias_ptr, hidden,
            is_hidden, channels_in, BLOCK_IN, IN_BLOCKS, EXPAND_ACTIVATION, PRECISION,
        ).to(x_ptr.dtype.element_ty)  # fmt: skip
        filtered = filter_slab(
            expanded, corner, dw_weight_ptr + hidden * (KERNEL_H * KERNEL_W), is_hidden,
            dilation_h, dilation_w, KERNEL_H, KERNEL_W, COLUMNS_IN,
        )  # fmt: skip
        filtered = finish(filtered, dw_scale_ptr, dw_bias_ptr, hidden, is_hidden, DW_ACTIVATION)
        filtered = filtered.to(x_ptr.dtype.element_ty)
        total = tl.dot(filtered, weight, total, input_precision=PRECISION)
        if BLOCK_REST > 0:
            rest = tl.dot(filtered, rest_weight, rest, input_precision=PRECISION)

    y_pixel = (image * height_out + first_row + row) * width_out + first_column + column
    store_sums(
        total, rest, out_scale_ptr, out_bias_ptr, residual_ptr, y_ptr, partial_ptr, y_pixel,
        is_pixel, pixels, tl.program_id(2), first_out, channels_out, OUT_ACTIVATION,
        BLOCK_OUT, BLOCK_REST,
    )  # fmt: skip


def _shape_class(x: Any, channels_out: int, window: Window, tf32: bool) -> str:
    rows, columns = window.pixels_under(8, 8)
    width = 64 if channels_out <= 64 else 128 if channels_out <= 128 else 192
    reach = "near" if rows * columns <= 128 else "far"
    return f"{precision_class(x, tf32)} out{width} {reach}"


MOST_RECOMPUTED = 4
"""How often a pixel may be expanded, on average, before the expansion is a launch of its own."""


def _tiling(x: Any, y: Any, window: Window, sizes: Mapping[str, int]) -> Tiling | None:
    """Return the tiles of y, or None where they would expand too many pixels too often."""
    tiling = best_tiling(
        y.shape[2], y.shape[3], window, sizes["MOST_PIXELS"], sizes["MOST_PIXELS_IN"]
    )
    if tiling is None:
        return None
    expanded = tiling.tiles * tiling.rows_in * tiling.columns_in
    return tiling if expanded <= MOST_RECOMPUTED * x.shape[2] * x.shape[3] else None


def plan_inverted_residual(
    x: Any, expand_weight: Any, expand_scale: Any, expand_bias: Any,
    dw_weight: Any, dw_scale: Any, dw_bias: Any,
    project_weight: Any, project_scale: Any, project_bias: Any, y: Any,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], residual: bool,
    expand_activation: str, dw_activation: str, project_activation: str,
    tf32: bool, target: Target,
) -> list[KernelLaunch]:  # fmt: skip
    """Plan ``y = project(depthwise(expand(x))) [+ x]``; ``expand_weight`` may be None."""
    if y.shape[0] * y.shape[2] * y.shape[3] == 0:
        return []
    expand = expand_weight, expand_scale, expand_bias
    depthwise = dw_weight, dw_scale, dw_bias
    project = project_weight, project_scale, project_bias
    added = x if residual else None
    if _is_fused(x, expand_weight, dw_weight):
        window = Window(dw_weight.shape[2:], stride, padding, dilation)
        shape_class = _shape_class(x, project_weight.shape[0], window, tf32)
        tile = tiles.choose("inverted_residual", shape_class, target.arch)
        tiling = _tiling(x, y, window, tile.sizes)
        if tiling is not None:
            activations = expand_activation, dw_activation, project_activation
            return _plan_in_one(
                x, expand, depthwise, project, added, y, activations, window, tiling, tile, tf32,
                target,
            )  # fmt: skip
    launches, hidden = [], x
    if expand_weight is not None:
        hidden = new_hidden(x, expand_weight.shape[0], *x.shape[2:])
        launches = plan_pointwise_conv(
            x, *expand, None, hidden, expand_activation, tf32, target
        )  # fmt: skip
    return launches + plan_separable_block(
        hidden, *depthwise, *project, y, stride, padding, dilation, added, dw_activation,
        project_activation, tf32, target,
    )  # fmt: skip


def _is_fused(x: Any, expand_weight: Any, dw_weight: Any) -> bool:
    if expand_weight is None or dw_weight.shape[0] != expand_weight.shape[0]:
        return False
    expanded = x.shape[0] * dw_weight.shape[0] * x.shape[2] * x.shape[3]
    return block_plan.in_one_kernel(expanded * x.element_size())


Conv = tuple[Any, Any, Any]
"""The (weight, scale, bias) of one of the three convolutions."""


def _plan_in_one(
    x: Any, expand: Conv, depthwise: Conv, project: Conv, residual: Any, y: Any,
    activations: tuple[str, str, str], window: Window, tiling: Tiling, tile: tiles.Tile,
    tf32: bool, target: Target,
) -> list[KernelLaunch]:  # fmt: skip
    batch, channels_in = x.shape[:2]
    hidden, channels_out, sizes = expand[0].shape[0], project[0].shape[0], tile.sizes
    pixels = batch * y.shape[2] * y.shape[3]
    blocks = out_blocks(channels_out, sizes["MOST_OUT"])
    programs = batch * tiling.tiles, ceil_div(channels_out, sum(blocks.values()))
    slabs_per_split, splits = splits_of(hidden, sizes, programs, target)
    partial = new_partial_sums(x, splits, pixels, channels_out) if splits > 1 else None
    block_in = min(sizes["MOST_IN"], power_of_two(channels_in))
    names = [f"{conv}_{part}_ptr" for conv in ("expand", "dw") for part in _PARTS]
    arguments = {
        "x_ptr": x,
        **dict(zip(names, (*expand, *depthwise), strict=True)),
        "project_weight_ptr": project[0],
        **output_arguments(*project[1:], residual, y, partial),
        "pixels": pixels,
        **window.arguments(x, y),
        **tiling.arguments(),
        "ROWS_IN": tiling.rows_in,
        "COLUMNS_IN": tiling.columns_in,
        **channel_arguments("in", channels_in),
        **channel_arguments("hidden", hidden),
        **channel_arguments("out", channels_out),
        "channels_per_split": slabs_per_split * sizes["SLAB"],
        "EXPAND_ACTIVATION": activations[0],
        "DW_ACTIVATION": activations[1],
        "OUT_ACTIVATION": activations[2],
        "PRECISION": "tf32" if tf32 else "ieee",
        "PIXELS_IN": power_of_two(tiling.rows_in * tiling.columns_in),
        "BLOCK_IN": block_in,
        "IN_BLOCKS": ceil_div(channels_in, block_in),
        "SLAB": sizes["SLAB"],
        **blocks,
    }
    grid = (*programs, splits)
    main = KernelLaunch(inverted_residual_kernel, grid, arguments, tile.num_warps, tile.num_stages)
    if partial is None:
        return [main]
    return [main, plan_finish(partial, *project[1:], residual, y, activations[2])]


_PARTS = ("weight", "scale", "bias")
