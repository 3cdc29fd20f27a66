"""Tensors of more than 2^31 elements: few spots are set, few outputs computed, those must be right.

Not collected by pytest on its own: ``python -m pytest tests/large_tensors.py``. The images are
mapped pages that are hardly written, so little memory is resident, but for the 9 GB of
``test_large_output``.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from fastdw import ops

CHANNELS, HEIGHT, WIDTH = 16, 4, (1 << 25) + 4096  # 2^31 + 2^18 elements
STRIDE = (1, 4096)


def image(channels: int, height: int, width: int, channels_last: bool = True) -> Tensor:
    """Return more than 2^31 zeros, as ``torch.zeros`` would, which writes them all."""
    x = torch.frombuffer(mmap.mmap(-1, 4 * channels * height * width), dtype=torch.float32)
    assert x.numel() > 1 << 31
    if channels_last:
        return x.view(1, height, width, channels).permute(0, 3, 1, 2)
    return x.view(1, channels, height, width)


def spots(x: Tensor) -> Tensor:
    """Set some pixels at sampled columns, the last one among them; return the sampled image."""
    columns = (x.shape[3] - 1) // STRIDE[1] + 1
    sampled = torch.zeros(1, x.shape[1], x.shape[2], columns)
    for number, column in enumerate((0, 1, columns // 2, columns - 2, columns - 1), start=1):
        values = torch.arange(x.shape[1]).float() + number
        x[0, :, -1, column * STRIDE[1]] = values
        sampled[0, :, -1, column] = values
    return sampled


def test_depthwise_conv() -> None:
    x = image(CHANNELS, HEIGHT, WIDTH)
    sampled, weight = spots(x), torch.rand(CHANNELS, 1, 1, 1)
    y = ops.depthwise_conv(x, weight, stride=STRIDE)
    torch.testing.assert_close(y, sampled * weight[:, 0], check_stride=False)


def test_stem_conv() -> None:
    for channels_last in (True, False):
        x = image(CHANNELS, HEIGHT, WIDTH, channels_last)
        sampled, weight = spots(x), torch.rand(5, CHANNELS, 1, 1)
        y = ops.stem_conv(x, weight, stride=STRIDE, padding=0)
        wanted = torch.nn.functional.conv2d(sampled, weight)
        torch.testing.assert_close(y, wanted, check_stride=False)


def test_separable_block_and_inverted_residual() -> None:
    x = image(CHANNELS, HEIGHT, WIDTH)
    sampled = spots(x)
    depthwise = (torch.rand(CHANNELS, 1, 1, 1), None, None, "relu6")
    pointwise = (torch.rand(5, CHANNELS, 1, 1), None, None, "none")
    hidden = (sampled * depthwise[0][:, 0]).clamp(0, 6)
    wanted = torch.nn.functional.conv2d(hidden, pointwise[0])
    y = ops.separable_block(x, depthwise, pointwise, stride=STRIDE, padding=0)
    torch.testing.assert_close(y, wanted, check_stride=False)
    y = ops.inverted_residual(x, None, depthwise, pointwise, stride=STRIDE, padding=0)
    torch.testing.assert_close(y, wanted, check_stride=False)


def test_pointwise_conv_and_classifier_head() -> None:
    x = image(512, 2, (1 << 21) + 64)
    x[0, :, -1, -1] = torch.arange(512).float()
    weight = torch.rand(1, 512, 1, 1)
    wanted = torch.dot(weight.flatten(), torch.arange(512).float())
    y = ops.pointwise_conv(x, weight)
    torch.testing.assert_close(y[0, 0, -1, -1], wanted)
    assert torch.count_nonzero(y) == 1
    logits = ops.classifier_head(x, weight[:, :, 0, 0])
    torch.testing.assert_close(logits[0, 0], wanted / (x.shape[2] * x.shape[3]))


def test_large_output() -> None:
    x = torch.zeros(1, 1, 1 << 13, (1 << 14) + 2)
    x[0, 0, -1, -1] = 3
    weight = torch.arange(1, 17).float().view(16, 1, 1, 1)
    y = ops.pointwise_conv(x.to(memory_format=torch.channels_last), weight)
    assert y.numel() > 1 << 31
    assert torch.equal(y[0, :, -1, -1], 3 * weight.flatten())
    assert torch.count_nonzero(y[0, :, -1]) == 16
