"""Tensors of more than 2^31 elements: only the last thread blocks of a launch are executed, and of
the pages that are mapped hardly any is touched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mapped_memory import zeros
from op_checks import schema_arguments
from shapes import Case, arguments
from torch import Tensor

from cuda_on_host import host_library
from cuda_on_host.host_checks import run_on_host

BEYOND = 2**31
# x is beyond, y too where it is not smaller.
CASES = [
    Case("depthwise_conv", channels=64, height=32, width=32),  # few enough images for tiles
    Case("depthwise_conv", channels=64, height=16, width=16),
    Case("depthwise_conv", channels=64, height=16, width=16, kernel=(5, 5), padding=2),
    Case("depthwise_conv", channels=64, height=16, width=16, padding=0, dilation=3),
    Case("pointwise_conv", channels=64, channels_out=72, height=16, width=16),
    Case("stem_conv", channels=3, channels_out=16, height=64, width=64, stride=2),
    Case("stem_conv", 3, 16, 64, 64, stride=2, layout="contiguous"),
    Case("stem_conv", 3, 16, 224, 224, stride=2),  # few enough images for tensor cores
    Case("separable_block", channels=64, channels_out=64, height=16, width=16),
    Case("inverted_residual", 64, 64, 16, 16, hidden=64, residual=True),
    Case("classifier_head", channels=64, channels_out=8, height=16, width=16),
]
# Square images; 46344 x 46344 are more than 2^31 pixels, which the block kernel leaves to others.
IMAGES = [
    (Case("depthwise_conv", channels=8), 16500),
    (Case("depthwise_conv", channels=8, kernel=(5, 5), padding=2), 16500),
    (Case("depthwise_conv", channels=1), 46344),
    (Case("pointwise_conv", channels=1, channels_out=1), 46344),
    (Case("stem_conv", channels=1, channels_out=1), 46344),
    (Case("stem_conv", channels=3, channels_out=8), 26800),
    (Case("separable_block", channels=8, channels_out=8), 16500),
    (Case("separable_block", channels=1, channels_out=1), 46344),
    (Case("inverted_residual", 8, 8, hidden=16, residual=True), 16500),
]


def images_like(x: Tensor, batch: int, height: int, width: int) -> Tensor:
    channels = x.shape[1]
    if channels > 1 and x.is_contiguous():
        return zeros(batch, channels, height, width, dtype=x.dtype)
    return zeros(batch, height, width, channels, dtype=x.dtype).permute(0, 3, 1, 2)


def name_of(value: object) -> str:
    if isinstance(value, Case):
        return f"{value.op}-{value.channels}-{value.height}-{value.kernel[0]}-{value.layout}"
    return str(value)


def assert_alike(y: Tensor, wanted: Tensor) -> None:
    """Within what another order of sums may change."""
    assert torch.allclose(y.float(), wanted.float(), rtol=2e-3, atol=2e-2)


@pytest.fixture(autouse=True)
def in_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel for each convolution would need workspaces as large."""
    monkeypatch.setenv("FASTDW_CUDA_BLOCKS", "fused")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_many_images(case: Case) -> None:
    """The last of them as it is alone."""
    (x, weight, *args), kwargs = arguments(replace(case, batch=1), "normal", torch.float16)
    if case.layout == "contiguous":  # y stays NHWC: as planes it would be copied
        weight = weight.contiguous(memory_format=torch.channels_last)
    images = images_like(x, BEYOND // x[0].numel() + 2, *x.shape[2:])
    images[-1] = x[0]
    assert images.numel() > BEYOND
    with host_library.last_blocks(512):
        y = host_library.op(case.op)(*schema_arguments(case, (images, weight, *args), kwargs))
    assert_alike(y[-1:], run_on_host(case, (x, weight, *args), kwargs))


@pytest.mark.parametrize("case,side", IMAGES, ids=name_of)
def test_one_image(case: Case, side: int) -> None:
    """The end of its last row as that of a small one."""
    case = replace(case, batch=1, height=40, width=200)
    (x, *args), kwargs = arguments(case, "normal", torch.float16)
    image = images_like(x, 1, side, side)
    image[:, :, -40:, -200:] = x
    assert image.numel() > BEYOND
    with host_library.last_blocks(8):
        y = host_library.op(case.op)(*schema_arguments(case, (image, *args), kwargs))
    wanted = run_on_host(case, (x, *args), kwargs)
    assert_alike(y[..., -1:, -3:], wanted[..., -1:, -3:])
