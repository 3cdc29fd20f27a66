"""MobileNet-SSD: six maps of a MobileNet V1 or V2 and what follows it, boxes and classes on each.

The forms differ in data only (``SSDForm``): image size, classes, default boxes, how scores and
boxes are coded, padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fastdw.models import anchors as default_boxes
from fastdw.models import boxes as box_codes
from fastdw.models.anchors import BoxShape
from fastdw.models.boxes import Detections
from fastdw.models.initialization import initialize
from fastdw.models.ssd_backbone import BACKBONES
from fastdw.models.weights.convolution import added_layers
from fastdw.nn import ConvBNAct, DepthwiseConvBNAct, PointwiseConvBNAct, SeparableBlock

EXTRA_LAYERS = ((256, 512), (128, 256), (128, 256), (64, 128))
"""Channels of the 1x1 and of the 3x3 stride-2 convolution before maps 3 to 6: conv14 to conv17."""

PADDINGS = {"same": "same", "torch": None}
"""What a form calls its padding -> what ``ConvBNAct`` takes."""


@dataclass(frozen=True)
class SSDForm:
    """What sets one MobileNet-SSD apart from another.

    Attributes:
        backbone: ``"mobilenet_v1"`` or ``"mobilenet_v2"``.
        size: height and width of the images.
        num_classes: with background, which is class 0.
        box_shapes: the default boxes of each map, see ``fastdw.models.anchors``.
        score: ``"sigmoid"`` or ``"softmax"``.
        box_order: ``"yxhw"`` or ``"xywh"``.
        padding: ``"same"`` (TensorFlow) or ``"torch"`` (1 all round, also Caffe's).
        activation: ``"relu6"`` or ``"relu"``.
        eps: of the batch norms.
        lite: whether extra layers and heads are depthwise-separable (SSDLite).
        iou_threshold: how much boxes of one class may overlap.
    """

    backbone: str
    size: int
    num_classes: int
    box_shapes: list[list[BoxShape]] = field(default_factory=default_boxes.tensorflow_boxes)
    score: str = "sigmoid"
    box_order: str = "yxhw"
    padding: str = "same"
    activation: str = "relu6"
    eps: float = 1e-3
    lite: bool = False
    iou_threshold: float = 0.6


CAFFE = SSDForm(
    "mobilenet_v1",
    300,
    21,
    box_shapes=default_boxes.caffe_boxes(),
    score="softmax",
    box_order="xywh",
    padding="torch",
    activation="relu",
    eps=1e-5,
    iou_threshold=0.45,
)
"""MobileNet-SSD as published for Caffe: Pascal VOC's 20 classes."""

TENSORFLOW_V1 = SSDForm("mobilenet_v1", 300, 91)
TENSORFLOW_V2 = SSDForm("mobilenet_v2", 300, 91)
"""TensorFlow's ``ssd_mobilenet_v1_coco`` and ``ssd_mobilenet_v2_coco``: COCO's 90 class numbers."""

FACE = SSDForm("mobilenet_v1", 512, 3, box_shapes=default_boxes.face_boxes(), iou_threshold=0.5)
"""face-api's detector of faces: class 1; class 2 is not used."""

SSDLITE_V2 = SSDForm("mobilenet_v2", 300, 91, lite=True)
"""TensorFlow's ``ssdlite_mobilenet_v2_coco``."""


class SSD(nn.Module):
    """MobileNet-SSD. The arguments are those of ``ssd``.

    Attributes:
        form: what was built.
        backbone: gives the first two maps.
        extras: four layers, each gives one map more.
        box_heads, class_heads: one each for every map.
        anchors: ``[anchors, 4]``, (top, left, bottom, right).

    Shape:
        ``[batch, 3, size, size]`` to two tuples of six maps: ``[batch, boxes * 4, h, w]`` and
        ``[batch, boxes * num_classes, h, w]``. ``detections`` makes boxes of them: so a planned
        network, which gives maps, can be followed by it as well.

    Source: see ``ssd``.
    """

    anchors: Tensor

    def __init__(self, form: SSDForm, width: float = 1.0) -> None:
        super().__init__()
        if form.backbone not in BACKBONES:
            known = ", ".join(BACKBONES)
            raise ValueError(f"form.backbone: expected one of {known}, got {form.backbone!r}")
        if form.padding not in PADDINGS:
            expected = " or ".join(PADDINGS)
            raise ValueError(f"form.padding: expected {expected}, got {form.padding!r}")
        self.form = form
        norm: dict[str, Any] = {"activation": form.activation, "eps": form.eps}
        padding = PADDINGS[form.padding]
        self.backbone = BACKBONES[form.backbone](width, padding=padding, **norm)
        channels = list(self.backbone.map_channels)
        self.extras = nn.ModuleList()
        for squeezed, wide in EXTRA_LAYERS:
            reduce = PointwiseConvBNAct(channels[-1], squeezed, **norm)
            grow = SeparableBlock if form.lite else ConvBNAct
            self.extras.append(
                nn.Sequential(reduce, grow(squeezed, wide, stride=2, padding=padding, **norm))
            )
            channels.append(wide)
        counts = [len(shapes) for shapes in form.box_shapes]
        if len(counts) != len(channels):
            raise ValueError(f"form.box_shapes: expected {len(channels)} maps, got {len(counts)}")
        self.box_heads, self.class_heads = (
            nn.ModuleList(
                _head(c, count * numbers, form, padding)
                for c, count in zip(channels, counts, strict=True)
            )
            for numbers in (4, form.num_classes)
        )
        grid = default_boxes.grid_anchors(map_sizes(form.size), form.box_shapes)
        self.register_buffer("anchors", grid)
        initialize(self)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        maps = list(self.backbone(x))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        boxes = tuple(head(y) for head, y in zip(self.box_heads, maps, strict=True))
        classes = tuple(head(y) for head, y in zip(self.class_heads, maps, strict=True))
        return boxes, classes

    def boxes_and_scores(
        self, outputs: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    ) -> tuple[Tensor, Tensor]:
        """Return the box and the class scores of every anchor, from what ``forward`` gives.

        Returns:
            ``[batch, anchors, 4]``, (left, top, right, bottom) as shares of the image's sides, not
            clipped; and ``[batch, anchors, num_classes - 1]``, background left out.

        Raises:
            ValueError: the images had another size than the form says.
        """
        codes = box_codes.join_maps(outputs[0], 4)
        if codes.shape[1] != len(self.anchors):
            raise ValueError(
                f"outputs: expected {len(self.anchors)} default boxes, as on images of "
                f"{self.form.size}x{self.form.size}, got {codes.shape[1]}"
            )
        logits = box_codes.join_maps(outputs[1], self.form.num_classes)
        boxes = box_codes.decode(codes, self.anchors.to(codes), self.form.box_order)
        return boxes, box_codes.class_scores(logits, self.form.score)

    def detections(
        self,
        outputs: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
        score_threshold: float = 0.5,
        iou_threshold: float | None = None,
        limit: int = 100,
    ) -> list[Detections]:
        """Return what was found in each image, from what ``forward`` gives.

        Args:
            outputs: of this model, or of ``fastdw.optimize`` of it.
            score_threshold, iou_threshold, limit: see ``fastdw.models.boxes.suppress``; the overlap
                is the form's if none is given.
        """
        overlap = self.form.iou_threshold if iou_threshold is None else iou_threshold
        boxes, scores = self.boxes_and_scores(outputs)
        return [
            box_codes.suppress(
                *image, score_threshold=score_threshold, iou_threshold=overlap, limit=limit
            )
            for image in zip(boxes, scores, strict=True)
        ]

    def graph_layers(self) -> list[str]:
        """Return the names of the convolutions in the order in which TensorFlow's graphs run them.

        Each map's heads (boxes, then classes) follow the convolution that makes the map.
        """
        heads = [
            [
                name
                for kind in ("box_heads", "class_heads")
                for name in added_layers(self, f"{kind}.{i}")
            ]
            for i in range(len(self.box_heads))
        ]
        backbone = added_layers(self, "backbone")
        split = backbone.index(f"backbone.{self.backbone.last_before_map}") + 1
        order = [*backbone[:split], *heads[0], *backbone[split:], *heads[1]]
        for index in range(len(self.extras)):
            order += [*added_layers(self, f"extras.{index}"), *heads[index + 2]]
        return order


FORMS = {
    "ssd_mobilenet_v1": TENSORFLOW_V1,
    "ssd_mobilenet_v1_caffe": CAFFE,
    "ssd_mobilenet_v1_face": FACE,
    "ssd_mobilenet_v2": TENSORFLOW_V2,
    "ssdlite_mobilenet_v2": SSDLITE_V2,
}
"""The forms by the names that ``fastdw.models.create`` knows."""


def ssd(
    form: str | SSDForm = "ssd_mobilenet_v2",
    num_classes: int | None = None,
    *,
    size: int | None = None,
    width: float = 1.0,
) -> SSD:
    """Build a MobileNet-SSD, untrained.

    Args:
        form: a name of ``FORMS``, or a form of your own.
        num_classes: with background, in place of the form's.
        size: of the square images, in place of the form's; sets where the default boxes stand.
        width: the width multiplier of the backbone.

    Raises:
        ValueError: an argument is out of range; the message names it.

    Source: Liu et al., SSD (2016), section 2; Howard et al., MobileNets (2017), section 4.6; with
    depthwise-separable heads (SSDLite) Sandler et al., MobileNetV2 (2018), section 6.2.
    """
    if isinstance(form, str):
        if form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
        form = FORMS[form]
    form = replace(form, num_classes=num_classes or form.num_classes, size=size or form.size)
    if form.num_classes < 2 or form.size < 1:
        raise ValueError(
            f"num_classes, size: expected at least 2 and 1, got {form.num_classes}, {form.size}"
        )
    return SSD(form, width)


def map_sizes(size: int) -> list[tuple[int, int]]:
    """Return (height, width) of the six maps of a square image: strides 16, 32, ..., 512."""
    return [(-(-size // stride), -(-size // stride)) for stride in (16, 32, 64, 128, 256, 512)]


def _head(channels: int, outputs: int, form: SSDForm, padding: str | None) -> nn.Module:
    predict = nn.Conv2d(channels, outputs, 1)
    if not form.lite:
        return predict
    depthwise = DepthwiseConvBNAct(
        channels, padding=padding, activation=form.activation, eps=form.eps
    )
    return nn.Sequential(depthwise, predict)
