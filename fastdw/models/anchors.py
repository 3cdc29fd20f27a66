"""The default boxes of SSD: where they stand, of which size and shape, and in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BoxShape = tuple[float, float]
"""(scale, aspect ratio): height is ``scale / sqrt(aspect)``, width ``scale * sqrt(aspect)``."""

SCALES = (0.20, 0.35, 0.50, 0.65, 0.80, 0.95, 1.0)
"""Of the six maps, and the one after them; shares of the image's side."""

THIRD = 0.3333
"""The fifth aspect ratio as TensorFlow's configurations round it."""

LOWEST_SCALE = 0.1
"""Of the square box on TensorFlow's first map."""


def caffe_boxes(third: float = 1 / 3) -> list[list[BoxShape]]:
    """Return the box shapes of each map as MobileNet-SSD for Caffe has them: 3, 6, 6, 6, 6, 6.

    A square of the map's scale, a square between this scale and the next, then the aspect ratios
    2, 1/2, 3 and 1/3; the first map has neither the second square nor the last two. Its prototxt
    writes pixels of 300: 60 / 300 is the first scale.

    Source: Liu et al., SSD (2016), section 2.2.
    """
    maps = [[(SCALES[0], ratio) for ratio in (1.0, 2.0, 1 / 2)]]
    for scale, following in zip(SCALES[1:], SCALES[2:], strict=False):
        squares = [(scale, 1.0), (math.sqrt(scale * following), 1.0)]
        maps.append([*squares, *((scale, ratio) for ratio in (2.0, 1 / 2, 3.0, third))])
    return maps


def tensorflow_boxes() -> list[list[BoxShape]]:
    """Return those of TensorFlow's object detection models: the square between scales comes last.

    The first map's square is half as large (``reduce_boxes_in_lowest_layer``).

    Source: Huang et al., Speed/accuracy trade-offs (2017); the authors' ``ssd_anchor_generator``.
    """
    lowest, *others = caffe_boxes(THIRD)
    reordered = [[square, *ratios, between] for square, between, *ratios in others]
    return [[(LOWEST_SCALE, 1.0), *lowest[1:]], *reordered]


def face_boxes() -> list[list[BoxShape]]:
    """Return those of face-api's detector: TensorFlow's first map, the others in Caffe's order."""
    return [tensorflow_boxes()[0], *caffe_boxes(THIRD)[1:]]


def grid_anchors(
    map_sizes: Sequence[tuple[int, int]], shapes: Sequence[Sequence[BoxShape]]
) -> Tensor:
    """Return the default boxes of all maps: map by map, row by row, cell by cell.

    A cell's boxes stand around its centre, ``(index + 0.5) / size``. They are not clipped.

    Args:
        map_sizes: (height, width) of each map.
        shapes: the box shapes of each map.

    Returns:
        fp32 ``[anchors, 4]``: (top, left, bottom, right), shares of the image's height and width.
    """
    maps = []
    for (height, width), boxes in zip(map_sizes, shapes, strict=True):
        rows = (torch.arange(height, dtype=torch.float64) + 0.5) / height
        columns = (torch.arange(width, dtype=torch.float64) + 0.5) / width
        centres = torch.cartesian_prod(rows, columns)
        scale, ratio = torch.tensor(boxes, dtype=torch.float64).unbind(1)
        halves = torch.stack((scale / ratio.sqrt(), scale * ratio.sqrt()), 1) / 2
        corners = torch.cat(
            (centres[:, None] - halves, centres[:, None] + halves), 2
        )  # [cells, boxes, 4]
        maps.append(corners.flatten(0, 1))
    return torch.cat(maps).float()
