"""MobileNet-SSD: the published shapes, default boxes, decoding, suppression, fused equals stock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from nn_checks import assert_as_accurate_as_torch, randomize
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

import fastdw
from fastdw.benchmark.providers.plain_torch import plain
from fastdw.models import SSD, MobileNetV1, MobileNetV2, anchors, boxes, specs, ssd
from fastdw.models.ssd import CAFFE, FORMS, map_sizes
from fastdw.plan import PlannedNetwork

# Channels of the box and class heads of each map, and how many default boxes there are.
SHAPES = {
    "ssd_mobilenet_v1_caffe": ((12, 24, 24, 24, 24, 24), (63, 126, 126, 126, 126, 126), 1917),
    "ssd_mobilenet_v1": ((12, 24, 24, 24, 24, 24), (273, 546, 546, 546, 546, 546), 1917),
    "ssd_mobilenet_v2": ((12, 24, 24, 24, 24, 24), (273, 546, 546, 546, 546, 546), 1917),
    "ssdlite_mobilenet_v2": ((12, 24, 24, 24, 24, 24), (273, 546, 546, 546, 546, 546), 1917),
    "ssd_mobilenet_v1_face": ((12, 24, 24, 24, 24, 24), (9, 18, 18, 18, 18, 18), 5118),
}


def small(form: str) -> SSD:
    """A narrow network for small images, its batch norms as after training."""
    torch.manual_seed(0)
    model = randomize(ssd(form, 5, size=96, width=0.35))
    assert isinstance(model, SSD)
    return model.eval()


def image(batch: int = 2, size: int = 96) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", SHAPES)
def test_the_published_shapes(form: str) -> None:
    with torch.device("meta"):
        model = ssd(form).eval()
        box_maps, class_maps = model(torch.empty(1, 3, model.form.size, model.form.size))
    box_channels, class_channels, count = SHAPES[form]
    assert tuple(y.shape[1] for y in box_maps) == box_channels
    assert tuple(y.shape[1] for y in class_maps) == class_channels
    sizes = map_sizes(model.form.size)
    assert [tuple(y.shape[2:]) for y in box_maps] == sizes
    assert model.anchors.shape == (count, 4)


def test_every_form_is_in_the_registry() -> None:
    assert SHAPES.keys() == FORMS.keys()
    model = fastdw.models.create("fastdw:ssd_mobilenet_v1_face", num_classes=2, width=0.25)
    assert model.class_heads[0].out_channels == 2 * 3


def test_the_lite_form_has_the_papers_parameters() -> None:
    """Sandler et al., table 6: 4.3 M parameters, 0.8 G mult-adds (COCO, 320x320)."""
    summary = fastdw.models.summarize(ssd("ssdlite_mobilenet_v2", size=320), (320, 320))
    assert summary.parameters == pytest.approx(4.3e6, rel=0.06)
    assert summary.multiply_adds == pytest.approx(0.8e9, rel=0.06)


@pytest.mark.parametrize(("kind", "source"), [("v1", MobileNetV1), ("v2", MobileNetV2)])
def test_the_backbone_takes_a_classifiers_weights(kind: str, source: type[nn.Module]) -> None:
    backbone = ssd(f"ssd_mobilenet_{kind}", width=0.25).backbone.eval()
    classifier = randomize(source(0.25, eps=1e-3, padding="same")).eval()
    state = {k: v for k, v in classifier.state_dict().items() if not k.startswith("head")}
    assert backbone.state_dict().keys() == state.keys()
    backbone.load_state_dict(state)
    taps = {"v1": ("blocks.10", "blocks.12"), "v2": ("blocks.13.expand", "last")}[kind]
    seen = []
    for name in taps:
        layer = classifier.get_submodule(name)
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        classifier(image())
        maps = backbone(image())
    for ours, theirs in zip(maps, seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["modules", "optimized"])
@torch.no_grad()
def test_fused_equals_stock_torch(form: str, how: str) -> None:
    model, x = small(form), image()
    stock = plain(model)
    fast: nn.Module = fastdw.optimize(model, x) if how == "optimized" else model
    truth = plain(model).double()(x.double())
    layers = specs.count_layers(model)
    for fused, expected, exact in zip(*map(_flat, (fast(x), stock(x), truth)), strict=True):
        assert_as_accurate_as_torch(fused, expected, exact, layers)


def test_the_lite_form_is_one_planned_network() -> None:
    fast = fastdw.optimize(small("ssdlite_mobilenet_v2"), image())
    assert isinstance(fast, PlannedNetwork)
    one, two = (fast(image(n)) for n in (1, 2))
    assert [y.shape[0] for y in (*_flat(one), *_flat(two))] == [1] * 12 + [2] * 12


@pytest.mark.parametrize("form", FORMS)
def test_every_block_is_fused(form: str) -> None:
    report = fastdw.optimize(small(form), image()).report
    rows = report.to_dict()["rows"]
    left = [row["name"] for row in rows if row["action"] == "left"]
    assert report.totals["depthwise_fused"] >= (13 if "v1" in form else 17)
    assert not [name for name in left if "_heads" not in name]


def test_it_trains() -> None:
    model = small("ssd_mobilenet_v1").train()
    outputs = model(image())
    sum(y.square().mean() for y in _flat(outputs)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_default_boxes_are_torchvisions_in_caffes_order() -> None:
    sizes = map_sizes(300)
    scales = [0.20, 0.35, 0.50, 0.65, 0.80, 0.95, 1.0]
    generator = DefaultBoxGenerator([[2], *[[2, 3]] * 5], scales=scales, clip=False)
    maps = [torch.zeros(1, 1, *size) for size in sizes]
    (theirs,) = generator(ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)]), maps)
    ours = anchors.grid_anchors(sizes, anchors.caffe_boxes())[:, [1, 0, 3, 2]] * 300
    first = 19 * 19
    # Theirs has a second square on the first map.
    kept = theirs[: 4 * first].reshape(first, 4, 4)[:, [0, 2, 3]].flatten(0, 1)
    torch.testing.assert_close(ours[: 3 * first], kept, rtol=0, atol=1e-3)
    torch.testing.assert_close(ours[3 * first :], theirs[4 * first :], rtol=0, atol=1e-3)


def test_the_orders_of_the_other_forms() -> None:
    tensorflow, face = anchors.tensorflow_boxes(), anchors.face_boxes()
    assert tensorflow[0] == face[0] == [(0.1, 1.0), (0.2, 2.0), (0.2, 0.5)]
    between = (0.35 * 0.5) ** 0.5
    assert tensorflow[1][0] == face[1][0] == (0.35, 1.0)
    assert tensorflow[1][-1] == face[1][1] == (pytest.approx(between), 1.0)
    assert sorted(tensorflow[1]) == sorted(face[1])


@pytest.mark.parametrize("order", ["xywh", "yxhw"])
def test_decoding_is_torchvisions(order: str) -> None:
    grid = anchors.grid_anchors([(3, 3), (2, 2)], anchors.caffe_boxes()[:2])
    codes = torch.randn(2, len(grid), 4)
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    expected = torch.stack([coder.decode_single(c, grid[:, [1, 0, 3, 2]]) for c in codes])
    given = codes if order == "xywh" else codes[..., [1, 0, 3, 2]]
    torch.testing.assert_close(boxes.decode(given, grid, order), expected)


def test_a_cell_of_a_map_is_the_default_box_that_stands_there() -> None:
    """One class logit on one cell of one map is found as the box around that cell."""
    model = small("ssd_mobilenet_v1_caffe")
    sizes, counts = map_sizes(96), [len(shapes) for shapes in CAFFE.box_shapes]
    box_maps = tuple(torch.zeros(1, n * 4, *size) for n, size in zip(counts, sizes, strict=True))
    class_maps = tuple(torch.zeros(1, n * 5, *size) for n, size in zip(counts, sizes, strict=True))
    class_maps[1][0, 0::5] = 20.0  # background everywhere on the second map
    class_maps[1][0, 1 * 5 + 3, 2, 0] = 40.0  # class 3, second shape, row 2, first column of 3 x 3
    for index in (0, 2, 3, 4, 5):
        class_maps[index][0, 0::5] = 20.0
    (found,) = model.detections((box_maps, class_maps))
    assert found.labels.tolist() == [3] and found.scores[0] > 0.99
    scale = (0.35 * 0.5) ** 0.5
    x, y = 1 / 6, 5 / 6
    wanted = torch.tensor([x - scale / 2, y - scale / 2, x + scale / 2, y + scale / 2]).clamp(0, 1)
    torch.testing.assert_close(found.boxes[0], wanted)


def test_suppression_looks_at_each_class_by_itself() -> None:
    box = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 1.2]])
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.7], [0.6, 0.0]])
    found = boxes.suppress(box, scores)
    assert found.labels.tolist() == [1, 2, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert found.boxes[2].tolist() == pytest.approx([0.6, 0.6, 0.9, 1.0])  # clipped to the image
    assert len(boxes.suppress(box, scores, limit=1).labels) == 1
    assert len(boxes.suppress(box, scores, iou_threshold=0.99).labels) == 4
    assert len(boxes.suppress(box, scores, score_threshold=0.95).labels) == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ssd("ssd_v3"), "form: expected one of ssd_mobilenet_v1, .*got 'ssd_v3'"),
        (lambda: ssd(replace(CAFFE, backbone="vgg")), "form.backbone: expected .*got 'vgg'"),
        (lambda: ssd(replace(CAFFE, padding="valid")), "form.padding: expected same or torch"),
        (lambda: ssd("ssd_mobilenet_v1", 1), "num_classes, size: expected at least 2 and 1"),
        (lambda: ssd(replace(CAFFE, box_shapes=[[(0.1, 1.0)]])), "expected 6 maps, got 1"),
        (lambda: boxes.decode(torch.zeros(1, 4), torch.zeros(1, 4), "hwxy"), "order: expected"),
        (lambda: boxes.class_scores(torch.zeros(1, 2), "relu"), "score: expected"),
    ],
)
def test_bad_arguments(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@torch.no_grad()
def test_the_boxes_of_another_image_size_are_refused() -> None:
    model = small("ssd_mobilenet_v1")
    with pytest.raises(ValueError, match="as on images of 96x96, got"):
        model.detections(model(image(1, 160)))


def _flat(outputs: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return (*outputs[0], *outputs[1])
