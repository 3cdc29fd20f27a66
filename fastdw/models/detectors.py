"""Trained detectors, by name: their network, their labels, and how a photo becomes their input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fastdw.models.deeplab import VOC_CLASSES
from fastdw.models.ssd import SSD, ssd

OPEN_IMAGES_LABELS = (
    "",  # background
    "Bicycle",
    "Boot",
    "Laptop",
    "Person",
    "Chair",
    "Cattle",
    "Desk",
    "Cat",
    "Computer mouse",
    "Computer monitor",
    "Box",
    "Mug",
    "Coffee cup",
    "Stationary bicycle",
    "Table",
    "Bottle",
    "High heels",
    "Vehicle",
    "Footwear",
    "Dog",
    "Book",
    "Camera",
    "Car",
)

VOC_LABELS = ("", *VOC_CLASSES[1:])


@dataclass(frozen=True)
class Detector:
    """How to build a trained detector, and what it takes and gives.

    Attributes:
        build: builds it, untrained.
        labels: by class number; a class without one is not looked at.
        letterbox: whether a photo keeps its shape, at the top left of a black square; else it is
            stretched to the square.
        offset, scale: it takes ``(pixel - offset) / scale``, pixels from 0 to 255.
        published: whether ``fetch`` knows weights of this name.
        about: what was trained.
    """

    build: Callable[[], SSD]
    labels: tuple[str, ...]
    letterbox: bool = False
    offset: float = 127.5
    scale: float = 127.5
    published: bool = True
    about: str = ""


DETECTORS = {
    "ssd-mobilenet-v1-face": Detector(
        partial(ssd, "ssd_mobilenet_v1_face"),
        ("", "face", ""),
        letterbox=True,
        about="faces, 512x512",
    ),
    "ssd-mobilenet-v2-openimages": Detector(
        partial(ssd, "ssd_mobilenet_v2", len(OPEN_IMAGES_LABELS)),
        OPEN_IMAGES_LABELS,
        about="23 classes of Open Images, 300x300",
    ),
    "ssd-mobilenet-v1-voc": Detector(
        partial(ssd, "ssd_mobilenet_v1_caffe"),
        VOC_LABELS,
        published=False,
        about="the 20 classes of Pascal VOC, 300x300; its weights have to be given",
    ),
}
"""The names of trained detectors; ``fastdw detect --model`` takes them."""
