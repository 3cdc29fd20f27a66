"""y = activation(scale * (x . weight) + bias) + residual; 1x1 convolution in NHWC is a GEMM.

x [pixels, channels_in], weight [channels_out, channels_in], y and residual [pixels, channels_out].
A program owns a tile of pixels x output channels and pipelines over blocks of input channels.
Calls with few tiles take smaller ones, and split long sums: fp32 parts, added in a fixed order.
Paper: Howard et al., MobileNets (2017), section 3.1.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels import tiles
from fastdw.triton_kernels.epilogue import finish
from fastdw.triton_kernels.launch import COUNTS, KernelLaunch, Target, ceil_div


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def pointwise_conv_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, residual_ptr, y_ptr, partial_ptr, pixels, groups_in,
    groups_out, channels_per_split, GROUP_IN: tl.constexpr, GROUP_OUT: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, NEIGHBOURS: tl.constexpr,
):  # fmt: skip
    # A product with a constant tells the compiler what rows are aligned to.
    channels_in = groups_in * GROUP_IN
    channels_out = groups_out * GROUP_OUT
    # NEIGHBOURS pixel blocks go through all output channels together: their x stays in the L2.
    pixel_blocks = tl.cdiv(pixels, BLOCK_PIXELS)
    out_blocks = tl.cdiv(channels_out, BLOCK_OUT)
    program = tl.program_id(0)
    team = program // (NEIGHBOURS * out_blocks)
    member = program % (NEIGHBOURS * out_blocks)
    team_size = tl.minimum(pixel_blocks - team * NEIGHBOURS, NEIGHBOURS).to(tl.int32)
    pixel_block = team * NEIGHBOURS + member % team_size
    first_pixel = pixel_block.to(tl.int64) * BLOCK_PIXELS
    pixel = tl.arange(0, BLOCK_PIXELS)
    is_pixel = pixel < tl.minimum(pixels - first_pixel, BLOCK_PIXELS).to(tl.int32)
    out = (member // team_size) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_out = out < channels_out

    first_in = tl.program_id(1) * channels_per_split
    end_in = tl.minimum(first_in + channels_per_split, channels_in)
    channel = tl.arange(0, BLOCK_IN)
    x_block = x_ptr + first_pixel * channels_in + (pixel[:, None] * channels_in + channel[None, :])
    weight_block = weight_ptr + out.to(tl.int64)[None, :] * channels_in + channel[:, None]
    total = tl.zeros((BLOCK_PIXELS, BLOCK_OUT), tl.float32)
    for start in range(first_in, end_in, BLOCK_IN):
        is_channel = channel < end_in - start
        x = tl.load(x_block + start, mask=is_pixel[:, None] & is_channel[None, :], other=0.0)
        weight = tl.load(
            weight_block + start, mask=is_channel[:, None] & is_out[None, :], other=0.0
        )
        total = tl.dot(x, weight, total, input_precision=PRECISION)

    y_offset = pixel[:, None] * channels_out + out[None, :]
    is_y = is_pixel[:, None] & is_out[None, :]
    first_y = first_pixel * channels_out
    if partial_ptr is not None:
        first_y += tl.program_id(1).to(tl.int64) * pixels * channels_out
        tl.store(partial_ptr + first_y + y_offset, total, mask=is_y)
    else:
        total = finish(total, scale_ptr, bias_ptr, out, is_out, ACTIVATION)
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + first_y + y_offset, mask=is_y, other=0.0)
            total += residual.to(tl.float32)
        tl.store(y_ptr + first_y + y_offset, total.to(y_ptr.dtype.element_ty), mask=is_y)


@triton.jit(do_not_specialize_on_alignment=COUNTS)
def finish_partial_sums_kernel(
    partial_ptr, scale_ptr, bias_ptr, residual_ptr, y_ptr, pixels, groups_out, splits,
    GROUP_OUT: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    channels_out = groups_out * GROUP_OUT
    out_blocks = tl.cdiv(channels_out, BLOCK_OUT)
    program = tl.program_id(0)
    first_pixel = (program // out_blocks).to(tl.int64) * BLOCK_PIXELS
    pixel = tl.arange(0, BLOCK_PIXELS)
    is_pixel = pixel < tl.minimum(pixels - first_pixel, BLOCK_PIXELS).to(tl.int32)
    out = (program % out_blocks) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_out = out < channels_out
    y_offset = pixel[:, None] * channels_out + out[None, :]
    is_y = is_pixel[:, None] & is_out[None, :]
    first_y = first_pixel * channels_out
    split_stride = tl.cast(pixels, tl.int64) * channels_out
    total = tl.zeros((BLOCK_PIXELS, BLOCK_OUT), tl.float32)
    partial_ptr += first_y
    for _split in range(splits):
        total += tl.load(partial_ptr + y_offset, mask=is_y, other=0.0)
        partial_ptr += split_stride
    total = finish(total, scale_ptr, bias_ptr, out, is_out, ACTIVATION)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + first_y + y_offset, mask=is_y, other=0.0)
        total += residual.to(tl.float32)
    tl.store(y_ptr + first_y + y_offset, total.to(y_ptr.dtype.element_ty), mask=is_y)


def group_of(channels: int) -> int:
    """Return the power of two, up to 16, that divides a row of so many channels."""
    return gcd(channels, 16)


def precision_class(x: Any, tf32: bool) -> str:
    """Return the part of a shape class that says what ``tl.dot`` multiplies."""
    return "16bit" if x.element_size() == 2 else "tf32" if tf32 else "fp32"


def new_partial_sums(x: Any, splits: int, pixels: int, channels_out: int) -> Any:
    """Return an fp32 workspace on the device of x, without naming a dtype of any library."""
    return x.new_empty((0,)).float().new_empty((splits, pixels, channels_out))


def plan_finish(
    partial: Any, scale: Any, bias: Any, residual: Any, y: Any, activation: str
) -> KernelLaunch:
    """Plan the kernel that adds the partial sums [splits, pixels, channels_out] and ends the op."""
    splits, pixels, channels_out = partial.shape
    block_pixels, block_out = 8, 64
    group_out = group_of(channels_out)
    return KernelLaunch(
        finish_partial_sums_kernel,
        (ceil_div(pixels, block_pixels) * ceil_div(channels_out, block_out),),
        {
            "partial_ptr": partial,
            "scale_ptr": scale,
            "bias_ptr": bias,
            "residual_ptr": residual,
            "y_ptr": y,
            "pixels": pixels,
            "groups_out": channels_out // group_out,
            "splits": splits,
            "GROUP_OUT": group_out,
            "ACTIVATION": activation,
            "BLOCK_PIXELS": block_pixels,
            "BLOCK_OUT": block_out,
        },
        num_warps=4,
        num_stages=1,
    )


def _shape_class(x: Any, pixels: int, channels_out: int, tf32: bool, target: Target) -> str:
    """Few: tiles of 128 x 128 leave multiprocessors idle; fewest: tiles of 64 x 64 leave half."""
    precision = precision_class(x, tf32)
    width = 32 if channels_out <= 32 else 64 if channels_out <= 64 else 128

    def tiles_of(side: int) -> int:
        return ceil_div(pixels, side) * ceil_div(channels_out, min(side, width))

    if 2 * tiles_of(64) <= target.multiprocessors:
        return f"{precision} fewest out32"
    is_few = tiles_of(128) < target.multiprocessors
    if is_few or precision == "fp32":
        width = min(width, 64)
    return f"{precision} {'few' if is_few else 'many'} out{width}"


def plan_pointwise_conv(
    x: Any, weight: Any, scale: Any, bias: Any, residual: Any, y: Any, activation: str, tf32: bool,
    target: Target,
) -> list[KernelLaunch]:  # fmt: skip
    """Plan ``y = activation(scale * (x . weight) + bias) + residual``."""
    batch, channels_in, height, width = x.shape
    channels_out, pixels = weight.shape[0], batch * height * width
    if pixels == 0:
        return []
    tile = tiles.choose(
        "pointwise_conv", _shape_class(x, pixels, channels_out, tf32, target), target.arch
    )
    sizes = dict(tile.sizes)
    least_blocks = sizes.pop("LEAST_BLOCKS")
    programs = ceil_div(pixels, sizes["BLOCK_PIXELS"]) * ceil_div(channels_out, sizes["BLOCK_OUT"])
    in_blocks = ceil_div(channels_in, sizes["BLOCK_IN"])
    splits = max(1, min(target.multiprocessors // programs, in_blocks // least_blocks))
    blocks_per_split = ceil_div(in_blocks, splits)
    splits = ceil_div(in_blocks, blocks_per_split)
    partial = new_partial_sums(x, splits, pixels, channels_out) if splits > 1 else None
    group_in, group_out = group_of(channels_in), group_of(channels_out)
    arguments = {
        "x_ptr": x,
        "weight_ptr": weight,
        "scale_ptr": scale if partial is None else None,
        "bias_ptr": bias if partial is None else None,
        "residual_ptr": residual if partial is None else None,
        "y_ptr": y if partial is None else None,
        "partial_ptr": partial,
        "pixels": pixels,
        "groups_in": channels_in // group_in,
        "groups_out": channels_out // group_out,
        "channels_per_split": blocks_per_split * sizes["BLOCK_IN"],
        "GROUP_IN": group_in,
        "GROUP_OUT": group_out,
        "ACTIVATION": activation,
        "PRECISION": "tf32" if tf32 else "ieee",
        **sizes,
    }
    main = KernelLaunch(
        pointwise_conv_kernel, (programs, splits), arguments, tile.num_warps, tile.num_stages
    )
    if partial is None:
        return [main]
    return [main, plan_finish(partial, scale, bias, residual, y, activation)]
