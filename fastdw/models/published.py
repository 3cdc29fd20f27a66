"""What the papers print: the yardstick of ``fastdw summary --compare``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedModel:
    """One row of a paper's table; top-1 is the ImageNet accuracy that it reports, in percent."""

    name: str
    width: float | None
    resolution: int
    top1: float
    multiply_adds_millions: float
    parameters_millions: float
    source: str


_V1 = "Howard et al., MobileNets (2017), arXiv:1704.04861"
_V2 = "Sandler et al., MobileNetV2 (2018), arXiv:1801.04381"

WIDTH_MULTIPLIERS = (
    PublishedModel("MobileNet V1", 1.0, 224, 70.6, 569, 4.2, f"{_V1}, table 6"),
    PublishedModel("MobileNet V1", 0.75, 224, 68.4, 325, 2.6, f"{_V1}, table 6"),
    PublishedModel("MobileNet V1", 0.5, 224, 63.7, 149, 1.3, f"{_V1}, table 6"),
    PublishedModel("MobileNet V1", 0.25, 224, 50.6, 41, 0.5, f"{_V1}, table 6"),
)

RESOLUTION_MULTIPLIERS = (
    PublishedModel("MobileNet V1", 1.0, 224, 70.6, 569, 4.2, f"{_V1}, table 7"),
    PublishedModel("MobileNet V1", 1.0, 192, 69.1, 418, 4.2, f"{_V1}, table 7"),
    PublishedModel("MobileNet V1", 1.0, 160, 67.2, 290, 4.2, f"{_V1}, table 7"),
    PublishedModel("MobileNet V1", 1.0, 128, 64.4, 186, 4.2, f"{_V1}, table 7"),
)

MOBILENET_V2 = (
    PublishedModel("MobileNet V2", 1.0, 224, 72.0, 300, 3.4, f"{_V2}, table 4"),
    PublishedModel("MobileNet V2", 1.4, 224, 74.7, 585, 6.9, f"{_V2}, table 4"),
)

OTHERS = (
    PublishedModel("GoogLeNet", None, 224, 69.8, 1550, 6.8, f"{_V1}, table 8"),
    PublishedModel("VGG16", None, 224, 71.5, 15300, 138, f"{_V1}, table 8"),
)
