"""transformers' MobileNets. Imported once their modeling modules are, or to unpickle a model.

Their convolutions have padding 0 and a forward that pads as TensorFlow does, if `config.tf_padding`
says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn
from transformers.activations import SiLUActivation
from transformers.models.mobilenet_v1 import modeling_mobilenet_v1 as mobilenet_v1
from transformers.models.mobilenet_v2 import modeling_mobilenet_v2 as mobilenet_v2

from fastdw.convert.blocks import BLOCKS, FusedBlock
from fastdw.convert.report import Reason
from fastdw.convert.rules import ACTIVATION_TYPES, UNITS, Refused, units_of
from fastdw.nn.units import ConvUnit


class FusedConvLayer(FusedBlock):
    """Pad, convolution, batch norm and activation: `normalization` and `activation` may be None."""

    @staticmethod
    def layers(module: Any) -> Iterable[nn.Module | None]:
        if not isinstance(module.activation, nn.Module | None):
            raise Refused(Reason.UNKNOWN_ACTIVATION)
        return (module.convolution, module.normalization, module.activation)

    @classmethod
    def units(cls, module: nn.Module) -> tuple[ConvUnit, ...]:
        """A dense convolution alone too: its pad, a copy of the whole map, goes."""
        units = units_of(cls.layers(module))
        if len(units) != 1:
            raise Refused(Reason.NO_PATTERN)
        return (_padded(module, units[0]),)

    def _fused_settings(self) -> Iterable[tuple[dict[str, Any], str]]:
        return _settings(self)


class FusedMobileNetV1ConvLayer(FusedConvLayer, mobilenet_v1.MobileNetV1ConvLayer):
    """The layer that all of MobileNet V1 is made of."""

    _fastdw_original = mobilenet_v1.MobileNetV1ConvLayer


class FusedMobileNetV2ConvLayer(FusedConvLayer, mobilenet_v2.MobileNetV2ConvLayer):
    """The layer that all of MobileNet V2 and its DeepLab head are made of."""

    _fastdw_original = mobilenet_v2.MobileNetV2ConvLayer


class FusedMobileNetV2InvertedResidual(FusedBlock, mobilenet_v2.MobileNetV2InvertedResidual):
    """The inverted residual, always with an expansion."""

    _fastdw_original = mobilenet_v2.MobileNetV2InvertedResidual

    @staticmethod
    def layers(module: mobilenet_v2.MobileNetV2InvertedResidual) -> Iterable[nn.Module | None]:
        return (module.expand_1x1, module.conv_3x3, module.reduce_1x1)

    @staticmethod
    def adds_input(module: mobilenet_v2.MobileNetV2InvertedResidual) -> bool:
        return bool(module.use_residual)

    def _fused_settings(self) -> Iterable[tuple[dict[str, Any], str]]:
        return [setting for layer in self.children() for setting in _settings(layer)]


def _padded(layer: Any, unit: ConvUnit) -> ConvUnit:
    """`unit` with the padding of `apply_tf_padding`, where that is TensorFlow's SAME.

    It pads `max(k - (n % s or s), 0)` on an axis, half before, then times the dilation: with a
    stride, a dilated convolution gets another sum than SAME, an even kernel another half. The one
    of MobileNet V1 knows no dilation.
    """
    conv = unit.conv
    if not layer.config.tf_padding or tuple(conv.kernel_size) == (1, 1):
        return unit
    scales = isinstance(layer, mobilenet_v2.MobileNetV2ConvLayer)
    for size, stride, dilation in zip(conv.kernel_size, conv.stride, conv.dilation, strict=True):
        undilated = dilation == 1 or size == 1
        if not undilated and not (scales and stride == 1 and size % 2 == 1):
            raise Refused(Reason.NOT_SAME)
    if conv.padding not in ((0, 0), "valid"):
        raise Refused(Reason.NOT_SAME)
    return replace(unit, padding="same")


def _settings(layer: Any) -> list[tuple[dict[str, Any], str]]:
    """What the forward reads of the configuration, which the whole model shares."""
    return [(layer.config.__dict__, "tf_padding")]


def register() -> None:
    """Add transformers' classes to the tables."""
    ACTIVATION_TYPES[SiLUActivation] = "silu"
    for layer in (FusedMobileNetV1ConvLayer, FusedMobileNetV2ConvLayer):
        BLOCKS[layer._fastdw_original] = layer
        UNITS[layer._fastdw_original] = layer.units
    fused = FusedMobileNetV2InvertedResidual
    BLOCKS[fused._fastdw_original] = fused


register()
