"""MobileNets and what is built on them: layer tables, published weights, names for models."""

from fastdw.models.darknet import DarknetNetwork, darknet
from fastdw.models.deeplab import DeepLabV3, deeplab_v3, deeplab_v3_plus
from fastdw.models.expanded_conv import expanded_conv
from fastdw.models.mobilenet_v1 import MobileNetV1, mobilenet_v1
from fastdw.models.mobilenet_v2 import MobileNetV2, mobilenet_v2
from fastdw.models.mobilenet_v2_forms import mobilenet_v2_keras, mobilenet_v2_slim
from fastdw.models.registry import MODELS, create
from fastdw.models.ssd import SSD, SSDForm, ssd
from fastdw.models.summary import LayerSummary, ModelSummary, summarize

__all__ = [
    "MODELS",
    "SSD",
    "DarknetNetwork",
    "DeepLabV3",
    "LayerSummary",
    "MobileNetV1",
    "MobileNetV2",
    "ModelSummary",
    "SSDForm",
    "create",
    "darknet",
    "deeplab_v3",
    "deeplab_v3_plus",
    "expanded_conv",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v2_keras",
    "mobilenet_v2_slim",
    "ssd",
    "summarize",
]
