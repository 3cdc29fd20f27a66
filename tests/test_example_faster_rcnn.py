"""The Faster R-CNN example: builds, runs, trains, its backbone and box head are one op each."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from nn_checks import fused_ops
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from fastdw.benchmark.providers.plain_torch import plain

PATH = Path(__file__).resolve().parents[1] / "examples" / "faster_rcnn.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faster_rcnn_example", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in ((90, 130), (140, 64))]


def targets() -> list[dict[str, Tensor]]:
    return [{"boxes": torch.tensor([[5.0, 5.0, 60.0, 50.0]]), "labels": torch.tensor([2])}] * 2


def detector(example: ModuleType) -> FasterRCNN:
    """A small one, its batch norms as after training: the boxes' scores then differ."""
    torch.manual_seed(0)
    network = example.faster_rcnn(5, 0.25, 96, 160, score_threshold=0.25)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.roi_heads.box_predictor.cls_score.weight.data *= 30
    with torch.no_grad():
        network.train()(images(), targets())
    return network.eval()


def test_size_of_the_paper(example: ModuleType) -> None:
    """Howard et al., table 13: Faster R-CNN with MobileNet has 6.1 M parameters."""
    parameters = sum(p.numel() for p in example.faster_rcnn().parameters())
    assert parameters / 1e6 == pytest.approx(6.1, abs=0.05)


@torch.no_grad()
def test_fused_it_finds_the_same_boxes(example: ModuleType) -> None:
    network = detector(example)
    fused = example.fuse(network)
    assert fused.backbone.report.planned and fused.roi_heads.box_head.report.planned
    stock = plain(network)
    for expected, got in zip(stock(images()), fused(images()), strict=True):
        assert len(expected["boxes"]) > 10
        # Of boxes that overlap just as much as is allowed, rounding may drop another one.
        assert example.agreement(expected, got) >= 0.95


@torch.no_grad()
def test_fused_features_are_those_of_stock_torch(example: ModuleType) -> None:
    network = detector(example)
    fused, stock = example.fuse(network), plain(network)
    x = torch.rand(2, 3, 96, 130, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(fused.backbone(x), stock.backbone(x), rtol=1e-4, atol=1e-4)
    crops = torch.rand(7, network.backbone.out_channels, 14, 14)
    heads = fused.roi_heads.box_head, stock.roi_heads.box_head
    torch.testing.assert_close(*(head(crops) for head in heads), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_backbone_and_box_head_are_one_op_each(example: ModuleType) -> None:
    fused = example.fuse(detector(example))
    fused(images())
    assert fused_ops(lambda: fused(images())) == {"planned_network": 2}


def test_trains(example: ModuleType) -> None:
    network = detector(example).train()
    losses = network(images(), targets())
    sum(losses.values()).backward()
    for module in (network.backbone, network.roi_heads.box_head):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_agreement_counts_boxes_of_the_same_class(example: ModuleType) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    expected = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    assert example.agreement(expected, expected) == 1
    assert example.agreement(expected, {"boxes": boxes, "labels": torch.tensor([1, 1])}) == 0.5
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    assert example.agreement(nothing, nothing) == 1
    assert example.agreement(nothing, expected) == example.agreement(expected, nothing) == 0


@pytest.mark.slow
def test_it_runs_as_a_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(PATH)])
    runpy.run_path(str(PATH), run_name="__main__")
    out = capsys.readouterr().out
    assert "backbone: planned: 12 steps" in out and "roi_heads.box_head: planned: 3 steps" in out
    assert "the same boxes: " in out
