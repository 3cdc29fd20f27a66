"""Units: one convolution (or linear layer) with what follows it, read from live modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdw.folding import fold_batch_norm
from fastdw.geometry import Padding, normalize_padding

STEM_CHANNELS = 4
"""A dense convolution is a stem, and fused, up to this many input channels."""


class NotFusable(Exception):
    """Why a module cannot run fused now; the module then runs its children one after another."""


@dataclass(frozen=True)
class ConvUnit:
    """conv -> batch norm -> activation; weights and geometry are read at call time.

    Args:
        conv: the convolution.
        bn: its batch norm, or None.
        activation: one of ``fastdw.activation.ACTIVATIONS``.
        padding: the padding that the caller applies instead of ``conv.padding`` (any form that the
            ops take), or None.
    """

    conv: nn.Conv2d
    bn: nn.Module | None
    activation: str
    padding: Padding | None = None

    @property
    def weight(self) -> Tensor:
        return self.conv.weight

    @property
    def channels_out(self) -> int:
        return self.conv.weight.shape[0]

    @property
    def kernel_size(self) -> list[int]:
        return list(self.conv.weight.shape[2:])

    @property
    def stride(self) -> list[int]:
        return list(self.conv.stride)

    @property
    def dilation(self) -> list[int]:
        return list(self.conv.dilation)

    @property
    def padding4(self) -> list[int]:
        """Padding as the schemas write it: (left, right, top, bottom), or [] for ``"same"``."""
        padding: Padding = self.conv.padding if self.padding is None else self.padding
        if padding == "valid":
            padding = 0
        return normalize_padding(padding, self.kernel_size, self.stride, self.dilation)

    @property
    def raw_padding(self) -> Padding:
        """Padding as the public ops take it."""
        return self.padding4 or "same"

    def scale_bias(self) -> tuple[Tensor | None, Tensor | None]:
        """The batch norm (and the conv's bias) as a scale and a bias, differentiable."""
        bias = self.conv.bias
        if self.bn is None:
            if bias is not None and bias.dtype != torch.float64:
                bias = bias.float()
            return None, bias
        return fold_batch_norm(self.bn, bias)  # type: ignore[arg-type]

    def operands(self) -> tuple[Tensor, Tensor | None, Tensor | None, str]:
        """(weight, scale, bias, activation): one convolution as the block ops take it."""
        return (self.weight, *self.scale_bias(), self.activation)


@dataclass(frozen=True)
class LinearUnit:
    """The linear layer of a classifier head."""

    linear: nn.Linear


Unit = ConvUnit | LinearUnit


def check_units(
    pattern: str,
    units: Sequence[Unit],
    conv_types: tuple[type, ...] = (nn.Conv2d,),
    norm_types: tuple[type, ...] = (nn.BatchNorm2d,),
) -> None:
    """Raise ``NotFusable`` unless ``units`` compute what ``pattern`` names, in eval mode."""
    for unit in units:
        if isinstance(unit, LinearUnit):
            if type(unit.linear) is not nn.Linear:
                raise NotFusable(f"{type(unit.linear).__name__} is not a plain nn.Linear")
        else:
            _check_conv_unit(unit, conv_types, norm_types)
    convs = [unit for unit in units if isinstance(unit, ConvUnit)]
    if pattern == "classifier_head":
        return
    if pattern == "stem_conv":
        _check_stem(convs[0])
    elif pattern == "dense_conv":
        if convs[0].conv.groups != 1:
            raise NotFusable(f"{convs[0].conv.groups} groups: no kernel for it")
    elif pattern == "depthwise_conv":
        _check_depthwise(convs[0])
    elif pattern == "pointwise_conv":
        _check_pointwise(convs[0])
    else:
        _check_depthwise(convs[-2])
        for unit in (*convs[:-2], convs[-1]):
            _check_pointwise(unit)


def _check_conv_unit(
    unit: ConvUnit, conv_types: tuple[type, ...], norm_types: tuple[type, ...]
) -> None:
    conv, bn = unit.conv, unit.bn
    if type(conv) not in conv_types:
        raise NotFusable(f"the convolution is a {type(conv).__name__}, not a plain nn.Conv2d")
    if conv.padding_mode != "zeros":
        raise NotFusable(f"padding_mode is {conv.padding_mode!r}, not 'zeros'")
    if bn is None:
        return
    if type(bn) not in norm_types:
        raise NotFusable(f"the norm is a {type(bn).__name__}, not a plain nn.BatchNorm2d")
    if bn.running_mean is None or bn.running_var is None:
        raise NotFusable("the batch norm keeps no running statistics")
    if bn.weight is None or bn.bias is None:
        raise NotFusable("the batch norm is not affine")


def _check_depthwise(unit: ConvUnit) -> None:
    conv = unit.conv
    if conv.groups != conv.in_channels:
        raise NotFusable(
            f"the convolution has {conv.groups} groups for {conv.in_channels} input channels: "
            "not depthwise"
        )


def _check_pointwise(unit: ConvUnit) -> None:
    conv = unit.conv
    if conv.groups != 1 or unit.kernel_size != [1, 1]:
        raise NotFusable(
            f"kernel {unit.kernel_size}, {conv.groups} groups: not a pointwise convolution"
        )
    if unit.stride != [1, 1] or any(unit.padding4):
        raise NotFusable(f"the pointwise convolution has stride {unit.stride} or padding")


def _check_stem(unit: ConvUnit) -> None:
    conv = unit.conv
    if conv.groups != 1 or unit.dilation != [1, 1]:
        raise NotFusable(f"{conv.groups} groups, dilation {unit.dilation}: no kernel for it")
    if conv.in_channels > STEM_CHANNELS:
        raise NotFusable(
            f"a dense convolution over {conv.in_channels} channels, a stem has at most "
            f"{STEM_CHANNELS}"
        )


def conv_pattern(unit: ConvUnit) -> str:
    """Return the op for a single unit: depthwise_conv, pointwise_conv or stem_conv."""
    if unit.conv.groups > 1:
        return "depthwise_conv"
    plain = unit.kernel_size == [1, 1] and unit.stride == [1, 1] and not any(unit.padding4)
    return "pointwise_conv" if plain else "stem_conv"
