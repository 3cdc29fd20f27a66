"""MobileNet V1: a stem, 13 depthwise-separable blocks, a classifier."""

from __future__ import annotations

from torch import Tensor, nn

from fastdw.models import specs
from fastdw.models.initialization import initialize
from fastdw.nn import ClassifierHead, ConvBNAct, SeparableBlock

PADDINGS = {"torch": None, "same": "same", "keras_v1": "keras_v1"}


class MobileNetV1(nn.Module):
    """MobileNet V1. The arguments are those of ``mobilenet_v1``.

    Attributes:
        stem: the 3x3 convolution of stride 2.
        blocks: the 13 ``SeparableBlock``.
        head: pool, dropout, linear.
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1000,
        *,
        dropout: float = 0.001,
        eps: float = 1e-5,
        momentum: float = 0.1,
        padding: str = "torch",
        output_stride: int = 32,
        round_nearest: int = 8,
    ) -> None:
        super().__init__()
        if padding not in PADDINGS:
            raise ValueError(f"padding: expected one of {', '.join(PADDINGS)}, got {padding!r}")
        table = specs.mobilenet_v1_blocks(width, output_stride, round_nearest)
        self.stem = ConvBNAct(
            3,
            table[0].in_channels,
            stride=2,
            padding=PADDINGS[padding],
            eps=eps,
            momentum=momentum,
        )
        self.blocks = nn.Sequential(
            *(
                SeparableBlock(
                    block.in_channels,
                    block.out_channels,
                    block.stride,
                    dilation=block.dilation,
                    padding=PADDINGS[padding],
                    eps=eps,
                    momentum=momentum,
                )
                for block in table
            )
        )
        self.head = ClassifierHead(table[-1].out_channels, num_classes, dropout)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def mobilenet_v1(
    width: float = 1.0,
    num_classes: int = 1000,
    *,
    dropout: float = 0.001,
    eps: float = 1e-5,
    momentum: float = 0.1,
    padding: str = "torch",
    output_stride: int = 32,
    round_nearest: int = 8,
) -> MobileNetV1:
    """Build MobileNet V1, untrained: 28 layers, 4,231,976 parameters at width 1.

    Args:
        width: the width multiplier alpha; channels become multiples of ``round_nearest``. The
            resolution multiplier rho is the size of the images (``specs.resolution``): any goes.
        num_classes: 1000, or 1001 for TensorFlow's ImageNet heads (0 is background), or your own.
        dropout: before the classifier, in training.
        eps, momentum: of the batch norms; weights from TensorFlow want ``eps=1e-3``.
        padding: ``"torch"`` (1 all round), ``"same"`` (TensorFlow) or ``"keras_v1"``.
        output_stride: 32, or 16 or 8: later strides become dilations.
        round_nearest: see ``width``.

    Returns:
        A module from ``[batch, 3, height, width]`` to logits ``[batch, num_classes]``.

    Raises:
        ValueError: an argument is out of range; the message names it.

    Source: Howard et al., MobileNets (2017), table 1.
    """
    return MobileNetV1(
        width,
        num_classes,
        dropout=dropout,
        eps=eps,
        momentum=momentum,
        padding=padding,
        output_stride=output_stride,
        round_nearest=round_nearest,
    )
