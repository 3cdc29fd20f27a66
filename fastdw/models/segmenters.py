"""Trained networks for semantic segmentation, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from fastdw.models.deeplab import VOC_CLASSES, deeplab_v3


@dataclass(frozen=True)
class Segmenter:
    """How to build a trained network, and what it takes and gives.

    Attributes:
        build: builds it, untrained.
        classes: their names, in the order of the logits; the first is background.
        size: the side of the square that it was trained on.
        offset, scale: it takes ``(pixel - offset) / scale``, pixels from 0 to 255.
        about: what was trained, and the file that holds its weights.
    """

    build: Callable[[], nn.Module]
    classes: tuple[str, ...]
    size: int
    offset: float
    scale: float
    about: str


SEGMENTERS = {
    "deeplab-v3-mobilenet-v2": Segmenter(
        deeplab_v3,
        VOC_CLASSES,
        513,
        128.0,
        128.0,
        "DeepLabV3, MobileNet V2 1.0, PASCAL VOC: deeplabv3_mnv2_pascal_quant.tflite",
    ),
    "deeplab-v3-mobilenet-v2-dm05": Segmenter(
        partial(deeplab_v3, 0.5),
        VOC_CLASSES,
        513,
        128.0,
        128.0,
        "DeepLabV3, MobileNet V2 0.5, PASCAL VOC: deeplabv3_mnv2_dm05_pascal_quant.tflite",
    ),
}
"""The names of trained segmentation networks; ``fastdw segment --model`` takes them."""
