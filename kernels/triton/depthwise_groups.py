"""How the depthwise kernels deal out outputs to lanes, and what a window reads: parts of them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def tap_between(position, output, stride, dilation, taps):
    """The tap by which the window of ``output`` reads input ``position``; -1: none."""
    tap, rest = divmod(position - output * stride, dilation)
    return tap if rest == 0 and 0 <= tap < taps else -1


@triton.constexpr_function
def is_read(position, outputs, stride, dilation, taps):
    """Whether any of the first ``outputs`` windows reads input ``position``."""
    steps = (divmod(position - output * stride, dilation) for output in range(outputs))
    return any(rest == 0 and 0 <= tap < taps for tap, rest in steps)


@triton.jit
def locate_groups(
    program, groups, group_rows, group_columns, BLOCK_GROUPS: tl.constexpr, WIDE: tl.constexpr
):
    """Return image (int64), row and column of groups, and whether they exist, of the lanes."""
    if WIDE:
        program = program.to(tl.int64)
    group = program * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    line = group // group_columns
    image = line // group_rows
    column = (group - line * group_columns).to(tl.int32)
    row = (line - image * group_rows).to(tl.int32)
    return image.to(tl.int64), row, column, group < groups


@triton.jit
def locate_groups_of_image(
    program,
    groups,
    programs_of_image,
    group_columns,
    BLOCK_GROUPS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """``locate_groups``, but a program owns groups of one image, of which there are ``groups``."""
    if WIDE:
        program = program.to(tl.int64)
    image = program // programs_of_image
    group = (program - image * programs_of_image) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    row = group // group_columns
    column = (group - row * group_columns).to(tl.int32)
    images = tl.zeros((BLOCK_GROUPS,), tl.int64) + image
    return images, row.to(tl.int32), column, group < groups


@triton.jit
def store_sums(sums_ptr, total, program, channels, channel, is_channel):
    """Leave the sum over the lanes of ``total`` where the next kernel adds up an image's."""
    row = sums_ptr + program.to(tl.int64) * channels
    tl.store(row + channel, tl.sum(total, axis=0), mask=is_channel)


@triton.jit
def is_inside(position, size):
    """Whether 0 <= position < size."""
    return (position >= 0) & (position < size)


@triton.jit
def filled(count: tl.constexpr, value):
    """A tuple of ``count`` times ``value``."""
    values = ()
    for _ in tl.static_range(count):
        values = values + (value,)
    return values


@triton.jit
def replaced(values, index: tl.constexpr, value):
    """The tuple with another value at ``index``."""
    return values[:index] + (value,) + values[index + 1 :]


@triton.jit
def add_at(sums, index: tl.constexpr, value):
    """The tuple with ``value`` added at ``index``."""
    return sums[:index] + (sums[index] + value,) + sums[index + 1 :]
