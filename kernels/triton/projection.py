"""The 1x1 convolution that ends a block: slabs of hidden channels are multiplied into sums, and the
sums are finished and stored. Sums are [pixels, BLOCK_OUT] and, for channel counts between powers of
two, [pixels, BLOCK_REST] more (160 = 128 + 32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from fastdw.triton_kernels.epilogue import finish
from fastdw.triton_kernels.launch import Target, ceil_div
from fastdw.triton_kernels.pointwise_conv import group_of
from fastdw.triton_kernels.tile_geometry import power_of_two


@triton.jit
def load_block(
    weight_ptr, channel, is_channel, first_out, hidden_channels, channels_out, BLOCK: tl.constexpr
):
    """Return the weights [slab, BLOCK] of a slab."""
    out = first_out + tl.arange(0, BLOCK)
    offset = out.to(tl.int64)[None, :] * hidden_channels + channel[:, None]
    mask = is_channel[:, None] & (out < channels_out)[None, :]
    return tl.load(weight_ptr + offset, mask=mask, other=0.0)


@triton.jit
def load_slab(
    weight_ptr, channel, is_channel, first_out, hidden_channels, channels_out,
    BLOCK_OUT: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Return the weights of both blocks; to be asked for before the slab is worked on."""
    weight = load_block(
        weight_ptr, channel, is_channel, first_out, hidden_channels, channels_out, BLOCK_OUT
    )
    if BLOCK_REST > 0:
        rest = load_block(
            weight_ptr, channel, is_channel, first_out + BLOCK_OUT, hidden_channels, channels_out,
            BLOCK_REST,
        )  # fmt: skip
    else:
        rest = weight
    return weight, rest


@triton.jit
def store_block(
    total, scale_ptr, bias_ptr, residual_ptr, y_ptr, partial_ptr, y_pixel, is_pixel, pixels, split,
    first_out, channels_out, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Finish the sums into y, or store them where the sums of other splits lie."""
    out = first_out + tl.arange(0, total.shape[1])
    is_out = out < channels_out
    y_offset = (y_pixel * channels_out)[:, None] + out[None, :]
    is_y = is_pixel[:, None] & is_out[None, :]
    if partial_ptr is not None:
        partial_ptr += tl.cast(split, tl.int64) * pixels * channels_out
        tl.store(partial_ptr + y_offset, total, mask=is_y)
    else:
        total = finish(total, scale_ptr, bias_ptr, out, is_out, ACTIVATION)
        if residual_ptr is not None:
            total += tl.load(residual_ptr + y_offset, mask=is_y, other=0.0).to(tl.float32)
        tl.store(y_ptr + y_offset, total.to(y_ptr.dtype.element_ty), mask=is_y)


@triton.jit
def store_sums(
    total, rest, scale_ptr, bias_ptr, residual_ptr, y_ptr, partial_ptr, y_pixel, is_pixel, pixels,
    split, first_out, channels_out, ACTIVATION: tl.constexpr, BLOCK_OUT: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """``store_block`` for both blocks; ``rest`` counts only where BLOCK_REST is not 0."""
    store_block(
        total, scale_ptr, bias_ptr, residual_ptr, y_ptr, partial_ptr, y_pixel, is_pixel, pixels,
        split, first_out, channels_out, ACTIVATION,
    )  # fmt: skip
    if BLOCK_REST > 0:
        store_block(
            rest, scale_ptr, bias_ptr, residual_ptr, y_ptr, partial_ptr, y_pixel, is_pixel, pixels,
            split, first_out + BLOCK_OUT, channels_out, ACTIVATION,
        )  # fmt: skip


def out_blocks(channels_out: int, most: int) -> dict[str, int]:
    """Return the blocks of one of the equal shares, of at most ``most`` channels, little padded."""
    share = ceil_div(channels_out, ceil_div(channels_out, most))
    whole = power_of_two(share)
    rest = power_of_two(share - whole // 2) if share > whole // 2 else 0
    if whole >= 64 and whole // 2 + rest < whole:
        return {"BLOCK_OUT": whole // 2, "BLOCK_REST": rest}
    return {"BLOCK_OUT": whole, "BLOCK_REST": 0}


def channel_arguments(name: str, channels: int) -> dict[str, int]:
    """Return ``groups_<name>`` and ``GROUP_<NAME>``, whose product the kernel takes.

    A product with a constant tells the compiler what rows of so many channels are aligned to.
    """
    group = group_of(channels)
    return {f"groups_{name}": channels // group, f"GROUP_{name.upper()}": group}


def splits_of(
    hidden: int, sizes: Mapping[str, int], programs: Sequence[int], target: Target
) -> tuple[int, int]:
    """Return slabs per split and splits: more than one where programs leave processors idle."""
    slabs = ceil_div(hidden, sizes["SLAB"])
    wanted = min(
        target.multiprocessors // (programs[0] * programs[1]), slabs // sizes["LEAST_SLABS"]
    )
    slabs_per_split = ceil_div(slabs, max(1, wanted))
    return slabs_per_split, ceil_div(slabs, slabs_per_split)


def output_arguments(scale: Any, bias: Any, residual: Any, y: Any, partial: Any) -> dict[str, Any]:
    """Return the pointers of the last step: those of y, or the partial sums' only."""
    ends = partial is None
    return {
        "out_scale_ptr": scale if ends else None,
        "out_bias_ptr": bias if ends else None,
        "residual_ptr": residual if ends else None,
        "y_ptr": y if ends else None,
        "partial_ptr": partial,
    }
