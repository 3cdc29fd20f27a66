"""MobileNet V1 and V2, their layer tables, weights in published formats, and names for models."""

from fastdw.models.mobilenet_v1 import MobileNetV1, mobilenet_v1
from fastdw.models.mobilenet_v2 import MobileNetV2, mobilenet_v2
from fastdw.models.registry import MODELS, create
from fastdw.models.summary import LayerSummary, ModelSummary, summarize

__all__ = [
    "MODELS",
    "LayerSummary",
    "MobileNetV1",
    "MobileNetV2",
    "ModelSummary",
    "create",
    "mobilenet_v1",
    "mobilenet_v2",
    "summarize",
]
