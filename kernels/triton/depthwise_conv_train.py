"""x_grad[n,ih,iw,c] = sum over m and taps with oh * stride - top + kh * dilation = ih of grad * w.

Everything NHWC. At stride 1 it is the forward pass with the window turned by 180 degrees. At other
strides a group of pixels is whole strides high and one stride wide, so that which taps meet which
outputs is known at compile time: no products with the zeros of an upsampled gradient. The gradient
by the filters is in depthwise_conv_weight_grad.py.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels import tiles
from fastdw.triton_kernels.depthwise_conv import (
    block_sizes,
    plan_window,
    share_out,
    warps,
    window_arguments,
)
from fastdw.triton_kernels.depthwise_conv_weight_grad import plan_depthwise_conv_weight_grad
from fastdw.triton_kernels.depthwise_groups import (
    add_at,
    filled,
    is_inside,
    locate_groups,
    tap_between,
)
from fastdw.triton_kernels.launch import COUNTS, KernelLaunch, Target, ceil_div

__all__ = ["plan_depthwise_conv_input_grad", "plan_depthwise_conv_weight_grad"]

STRIDED_ROWS = (3, 5)
"""Classes of windows at other strides; with 49 taps the unrolled schedule spills registers."""

MOST_SUMS = 8
"""Strides of more pixels than registers can hold sums for are looped over tap by tap."""


@triton.constexpr_function
def first_output(phase, stride, dilation, taps):
    """The first output, counted from the group's own, whose window reaches input ``phase``."""
    return -(((taps - 1) * dilation - phase) // stride)


@triton.constexpr_function
def reads_any(output, positions, phase, stride, dilation, taps):
    """Whether the window of ``output`` reads one of the inputs from ``phase`` on."""
    steps = (divmod(phase + position - output * stride, dilation) for position in range(positions))
    return any(rest == 0 and 0 <= tap < taps for tap, rest in steps)


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def _input_grad(
    grad_ptr,
    weight_ptr,
    x_grad_ptr,
    groups,
    group_rows,
    group_columns,
    height,
    width,
    out_height,
    out_width,
    channel_vectors,
    channel_blocks,
    top_strides,
    left_strides,
    TOP_PHASE: tl.constexpr,
    LEFT_PHASE: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The padding is strides * stride + phase; ROWS is a multiple of the stride."""
    program = tl.program_id(0) // channel_blocks
    channel_block = tl.program_id(0) - program * channel_blocks
    image, group_row, group_column, is_lane = locate_groups(
        program, groups, group_rows, group_columns, BLOCK_GROUPS, WIDE
    )
    channels = channel_vectors * VECTOR
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    grad_row = tl.cast(out_width, tl.int64) * channels

    out_row = group_row * (ROWS // STRIDE_H) + top_strides
    out_column = group_column + left_strides
    out_pixel = (image * out_height + out_row) * out_width + out_column
    grad = grad_ptr + (out_pixel * channels)[:, None] + channel[None, :]
    weight = weight_ptr + channel * (KERNEL_H * KERNEL_W)

    sums = filled(ROWS * STRIDE_W, tl.zeros((BLOCK_GROUPS, BLOCK_CHANNELS), tl.float32))
    for kw in tl.static_range(KERNEL_W):
        # Each column of taps joins one of the STRIDE_W columns of x to one column of grad.
        taps = ()
        for kh in tl.static_range(KERNEL_H):
            tap = tl.load(weight + (kh * KERNEL_W + kw), mask=is_channel, other=0.0)
            taps = taps + (tap.to(tl.float32)[None, :],)
        column_step = -((kw * DILATION_W - LEFT_PHASE) // STRIDE_W)
        is_column = is_lane & is_inside(out_column + column_step, out_width)
        for a in tl.static_range(
            first_output(TOP_PHASE, STRIDE_H, DILATION_H, KERNEL_H),
            (ROWS - 1 + TOP_PHASE) // STRIDE_H + 1,
        ):
            if reads_any(a, ROWS, TOP_PHASE, STRIDE_H, DILATION_H, KERNEL_H):
                mask = is_column & is_inside(out_row + a, out_height)
                mask = mask[:, None] & is_channel[None, :]
                offset = a * grad_row + column_step * channels
                value = tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32)
                for i in tl.static_range(ROWS):
                    if tap_between(TOP_PHASE + i, a, STRIDE_H, DILATION_H, KERNEL_H) >= 0:
                        tap = taps[tap_between(TOP_PHASE + i, a, STRIDE_H, DILATION_H, KERNEL_H)]
                        sums = add_at(
                            sums,
                            i * STRIDE_W + (kw * DILATION_W - LEFT_PHASE) % STRIDE_W,
                            value * tap,
                        )

    row = group_row * ROWS
    column = group_column * STRIDE_W
    pixel = (image * height + row) * width + column
    x_grad = x_grad_ptr + (pixel * channels)[:, None] + channel[None, :]
    x_row = tl.cast(width, tl.int64) * channels
    for i in tl.static_range(ROWS):
        for j in tl.static_range(STRIDE_W):
            is_pixel = is_lane & (row + i < height) & (column + j < width)
            value = sums[i * STRIDE_W + j].to(x_grad_ptr.dtype.element_ty)
            mask = is_pixel[:, None] & is_channel[None, :]
            tl.store(x_grad + (i * x_row + j * channels), value, mask=mask)


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def _input_grad_by_taps(
    grad_ptr,
    weight_ptr,
    x_grad_ptr,
    groups,
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
    multiplier,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Any window, stride and multiplier: a group is one pixel of x, the taps are looped over."""
    program = tl.program_id(0) // channel_blocks
    channel_block = tl.program_id(0) - program * channel_blocks
    image, row, column, is_lane = locate_groups(program, groups, height, width, BLOCK_GROUPS, WIDE)
    channels = channel_vectors * VECTOR
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels

    sums = tl.zeros((BLOCK_GROUPS, BLOCK_CHANNELS), tl.float32)
    for kh in range(kernel_h):
        reach = row + top - kh * dilation_h
        out_row = reach // stride_h
        is_row = is_lane & (out_row * stride_h == reach) & is_inside(out_row, out_height)
        for kw in range(kernel_w):
            reach = column + left - kw * dilation_w
            out_column = reach // stride_w
            is_column = (out_column * stride_w == reach) & is_inside(out_column, out_width)
            mask = (is_row & is_column)[:, None] & is_channel[None, :]
            out_pixel = (image * out_height + out_row) * out_width + out_column
            for copy in range(multiplier):
                out_channel = channel * multiplier + copy
                grad = (
                    grad_ptr + (out_pixel * channels * multiplier)[:, None] + out_channel[None, :]
                )
                weight = weight_ptr + out_channel * (kernel_h * kernel_w) + (kh * kernel_w + kw)
                tap = tl.load(weight, mask=is_channel, other=0.0).to(tl.float32)
                sums += tl.load(grad, mask=mask, other=0.0).to(tl.float32) * tap[None, :]

    pixel = (image * height + row) * width + column
    x_grad = x_grad_ptr + (pixel * channels)[:, None] + channel[None, :]
    mask = is_lane[:, None] & is_channel[None, :]
    tl.store(x_grad, sums.to(x_grad_ptr.dtype.element_ty), mask=mask)


def plan_depthwise_conv_input_grad(
    grad: Any,
    weight: Any,
    x_grad: Any,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    target: Target,
) -> list[KernelLaunch]:
    """Plan x_grad from grad, both channels_last; padding is (left, right, top, bottom)."""
    op = "depthwise_conv_input_grad"
    batch, channels, height, width = x_grad.shape
    if batch == 0:
        return []
    kernel_h, kernel_w = weight.shape[2:]
    top, left = padding[2], padding[0]
    multiplier = grad.shape[1] // channels
    if multiplier == 1 and max(stride) == 1:
        offset = (dilation[0] * (kernel_h - 1) - top, dilation[1] * (kernel_w - 1) - left)
        tensors = (grad, weight, None, None, x_grad)
        return plan_window(op, *tensors, stride, offset, dilation, "none", target, flipped=True)
    window = window_arguments((kernel_h, kernel_w), stride, dilation)
    arguments = dict(
        grad_ptr=grad,
        weight_ptr=weight,
        x_grad_ptr=x_grad,
        height=height,
        width=width,
        out_height=grad.shape[2],
        out_width=grad.shape[3],
    )
    kind = "any"
    steps = MOST_SUMS // (stride[0] * stride[1])
    if multiplier == 1 and steps:
        side = max(kernel_h, kernel_w)
        kind = next((f"{rows} strided" for rows in STRIDED_ROWS if side <= rows), "any")
    tile = tiles.choose(op, kind, target.arch)
    sizes = block_sizes(tile)
    groups = batch * height * width
    if kind != "any":
        kernel = _input_grad
        sizes["ROWS"] = stride[0] * max(1, min(steps, tile.sizes["ROWS"] // stride[0]))
        group_rows, group_columns = ceil_div(height, sizes["ROWS"]), ceil_div(width, stride[1])
        groups = batch * group_rows * group_columns
        arguments |= dict(
            group_rows=group_rows,
            group_columns=group_columns,
            top_strides=top // stride[0],
            left_strides=left // stride[1],
            TOP_PHASE=top % stride[0],
            LEFT_PHASE=left % stride[1],
        )
        arguments |= {name.upper(): size for name, size in window.items()}
    else:
        kernel = _input_grad_by_taps
        arguments |= dict(top=top, left=left, multiplier=multiplier, **window)
    blocks = sizes["BLOCK_GROUPS"], sizes["BLOCK_CHANNELS"]
    programs, shares = share_out(groups, channels, *blocks)
    arguments |= shares | sizes
    # By taps: a lane has 8 channels of any size; of 4 in fp32, ptxas parks a scalar on the stack.
    num_warps = tile.num_warps
    if kind != "any":
        num_warps = warps(tile, shares["VECTOR"], grad, x_grad)
    return [KernelLaunch(kernel, (programs,), arguments, num_warps, tile.num_stages)]
