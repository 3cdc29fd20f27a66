"""The trained MobileNet V2 of the registry's package on photos: the same answers as torchvision."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from nn_checks import assert_as_accurate_as_torch
from torch import Tensor, nn

import fastdw
from fastdw.commands.photos import load_photo, shipped_photos
from fastdw.models import specs, weights
from fastdw.plan.network import PlannedNetwork

LAYERS = specs.count_layers(fastdw.models.mobilenet_v2())


@pytest.fixture(scope="module")
def path() -> Path:
    return weights.fetch("mobilenet-v2-imagenet")


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """The eight photos that scikit-image and scikit-learn ship, [8, 3, 224, 224]."""
    preprocess = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    shipped = shipped_photos()
    assert len(shipped) == 8
    return torch.stack([preprocess(load_photo(photo)) for photo in shipped])


@pytest.fixture(scope="module")
def stock(path: Path) -> nn.Module:
    model = torchvision.models.mobilenet_v2().eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


@pytest.mark.parametrize("how", ["our model", "our model, optimized", "torchvision's, optimized"])
@torch.no_grad()
def test_trained_v2(how: str, path: Path, photos: Tensor, stock: nn.Module) -> None:
    model: nn.Module = stock
    if how.startswith("our model"):
        model = weights.load(fastdw.models.mobilenet_v2(), path).eval()
    if how.endswith("optimized"):
        model = fastdw.optimize(model, photos[:1])
        assert isinstance(model, PlannedNetwork)
    expected, actual = stock(photos), model(photos)
    truth = copy.deepcopy(stock).double()(photos.double())
    assert_as_accurate_as_torch(actual, expected, truth, LAYERS)
    assert torch.equal(actual.topk(5).indices, expected.topk(5).indices)
    names = weights.imagenet_classes()
    best = [names[i] for i in actual.argmax(1)]
    assert (best[0], best[1], best[6]) == ("Egyptian cat", "espresso", "palace")
