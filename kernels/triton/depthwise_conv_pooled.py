"""y as of depthwise_conv, and means[n,c] = mean over pixels of y[n,c,:,:] before it is rounded.

Two kernels, deterministic: the first leaves the sums of each of its programs, which here own
outputs of one image, beside y; the second adds up those of an image in order.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels.depthwise_conv import plan_depthwise_conv
from fastdw.triton_kernels.launch import COUNTS, KernelLaunch, Target, ceil_div

BLOCK_CHANNELS = 64
"""Channels of a program of the second kernel: some hundred rows of sums, read from the L2 cache."""


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def _add_sums(
    sums_ptr,
    means_ptr,
    rows,
    pixels,
    channels,
    channel_blocks,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    image = (tl.program_id(0) // channel_blocks).to(tl.int64)
    block = tl.program_id(0) % channel_blocks
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    sums = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for first in range(0, rows, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & is_channel[None, :]
        offset = ((image * rows + row) * channels)[:, None] + channel[None, :]
        sums += tl.load(sums_ptr + offset, mask=mask, other=0.0)
    means = tl.sum(sums, axis=0) / pixels
    tl.store(means_ptr + image * channels + channel, means, mask=is_channel)


def plan_depthwise_conv_pooled(
    x: Any,
    weight: Any,
    scale: Any,
    bias: Any,
    y: Any,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    activation: str,
    means: Any,
    target: Target,
) -> list[KernelLaunch]:
    """Plan both kernels. Padding is (left, right, top, bottom); x and y are channels_last."""
    launches = plan_depthwise_conv(
        x, weight, scale, bias, y, stride, padding, dilation, activation, target, pooled=True
    )
    if not launches:
        return []
    batch, channels, height, width = y.shape
    sums = launches[0].arguments["sums_ptr"]
    blocks = ceil_div(channels, BLOCK_CHANNELS)
    arguments = dict(
        sums_ptr=sums,
        means_ptr=means,
        rows=sums.shape[1],
        pixels=height * width,
        channels=channels,
        channel_blocks=blocks,
        BLOCK_ROWS=16,
        BLOCK_CHANNELS=BLOCK_CHANNELS,
    )
    return [*launches, KernelLaunch(_add_sums, (batch * blocks,), arguments, 4, 1)]
