"""MobileNet V2: a stem, 17 inverted residual blocks, a 1x1 convolution, a classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastdw.models import specs
from fastdw.models.initialization import initialize
from fastdw.nn import ClassifierHead, ConvBNAct, InvertedResidual, PointwiseConvBNAct


class MobileNetV2(nn.Module):
    """MobileNet V2. The arguments are those of ``mobilenet_v2``.

    Attributes:
        stem: the 3x3 convolution of stride 2.
        blocks: the ``InvertedResidual`` blocks.
        last: the 1x1 convolution to 1280 channels.
        head: pool, dropout, linear.
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1000,
        *,
        round_nearest: int = 8,
        settings: Sequence[Sequence[int]] = specs.MOBILENET_V2_SETTINGS,
        output_stride: int = 32,
        dropout: float = 0.2,
        eps: float = 1e-5,
        momentum: float = 0.1,
        padding: str = "torch",
        depth: float = 1.0,
        scale_ends: bool = True,
    ) -> None:
        super().__init__()
        if padding not in ("torch", "same"):
            raise ValueError(f"padding: expected torch or same, got {padding!r}")
        pad = None if padding == "torch" else padding
        if depth != 1.0:
            settings = specs.deepened(settings, depth)
        stem = None if scale_ends else specs.MOBILENET_V2_STEM
        table = specs.mobilenet_v2_blocks(width, settings, output_stride, round_nearest, stem)
        last = specs.MOBILENET_V2_LAST * (max(1.0, width) if scale_ends else 1.0)
        last_channels = specs.make_divisible(last, round_nearest)
        self.stem = ConvBNAct(
            3, table[0].in_channels, stride=2, padding=pad, eps=eps, momentum=momentum
        )
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(
                    block.in_channels,
                    block.out_channels,
                    block.stride,
                    block.expand_ratio,
                    dilation=block.dilation,
                    padding=pad,
                    eps=eps,
                    momentum=momentum,
                )
                for block in table
            )
        )
        self.last = PointwiseConvBNAct(
            table[-1].out_channels, last_channels, eps=eps, momentum=momentum
        )
        self.head = ClassifierHead(last_channels, num_classes, dropout)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))))


def mobilenet_v2(
    width: float = 1.0,
    num_classes: int = 1000,
    *,
    round_nearest: int = 8,
    settings: Sequence[Sequence[int]] = specs.MOBILENET_V2_SETTINGS,
    output_stride: int = 32,
    dropout: float = 0.2,
    eps: float = 1e-5,
    momentum: float = 0.1,
    padding: str = "torch",
    depth: float = 1.0,
    scale_ends: bool = True,
) -> MobileNetV2:
    """Build MobileNet V2, untrained: 3,504,872 parameters at width 1.

    Args:
        width: the width multiplier; channels become multiples of ``round_nearest``, the last 1x1
            convolution never has fewer than 1280.
        num_classes: classes of the classifier.
        round_nearest: see ``width``.
        settings: rows (expansion, channels, repeats, stride of the first).
        output_stride: 32, or 16 or 8: later strides become dilations.
        dropout: before the classifier, in training.
        eps, momentum: of the batch norms; weights from TensorFlow want ``eps=1e-3``.
        padding: ``"torch"`` (1 all round) or ``"same"`` (TensorFlow).
        depth: multiplies the repeats of all rows but the first and last, rounded up.
        scale_ends: whether ``width`` also scales the stem and the last convolution; timm's
            ``mobilenetv2_110d`` (width 1.1, depth 1.2) and ``_120d`` (1.2, 1.4) have False.

    Returns:
        A module from ``[batch, 3, height, width]`` to logits ``[batch, num_classes]``.

    Raises:
        ValueError: an argument is out of range; the message names it.

    Source: Sandler et al., MobileNetV2 (2018), table 2.
    """
    return MobileNetV2(
        width,
        num_classes,
        round_nearest=round_nearest,
        settings=settings,
        output_stride=output_stride,
        dropout=dropout,
        eps=eps,
        momentum=momentum,
        padding=padding,
        depth=depth,
        scale_ends=scale_ends,
    )
