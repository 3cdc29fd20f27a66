"""y[n,oh,ow,c] = act(scale[c] * sum_(kh,kw) x[n,ih,iw,c/m] * w[c,kh,kw] + bias[c]), NHWC.

Outputs are dealt out in groups of ROWS x COLUMNS: a program owns BLOCK_GROUPS groups (of any row
and image, so that no lane idles where images are narrow) x BLOCK_CHANNELS channels. By a schedule
unrolled at compile time it loads each input of a group once and adds it to every output that it
reaches. Howard et al., MobileNets, arXiv:1704.04861.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels import tiles
from fastdw.triton_kernels.depthwise_groups import (
    add_at,
    filled,
    is_inside,
    is_read,
    locate_groups,
    locate_groups_of_image,
    replaced,
    store_sums,
    tap_between,
)
from fastdw.triton_kernels.epilogue import finish
from fastdw.triton_kernels.launch import COUNTS, KernelLaunch, Target, ceil_div

UNROLLED_ROWS = (3, 5, 7)
"""Classes of windows by their rows: a column of taps lives in registers; larger: tap by tap."""

VECTOR = 8
"""Channels of a 16-byte load at 2 bytes each; what divides them the compiler is told."""

MOST_WARPS = 16


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def _depthwise_conv(
    x_ptr,
    weight_ptr,
    scale_ptr,
    bias_ptr,
    y_ptr,
    sums_ptr,
    groups,
    group_rows,
    programs_of_image,
    height,
    width,
    out_height,
    out_width,
    channel_vectors,
    channel_blocks,
    top,
    left,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    FLIPPED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    program = tl.program_id(0) // channel_blocks
    channel_block = tl.program_id(0) - program * channel_blocks
    if sums_ptr is None:
        image, group_row, out_column, is_lane = locate_groups(
            program, groups, group_rows, out_width, BLOCK_GROUPS, WIDE
        )
    else:
        image, group_row, out_column, is_lane = locate_groups_of_image(
            program, groups, programs_of_image, out_width, BLOCK_GROUPS, WIDE
        )
    channels = channel_vectors * VECTOR
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    x_channels = channels // MULTIPLIER

    row = group_row * (ROWS * STRIDE_H) - top
    column = out_column * STRIDE_W - left
    pixel = (image * height + row) * width + column
    x = x_ptr + (pixel * x_channels)[:, None] + (channel // MULTIPLIER)[None, :]
    x_row = tl.cast(width, tl.int64) * x_channels
    weight = weight_ptr + channel * (KERNEL_H * KERNEL_W)

    sums = filled(ROWS, tl.zeros((BLOCK_GROUPS, BLOCK_CHANNELS), tl.float32))
    for kw in range(KERNEL_W):
        taps = ()
        for kh in tl.static_range(KERNEL_H):
            k = kh * KERNEL_W + kw
            if FLIPPED:
                k = KERNEL_H * KERNEL_W - 1 - k
            tap = tl.load(weight + k, mask=is_channel, other=0.0)
            taps = taps + (tap.to(tl.float32)[None, :],)
        is_column = is_lane & is_inside(column + kw * DILATION_W, width)
        value_ptr = x + kw * DILATION_W * x_channels
        for a in tl.static_range((ROWS - 1) * STRIDE_H + (KERNEL_H - 1) * DILATION_H + 1):
            if is_read(a, ROWS, STRIDE_H, DILATION_H, KERNEL_H):
                mask = (is_column & is_inside(row + a, height))[:, None] & is_channel[None, :]
                value = tl.load(value_ptr, mask=mask, other=0.0).to(tl.float32)
                for i in tl.static_range(ROWS):
                    if tap_between(a, i, STRIDE_H, DILATION_H, KERNEL_H) >= 0:
                        tap = taps[tap_between(a, i, STRIDE_H, DILATION_H, KERNEL_H)]
                        sums = add_at(sums, i, value * tap)
            value_ptr += x_row

    out_pixel = (image * out_height + group_row * ROWS) * out_width + out_column
    y = y_ptr + (out_pixel * channels)[:, None] + channel[None, :]
    y_row = tl.cast(out_width, tl.int64) * channels
    if sums_ptr is not None:
        total = tl.zeros((BLOCK_GROUPS, BLOCK_CHANNELS), tl.float32)
    for i in tl.static_range(ROWS):
        value = finish(sums[i], scale_ptr, bias_ptr, channel, is_channel, ACTIVATION)
        if sums_ptr is not None:
            is_row = is_lane & (group_row * ROWS + i < out_height)
            total += tl.where(is_row[:, None], value, 0.0)
        sums = replaced(sums, i, value.to(y_ptr.dtype.element_ty))
    for i in tl.static_range(ROWS):
        is_row = is_lane & (group_row * ROWS + i < out_height)
        tl.store(y, sums[i], mask=is_row[:, None] & is_channel[None, :])
        y += y_row
    if sums_ptr is not None:
        store_sums(sums_ptr, total, program, channels, channel, is_channel)


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def _depthwise_conv_by_taps(
    x_ptr,
    weight_ptr,
    scale_ptr,
    bias_ptr,
    y_ptr,
    sums_ptr,
    groups,
    programs_of_image,
    height,
    width,
    out_height,
    out_width,
    channel_vectors,
    channel_blocks,
    top,
    left,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    dilation_h,
    dilation_w,
    MULTIPLIER: tl.constexpr,
    FLIPPED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Any window: a group is one output, and the taps are looped over."""
    program = tl.program_id(0) // channel_blocks
    channel_block = tl.program_id(0) - program * channel_blocks
    if sums_ptr is None:
        image, out_row, out_column, is_lane = locate_groups(
            program, groups, out_height, out_width, BLOCK_GROUPS, WIDE
        )
    else:
        image, out_row, out_column, is_lane = locate_groups_of_image(
            program, groups, programs_of_image, out_width, BLOCK_GROUPS, WIDE
        )
    channels = channel_vectors * VECTOR
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    x_channels = channels // MULTIPLIER

    sums = tl.zeros((BLOCK_GROUPS, BLOCK_CHANNELS), tl.float32)
    for kh in range(kernel_h):
        row = out_row * stride_h - top + kh * dilation_h
        is_row = is_lane & is_inside(row, height)
        for kw in range(kernel_w):
            column = out_column * stride_w - left + kw * dilation_w
            mask = (is_row & is_inside(column, width))[:, None] & is_channel[None, :]
            pixel = (image * height + row) * width + column
            x = x_ptr + (pixel * x_channels)[:, None] + (channel // MULTIPLIER)[None, :]
            k = kh * kernel_w + kw
            if FLIPPED:
                k = kernel_h * kernel_w - 1 - k
            weight = weight_ptr + channel * (kernel_h * kernel_w) + k
            tap = tl.load(weight, mask=is_channel, other=0.0).to(tl.float32)
            sums += tl.load(x, mask=mask, other=0.0).to(tl.float32) * tap[None, :]

    value = finish(sums, scale_ptr, bias_ptr, channel, is_channel, ACTIVATION)
    pixel = (image * out_height + out_row) * out_width + out_column
    y = y_ptr + (pixel * channels)[:, None] + channel[None, :]
    tl.store(y, value.to(y_ptr.dtype.element_ty), mask=is_lane[:, None] & is_channel[None, :])
    if sums_ptr is not None:
        total = tl.where(is_lane[:, None], value, 0.0)
        store_sums(sums_ptr, total, program, channels, channel, is_channel)


def share_out(
    groups: int, channels: int, block_groups: int, block_channels: int
) -> tuple[int, dict[str, int]]:
    """Return the number of programs, and the arguments that say how they share the groups."""
    channel_blocks = ceil_div(channels, block_channels)
    vector = gcd(channels, VECTOR)
    return ceil_div(groups, block_groups) * channel_blocks, {
        "groups": groups,
        "channel_vectors": channels // vector,
        "channel_blocks": channel_blocks,
        "VECTOR": vector,
        "WIDE": groups > 2**31 - 2**16,
    }


def block_sizes(tile: tiles.Tile) -> dict[str, int]:
    """Return the sizes that every kernel here has."""
    return {name: tile.sizes[name] for name in ("BLOCK_GROUPS", "BLOCK_CHANNELS")}


def warps(tile: tiles.Tile, vector: int, *tensors: Any) -> int:
    """Return the warps of a tile: the table's are for lanes of 8 channels; here maybe fewer fit."""
    channels = min(16 // max(tensor.element_size() for tensor in tensors), vector)
    return min(MOST_WARPS, tile.num_warps * VECTOR // channels)


def window_arguments(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> dict[str, int]:
    """Return the window under the kernels' names; in upper case they are constexpr."""
    pairs = {"kernel": kernel, "stride": stride, "dilation": dilation}
    return {
        f"{name}_{axis}": size
        for name, pair in pairs.items()
        for axis, size in zip("hw", pair, strict=True)
    }


def size_class(elements: int, target: Target) -> str:
    """Return "few" for outputs that only small tiles deal out to the whole GPU."""
    return "few" if elements < 8192 * target.multiprocessors else "many"


def plan_window(
    op: str,
    x: Any,
    weight: Any,
    scale: Any,
    bias: Any,
    y: Any,
    stride: tuple[int, int],
    offset: tuple[int, int],
    dilation: tuple[int, int],
    activation: str,
    target: Target,
    *,
    flipped: bool,
    pooled: bool = False,
) -> list[KernelLaunch]:
    """Plan a depthwise convolution with padding ``offset`` (top, left), by tiles of ``op``.

    ``flipped``: with the window turned by 180 degrees. ``pooled``: each program leaves the sums of
    its channels in ``sums_ptr``, [batch, programs of an image, channels].
    """
    batch, channels, out_height, out_width = y.shape
    if batch == 0:
        return []
    rows = next((rows for rows in UNROLLED_ROWS if weight.shape[2] <= rows), None)
    kind = f"{rows} {size_class(batch * channels * out_height * out_width, target)}"
    tile = tiles.choose(op, kind if rows else "any", target.arch)
    sizes = block_sizes(tile)
    if rows:  # ROWS outputs at stride 1, of others as many as the same rows of x hold
        sizes["ROWS"] = ceil_div(tile.sizes["ROWS"], stride[0])
    group_rows = ceil_div(out_height, sizes.get("ROWS", 1))
    images, sums, programs_of_image = batch, None, None  # None: in no kernel's parameters
    if pooled:  # then no program may own groups of two images
        images, programs_of_image = 1, ceil_div(group_rows * out_width, sizes["BLOCK_GROUPS"])
        sums = x.new_empty(0).float().new_empty((batch, programs_of_image, channels))
    programs, shares = share_out(
        images * group_rows * out_width,
        channels,
        sizes["BLOCK_GROUPS"],
        sizes["BLOCK_CHANNELS"],
    )
    window = window_arguments(tuple(weight.shape[2:]), stride, dilation)
    if rows:
        window = {name.upper(): size for name, size in window.items()}
        window["group_rows"] = group_rows
    arguments = dict(
        x_ptr=x,
        weight_ptr=weight,
        scale_ptr=scale,
        bias_ptr=bias,
        y_ptr=y,
        sums_ptr=sums,
        programs_of_image=programs_of_image,
        height=x.shape[2],
        width=x.shape[3],
        out_height=out_height,
        out_width=out_width,
        top=offset[0],
        left=offset[1],
        MULTIPLIER=channels // x.shape[1],
        FLIPPED=flipped,
        ACTIVATION=activation,
        **shares,
        **window,
        **sizes,
    )
    kernel = _depthwise_conv if rows else _depthwise_conv_by_taps
    return [
        KernelLaunch(
            kernel,
            (programs * (batch // images),),
            arguments,
            warps(tile, shares["VECTOR"], x, y),
            tile.num_stages,
        )
    ]


def plan_depthwise_conv(
    x: Any,
    weight: Any,
    scale: Any,
    bias: Any,
    y: Any,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    activation: str,
    target: Target,
    *,
    pooled: bool = False,
) -> list[KernelLaunch]:
    """Plan the forward pass. Padding is (left, right, top, bottom); x and y are channels_last.

    ``pooled``: see ``plan_window``.
    """
    return plan_window(
        "depthwise_conv",
        x,
        weight,
        scale,
        bias,
        y,
        stride,
        (padding[2], padding[0]),
        dilation,
        activation,
        target,
        flipped=False,
        pooled=pooled,
    )
