"""Trained classifiers, by name: their network, their labels, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from fastdw.models.mobilenet_v1 import mobilenet_v1
from fastdw.models.mobilenet_v2 import mobilenet_v2
from fastdw.models.weights.classes import imagenet_classes

Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
HALF: Channels = (0.5, 0.5, 0.5)
"""TensorFlow's mean and standard deviation: pixels become -1 to 1."""

DOG_BREEDS = (
    "Chihuahua",
    "Maltese dog",
    "Shih-Tzu",
    "papillon",
    "Yorkshire terrier",
    "West Highland white terrier",
    "golden retriever",
    "Labrador retriever",
    "Rottweiler",
    "German shepherd",
    "Doberman",
    "bull mastiff",
    "French bulldog",
    "Siberian husky",
    "pug",
    "Samoyed",
    "Pomeranian",
    "toy poodle",
    "miniature poodle",
)
"""The order in which the package's label encoder holds them."""


@dataclass(frozen=True)
class Classifier:
    """How to build a trained classifier, and what it takes and gives.

    Attributes:
        build: builds it, untrained.
        labels: gives the names of the classes, in the order of the logits.
        resolution: the side of the square images that it was trained on.
        mean, std: it takes ``(pixel / 255 - mean) / std``, pixels from 0 to 255.
    """

    build: Callable[[], nn.Module]
    labels: Callable[[], Sequence[str]]
    resolution: int = 224
    mean: Channels = HALF
    std: Channels = HALF


_TENSORFLOW: dict[str, Any] = {"eps": 1e-3, "padding": "same"}

CLASSIFIERS = {
    "mobilenet-v1-imagenet": Classifier(
        partial(mobilenet_v1, num_classes=1001, **_TENSORFLOW),
        partial(imagenet_classes, 1001),
    ),
    "mobilenet-v2-imagenet": Classifier(
        mobilenet_v2, imagenet_classes, mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    "mobilenet-v2-dog-breeds": Classifier(
        partial(mobilenet_v2, num_classes=len(DOG_BREEDS), **_TENSORFLOW),
        lambda: DOG_BREEDS,
        resolution=160,
    ),
}
"""The names of trained classifiers; ``fastdw classify --model`` takes them."""
