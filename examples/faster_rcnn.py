"""Faster R-CNN on MobileNet V1, through torchvision's FasterRCNN: the V1 paper's second detector.

    python examples/faster_rcnn.py [PHOTO]

builds the network, fuses its backbone and its box head, runs both on the photo, and shows that the
detections stay the same. The weights are random: train it as any torchvision detector (the modules
of fastdw.nn train as torch's do), then call ``fuse``.

Source: Howard et al., MobileNets (2017), section 4.6 and table 13; the split between the two stages
is that of TensorFlow's ``faster_rcnn_mobilenet_v1``.
"""

from __future__ import annotations

import copy
import sys
import time

import torch
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, box_iou

import fastdw
from fastdw.benchmark.providers.plain_torch import plain
from fastdw.models import mobilenet_v1

BLOCKS_BEFORE_PROPOSALS = 11  # the last block at stride 16; the other two look at each proposal
ANCHOR_SIZES = (32, 64, 128, 256, 512)
ASPECT_RATIOS = (0.5, 1.0, 2.0)
CROP = 14  # features of a proposal, halved by the first block of the box head


def faster_rcnn(
    num_classes: int = 91,
    width: float = 1.0,
    size: int = 300,
    max_size: int = 600,
    score_threshold: float = 0.05,
) -> FasterRCNN:
    """Build Faster R-CNN on MobileNet V1, untrained.

    Args:
        num_classes: with background, which is class 0; 91 for COCO.
        width: the width multiplier of MobileNet V1.
        size, max_size: the shorter side of an image becomes ``size``, unless the longer would then
            be above ``max_size``. The paper has 300 and 600.
        score_threshold: boxes below it are dropped.

    Returns:
        What ``torchvision.models.detection.FasterRCNN`` is: takes a list of images
        ``[3, height, width]``, values 0 to 1; gives a dict of boxes, labels and scores for each, or
        in training, with targets, the losses.
    """
    network = mobilenet_v1(width, padding="same", eps=1e-3)
    backbone = nn.Sequential(network.stem, *network.blocks[:BLOCKS_BEFORE_PROPOSALS])
    head = nn.Sequential(
        *network.blocks[BLOCKS_BEFORE_PROPOSALS:], nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    backbone.out_channels = network.blocks[BLOCKS_BEFORE_PROPOSALS].depthwise.conv.in_channels
    return FasterRCNN(
        backbone,
        min_size=size,
        max_size=max_size,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        rpn_anchor_generator=AnchorGenerator((ANCHOR_SIZES,), (ASPECT_RATIOS,)),
        rpn_pre_nms_top_n_test=600,
        rpn_post_nms_top_n_test=300,
        box_score_thresh=score_threshold,
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=CROP, sampling_ratio=2),
        box_head=head,
        box_predictor=FastRCNNPredictor(network.head.linear.in_features, num_classes),
    )


def fuse(detector: FasterRCNN) -> FasterRCNN:
    """Return a copy for inference whose backbone and box head are one op each.

    The regions in between (anchors, NMS, RoI align) are torchvision's.
    """
    fused = copy.deepcopy(detector).eval()
    size = fused.transform.min_size[0]
    fused.backbone = fastdw.optimize(fused.backbone, torch.randn(1, 3, size, size))
    crops = torch.randn(2, detector.backbone.out_channels, CROP, CROP)
    fused.roi_heads.box_head = fastdw.optimize(fused.roi_heads.box_head, crops)
    return fused


def agreement(expected: dict[str, Tensor], got: dict[str, Tensor]) -> float:
    """The share of expected boxes for which there is one of the same class, IoU above 0.99."""
    if not len(expected["boxes"]):
        return float(not len(got["boxes"]))
    same_class = expected["labels"][:, None] == got["labels"]
    found = (box_iou(expected["boxes"], got["boxes"]) > 0.99) & same_class
    return found.any(1).double().mean().item()


def main() -> None:
    image = torch.rand(3, 300, 400)
    if len(sys.argv) > 1:
        image = decode_image(sys.argv[1], ImageReadMode.RGB) / 255
    torch.manual_seed(0)
    # Untrained, no class is likelier than another: show what there is.
    detector = faster_rcnn(score_threshold=0).eval()
    fused = fuse(detector)
    for name in ("backbone", "roi_heads.box_head"):
        print(f"{name}: {fused.get_submodule(name).extra_repr()}")
    stock = plain(detector).to(memory_format=torch.channels_last)
    results = {}
    with torch.inference_mode():
        for name, network in (("stock torch", stock), ("fused", fused)):
            network([image])
            begin = time.perf_counter()
            [results[name]] = network([image])
            milliseconds = 1e3 * (time.perf_counter() - begin)
            print(f"{name}: {len(results[name]['boxes'])} boxes in {milliseconds:.1f} ms")
    print(f"the same boxes: {agreement(results['stock torch'], results['fused']):.1%}")


if __name__ == "__main__":
    main()
