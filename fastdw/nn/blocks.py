"""The blocks of MobileNet V1 and V2 as modules: one fused op each in eval mode."""

from __future__ import annotations

from torch import Tensor

from fastdw.geometry import Padding, Pair, keeps_size
from fastdw.nn.conv_bn_act import DepthwiseConvBNAct, PointwiseConvBNAct
from fastdw.nn.fused_module import ConvUnit, FusedModule


class SeparableBlock(FusedModule):
    """Depthwise-separable convolution: depthwise, batch norm, act, then 1x1, batch norm, act.

    ``y = act(bn(pointwise(act(bn(depthwise(x))))))``. Training mode runs the torch modules one
    after another, eval mode the op ``separable_block``.

    Args:
        in_channels, out_channels: channels of the input and the output.
        stride, kernel_size, dilation: of the depthwise convolution; int or pair.
        padding: of the depthwise convolution, as in ``ConvBNAct``.
        activation: after both convolutions.
        eps, momentum: of both batch norms.

    Shape:
        ``[batch, in_channels, height, width]`` to ``[batch, out_channels, out_height, out_width]``.

    Source: Howard et al., MobileNets (2017), section 3.1 and figure 3.
    """

    _fused_pattern = "separable_block"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Pair = 1,
        kernel_size: Pair = 3,
        dilation: Pair = 1,
        padding: Padding | None = None,
        activation: str = "relu6",
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.depthwise = DepthwiseConvBNAct(
            in_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            activation=activation,
            eps=eps,
            momentum=momentum,
        )
        self.pointwise = PointwiseConvBNAct(in_channels, out_channels, activation, eps, momentum)

    def _fused_units(self) -> tuple[ConvUnit, ...]:
        return (*self.depthwise._fused_units(), *self.pointwise._fused_units())

    def _unfused_forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class InvertedResidual(FusedModule):
    """Inverted residual: 1x1 expand, depthwise, linear 1x1 project, plus the input where it fits.

    ``y = bn(project(act(bn(depthwise(act(bn(expand(x))))))))``, ``+ x`` if the block keeps channels
    and size. Training mode runs the torch modules one after another, eval mode the op
    ``inverted_residual``.

    Args:
        in_channels, out_channels: channels of the input and the output.
        stride, kernel_size, dilation: of the depthwise convolution; int or pair.
        expand_ratio: hidden channels are ``round(in_channels * expand_ratio)``; 1: no expansion.
        padding: of the depthwise convolution, as in ``ConvBNAct``.
        activation: after the expansion and after the depthwise convolution.
        eps, momentum: of the batch norms.

    Shape:
        ``[batch, in_channels, height, width]`` to ``[batch, out_channels, out_height, out_width]``.

    Source: Sandler et al., MobileNetV2 (2018), section 3.3 and table 1.
    """

    _fused_pattern = "inverted_residual"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Pair = 1,
        expand_ratio: float = 6,
        kernel_size: Pair = 3,
        dilation: Pair = 1,
        padding: Padding | None = None,
        activation: str = "relu6",
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        hidden = round(in_channels * expand_ratio)
        if hidden < 1:
            raise ValueError(f"expand_ratio: expected above 0, got {expand_ratio}")
        self.expand = (
            None
            if expand_ratio == 1
            else PointwiseConvBNAct(in_channels, hidden, activation, eps, momentum)
        )
        self.depthwise = DepthwiseConvBNAct(
            hidden,
            kernel_size,
            stride,
            padding,
            dilation,
            activation=activation,
            eps=eps,
            momentum=momentum,
        )
        self.project = PointwiseConvBNAct(hidden, out_channels, "none", eps, momentum)
        unit = self.depthwise._fused_units()[0]
        keeps = keeps_size(unit.kernel_size, unit.stride, unit.padding4, unit.dilation)
        self.residual = in_channels == out_channels and keeps

    def _fused_units(self) -> tuple[ConvUnit, ...]:
        expand = () if self.expand is None else self.expand._fused_units()
        return (*expand, *self.depthwise._fused_units(), *self.project._fused_units())

    def _fused_residual(self) -> bool:
        return self.residual

    def _unfused_forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(hidden))
        return x + y if self.residual else y

    def extra_repr(self) -> str:
        return f"residual={self.residual}"
