"""timm's layers and block classes. Imported once timm is, or to unpickle a converted model.

`BatchNormAct2d` holds its activation inside; `Conv2dSame` has padding 0 and pads at run time as
TensorFlow does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from timm.layers import BatchNormAct2d, ConvNormAct, DropPath
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool, SelectAdaptivePool2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear
from timm.layers.norm_act import SyncBatchNormAct
from timm.models import _efficientnet_blocks as timm_blocks
from torch import Tensor, nn

from fastdw.convert.blocks import BLOCKS, FusedBlock
from fastdw.convert.handover import READERS, ReadsMeans
from fastdw.convert.report import Reason
from fastdw.convert.rules import (
    CONV_PADDING,
    NAMED_LAYERS,
    NORM_TYPES,
    UNITS,
    Refused,
    check_untouched,
    original_class,
)
from fastdw.convert.siblings import SIBLINGS, FusedSibling, Passed
from fastdw.plan.record import INERT_TYPES, LINEAR_TYPES, NORMS, POOLING, Pooling


class FusedConv2dSame(FusedSibling, Conv2dSame):
    """`Conv2dSame` computing its whole site."""

    _fastdw_original = Conv2dSame


class PassedBatchNormAct2d(Passed, BatchNormAct2d):
    """`BatchNormAct2d` of a fused site."""

    _fastdw_original = BatchNormAct2d


class FusedConvNormAct(FusedBlock, ConvNormAct):
    """timm's conv, batch norm and activation in one."""

    _fastdw_original = ConvNormAct
    is_container = True

    @staticmethod
    def layers(module: ConvNormAct) -> Iterable[nn.Module | None]:
        _refuse_anti_aliasing(getattr(module, "aa", None))
        return (module.conv, module.bn)


class FusedConvBnAct(FusedBlock, timm_blocks.ConvBnAct):
    """The EfficientNet family's conv, batch norm and activation in one."""

    _fastdw_original = timm_blocks.ConvBnAct
    is_container = True

    @staticmethod
    def layers(module: timm_blocks.ConvBnAct) -> Iterable[nn.Module | None]:
        _refuse_anti_aliasing(module.aa)
        _check_drop_path(module)
        return (module.conv, module.bn1)

    @staticmethod
    def adds_input(module: timm_blocks.ConvBnAct) -> bool:
        return bool(module.has_skip)


class FusedDepthwiseSeparableConv(FusedBlock, timm_blocks.DepthwiseSeparableConv):
    """depthwise and 1x1 convolution of the EfficientNet family (MobileNet V1, first V2 block)."""

    _fastdw_original = timm_blocks.DepthwiseSeparableConv

    @staticmethod
    def layers(module: timm_blocks.DepthwiseSeparableConv) -> Iterable[nn.Module | None]:
        _check_mbconv(module)
        return (module.conv_dw, module.bn1, module.conv_pw, module.bn2)

    @staticmethod
    def adds_input(module: timm_blocks.DepthwiseSeparableConv) -> bool:
        return bool(module.has_skip)


class FusedInvertedResidual(FusedBlock, timm_blocks.InvertedResidual):
    """The inverted residual of the EfficientNet family, where it has no squeeze-excite."""

    _fastdw_original = timm_blocks.InvertedResidual

    @staticmethod
    def layers(module: timm_blocks.InvertedResidual) -> Iterable[nn.Module | None]:
        _check_mbconv(module)
        return (
            *(module.conv_pw, module.bn1),
            *(module.conv_dw, module.bn2),
            *(module.conv_pwl, module.bn3),
        )

    @staticmethod
    def adds_input(module: timm_blocks.InvertedResidual) -> bool:
        return bool(module.has_skip)


class HandedSqueezeExcite(ReadsMeans, timm_blocks.SqueezeExcite):
    """timm's squeeze-excite behind a depthwise convolution that may hand over its means."""

    _fastdw_original = timm_blocks.SqueezeExcite

    def _after_pooling(self, x: Tensor, means: Tensor) -> Tensor:
        gates = self.gate(self.conv_expand(self.act1(self.conv_reduce(means))))
        return x * gates


class FusedUniversalInvertedResidual(FusedBlock, timm_blocks.UniversalInvertedResidual):
    """The block of MobileNet V4, where it is an inverted residual or a separable block."""

    _fastdw_original = timm_blocks.UniversalInvertedResidual

    @staticmethod
    def layers(module: timm_blocks.UniversalInvertedResidual) -> Iterable[nn.Module | None]:
        _refuse_squeeze_excite(module)
        _check_drop_path(module)
        return (
            *(module.dw_start, module.pw_exp, module.dw_mid),
            *(module.pw_proj, module.dw_end, module.layer_scale),
        )

    @staticmethod
    def adds_input(module: timm_blocks.UniversalInvertedResidual) -> bool:
        return bool(module.has_skip)


def _check_mbconv(module: nn.Module) -> None:
    if getattr(module, "conv_s2d", None) is not None:
        raise Refused(Reason.SPACE_TO_DEPTH)
    _refuse_squeeze_excite(module)
    _refuse_anti_aliasing(module.aa)
    _check_drop_path(module)


def _refuse_squeeze_excite(module: nn.Module) -> None:
    if type(module.se) is not nn.Identity:
        raise Refused(Reason.SQUEEZE_EXCITE)
    check_untouched(module.se)


def _refuse_anti_aliasing(layer: object) -> None:
    if layer is not None and type(layer) is not nn.Identity:
        raise Refused(Reason.ANTI_ALIASING)


def _check_drop_path(module: nn.Module) -> None:
    """Drop path does nothing in eval mode; in training mode the original forward runs it."""
    drop_path = cast(nn.Module, module.drop_path)
    if type(drop_path) not in (nn.Identity, DropPath):
        raise Refused(Reason.UNKNOWN_CLASS)
    check_untouched(drop_path)


def _norm_tail(norm: nn.Module) -> tuple[nn.Module, ...]:
    return (cast(nn.Module, norm.drop), cast(nn.Module, norm.act))


def register() -> None:
    """Add timm's classes to the tables."""
    CONV_PADDING[Conv2dSame] = "same"
    NORM_TYPES.add(BatchNormAct2d)
    NORMS[BatchNormAct2d] = _norm_tail
    NAMED_LAYERS[SyncBatchNormAct] = Reason.SYNC_BATCH_NORM
    SIBLINGS.update({Conv2dSame: FusedConv2dSame, BatchNormAct2d: PassedBatchNormAct2d})
    for fused in (
        FusedConvNormAct,
        FusedConvBnAct,
        FusedDepthwiseSeparableConv,
        FusedInvertedResidual,
        FusedUniversalInvertedResidual,
    ):
        BLOCKS[fused._fastdw_original] = fused
    UNITS[ConvNormAct] = FusedConvNormAct.units
    INERT_TYPES.update((DropPath, PassedBatchNormAct2d))
    READERS[timm_blocks.SqueezeExcite] = HandedSqueezeExcite
    LINEAR_TYPES.add(Linear)  # nn.Linear with a cast for TorchScript
    POOLING.update({FastAdaptiveAvgPool: fast_pooling, SelectAdaptivePool2d: select_pooling})


def fast_pooling(pool: nn.Module) -> Pooling | None:
    """What timm's mean over height and width gives: [N, C] if it flattens, else [N, C, 1, 1]."""
    return Pooling(flatten=bool(pool.flatten)) if pool.dim == (2, 3) else None


def select_pooling(pool: nn.Module) -> Pooling | None:
    """What `SelectAdaptivePool2d` gives if it is a plain global average, else None."""
    inner = cast(nn.Module, pool.pool)
    if type(inner) is FastAdaptiveAvgPool:
        return fast_pooling(inner)
    if original_class(inner) is nn.AdaptiveAvgPool2d and inner.output_size in (1, (1, 1)):
        return Pooling(flatten=type(pool.flatten) is nn.Flatten)
    return None


register()
