"""The trained MobileNet V2 of the registry's package: torchvision's answers from our model."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage.data
import sklearn.datasets
import torch
import torchvision
from nn_checks import assert_as_accurate_as_torch
from torch import Tensor

import fastdw.models
from fastdw.models import specs, weights


@pytest.fixture(scope="module")
def path() -> Path:
    return weights.fetch("mobilenet-v2-imagenet")


@pytest.fixture(scope="module")
def photos() -> Tensor:
    images = [
        getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")
    ]
    images += sklearn.datasets.load_sample_images().images
    preprocess = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    return torch.stack([preprocess(torch.tensor(image).permute(2, 0, 1)) for image in images])


@torch.no_grad()
def test_trained_v2(path: Path, photos: Tensor) -> None:
    stock = torchvision.models.mobilenet_v2().eval()
    stock.load_state_dict(torch.load(path, weights_only=True))
    ours = weights.load(fastdw.models.mobilenet_v2(), path).eval()
    expected, actual = stock(photos), ours(photos)
    assert_as_accurate_as_torch(
        actual, expected, stock.double()(photos.double()), specs.count_layers(ours)
    )
    assert torch.equal(actual.topk(5).indices, expected.topk(5).indices)
    names = weights.imagenet_classes()
    best = [names[i] for i in actual.argmax(1)]
    assert (best[1], best[2], best[4]) == ("Egyptian cat", "espresso", "palace")
