"""Stride, dilation and padding in every form that a user may write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdw import reference
from fastdw.geometry import (
    keeps_size,
    normalize_padding,
    normalize_pair,
    output_size,
    resolve_padding,
)


@pytest.mark.parametrize(
    ("padding", "sides"),
    [
        (2, [2, 2, 2, 2]),
        ((1, 2), [2, 2, 1, 1]),  # (vertical, horizontal)
        ((1, 2, 3, 4), [1, 2, 3, 4]),  # (left, right, top, bottom)
        ("same", []),
        ("keras_v1", [0, 1, 4, 4]),
    ],
)
def test_padding_becomes_four_sides(padding: Any, sides: list[int]) -> None:
    assert normalize_padding(padding, kernel_size=(5, 3), stride=(1, 2), dilation=(2, 1)) == sides


@pytest.mark.parametrize(
    "padding",
    [-1, (1,), (1, 2, 3), 1.0, "valid", (1, 2, 3, -4), None, 2**31, (0, 0, 0, 2**63)],
)
def test_other_paddings_are_refused(padding: Any) -> None:
    with pytest.raises(ValueError, match="padding: expected"):
        normalize_padding(padding, 3, 1, 1)


@pytest.mark.parametrize("value", [0, (1, 0), (1, 2, 3), "3", 1.5, None, (1.0, 2), 2**31])
def test_other_pairs_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="stride: expected"):
        normalize_pair(value, "stride")


@pytest.mark.parametrize("n", [1, 2, 7, 8, 15])
@pytest.mark.parametrize(("k", "s", "d"), [(3, 1, 1), (3, 2, 1), (2, 2, 1), (5, 3, 1), (3, 2, 2)])
def test_same_is_that_of_tensorflow(n: int, k: int, s: int, d: int) -> None:
    """The output has ceil(n / s) elements; the odd element of padding comes after."""
    left, right, top, bottom = resolve_padding("same", k, s, d, (n, n))
    assert (left, right) == (top, bottom)
    assert right - left in (0, 1)
    assert output_size((n, n), (k, k), (s, s), [], (d, d)) == (-(-n // s),) * 2
    if s == 1:
        x, weight = torch.randn(1, 1, n, n), torch.randn(1, 1, k, k)
        ours = reference.depthwise_conv(x, weight, stride=s, padding="same", dilation=d)
        torch.testing.assert_close(ours, F.conv2d(x, weight, padding="same", dilation=d))


def test_same_on_an_even_image_with_stride_two_pads_right_and_bottom() -> None:
    assert resolve_padding("same", 3, 2, 1, (224, 224)) == (0, 1, 0, 1)
    assert resolve_padding([], 3, 2, 1, (225, 224)) == (0, 1, 1, 1)
    assert resolve_padding("keras_v1", 3, 2, 1, (225, 224)) == (0, 1, 0, 1)


def test_what_keeps_the_size() -> None:
    assert keeps_size((3, 3), (1, 1), [1, 1, 1, 1], (1, 1))
    assert keeps_size((3, 5), (1, 1), [0, 4, 2, 0], (1, 1))
    assert keeps_size((4, 4), (1, 1), [], (3, 1))
    assert not keeps_size((3, 3), (1, 2), [1, 1, 1, 1], (1, 1))
    assert not keeps_size((3, 3), (1, 1), [1, 1, 1, 1], (2, 1))
