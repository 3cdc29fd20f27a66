"""Convolution, batch norm and activation as one module: fused in eval mode."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastdw import activation as activations
from fastdw.geometry import Padding, Pair, normalize_padding, normalize_pair, resolve_padding
from fastdw.nn.fused_module import ConvUnit, FusedModule, NotFusable
from fastdw.nn.units import conv_pattern

_ACTIVATION_MODULES: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
}


def activation_module(name: str) -> nn.Module:
    """Return the torch module of an activation of ``fastdw.activation.ACTIVATIONS``."""
    kind = _ACTIVATION_MODULES[activations.check(name)]
    return kind() if kind is nn.Identity else kind(inplace=True)


class ConvBNAct(FusedModule):
    """Convolution, batch norm and activation: ``y = act(bn(conv(x)))``.

    Training mode runs exactly the three torch modules ``conv``, ``bn`` and ``act``. Eval mode runs
    one fused op: ``depthwise_conv`` (groups = in_channels), ``pointwise_conv`` (1x1) or
    ``stem_conv`` (dense, up to 4 input channels). Other convolutions stay with torch.

    Args:
        in_channels, out_channels: channels of the input and the output.
        kernel_size, stride, dilation: int or pair (vertical, horizontal).
        padding: None (``(kernel_size - 1) * dilation // 2`` all round), int, pair (vertical,
            horizontal), 4-tuple (left, right, top, bottom), ``"same"`` (TensorFlow) or
            ``"keras_v1"``.
        groups: as in ``nn.Conv2d``.
        activation: ``"none"``, ``"relu"``, ``"relu6"``, ``"hardswish"`` or ``"silu"``.
        eps, momentum: of the batch norm.

    Shape:
        ``[batch, in_channels, height, width]`` to ``[batch, out_channels, ...]`` as ``nn.Conv2d``;
        any memory format, channels_last is fastest.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair = 3,
        stride: Pair = 1,
        padding: Padding | None = None,
        dilation: Pair = 1,
        groups: int = 1,
        activation: str = "relu6",
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        kernel = normalize_pair(kernel_size, "kernel_size")
        strides = normalize_pair(stride, "stride")
        gaps = normalize_pair(dilation, "dilation")
        if padding is None:
            padding = [(k - 1) * d // 2 for k, d in zip(kernel, gaps, strict=True)]
        sides = normalize_padding(padding, kernel, strides, gaps)
        if max(strides) == 1:  # then "same" is no matter of the input's size
            sides = list(resolve_padding(sides, kernel, strides, gaps, kernel))
        symmetric = bool(sides) and sides[0] == sides[1] and sides[2] == sides[3]
        # Where nn.Conv2d cannot pad so, this module pads before it.
        self.padding: Padding | None = None if symmetric else tuple(sides) or "same"
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            (kernel[0], kernel[1]),
            stride=(strides[0], strides[1]),
            padding=(sides[2], sides[0]) if symmetric else 0,
            dilation=(gaps[0], gaps[1]),
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)
        self.act = activation_module(activation)

    @property
    def _fused_pattern(self) -> str:  # type: ignore[override]
        return conv_pattern(self._fused_units()[0])

    def _fused_units(self) -> tuple[ConvUnit, ...]:
        name = activations.name_of(self.act)
        if name is None:
            raise NotFusable(f"no kernel for the activation {type(self.act).__name__}")
        return (ConvUnit(self.conv, self.bn, name, self.padding),)

    def _unfused_forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(self._padded(x))))

    def _padded(self, x: Tensor) -> Tensor:
        if self.padding is None:
            return x
        conv = self.conv
        sides = resolve_padding(
            self.padding, conv.kernel_size, conv.stride, conv.dilation, x.shape[2:]
        )
        return F.pad(x, sides)


class DepthwiseConvBNAct(ConvBNAct):
    """Depthwise convolution, batch norm and activation: ``ConvBNAct`` with a filter per channel.

    Args:
        channels: channels of the input.
        kernel_size, stride, padding, dilation, activation, eps, momentum: as in ``ConvBNAct``.
        multiplier: filters per input channel; the output has ``channels * multiplier`` channels.

    Source: Howard et al., MobileNets (2017), section 3.1.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Pair = 3,
        stride: Pair = 1,
        padding: Padding | None = None,
        dilation: Pair = 1,
        multiplier: int = 1,
        activation: str = "relu6",
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(
            channels,
            channels * multiplier,
            kernel_size,
            stride,
            padding,
            dilation,
            groups=channels,
            activation=activation,
            eps=eps,
            momentum=momentum,
        )

    @property
    def _fused_pattern(self) -> str:  # type: ignore[override]
        return "depthwise_conv"


class PointwiseConvBNAct(ConvBNAct):
    """1x1 convolution, batch norm and activation: ``ConvBNAct`` with kernel size 1.

    Args:
        in_channels, out_channels, activation, eps, momentum: as in ``ConvBNAct``.

    Source: Howard et al., MobileNets (2017), section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activation: str = "relu6",
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, 1, activation=activation, eps=eps, momentum=momentum
        )
