"""y = pointwise(depthwise(x)) + residual, both with scale, bias and activation, in one kernel.

x NHWC; weights [channels * m, 1, kh, kw] and [channels_out, channels * m]. A program owns a
rectangle of y: slabs of channels pass the depthwise filter in fp32, are rounded once and multiplied
into the sums. Every block of output channels filters anew, so the blocks are wide (up to 256).
Two kernels where ``block_plan`` says so.
Paper: Howard et al., MobileNets (2017), section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels import block_plan, tiles
from fastdw.triton_kernels.depthwise_conv import plan_depthwise_conv
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
from fastdw.triton_kernels.tile_geometry import Window, best_tiling, place_tile, power_of_two


@triton.jit
def add_tap(
    total, x_slab, weight_slab, row_in, column_in, is_pixel, is_channel, tap_row, tap_column,
    height, width, channels, dilation_h, dilation_w, KERNEL_W: tl.constexpr,
):  # fmt: skip
    """Add x under one tap times its weights to the sums [pixels, channels] of a slab."""
    row, column = row_in + tap_row * dilation_h, column_in + tap_column * dilation_w
    inside = is_pixel & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    shift = (tl.cast(tap_row * dilation_h, tl.int64) * width + tap_column * dilation_w) * channels
    x = tl.load(x_slab + shift, mask=inside[:, None] & is_channel[None, :], other=0.0)
    tap = tap_row * KERNEL_W + tap_column
    weight = tl.load(weight_slab + tap, mask=is_channel, other=0.0)
    return total + x.to(tl.float32) * weight.to(tl.float32)[None, :]


@triton.jit
def filter_pixels(
    x_slab, weight_slab, row_in, column_in, is_pixel, is_channel, height, width, channels,
    dilation_h, dilation_w, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
):  # fmt: skip
    """Return the filtered slab [pixels, channels] in fp32."""
    total = tl.zeros((is_pixel.shape[0], is_channel.shape[0]), tl.float32)
    if KERNEL_H * KERNEL_W <= 9:
        for tap in tl.static_range(KERNEL_H * KERNEL_W):
            total = add_tap(
                total, x_slab, weight_slab, row_in, column_in, is_pixel, is_channel,
                tap // KERNEL_W, tap % KERNEL_W, height, width, channels,
                dilation_h, dilation_w, KERNEL_W,
            )  # fmt: skip
    else:
        for tap_row in range(KERNEL_H):
            for tap_column in tl.static_range(KERNEL_W):
                total = add_tap(
                    total, x_slab, weight_slab, row_in, column_in, is_pixel, is_channel,
                    tap_row, tap_column, height, width, channels,
                    dilation_h, dilation_w, KERNEL_W,
                )  # fmt: skip
    return total


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def separable_block_kernel(
    x_ptr, dw_weight_ptr, dw_scale_ptr, dw_bias_ptr, pw_weight_ptr, out_scale_ptr, out_bias_ptr,
    residual_ptr, y_ptr, partial_ptr, pixels, height, width, height_out, width_out, tiles_down,
    tiles_across, groups_in, groups_hidden, groups_out, channels_per_split, stride_h, stride_w,
    pad_top, pad_left, dilation_h, dilation_w, GROUP_IN: tl.constexpr, GROUP_HIDDEN: tl.constexpr,
    GROUP_OUT: tl.constexpr, MULTIPLIER: tl.constexpr, KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr, DW_ACTIVATION: tl.constexpr, OUT_ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
    LANE_COLUMNS: tl.constexpr, PIXELS: tl.constexpr, BLOCK_OUT: tl.constexpr,
    BLOCK_REST: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    channels_in = groups_in * GROUP_IN
    hidden_channels = groups_hidden * GROUP_HIDDEN
    channels_out = groups_out * GROUP_OUT
    image, first_row, first_column, row, column, is_pixel = place_tile(
        height_out, width_out, tiles_down, tiles_across, TILE_ROWS, TILE_COLUMNS, LANE_COLUMNS,
        PIXELS,
    )  # fmt: skip
    row, column = first_row + row, first_column + column
    row_in, column_in = row * stride_h - pad_top, column * stride_w - pad_left
    x_corner = x_ptr + image * height * width * channels_in
    x_corner += ((row_in.to(tl.int64) * width + column_in) * channels_in)[:, None]

    first_out = tl.program_id(1) * (BLOCK_OUT + BLOCK_REST)
    first_hidden = tl.program_id(2) * channels_per_split
    end_hidden = tl.minimum(first_hidden + channels_per_split, hidden_channels)
    total = tl.zeros((PIXELS, BLOCK_OUT), tl.float32)
    rest = tl.zeros((PIXELS, BLOCK_REST if BLOCK_REST > 0 else BLOCK_OUT), tl.float32)
    for start in range(first_hidden, end_hidden, SLAB):
        channel = start + tl.arange(0, SLAB)
        is_channel = channel < end_hidden
        weight, rest_weight = load_slab(
            pw_weight_ptr, channel, is_channel, first_out, hidden_channels, channels_out,
            BLOCK_OUT, BLOCK_REST,
        )  # fmt: skip
        x_slab = x_corner + (channel // MULTIPLIER)[None, :]
        weight_slab = dw_weight_ptr + channel * (KERNEL_H * KERNEL_W)
        filtered = filter_pixels(
            x_slab, weight_slab, row_in, column_in, is_pixel, is_channel, height, width,
            channels_in, dilation_h, dilation_w, KERNEL_H, KERNEL_W,
        )  # fmt: skip
        filtered = finish(filtered, dw_scale_ptr, dw_bias_ptr, channel, is_channel, DW_ACTIVATION)
        # With nothing but loads behind it, the compiler would move every tap to the layout of the
        # product's operand, through shared memory; with this it moves their sum, once.
        filtered = tl.where(is_channel[None, :], filtered, 0.0).to(x_ptr.dtype.element_ty)
        total = tl.dot(filtered, weight, total, input_precision=PRECISION)
        if BLOCK_REST > 0:
            rest = tl.dot(filtered, rest_weight, rest, input_precision=PRECISION)

    y_pixel = (image * height_out + row) * width_out + column
    store_sums(
        total, rest, out_scale_ptr, out_bias_ptr, residual_ptr, y_ptr, partial_ptr, y_pixel,
        is_pixel, pixels, tl.program_id(2), first_out, channels_out, OUT_ACTIVATION,
        BLOCK_OUT, BLOCK_REST,
    )  # fmt: skip


def _shape_class(x: Any, channels_out: int, pixels: int, tf32: bool, target: Target) -> str:
    """Wide blocks of output channels filter less often; narrow ones keep more processors busy."""
    precision = precision_class(x, tf32)
    is_few = ceil_div(pixels, 64) * ceil_div(channels_out, 256) < target.multiprocessors
    most = 128 if precision == "fp32" or is_few else 256
    return f"{precision} out{min(most, power_of_two(channels_out, 32))}"


def new_hidden(x: Any, channels: int, height: int, width: int) -> Any:
    """Return a workspace of such images, channels last."""
    return x.new_empty((x.shape[0], height, width, channels)).permute(0, 3, 1, 2)


def plan_separable_block(
    x: Any, dw_weight: Any, dw_scale: Any, dw_bias: Any, pw_weight: Any, pw_scale: Any,
    pw_bias: Any, y: Any, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    residual: Any, dw_activation: str, pw_activation: str, tf32: bool, target: Target,
) -> list[KernelLaunch]:  # fmt: skip
    """Plan ``y = pointwise(depthwise(x)) + residual``."""
    batch, channels_in = x.shape[:2]
    hidden, channels_out = dw_weight.shape[0], pw_weight.shape[0]
    pixels = batch * y.shape[2] * y.shape[3]
    if pixels == 0:
        return []
    if not block_plan.in_one_kernel(0):
        filtered = new_hidden(x, hidden, *y.shape[2:])
        return plan_depthwise_conv(
            x, dw_weight, dw_scale, dw_bias, filtered, stride, padding, dilation, dw_activation,
            target,
        ) + plan_pointwise_conv(
            filtered, pw_weight, pw_scale, pw_bias, residual, y, pw_activation, tf32, target
        )  # fmt: skip
    tile = tiles.choose(
        "separable_block", _shape_class(x, channels_out, pixels, tf32, target), target.arch
    )
    sizes = tile.sizes
    window = Window(dw_weight.shape[2:], stride, padding, dilation)
    tiling = best_tiling(y.shape[2], y.shape[3], window, sizes["PIXELS"])
    blocks = out_blocks(channels_out, sizes["MOST_OUT"])
    programs = batch * tiling.tiles, ceil_div(channels_out, sum(blocks.values()))
    slabs_per_split, splits = splits_of(hidden, sizes, programs, target)
    partial = new_partial_sums(x, splits, pixels, channels_out) if splits > 1 else None
    arguments = {
        "x_ptr": x,
        "dw_weight_ptr": dw_weight,
        "dw_scale_ptr": dw_scale,
        "dw_bias_ptr": dw_bias,
        "pw_weight_ptr": pw_weight,
        **output_arguments(pw_scale, pw_bias, residual, y, partial),
        "pixels": pixels,
        **window.arguments(x, y),
        **tiling.arguments(),
        **channel_arguments("in", channels_in),
        **channel_arguments("hidden", hidden),
        **channel_arguments("out", channels_out),
        "channels_per_split": slabs_per_split * sizes["SLAB"],
        "MULTIPLIER": hidden // channels_in,
        "DW_ACTIVATION": dw_activation,
        "OUT_ACTIVATION": pw_activation,
        "PRECISION": "tf32" if tf32 else "ieee",
        "SLAB": sizes["SLAB"],
        **blocks,
    }
    main = KernelLaunch(
        separable_block_kernel, (*programs, splits), arguments, tile.num_warps, tile.num_stages
    )
    if partial is None:
        return [main]
    return [main, plan_finish(partial, pw_scale, pw_bias, residual, y, pw_activation)]
