"""DeepLabV3 and V3+ on MobileNet V2: dense features by dilation, a head, logits for each pixel."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate, islice
from typing import cast

from torch import Tensor, nn

from fastdw.models import specs
from fastdw.models.aspp import ASPP, Decoder, upsample
from fastdw.models.initialization import initialize
from fastdw.models.mobilenet_v2 import MobileNetV2
from fastdw.nn import ConvBNAct, InvertedResidual

ASPP_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
"""Dilation of the ASPP's branches for each output stride (Chen et al., 2017, section 4.1)."""

LOW_LEVEL_STRIDE = 4

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The classes of PASCAL VOC 2012, in the order of the logits."""


class DeepLabV3(nn.Module):
    """DeepLabV3 or V3+ on MobileNet V2. The arguments are those of ``deeplab_v3``.

    Attributes:
        stem: the 3x3 convolution of stride 2.
        blocks: the ``InvertedResidual`` blocks of MobileNet V2, the last ones dilated.
        aspp: the pooling pyramid, or what the light form has of it.
        decoder: None without ``decoder=True``.
        classifier: the 1x1 convolution to the classes.
        low_level: the block whose depthwise output the decoder takes: the last at stride 4.
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 21,
        *,
        output_stride: int = 16,
        aspp: bool = False,
        decoder: bool = False,
        head_channels: int = 256,
        dropout: float = 0.1,
        eps: float = 1e-3,
        head_eps: float = 1e-5,
        momentum: float = 0.1,
        padding: str = "same",
        round_nearest: int | None = None,
    ) -> None:
        super().__init__()
        if output_stride not in ASPP_RATES:
            raise ValueError(f"output_stride: expected 8 or 16, got {output_stride}")
        for name, value in (("num_classes", num_classes), ("head_channels", head_channels)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if round_nearest is None:
            round_nearest = 8 if width == 1 else 1
        table = specs.mobilenet_v2_blocks(
            width, output_stride=output_stride, round_nearest=round_nearest
        )
        backbone = MobileNetV2(
            width,
            output_stride=output_stride,
            round_nearest=round_nearest,
            eps=eps,
            momentum=momentum,
            padding=padding,
        )
        self.stem, self.blocks = backbone.stem, backbone.blocks
        rates = ASPP_RATES[output_stride] if aspp else ()
        channels = table[-1].out_channels
        self.aspp = ASPP(channels, rates, head_channels, dropout, head_eps, momentum)
        self.low_level = _last_at_stride(table, LOW_LEVEL_STRIDE)
        tapped = table[self.low_level]
        hidden = tapped.in_channels * tapped.expand_ratio
        self.decoder = (
            Decoder(head_channels, hidden, head_channels, eps=head_eps, momentum=momentum)
            if decoder
            else None
        )
        self.classifier = nn.Conv2d(head_channels, num_classes, 1)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if self.decoder is None:
            y = self.aspp(self.blocks(y))
        else:
            y, low = self._features(y)
            y = self.decoder(self.aspp(y), low)
        return upsample(self.classifier(y), x)

    def _features(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The last block's output, and that of the depthwise layer of block ``low_level``."""
        low = y
        for index, block in enumerate(self.blocks):
            if index == self.low_level:
                y, low = _with_depthwise_output(cast(InvertedResidual, block), y)
            else:
                y = block(y)
        return y, low

    def graph_layers(self) -> list[str]:
        """The names of the convolutions in the order in which TensorFlow's graphs run them."""
        layers = (ConvBNAct, nn.Conv2d)
        names = [name for name, module in self.named_modules() if isinstance(module, layers)]
        return [name for name in names if not name.endswith(".conv")]


def _with_depthwise_output(block: InvertedResidual, x: Tensor) -> tuple[Tensor, Tensor]:
    """The block's output, and that of its depthwise layer."""
    hidden = block.depthwise(x if block.expand is None else block.expand(x))
    y = block.project(hidden)
    return (x + y if block.residual else y), hidden


def deeplab_v3(
    width: float = 1.0,
    num_classes: int = 21,
    *,
    output_stride: int = 16,
    aspp: bool = False,
    decoder: bool = False,
    head_channels: int = 256,
    dropout: float = 0.1,
    eps: float = 1e-3,
    head_eps: float = 1e-5,
    momentum: float = 0.1,
    padding: str = "same",
    round_nearest: int | None = None,
) -> DeepLabV3:
    """Build DeepLabV3 on MobileNet V2, untrained: the light form for mobile devices.

    It has the image-level feature and a 1x1 convolution for a head, no dilated branches and no
    decoder. The defaults are the authors' (``research/deeplab``), whose trained weights fit.

    Args:
        width: the width multiplier of MobileNet V2.
        num_classes: classes of each pixel; 21 for PASCAL VOC, 0 being background.
        output_stride: 16, or 8 for twice as many features each way: later strides become dilations.
        aspp: add three depthwise-separable branches, dilated by ``ASPP_RATES[output_stride]``.
        decoder: refine at stride 4 (DeepLabV3+).
        head_channels: channels of the head.
        dropout: before the decoder or the classifier, in training.
        eps, head_eps: of the batch norms in MobileNet V2 and in the head.
        momentum: of all batch norms.
        padding: ``"same"`` (TensorFlow) or ``"torch"`` (1 all round); equal where height and width
            are odd at each stride, as at 513.
        round_nearest: channels become multiples of it; None: 8 at width 1, else 1.

    Returns:
        A module from ``[batch, 3, height, width]``, any size (trained ones know 513x513, and a
        multiple of the output stride plus 1 aligns best), to logits
        ``[batch, num_classes, height, width]``.

    Raises:
        ValueError: an argument is out of range; the message names it.

    Source: Chen et al., Rethinking Atrous Convolution (2017); on MobileNet V2: Sandler et al.
    (2018), section 6.3.
    """
    return DeepLabV3(
        width,
        num_classes,
        output_stride=output_stride,
        aspp=aspp,
        decoder=decoder,
        head_channels=head_channels,
        dropout=dropout,
        eps=eps,
        head_eps=head_eps,
        momentum=momentum,
        padding=padding,
        round_nearest=round_nearest,
    )


def deeplab_v3_plus(
    width: float = 1.0,
    num_classes: int = 21,
    *,
    output_stride: int = 16,
    head_channels: int = 256,
    dropout: float = 0.1,
    eps: float = 1e-3,
    head_eps: float = 1e-5,
    momentum: float = 0.1,
    padding: str = "same",
    round_nearest: int | None = None,
) -> DeepLabV3:
    """Build DeepLabV3+ on MobileNet V2, untrained: with ASPP and decoder, all of it separable.

    Args:
        width, num_classes, output_stride, head_channels, dropout, eps, head_eps, momentum, padding,
            round_nearest: as in ``deeplab_v3``.

    Returns:
        A module from ``[batch, 3, height, width]`` to logits ``[batch, num_classes, height,
        width]``.

    Raises:
        ValueError: an argument is out of range; the message names it.

    Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution (2018).
    """
    return DeepLabV3(
        width,
        num_classes,
        output_stride=output_stride,
        aspp=True,
        decoder=True,
        head_channels=head_channels,
        dropout=dropout,
        eps=eps,
        head_eps=head_eps,
        momentum=momentum,
        padding=padding,
        round_nearest=round_nearest,
    )


def _last_at_stride(table: Sequence[specs.BlockSpec], stride: int) -> int:
    """The index of the last block whose output has ``stride``."""
    reached = accumulate((block.stride for block in table), operator.mul, initial=2)
    return max(index for index, at in enumerate(islice(reached, 1, None)) if at == stride)
