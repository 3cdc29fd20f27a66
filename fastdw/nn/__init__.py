"""Drop-in modules: torch's own computation in training mode, one fused op in eval mode."""

from fastdw.nn.blocks import InvertedResidual, SeparableBlock
from fastdw.nn.conv_bn_act import ConvBNAct, DepthwiseConvBNAct, PointwiseConvBNAct
from fastdw.nn.head import ClassifierHead

__all__ = [
    "ClassifierHead",
    "ConvBNAct",
    "DepthwiseConvBNAct",
    "InvertedResidual",
    "PointwiseConvBNAct",
    "SeparableBlock",
]
