"""y[n,oh,ow,o] = act(scale[o] * sum_(c,kh,kw) x[n,c,ih,iw] * w[o,c,kh,kw] + bias[o]); x of any
strides, y NHWC.

The dense convolution of few channels as a matrix product: a program gathers the windows of
BLOCK_PIXELS outputs of any row and image (im2col in registers, pixels along the lanes of a warp)
and multiplies them by BLOCK_OUT filters, BLOCK_TAPS products at a time.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels import tiles
from fastdw.triton_kernels.epilogue import finish
from fastdw.triton_kernels.launch import KernelLaunch, Target, ceil_div

VECTOR = 8
"""Channels of a 16-byte store at 2 bytes each."""


@triton.jit
def _stem_conv(
    x_ptr,
    weight_ptr,
    scale_ptr,
    bias_ptr,
    y_ptr,
    pixels,
    height,
    width,
    out_height,
    out_width,
    out_vectors,
    out_blocks,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    top,
    left,
    CHANNELS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
):
    TAPS: tl.constexpr = CHANNELS * KERNEL_H * KERNEL_W
    program = tl.program_id(0) // out_blocks
    out_block = tl.program_id(0) - program * out_blocks
    if WIDE:
        program = program.to(tl.int64)
    pixel = program * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    is_pixel = pixel < pixels
    line = pixel // out_width
    image = line // out_height
    column = (pixel - line * out_width).to(tl.int32) * STRIDE_W - left
    row = (line - image * out_height).to(tl.int32) * STRIDE_H - top
    x = x_ptr + (image.to(tl.int64) * image_stride)
    x += row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride

    channels_out = out_vectors * VECTOR
    channel_out = out_block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_channel = channel_out < channels_out
    weight = weight_ptr + channel_out.to(tl.int64) * TAPS

    sums = tl.zeros((BLOCK_PIXELS, BLOCK_OUT), tl.float32)
    for first in range(0, TAPS, BLOCK_TAPS):
        tap = first + tl.arange(0, BLOCK_TAPS)
        is_tap = tap < TAPS
        channel = tap // (KERNEL_H * KERNEL_W)
        kh = tap // KERNEL_W - channel * KERNEL_H
        kw = tap % KERNEL_W
        offset = channel.to(tl.int64) * channel_stride
        offset += kh.to(tl.int64) * row_stride + kw.to(tl.int64) * column_stride
        window_row = kh[:, None] + row[None, :]
        window_column = kw[:, None] + column[None, :]
        mask = (window_row >= 0) & (window_row < height)
        mask &= (window_column >= 0) & (window_column < width)
        mask &= is_tap[:, None] & is_pixel[None, :]
        windows = tl.load(x[None, :] + offset[:, None], mask=mask, other=0.0)
        mask = is_tap[:, None] & is_channel[None, :]
        filters = tl.load(weight[None, :] + tap[:, None], mask=mask, other=0.0)
        sums = tl.dot(tl.trans(windows), filters, sums, input_precision=PRECISION)

    value = finish(sums, scale_ptr, bias_ptr, channel_out, is_channel, ACTIVATION)
    y = y_ptr + (pixel.to(tl.int64) * channels_out)[:, None] + channel_out[None, :]
    mask = is_pixel[:, None] & is_channel[None, :]
    tl.store(y, value.to(y_ptr.dtype.element_ty), mask=mask)


def plan_stem_conv(
    x: Any,
    weight: Any,
    scale: Any,
    bias: Any,
    y: Any,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    activation: str,
    tf32: bool,
    target: Target,
) -> list[KernelLaunch]:
    """Plan the forward pass. Padding is (left, right, top, bottom); y is channels_last."""
    batch, channels_out, out_height, out_width = y.shape
    pixels = batch * out_height * out_width
    if pixels == 0:
        return []
    is_fp32 = x.element_size() == 4
    kind = ("tf32" if tf32 else "fp32") if is_fp32 else "16 bits"
    tile = tiles.choose("stem_conv", kind, target.arch)
    out_blocks = ceil_div(channels_out, tile.sizes["BLOCK_OUT"])
    vector = gcd(channels_out, VECTOR)
    image_stride, channel_stride, row_stride, column_stride = x.stride()
    arguments = dict(
        x_ptr=x,
        weight_ptr=weight,
        scale_ptr=scale,
        bias_ptr=bias,
        y_ptr=y,
        pixels=pixels,
        height=x.shape[2],
        width=x.shape[3],
        out_height=out_height,
        out_width=out_width,
        out_vectors=channels_out // vector,
        out_blocks=out_blocks,
        image_stride=image_stride,
        channel_stride=channel_stride,
        row_stride=row_stride,
        column_stride=column_stride,
        top=padding[2],
        left=padding[0],
        CHANNELS=weight.shape[1],
        KERNEL_H=weight.shape[2],
        KERNEL_W=weight.shape[3],
        STRIDE_H=stride[0],
        STRIDE_W=stride[1],
        ACTIVATION=activation,
        PRECISION="tf32" if is_fp32 and tf32 else "ieee",
        VECTOR=vector,
        WIDE=pixels > 2**31 - 2**16,
        **tile.sizes,
    )
    programs = ceil_div(pixels, tile.sizes["BLOCK_PIXELS"]) * out_blocks
    return [KernelLaunch(_stem_conv, (programs,), arguments, tile.num_warps, tile.num_stages)]
