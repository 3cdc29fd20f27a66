"""Stride, dilation and padding: the forms a user may write and the one form that kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Pair = int | Sequence[int]
Padding = int | str | Sequence[int]

SAME: list[int] = []  # how schemas and kernels write "same": it depends on the input size
LARGEST = 2**31 - 1  # of a stride, dilation or padding


def normalize_pair(value: Pair, name: str, minimum: int = 1) -> list[int]:
    """Return ``value`` (int or pair) as ``[vertical, horizontal]``, each at least ``minimum``."""
    if isinstance(value, int) and minimum <= value <= LARGEST:
        return [value, value]
    pair = [value, value] if isinstance(value, int) else value
    if (
        isinstance(pair, str)
        or not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(item, (int, torch.SymInt)) for item in pair)
    ):
        raise ValueError(f"{name}: expected an int or a pair of ints, got {value!r}")
    if min(pair) < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value!r}")
    if max(pair) > LARGEST:
        raise ValueError(f"{name}: expected at most {LARGEST}, got {value!r}")
    return list(pair)


def normalize_padding(
    padding: Padding, kernel_size: Pair, stride: Pair, dilation: Pair
) -> list[int]:
    """Return ``padding`` as ``[left, right, top, bottom]``, or ``[]`` for TensorFlow's SAME.

    Args:
        padding: int, pair (vertical, horizontal), 4-tuple (left, right, top, bottom) as in
            ``torch.nn.functional.pad``, ``"same"`` (TensorFlow: total padding
            ``max((ceil(n/s) - 1) * s + (k - 1) * d + 1 - n, 0)``, the odd one after), or
            ``"keras_v1"`` (an axis of stride 1: ``(k - 1) * d // 2`` on both sides; else 0 before
            and 1 after, the ``ZeroPadding2D`` of Keras' MobileNet V1).

    Raises:
        ValueError: any other form, or a negative number.
    """
    if isinstance(padding, str):
        if padding == "same":
            return list(SAME)
        if padding != "keras_v1":
            raise ValueError(f'padding: expected "same" or "keras_v1", got {padding!r}')
        kernel_size = normalize_pair(kernel_size, "kernel_size")
        stride, dilation = normalize_pair(stride, "stride"), normalize_pair(dilation, "dilation")
        vertical, horizontal = (
            [(k - 1) * d // 2] * 2 if s == 1 else [0, 1]
            for k, s, d in zip(kernel_size, stride, dilation, strict=True)
        )
        return [*horizontal, *vertical]
    if isinstance(padding, Sequence) and len(padding) == 4:
        if not all(isinstance(side, int) and 0 <= side <= LARGEST for side in padding):
            raise ValueError(f"padding: expected four ints, 0 to {LARGEST}, got {padding!r}")
        return [int(side) for side in padding]
    try:
        above, left = normalize_pair(padding, "padding", minimum=0)
    except ValueError:
        raise ValueError(
            "padding: expected an int, a pair (vertical, horizontal), a 4-tuple (left, right, top, "
            f'bottom), all 0 to {LARGEST}, "same" or "keras_v1", got {padding!r}'
        ) from None
    return [left, left, above, above]


def resolve_padding(
    padding: Padding, kernel_size: Pair, stride: Pair, dilation: Pair, input_size: Sequence[int]
) -> tuple[int, int, int, int]:
    """Return (left, right, top, bottom) for an input of ``input_size`` (height, width).

    Takes every form of ``normalize_padding`` and its result (``[]`` is ``"same"``); sizes may be
    symbolic.
    """
    kernel_size = normalize_pair(kernel_size, "kernel_size")
    stride, dilation = normalize_pair(stride, "stride"), normalize_pair(dilation, "dilation")
    if isinstance(padding, (int, str)) or len(padding) > 0:
        padding = normalize_padding(padding, kernel_size, stride, dilation)
    return _sides(padding, kernel_size, stride, dilation, input_size)


def _sides(
    padding: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    input_size: Sequence[int],
) -> tuple[int, int, int, int]:
    """Return (left, right, top, bottom) of a padding in schema form."""
    if padding:
        left, right, top, bottom = padding
        return left, right, top, bottom
    axes = []
    for size, k, s, d in zip(input_size, kernel_size, stride, dilation, strict=True):
        n: Any = int(size) if isinstance(size, torch.Tensor) else size  # under torch.jit.trace
        total: Any = torch.sym_max(((n + s - 1) // s - 1) * s + (k - 1) * d + 1 - n, 0)
        axes.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = axes
    return left, right, top, bottom


def output_size(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Return (height, width) of the output; ``padding`` in schema form, sizes may be symbolic."""
    if not padding:  # SAME: as written here; through the sides, symbolic sizes grow layer by layer
        return (
            (input_size[0] + stride[0] - 1) // stride[0],
            (input_size[1] + stride[1] - 1) // stride[1],
        )
    left, right, top, bottom = padding
    reach_h, reach_w = ((k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True))
    return (
        (input_size[0] + top + bottom - reach_h) // stride[0] + 1,
        (input_size[1] + left + right - reach_w) // stride[1] + 1,
    )


def keeps_size(
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    """Say whether the window keeps every input size; ``padding`` in schema form."""
    if max(stride) > 1:
        return False
    reach = [(k - 1) * d for k, d in zip(kernel_size, dilation, strict=True)]
    return not padding or (
        padding[2] + padding[3] == reach[0] and padding[0] + padding[1] == reach[1]
    )
