"""From what an SSD's heads give to boxes with labels: decoding, scores, suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
"""What codes are multiplied with: Caffe's ``variance``, the inverse of TensorFlow's scales."""

SCORES = ("sigmoid", "softmax")
BOX_ORDERS = ("yxhw", "xywh")


@dataclass(frozen=True)
class Detections:
    """What was found in one image, the best score first.

    Attributes:
        boxes: fp32 ``[found, 4]``: (left, top, right, bottom), shares of the image's sides.
        labels: int64 ``[found]``, class numbers; 0 is background and never found.
        scores: fp32 ``[found]``.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def join_maps(maps: Sequence[Tensor], numbers: int) -> Tensor:
    """Join the maps of a head: ``[batch, boxes * numbers, h, w]`` each, one row per anchor.

    Args:
        maps: of all scales.
        numbers: per anchor: 4 for boxes, else the classes.

    Returns:
        ``[batch, anchors, numbers]``, in the order of ``anchors.grid_anchors``.
    """
    rows = [y.permute(0, 2, 3, 1).reshape(y.shape[0], -1, numbers) for y in maps]
    return torch.cat(rows, 1)


def decode(codes: Tensor, anchors: Tensor, order: str = "yxhw") -> Tensor:
    """Return the boxes that ``codes`` say relative to their anchors.

    ``centre = anchor_centre + 0.1 * code * anchor_size`` and
    ``size = anchor_size * exp(0.2 * code)``.

    Args:
        codes: ``[..., anchors, 4]``.
        anchors: ``[anchors, 4]``: (top, left, bottom, right).
        order: of the four codes: ``"yxhw"`` (TensorFlow) or ``"xywh"`` (Caffe).

    Returns:
        ``[..., anchors, 4]``: (left, top, right, bottom).

    Source: Liu et al., SSD (2016), section 2.2, equation 2.
    """
    if order not in BOX_ORDERS:
        raise ValueError(f"order: expected one of {', '.join(BOX_ORDERS)}, got {order!r}")
    top_left, bottom_right = anchors.flip(-1).split(2, -1)[::-1]  # each (x, y)
    anchor_sizes = bottom_right - top_left
    anchor_centres = (top_left + bottom_right) / 2
    centre_codes, size_codes = codes.split(2, -1)
    if order == "yxhw":
        centre_codes, size_codes = centre_codes.flip(-1), size_codes.flip(-1)
    centres = anchor_centres + CENTRE_VARIANCE * centre_codes * anchor_sizes
    halves = anchor_sizes * torch.exp(SIZE_VARIANCE * size_codes) / 2
    return torch.cat((centres - halves, centres + halves), -1)


def class_scores(logits: Tensor, score: str) -> Tensor:
    """Return the scores without background: ``[..., classes]`` to ``[..., classes - 1]``.

    Args:
        logits: the first is background's.
        score: ``"sigmoid"`` (TensorFlow: each class by itself) or ``"softmax"`` (Caffe).
    """
    if score not in SCORES:
        raise ValueError(f"score: expected one of {', '.join(SCORES)}, got {score!r}")
    scores = logits.sigmoid() if score == "sigmoid" else logits.softmax(-1)
    return scores[..., 1:]


def suppress(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.6,
    limit: int = 100,
) -> Detections:
    """Keep the boxes above a score that no better box of their class overlaps too much.

    Args:
        boxes: ``[anchors, 4]``: (left, top, right, bottom).
        scores: ``[anchors, classes]`` without background.
        score_threshold, iou_threshold: a box with less score, or more overlap, goes.
        limit: how many to keep at most, over all classes.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        from torchvision.ops import batched_nms
    except ImportError as error:
        raise ImportError(
            f"detection needs torchvision, pip install torchvision ({error})"
        ) from error
    anchor, label = (scores > score_threshold).nonzero().unbind(1)
    found, kept_scores = boxes[anchor], scores[anchor, label]
    kept = batched_nms(found, kept_scores, label, iou_threshold)[:limit]
    return Detections(found[kept].clamp(0, 1), label[kept] + 1, kept_scores[kept])
