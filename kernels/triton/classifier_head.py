"""y[n,o] = bias[o] + sum_c w[o,c] * mean over pixels of x[n,c,:,:]; x NHWC, y [batch, outputs].

Two kernels, deterministic: means of BLOCK_CHANNELS channels of an image to fp32; then rows of the
weight by the means. Few images: each program keeps lane-wise sums of BLOCK_OUT whole rows and reads
the weight once. Many: a matrix product by tiles in full fp32, for the means are never rounded.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels import tiles
from fastdw.triton_kernels.launch import COUNTS, KernelLaunch, Target, ceil_div

VECTOR = 8
"""Channels of a 16-byte load at 2 bytes each."""

FEW_IMAGES = 4
"""So many read the weight over again, a row by a mean at a time; more share it in tiles."""


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def _global_pool(
    x_ptr,
    means_ptr,
    pixels,
    channel_vectors,
    channel_blocks,
    VECTOR: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    image = tl.program_id(0) // channel_blocks
    channel_block = tl.program_id(0) - image * channel_blocks
    channels = channel_vectors * VECTOR
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    x = x_ptr + image.to(tl.int64) * pixels * channels
    sums = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for first in range(0, pixels, BLOCK_PIXELS):
        pixel = first + tl.arange(0, BLOCK_PIXELS)
        mask = (pixel < pixels)[:, None] & is_channel[None, :]
        offset = (pixel.to(tl.int64) * channels)[:, None] + channel[None, :]
        sums += tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    means = tl.sum(sums, axis=0) / pixels
    tl.store(means_ptr + image.to(tl.int64) * channels + channel, means, mask=is_channel)


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def _linear_of_image(
    means_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    channel_vectors,
    outputs,
    VECTOR: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """One image a program: all that counts is to read the weight fast."""
    image = tl.program_id(1)
    channels = channel_vectors * VECTOR
    output = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_output = output < outputs
    means = means_ptr + image.to(tl.int64) * channels
    weight = weight_ptr + (output.to(tl.int64) * channels)[:, None]
    sums = tl.zeros((BLOCK_OUT, BLOCK_CHANNELS), tl.float32)
    for first in range(0, channels, BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        is_channel = channel < channels
        mean = tl.load(means + channel, mask=is_channel, other=0.0).to(tl.float32)
        mask = is_output[:, None] & is_channel[None, :]
        row = tl.load(weight + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        sums += row * mean[None, :]
    value = tl.sum(sums, axis=1)
    if bias_ptr is not None:
        value += tl.load(bias_ptr + output, mask=is_output, other=0.0).to(tl.float32)
    y = y_ptr + image.to(tl.int64) * outputs + output
    tl.store(y, value.to(y_ptr.dtype.element_ty), mask=is_output)


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def _linear(
    means_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    images,
    channel_vectors,
    outputs,
    VECTOR: tl.constexpr,
    BLOCK_IMAGES: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    channels = channel_vectors * VECTOR
    output = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_output = output < outputs
    image = tl.program_id(1).to(tl.int64) * BLOCK_IMAGES + tl.arange(0, BLOCK_IMAGES)
    is_image = image < images
    means = means_ptr + (image * channels)[:, None]
    weight = weight_ptr + (output.to(tl.int64) * channels)[:, None]
    sums = tl.zeros((BLOCK_IMAGES, BLOCK_OUT), tl.float32)
    for first in range(0, channels, BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        is_channel = channel < channels
        mask = is_image[:, None] & is_channel[None, :]
        mean = tl.load(means + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        mask = is_output[:, None] & is_channel[None, :]
        row = tl.load(weight + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        sums = tl.dot(mean, tl.trans(row), sums, input_precision="ieee")
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + output, mask=is_output, other=0.0)
        sums += bias.to(tl.float32)[None, :]
    y = y_ptr + (image * outputs)[:, None] + output[None, :]
    tl.store(y, sums.to(y_ptr.dtype.element_ty), mask=is_image[:, None] & is_output[None, :])


def plan_classifier_head(
    x: Any, weight: Any, bias: Any, y: Any, target: Target
) -> list[KernelLaunch]:
    """Plan the head. x is channels_last, weight [outputs, channels], y [batch, outputs]."""
    batch, channels, height, width = x.shape
    outputs = weight.shape[0]
    if batch == 0 or outputs == 0:
        return []
    vector = gcd(channels, VECTOR)
    sizes_of_channels = dict(channel_vectors=channels // vector, VECTOR=vector)
    launches = []
    means = x
    if height * width > 1:
        means = x.new_empty(0).float().new_empty((batch, channels))
        tile = tiles.choose("classifier_head", "pool", target.arch)
        blocks = ceil_div(channels, tile.sizes["BLOCK_CHANNELS"])
        arguments = dict(
            x_ptr=x,
            means_ptr=means,
            pixels=height * width,
            channel_blocks=blocks,
            **sizes_of_channels,
            **tile.sizes,
        )
        launches.append(KernelLaunch(_global_pool, (batch * blocks,), arguments, tile.num_warps, 1))
    few = batch <= FEW_IMAGES
    kind = "to 4 images" if few else "to 64 images" if batch <= 64 else "more images"
    tile = tiles.choose("classifier_head", kind, target.arch)
    arguments = dict(
        means_ptr=means,
        weight_ptr=weight,
        bias_ptr=bias,
        y_ptr=y,
        outputs=outputs,
        **sizes_of_channels,
        **tile.sizes,
    )
    grid = (ceil_div(outputs, tile.sizes["BLOCK_OUT"]), batch)
    if not few:
        arguments["images"] = batch
        grid = (grid[0], ceil_div(batch, tile.sizes["BLOCK_IMAGES"]))
    kernel = _linear_of_image if few else _linear
    launches.append(KernelLaunch(kernel, grid, arguments, tile.num_warps, tile.num_stages))
    return launches
