"""MobileNet V2 as TF-slim and Keras have it: their options, their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastdw.models import specs
from fastdw.models.expanded_conv import expand_input, expanded_conv, window_padding
from fastdw.models.initialization import initialize
from fastdw.models.mobilenet_v2 import MobileNetV2
from fastdw.nn import ClassifierHead, ConvBNAct, PointwiseConvBNAct

Options = Mapping[str, Any]
"""Keyword arguments of ``expanded_conv``."""


class SlimMobileNetV2(nn.Module):
    """MobileNet V2 of TF-slim. The arguments are those of ``mobilenet_v2_slim``.

    Attributes:
        stem: the 3x3 convolution of stride 2.
        blocks: what ``expanded_conv`` makes.
        last: the 1x1 convolution to 1280 channels.
        head: pool, dropout, linear.
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1001,
        *,
        options: Options | None = None,
        block_options: Mapping[int, Options] | None = None,
        output_stride: int = 32,
        finegrain: bool = False,
        divisible_by: int = 8,
        dropout: float = 0.2,
        eps: float = 1e-3,
        momentum: float = 0.003,
    ) -> None:
        super().__init__()
        table = specs.mobilenet_v2_blocks(
            width, output_stride=output_stride, round_nearest=divisible_by
        )
        given = dict(options or {})
        by_block = block_options or {}
        if unknown := sorted(set(by_block) - set(range(len(table)))):
            last = len(table) - 1
            raise ValueError(f"block_options: expected blocks 0 to {last}, got {unknown[0]}")
        explicit = bool(given.get("use_explicit_padding", False))
        padding = window_padding(given.get("padding", "SAME"), explicit, 3)
        norm: dict[str, Any] = {"eps": eps, "momentum": momentum}
        self.stem = ConvBNAct(3, table[0].in_channels, stride=2, padding=padding, **norm)
        blocks = []
        for index, block in enumerate(table):
            # The first block does not expand, whatever its channels are a multiple of.
            expansion = expand_input(block.expand_ratio, 1 if block.expand_ratio == 1 else 8)
            settings = {
                "expansion_size": expansion,
                "stride": block.stride,
                "rate": block.dilation,
                **norm,
                **given,
                **by_block.get(index, {}),
            }
            blocks.append(expanded_conv(block.in_channels, block.out_channels, **settings))
        self.blocks = nn.Sequential(*blocks)
        keeps_last = finegrain and width < 1
        last_channels = specs.make_divisible(
            specs.MOBILENET_V2_LAST * (1.0 if keeps_last else width), divisible_by
        )
        self.last = PointwiseConvBNAct(table[-1].out_channels, last_channels, **norm)
        self.head = ClassifierHead(last_channels, num_classes, dropout)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))))


def mobilenet_v2_slim(
    width: float = 1.0,
    num_classes: int = 1001,
    *,
    options: Options | None = None,
    block_options: Mapping[int, Options] | None = None,
    output_stride: int = 32,
    finegrain: bool = False,
    divisible_by: int = 8,
    dropout: float = 0.2,
    eps: float = 1e-3,
    momentum: float = 0.003,
) -> SlimMobileNetV2:
    """Build MobileNet V2 as TF-slim does, untrained, with any option of ``expanded_conv``.

    Args:
        width: slim's ``depth_multiplier``.
        num_classes: 1001 with background, which is class 0.
        options: keyword arguments of ``expanded_conv`` for all blocks; ``padding`` and
            ``use_explicit_padding`` hold for the stem too.
        block_options: more of them for single blocks, by their index.
        output_stride: 32, or 16 or 8: later strides become dilations.
        finegrain: slim's ``finegrain_classification_mode``: the last 1x1 convolution keeps 1280
            channels where ``width`` is below 1, as in the paper.
        divisible_by: channels become multiples of it.
        dropout: before the classifier, in training.
        eps, momentum: of the batch norms; slim's decay is 0.997.

    Returns:
        A module from ``[batch, 3, height, width]`` to logits ``[batch, num_classes]``.

    Raises:
        ValueError: an argument is out of range; the message names it.
        TypeError: an option that ``expanded_conv`` does not have.

    Source: the authors' code, ``slim/nets/mobilenet/mobilenet_v2.py``.
    """
    return SlimMobileNetV2(
        width,
        num_classes,
        options=options,
        block_options=block_options,
        output_stride=output_stride,
        finegrain=finegrain,
        divisible_by=divisible_by,
        dropout=dropout,
        eps=eps,
        momentum=momentum,
    )


def mobilenet_v2_keras(
    width: float = 1.0, num_classes: int = 1000, *, output_stride: int = 32
) -> MobileNetV2:
    """Build MobileNet V2 as ``keras.applications`` does, untrained.

    Batch norms have ``eps=1e-3`` and Keras' momentum 0.999, which is 0.001 in torch; at stride 2 an
    even size is padded by one after, as TensorFlow's SAME does; no dropout.

    Args:
        width: the width multiplier, Keras' ``alpha``.
        num_classes: classes of the classifier; the softmax behind it is left to the caller.
        output_stride: 32, or 16 or 8: later strides become dilation rates.

    Returns:
        A module from ``[batch, 3, height, width]`` to logits ``[batch, num_classes]``.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    return MobileNetV2(
        width,
        num_classes,
        output_stride=output_stride,
        padding="same",
        eps=1e-3,
        momentum=0.001,
        dropout=0.0,
    )
