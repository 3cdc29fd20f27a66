"""w_grad[c,kh,kw] = sum over images and output pixels of grad[n,oh,ow,c] * x[n,ih,iw,c/m], NHWC.

A program goes through a chunk of the pixels and keeps the sums of COLUMNS columns of taps of
BLOCK_CHANNELS in registers, one a lane, then adds up the lanes: for 3x3 all taps in one pass over
grad and x. A second kernel adds up the chunks in order: the same bits every time, no atomics.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels import tiles
from fastdw.triton_kernels.depthwise_conv import (
    UNROLLED_ROWS,
    block_sizes,
    share_out,
    warps,
    window_arguments,
)
from fastdw.triton_kernels.depthwise_groups import (
    add_at,
    filled,
    is_inside,
    is_read,
    locate_groups,
    tap_between,
)
from fastdw.triton_kernels.launch import COUNTS, KernelLaunch, Target, ceil_div

PROGRAMS_OF_MULTIPROCESSOR = 4
"""Chunks: as many as fill the GPU with programs."""

SUM = tiles.tile(4, 1, BLOCK_CHUNKS=64, BLOCK_ELEMENTS=32)
"""Of the second kernel: it is short whatever the shape."""


@triton.jit
def is_tap(kw, channel, taps: tl.constexpr):
    """``kw < taps`` once a channel: Triton 3.9 interprets no scalar in a mask."""
    return tl.zeros_like(channel) + kw < taps


@triton.jit(do_not_specialize=["blocks_of_chunk"], do_not_specialize_on_alignment=COUNTS)
def _weight_grad(
    grad_ptr,
    x_ptr,
    partial_ptr,
    groups,
    group_rows,
    height,
    width,
    out_height,
    out_width,
    channel_vectors,
    channel_blocks,
    blocks_of_chunk,
    top,
    left,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The sums of one chunk; ROWS divides out_height, for x may be inf where grad is absent."""
    chunk = tl.program_id(0) // channel_blocks
    channel_block = tl.program_id(0) - chunk * channel_blocks
    channels = channel_vectors * VECTOR
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    first_kw = tl.program_id(1) * COLUMNS
    x_channels = channels // MULTIPLIER
    x_row = tl.cast(width, tl.int64) * x_channels
    grad_row = tl.cast(out_width, tl.int64) * channels

    sums = filled(KERNEL_H * COLUMNS, tl.zeros((BLOCK_GROUPS, BLOCK_CHANNELS), tl.float32))
    for block in range(blocks_of_chunk):
        image, group_row, out_column, is_lane = locate_groups(
            chunk * blocks_of_chunk + block, groups, group_rows, out_width, BLOCK_GROUPS, WIDE
        )
        mask = is_lane[:, None] & is_channel[None, :]
        out_pixel = (image * out_height + group_row * ROWS) * out_width + out_column
        grad = grad_ptr + (out_pixel * channels)[:, None] + channel[None, :]
        grads = ()
        for _ in tl.static_range(ROWS):
            grads = grads + (tl.load(grad, mask=mask, other=0.0).to(tl.float32),)
            grad += grad_row

        row = group_row * (ROWS * STRIDE_H) - top
        column = out_column * STRIDE_W - left
        pixel = (image * height + row) * width + column
        x = x_ptr + (pixel * x_channels)[:, None] + (channel // MULTIPLIER)[None, :]
        for a in tl.static_range((ROWS - 1) * STRIDE_H + (KERNEL_H - 1) * DILATION_H + 1):
            if is_read(a, ROWS, STRIDE_H, DILATION_H, KERNEL_H):
                is_row = is_lane & is_inside(row + a, height)
                for j in tl.static_range(COLUMNS):
                    kw = first_kw + j
                    is_pixel = is_row & is_inside(column + kw * DILATION_W, width)
                    mask = is_pixel[:, None] & is_channel[None, :]
                    if KERNEL_W % COLUMNS != 0:
                        mask &= is_tap(kw, channel, KERNEL_W)[None, :]
                    value = tl.load(x + kw * DILATION_W * x_channels, mask=mask, other=0.0)
                    value = value.to(tl.float32)
                    for i in tl.static_range(ROWS):
                        if tap_between(a, i, STRIDE_H, DILATION_H, KERNEL_H) >= 0:
                            sums = add_at(
                                sums,
                                tap_between(a, i, STRIDE_H, DILATION_H, KERNEL_H) * COLUMNS + j,
                                value * grads[i],
                            )
            x += x_row

    first_tap = (tl.cast(chunk, tl.int64) * channels + channel) * (KERNEL_H * KERNEL_W)
    for kh in tl.static_range(KERNEL_H):
        for j in tl.static_range(COLUMNS):
            kw = first_kw + j
            total = tl.sum(sums[kh * COLUMNS + j], axis=0)
            mask = is_channel & is_tap(kw, channel, KERNEL_W)
            tl.store(partial_ptr + first_tap + kh * KERNEL_W + kw, total, mask=mask)


@triton.jit(do_not_specialize=["blocks_of_chunk"], do_not_specialize_on_alignment=COUNTS)
def _weight_grad_by_taps(
    grad_ptr,
    x_ptr,
    partial_ptr,
    groups,
    height,
    width,
    out_height,
    out_width,
    channel_vectors,
    channel_blocks,
    blocks_of_chunk,
    top,
    left,
    kernel_w,
    taps,
    stride_h,
    stride_w,
    dilation_h,
    dilation_w,
    MULTIPLIER: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Any window: a program per tap and chunk."""
    chunk = tl.program_id(0) // channel_blocks
    channel_block = tl.program_id(0) - chunk * channel_blocks
    tap = tl.program_id(1)
    channels = channel_vectors * VECTOR
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    x_channels = channels // MULTIPLIER
    kh = tap // kernel_w
    kw = tap - kh * kernel_w

    sums = tl.zeros((BLOCK_GROUPS, BLOCK_CHANNELS), tl.float32)
    for block in range(blocks_of_chunk):
        image, out_row, out_column, is_lane = locate_groups(
            chunk * blocks_of_chunk + block, groups, out_height, out_width, BLOCK_GROUPS, WIDE
        )
        row = out_row * stride_h - top + kh * dilation_h
        column = out_column * stride_w - left + kw * dilation_w
        is_pixel = is_lane & is_inside(row, height) & is_inside(column, width)
        mask = is_pixel[:, None] & is_channel[None, :]
        out_pixel = (image * out_height + out_row) * out_width + out_column
        pixel = (image * height + row) * width + column
        grad = grad_ptr + (out_pixel * channels)[:, None] + channel[None, :]
        x = x_ptr + (pixel * x_channels)[:, None] + (channel // MULTIPLIER)[None, :]
        value = tl.load(x, mask=mask, other=0.0).to(tl.float32)
        sums += value * tl.load(grad, mask=mask, other=0.0).to(tl.float32)

    offset = (tl.cast(chunk, tl.int64) * channels + channel) * taps + tap
    tl.store(partial_ptr + offset, tl.sum(sums, axis=0), mask=is_channel)


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def _sum_chunks(
    partial_ptr,
    weight_grad_ptr,
    elements,
    chunks,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_ELEMENTS: tl.constexpr,
):
    """weight_grad = the sum of [chunks, elements] over the chunks, always in the same order."""
    element = tl.program_id(0) * BLOCK_ELEMENTS + tl.arange(0, BLOCK_ELEMENTS)
    is_element = element < elements
    sums = tl.zeros((BLOCK_CHUNKS, BLOCK_ELEMENTS), tl.float32)
    for first in range(0, chunks, BLOCK_CHUNKS):
        chunk = first + tl.arange(0, BLOCK_CHUNKS)
        mask = (chunk < chunks)[:, None] & is_element[None, :]
        partial = partial_ptr + (chunk.to(tl.int64) * elements)[:, None] + element[None, :]
        sums += tl.load(partial, mask=mask, other=0.0)
    tl.store(weight_grad_ptr + element, tl.sum(sums, axis=0), mask=is_element)


def plan_sum(partial: Any, weight_grad: Any, chunks: int, elements: int) -> KernelLaunch:
    """Plan weight_grad as the sum of partial [chunks, elements] over the chunks."""
    arguments = dict(
        partial_ptr=partial,
        weight_grad_ptr=weight_grad,
        elements=elements,
        chunks=chunks,
        **SUM.sizes,
    )
    grid = (ceil_div(elements, SUM.sizes["BLOCK_ELEMENTS"]),)
    return KernelLaunch(_sum_chunks, grid, arguments, SUM.num_warps, SUM.num_stages)


def plan_depthwise_conv_weight_grad(
    grad: Any,
    x: Any,
    weight_grad: Any,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    target: Target,
) -> list[KernelLaunch]:
    """Plan weight_grad (fp32, contiguous) from grad and x, which are channels_last."""
    batch, channels, out_height, out_width = grad.shape
    kernel_h, kernel_w = weight_grad.shape[2:]
    taps = kernel_h * kernel_w
    kind = next((str(rows) for rows in UNROLLED_ROWS if kernel_h <= rows), "any")
    tile = tiles.choose("depthwise_conv_weight_grad", kind, target.arch)
    sizes = block_sizes(tile)
    passes = taps
    if kind != "any":
        rows = range(1, tile.sizes["ROWS"] + 1)
        sizes["ROWS"] = max(count for count in rows if out_height % count == 0)
        sizes["COLUMNS"] = min(tile.sizes["COLUMNS"], kernel_w)
        passes = ceil_div(kernel_w, sizes["COLUMNS"])
    group_rows = out_height // sizes.get("ROWS", 1)
    groups = batch * group_rows * out_width
    programs, shares = share_out(groups, channels, sizes["BLOCK_GROUPS"], sizes["BLOCK_CHANNELS"])
    blocks = max(1, programs // shares["channel_blocks"])
    wanted = ceil_div(PROGRAMS_OF_MULTIPROCESSOR * target.multiprocessors, shares["channel_blocks"])
    blocks_of_chunk = ceil_div(blocks, wanted)
    chunks = ceil_div(blocks, blocks_of_chunk)
    elements = channels * taps
    partial = weight_grad if chunks == 1 else weight_grad.new_empty((chunks, elements))
    arguments = dict(
        grad_ptr=grad,
        x_ptr=x,
        partial_ptr=partial,
        height=x.shape[2],
        width=x.shape[3],
        out_height=out_height,
        out_width=out_width,
        blocks_of_chunk=blocks_of_chunk,
        top=padding[2],
        left=padding[0],
        MULTIPLIER=channels // x.shape[1],
        **shares,
        **sizes,
    )
    grid = (chunks * shares["channel_blocks"], passes)
    window = window_arguments((kernel_h, kernel_w), stride, dilation)
    if kind == "any":
        del window["kernel_h"]
        kernel = _weight_grad_by_taps
        arguments |= dict(taps=taps, **window)
    else:
        kernel = _weight_grad
        arguments["group_rows"] = group_rows
        arguments |= {name.upper(): size for name, size in window.items()}
    launches = [
        KernelLaunch(
            kernel, grid, arguments, warps(tile, shares["VECTOR"], grad, x), tile.num_stages
        )
    ]
    if chunks > 1:
        launches.append(plan_sum(partial, weight_grad, chunks, elements))
    return launches
