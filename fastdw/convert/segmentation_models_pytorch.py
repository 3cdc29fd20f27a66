"""segmentation_models_pytorch's separable convolutions. Imported once the library is.

Their depthwise convolution has no batch norm of its own: the one behind the 1x1 serves both.
"""

from __future__ import annotations

from collections.abc import Iterable

from segmentation_models_pytorch.decoders.deeplabv3 import decoder  # type: ignore[import-untyped]
from torch import nn

from fastdw.convert.blocks import BLOCKS, FusedBlock
from fastdw.convert.rules import CONTAINERS, children_of


class FusedASPPSeparableConv(FusedBlock, decoder.ASPPSeparableConv):
    """A branch of the atrous spatial pyramid: separable convolution, batch norm and ReLU."""

    _fastdw_original = decoder.ASPPSeparableConv
    is_container = True

    @staticmethod
    def layers(module: decoder.ASPPSeparableConv) -> Iterable[nn.Module | None]:
        return children_of(module)


def register() -> None:
    """Add the library's classes to the tables."""
    CONTAINERS.add(decoder.SeparableConv2d)  # no block by itself: its batch norm stands behind it
    BLOCKS[FusedASPPSeparableConv._fastdw_original] = FusedASPPSeparableConv


register()
