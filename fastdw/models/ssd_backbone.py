"""MobileNet V1 and V2 as feature extractors of an SSD: maps of stride 16 and 32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastdw.geometry import Padding
from fastdw.models import specs
from fastdw.nn import (
    ConvBNAct,
    DepthwiseConvBNAct,
    InvertedResidual,
    PointwiseConvBNAct,
    SeparableBlock,
)

V1_TAP = 10
"""The first map is what this block of V1 gives: conv11. The second is the last block's, conv13."""

V2_TAP = 13
"""The first map is the expansion in this block of V2; the second is the last 1x1 convolution's."""


class MobileNetV1Maps(nn.Module):
    """MobileNet V1 without its head, its modules named as in ``MobileNetV1``.

    Args:
        width: the width multiplier.
        padding: of stem and depthwise convolutions, as in ``ConvBNAct``.
        norm: ``activation`` and ``eps``, for all layers.

    Attributes:
        map_channels: of the two maps.
        last_before_map: the layer that makes the first map.

    Shape:
        ``[batch, 3, height, width]`` to the two maps, of stride 16 and 32.

    Source: Howard et al., MobileNets (2017), table 1; the taps: Huang et al., Speed/accuracy
    trade-offs (2017), section 3.2.
    """

    last_before_map = f"blocks.{V1_TAP}.pointwise"

    def __init__(self, width: float = 1.0, *, padding: Padding | None = None, **norm: Any) -> None:
        super().__init__()
        table = specs.mobilenet_v1_blocks(width)
        self.stem = ConvBNAct(3, table[0].in_channels, stride=2, padding=padding, **norm)
        self.blocks = nn.Sequential(
            *(
                SeparableBlock(
                    row.in_channels, row.out_channels, row.stride, padding=padding, **norm
                )
                for row in table
            )
        )
        self.map_channels = (table[V1_TAP].out_channels, table[-1].out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = first = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == V1_TAP:
                first = x
        return first, x


class TappedInvertedResidual(nn.Module):
    """An inverted residual without shortcut that gives its expansion as well.

    Its layers are called as those of ``InvertedResidual``.

    Shape:
        ``[batch, in_channels, h, w]`` to the expansion ``[batch, hidden, h, w]`` and the block's
        output.
    """

    def __init__(self, row: specs.BlockSpec, padding: Padding | None, **norm: Any) -> None:
        super().__init__()
        self.hidden = row.in_channels * row.expand_ratio
        self.expand = PointwiseConvBNAct(row.in_channels, self.hidden, **norm)
        self.depthwise = DepthwiseConvBNAct(self.hidden, stride=row.stride, padding=padding, **norm)
        self.project = PointwiseConvBNAct(
            self.hidden, row.out_channels, **{**norm, "activation": "none"}
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.expand(x)
        return hidden, self.project(self.depthwise(hidden))


class MobileNetV2Maps(nn.Module):
    """MobileNet V2 without its head, its modules named as in ``MobileNetV2``.

    Arguments, attributes and shapes are those of ``MobileNetV1Maps``.

    Source: Sandler et al., MobileNetV2 (2018), table 2 and section 6.2.
    """

    last_before_map = f"blocks.{V2_TAP}.expand"

    def __init__(self, width: float = 1.0, *, padding: Padding | None = None, **norm: Any) -> None:
        super().__init__()
        table = specs.mobilenet_v2_blocks(width)
        self.stem = ConvBNAct(3, table[0].in_channels, stride=2, padding=padding, **norm)
        blocks: list[nn.Module] = [
            InvertedResidual(
                row.in_channels,
                row.out_channels,
                row.stride,
                row.expand_ratio,
                padding=padding,
                **norm,
            )
            for row in table
        ]
        tapped = TappedInvertedResidual(table[V2_TAP], padding, **norm)
        blocks[V2_TAP] = tapped
        self.blocks = nn.Sequential(*blocks)
        last = specs.make_divisible(specs.MOBILENET_V2_LAST * max(1.0, width))
        self.last = PointwiseConvBNAct(table[-1].out_channels, last, **norm)
        self.map_channels = (tapped.hidden, last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = first = self.stem(x)
        for index, block in enumerate(self.blocks):
            if index == V2_TAP:
                first, x = block(x)
            else:
                x = block(x)
        return first, self.last(x)


BACKBONES: dict[str, Callable[..., MobileNetV1Maps | MobileNetV2Maps]] = {
    "mobilenet_v1": MobileNetV1Maps,
    "mobilenet_v2": MobileNetV2Maps,
}
