"""The networks as data: layer tables of MobileNet V1 and V2, and how multipliers change them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

# Howard et al., MobileNets (2017), table 1: (channels, stride) of each depthwise-separable block.
# The table prints stride 2 at the last one; it keeps 7 x 7, so 1 is meant.
MOBILENET_V1_STEM = 32
MOBILENET_V1_BLOCKS: tuple[tuple[int, int], ...] = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)

# Sandler et al., MobileNetV2 (2018), table 2: (expansion, channels, repeats, first stride).
MOBILENET_V2_STEM = 32
MOBILENET_V2_LAST = 1280
MOBILENET_V2_SETTINGS: tuple[tuple[int, int, int, int], ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

OUTPUT_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class BlockSpec:
    """One block: channels, stride and dilation of its depthwise convolution, expansion."""

    in_channels: int
    out_channels: int
    stride: int
    dilation: int
    expand_ratio: int = 1


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Return the multiple of ``divisor`` nearest to ``channels``, at most 10 % below it.

    Source: the authors' code, ``slim/nets/mobilenet/mobilenet.py``, ``_make_divisible``.
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * channels else nearest + divisor


def resolution(multiplier: float, base: int = 224) -> int:
    """Return the input size of a resolution multiplier rho: a multiple of 32 near ``base * rho``.

    The paper's 1, 0.857, 0.714 and 0.571 give 224, 192, 160 and 128. The networks take any size:
    rho is a property of the images, not of the layers.

    Source: Howard et al., MobileNets (2017), section 3.4.
    """
    return max(32, 32 * round(base * multiplier / 32))


def mobilenet_v1_blocks(
    width: float = 1.0, output_stride: int = 32, round_nearest: int = 8
) -> list[BlockSpec]:
    """Return the 13 depthwise-separable blocks of MobileNet V1."""
    rows = [(1, channels, stride) for channels, stride in MOBILENET_V1_BLOCKS]
    return _blocks(MOBILENET_V1_STEM, rows, width, output_stride, round_nearest)


def mobilenet_v2_blocks(
    width: float = 1.0,
    settings: Sequence[Sequence[int]] = MOBILENET_V2_SETTINGS,
    output_stride: int = 32,
    round_nearest: int = 8,
    stem: int | None = None,
) -> list[BlockSpec]:
    """Return the inverted residual blocks of MobileNet V2.

    Args:
        stem: channels of the stem where the width multiplier leaves them as they are.
    """
    rows = []
    for row in settings:
        if len(row) != 4 or min(row) < 1:
            raise ValueError(
                "settings: expected rows (expansion, channels, repeats, stride) of ints of at "
                f"least 1, got {tuple(row)}"
            )
        expansion, channels, repeats, stride = row
        rows += [(expansion, channels, stride if i == 0 else 1) for i in range(repeats)]
    return _blocks(MOBILENET_V2_STEM, rows, width, output_stride, round_nearest, stem)


def deepened(settings: Sequence[Sequence[int]], depth: float) -> list[tuple[int, int, int, int]]:
    """Return ``settings`` with ``depth`` times the repeats (rounded up), first and last row kept.

    The scaling of timm's ``mobilenetv2_110d`` and ``mobilenetv2_120d``.
    """
    last = len(settings) - 1
    return [
        (t, c, n if row in (0, last) else math.ceil(n * depth), s)
        for row, (t, c, n, s) in enumerate(settings)
    ]


def count_layers(model: nn.Module) -> int:
    """Count layers as the papers do: convolutions and linear layers, depthwise and pointwise apart.

    MobileNet V1 has 28 (Howard et al., section 3.2).
    """
    return sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules())


def _blocks(
    stem: int,
    rows: Sequence[tuple[int, int, int]],
    width: float,
    output_stride: int,
    round_nearest: int,
    fixed_stem: int | None = None,
) -> list[BlockSpec]:
    """Apply the width multiplier, and trade strides beyond ``output_stride`` for dilation."""
    if width <= 0:
        raise ValueError(f"width: expected above 0, got {width}")
    if round_nearest < 1:
        raise ValueError(f"round_nearest: expected at least 1, got {round_nearest}")
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
    blocks = []
    in_channels = fixed_stem or make_divisible(stem * width, round_nearest)
    reached, dilation = 2, 1  # after the stem
    for expand_ratio, channels, stride in rows:
        out_channels = make_divisible(channels * width, round_nearest)
        keeps_stride = reached * stride <= output_stride
        blocks.append(
            BlockSpec(
                in_channels, out_channels, stride if keeps_stride else 1, dilation, expand_ratio
            )
        )
        if keeps_stride:
            reached *= stride
        else:
            dilation *= stride  # from the next block on, as in TF-Slim and timm
        in_channels = out_channels
    return blocks
