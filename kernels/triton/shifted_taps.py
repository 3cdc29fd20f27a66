"""A depthwise filter over hidden values that never leave the chip.

The values [pixels, slab] of a rectangle are laid out flat and gathered once for up to 16 taps: the
compiler stores them in shared memory once and loads what each tap needs. A gather along the pixel
axis alone would become shuffles, four times as many instructions; a product with a 0/1 matrix would
make NaN of inf.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def index_of_tap(
    first, tap: tl.constexpr, dilation_h, dilation_w, KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr, COLUMNS_IN: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """Return where the values under a tap lie; taps beyond the last are never used."""
    if tap < KERNEL_H * KERNEL_W:
        pixel = (tap // KERNEL_W) * dilation_h * COLUMNS_IN + (tap % KERNEL_W) * dilation_w
        first += pixel * SLAB
    return first


@triton.jit
def indices_of_four(
    first, tap: tl.constexpr, dilation_h, dilation_w, KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr, COLUMNS_IN: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """Return the indices of four taps, joined along new last axes: one thread holds them."""
    a = index_of_tap(first, tap, dilation_h, dilation_w, KERNEL_H, KERNEL_W, COLUMNS_IN, SLAB)
    b = index_of_tap(first, tap + 1, dilation_h, dilation_w, KERNEL_H, KERNEL_W, COLUMNS_IN, SLAB)
    c = index_of_tap(first, tap + 2, dilation_h, dilation_w, KERNEL_H, KERNEL_W, COLUMNS_IN, SLAB)
    d = index_of_tap(first, tap + 3, dilation_h, dilation_w, KERNEL_H, KERNEL_W, COLUMNS_IN, SLAB)
    return tl.join(tl.join(a, b), tl.join(c, d))


@triton.jit
def add_value(total, value, weight_slab, is_channel, tap: tl.constexpr, TAPS: tl.constexpr):
    """Add the values under a tap, flat, times its weights."""
    if tap < TAPS:
        weight = tl.load(weight_slab + tap, mask=is_channel, other=0.0).to(tl.float32)
        total += tl.reshape(value, total.shape).to(tl.float32) * weight[None, :]
    return total


@triton.jit
def add_four(total, values, weight_slab, is_channel, tap: tl.constexpr, TAPS: tl.constexpr):
    """Add the values under four taps, joined as their indices are."""
    if tap < TAPS:
        ab, cd = tl.split(values)
        a, b = tl.split(ab)
        c, d = tl.split(cd)
        total = add_value(total, a, weight_slab, is_channel, tap, TAPS)
        total = add_value(total, b, weight_slab, is_channel, tap + 1, TAPS)
        total = add_value(total, c, weight_slab, is_channel, tap + 2, TAPS)
        total = add_value(total, d, weight_slab, is_channel, tap + 3, TAPS)
    return total


@triton.jit
def filter_slab(
    values, corner, weight_slab, is_channel, dilation_h, dilation_w, KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr, COLUMNS_IN: tl.constexpr,
):  # fmt: skip
    """Return the filtered slab, fp32, of ``values`` [pixels of x, slab].

    ``corner`` [pixels]: which pixel of x lies under the first tap of each pixel of y.
    """
    SLAB: tl.constexpr = values.shape[1]
    PIXELS: tl.constexpr = corner.shape[0]
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    flat = tl.reshape(values, [values.shape[0] * SLAB])
    first = tl.reshape(corner[:, None] * SLAB + tl.arange(0, SLAB)[None, :], [PIXELS * SLAB])
    total = tl.zeros((PIXELS, SLAB), tl.float32)
    for tap in tl.static_range(0, TAPS, 16):
        a = indices_of_four(
            first, tap, dilation_h, dilation_w, KERNEL_H, KERNEL_W, COLUMNS_IN, SLAB
        )
        b = indices_of_four(
            first, tap + 4, dilation_h, dilation_w, KERNEL_H, KERNEL_W, COLUMNS_IN, SLAB
        )
        c = indices_of_four(
            first, tap + 8, dilation_h, dilation_w, KERNEL_H, KERNEL_W, COLUMNS_IN, SLAB
        )
        d = indices_of_four(
            first, tap + 12, dilation_h, dilation_w, KERNEL_H, KERNEL_W, COLUMNS_IN, SLAB
        )
        indices = tl.join(tl.join(a, b), tl.join(c, d))
        gathered = tl.gather(flat, tl.reshape(indices, [PIXELS * SLAB * 16]), 0)
        ab, cd = tl.split(tl.reshape(gathered, [PIXELS * SLAB, 2, 2, 2, 2]))
        a, b = tl.split(ab)
        c, d = tl.split(cd)
        total = add_four(total, a, weight_slab, is_channel, tap, TAPS)
        total = add_four(total, b, weight_slab, is_channel, tap + 4, TAPS)
        total = add_four(total, c, weight_slab, is_channel, tap + 8, TAPS)
        total = add_four(total, d, weight_slab, is_channel, tap + 12, TAPS)
    return total
