"""torchvision's block classes. Imported once torchvision is, or to unpickle a converted model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torchvision.models import mobilenetv2, mobilenetv3
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import Conv2dNormActivation, FrozenBatchNorm2d, SqueezeExcitation

from fastdw.convert.blocks import BLOCKS, FusedBlock
from fastdw.convert.report import Reason
from fastdw.convert.rules import CONTAINERS, NAMED_LAYERS, NORM_TYPES, children_of
from fastdw.convert.siblings import SIBLINGS, Passed
from fastdw.plan.record import INERT_TYPES


class FusedConv2dNormActivation(FusedBlock, Conv2dNormActivation):
    """torchvision's conv, batch norm and activation in one."""

    _fastdw_original = Conv2dNormActivation
    is_container = True

    @staticmethod
    def layers(module: Conv2dNormActivation) -> Iterable[nn.Module | None]:
        return children_of(module)


class FusedMobileNetV2InvertedResidual(FusedBlock, mobilenetv2.InvertedResidual):
    """The block of torchvision's MobileNet V2: `x + conv(x)` or `conv(x)`."""

    _fastdw_original = mobilenetv2.InvertedResidual

    @staticmethod
    def layers(module: mobilenetv2.InvertedResidual) -> Iterable[nn.Module | None]:
        return (module.conv,)

    @staticmethod
    def adds_input(module: mobilenetv2.InvertedResidual) -> bool:
        return bool(module.use_res_connect)


class FusedMobileNetV3InvertedResidual(FusedBlock, mobilenetv3.InvertedResidual):
    """The block of torchvision's MobileNet V3, where it has no squeeze-excite."""

    _fastdw_original = mobilenetv3.InvertedResidual

    @staticmethod
    def layers(module: mobilenetv3.InvertedResidual) -> Iterable[nn.Module | None]:
        return (module.block,)

    @staticmethod
    def adds_input(module: mobilenetv3.InvertedResidual) -> bool:
        return bool(module.use_res_connect)


class PassedFrozenBatchNorm2d(Passed, FrozenBatchNorm2d):
    """`FrozenBatchNorm2d` of a fused site, as in the backbones of torchvision's detectors."""

    _fastdw_original = FrozenBatchNorm2d


def register() -> None:
    """Add torchvision's classes to the tables."""
    NORM_TYPES.add(FrozenBatchNorm2d)
    SIBLINGS[FrozenBatchNorm2d] = PassedFrozenBatchNorm2d
    INERT_TYPES.update((PassedFrozenBatchNorm2d, StochasticDepth))
    CONTAINERS.add(Conv2dNormActivation)
    NAMED_LAYERS[SqueezeExcitation] = Reason.SQUEEZE_EXCITE
    for fused in (
        FusedConv2dNormActivation,
        FusedMobileNetV2InvertedResidual,
        FusedMobileNetV3InvertedResidual,
    ):
        BLOCKS[fused._fastdw_original] = fused


register()
