"""Trained weights of the registries' packages: the answers of the runtimes they were made for.

What these runtimes gave stands in weights_files/published.npz; write_published.py says how.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastdw
from fastdw.commands.photos import load_photo, shipped_photos
from fastdw.models import weights
from fastdw.models.boxes import join_maps
from fastdw.models.classifiers import CLASSIFIERS
from fastdw.models.detectors import DETECTORS
from fastdw.plan import PlannedNetwork

PUBLISHED = np.load(Path(__file__).with_name("weights_files") / "published.npz")


def fetched(name: str) -> Path:
    try:
        return weights.fetch(name)
    except weights.FetchError as error:
        pytest.skip(f"the weights cannot be had: {error}")


def centre(photo: str, size: int) -> Tensor:
    """The square in the middle of a photo, as TensorFlow's networks take it."""
    path = next(path for path in shipped_photos() if path.name == photo)
    pixels = torch.from_numpy(np.array(load_photo(path), dtype=np.float32))
    top, left = ((length - size) // 2 for length in pixels.shape[:2])
    x = pixels[top : top + size, left : left + size] / 127.5 - 1
    return x.permute(2, 0, 1).unsqueeze(0)


def published(name: str) -> Tensor:
    return torch.from_numpy(PUBLISHED[name])


@torch.no_grad()
def as_both(model: nn.Module, x: Tensor) -> dict[str, object]:
    """What the model gives, and what its optimized copy gives."""
    fast = fastdw.optimize(model, x)
    assert fast.report.totals["fused"] > 10
    return {"model": model(x), "optimized": fast(x)}


def test_mobilenet_v1_gives_tensorflows_logits() -> None:
    model = CLASSIFIERS["mobilenet-v1-imagenet"].build()
    weights.load(model, fetched("mobilenet-v1-imagenet")).eval()
    expected = published("v1_logits")
    for name, logits in as_both(model, centre("coffee.png", 224)).items():
        assert (logits[0] - expected).abs().max() <= 1e-4 * expected.abs().max(), name
        assert weights.imagenet_classes(1001)[logits.argmax()] == "espresso"
    assert isinstance(fastdw.optimize(model), PlannedNetwork)


def test_dog_breeds_gives_keras_probabilities() -> None:
    classifier = CLASSIFIERS["mobilenet-v2-dog-breeds"]
    model = weights.load(classifier.build(), fetched("mobilenet-v2-dog-breeds")).eval()
    expected = published("dog_probabilities")
    for name, logits in as_both(model, centre("chelsea.png", 160)).items():
        assert (logits[0].softmax(0) - expected).abs().max() <= 1e-5, name
    assert len(classifier.labels()) == len(expected)


def test_open_images_gives_litert_boxes_and_classes() -> None:
    model = DETECTORS["ssd-mobilenet-v2-openimages"].build()
    weights.load(model, fetched("ssd-mobilenet-v2-openimages")).eval()
    marked, codes, logits = (published(f"open_images_{k}") for k in ("anchors", "codes", "logits"))
    for name, (boxes, classes) in as_both(model, centre("chelsea.png", 300)).items():
        assert (join_maps(boxes, 4)[0, marked] - codes).abs().max() <= 1e-4, name
        assert (join_maps(classes, 24)[0, marked] - logits).abs().max() <= 1e-4, name
        (best, *_) = model.detections((boxes, classes))
        assert best.labels[0] == DETECTORS["ssd-mobilenet-v2-openimages"].labels.index("Cat")
        assert best.scores[0] > 0.75


def test_face_gives_tfjs_boxes_and_scores() -> None:
    model = DETECTORS["ssd-mobilenet-v1-face"].build()
    weights.load(model, fetched("ssd-mobilenet-v1-face")).eval()
    marked, scores, boxes = (published(f"face_{kind}") for kind in ("anchors", "scores", "boxes"))
    for name, outputs in as_both(model, centre("astronaut.png", 512)).items():
        found, classes = model.boxes_and_scores(outputs)
        assert (classes[0, marked, 0] - scores).abs().max() <= 1e-4, name
        assert (found[0, marked] - boxes[:, [1, 0, 3, 2]]).abs().max() <= 1e-4, name
        (one,) = model.detections(outputs)
        wanted = torch.tensor([[181.0, 73.0, 264.0, 175.0]])
        assert (one.boxes * 512 - wanted).abs().max() < 1
        assert one.scores.tolist() == [pytest.approx(0.9648, abs=1e-4)]


def test_the_default_boxes_of_face_api_are_computed_right() -> None:
    stored = weights.read(fetched("ssd-mobilenet-v1-face"))["Output/extra_dim"][0]
    computed = DETECTORS["ssd-mobilenet-v1-face"].build().anchors
    assert stored.shape == (5118, 4)
    assert (stored - computed).abs().max() <= 1e-6


def test_every_package_is_pinned() -> None:
    for name, package in weights.PACKAGES.items():
        digests = [package.sha256, *(other.sha256 for other in package.companions)]
        assert all(len(digest) == 64 and int(digest, 16) for digest in digests), name
        separator = {"npm": "@", "wheel": "==", "sdist": "=="}.get(package.kind)
        assert separator is None or package.requirement.count(separator) >= 1, name
    trained = {**CLASSIFIERS, **DETECTORS}
    known = {name for name in trained if getattr(trained[name], "published", True)}
    assert known <= weights.PACKAGES.keys()
