"""The heads of DeepLab: pooling at several rates, and the decoder of V3+."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdw.nn import PointwiseConvBNAct, SeparableBlock


class ImagePooling(nn.Module):
    """The image-level feature: ``y = relu(bn(project(mean(x, (2, 3)))))``.

    Args:
        in_channels, out_channels: channels of the input and the output.
        eps, momentum: of the batch norm.

    Shape:
        ``[batch, in_channels, height, width]`` to ``[batch, out_channels, 1, 1]``.

    Source: Chen et al., Rethinking Atrous Convolution (2017), section 3.3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.project = PointwiseConvBNAct(in_channels, out_channels, "relu", eps, momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.pool(x))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, its branches depthwise-separable.

    ``y = dropout(project(concat(pooling(x), pointwise(x), atrous_0(x), atrous_1(x), ...)))``; each
    part ends in a batch norm and ReLU.

    Args:
        in_channels: channels of the input.
        rates: dilation of each 3x3 branch; none in the light form for mobile networks.
        out_channels: of each branch, and of the output.
        dropout: probability of dropping an element of the output in training.
        eps, momentum: of the batch norms.

    Shape:
        ``[batch, in_channels, height, width]`` to ``[batch, out_channels, height, width]``.

    Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution (2018), section 3.1; the
    light form Sandler et al., MobileNetV2 (2018), section 6.3.
    """

    def __init__(
        self,
        in_channels: int,
        rates: Sequence[int] = (),
        out_channels: int = 256,
        dropout: float = 0.1,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.pointwise = PointwiseConvBNAct(in_channels, out_channels, "relu", eps, momentum)
        self.atrous = nn.ModuleList(
            SeparableBlock(
                in_channels,
                out_channels,
                dilation=rate,
                activation="relu",
                eps=eps,
                momentum=momentum,
            )
            for rate in rates
        )
        self.pooling = ImagePooling(in_channels, out_channels, eps, momentum)
        branches = 2 + len(self.atrous)
        self.project = PointwiseConvBNAct(
            branches * out_channels, out_channels, "relu", eps, momentum
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.pointwise(x), *(branch(x) for branch in self.atrous)]
        # Bilinear upsampling of one pixel. An expanded view would have a memory format of its own,
        # and torch.cat would then copy all the others.
        pooled = torch.zeros_like(branches[0]) + self.pooling(x)
        return self.dropout(self.project(torch.cat([pooled, *branches], 1)))


class Decoder(nn.Module):
    """The decoder of V3+: brings the semantic features to the finer grid of early ones.

    ``y = refine(concat(upsample(x), project(low)))``: bilinear, corners aligned; ``refine`` is two
    depthwise-separable 3x3 convolutions.

    Args:
        in_channels: channels of the semantic features.
        low_channels: channels of the early features.
        out_channels: of both refining convolutions.
        projected_channels: what the early features are reduced to, lest they outweigh the others.
        eps, momentum: of the batch norms.

    Shape:
        ``[batch, in_channels, h, w]`` and ``[batch, low_channels, height, width]`` to
        ``[batch, out_channels, height, width]``.

    Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution (2018), section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        low_channels: int,
        out_channels: int = 256,
        projected_channels: int = 48,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.project = PointwiseConvBNAct(low_channels, projected_channels, "relu", eps, momentum)
        self.refine = nn.Sequential(
            *(
                SeparableBlock(
                    channels, out_channels, activation="relu", eps=eps, momentum=momentum
                )
                for channels in (in_channels + projected_channels, out_channels)
            )
        )

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        return self.refine(torch.cat([upsample(x, low), self.project(low)], 1))


def upsample(x: Tensor, like: Tensor) -> Tensor:
    """Interpolate to the size of ``like`` as DeepLab does: bilinear, corners aligned."""
    size = (like.shape[2], like.shape[3])
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
