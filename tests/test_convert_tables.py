"""The models that people have, a row each: what convert finds in them, and that they stay equal."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from convert_models import assert_same_answer, calibrate, outputs, photo
from nn_checks import ops_of, randomize
from torch import Tensor, nn
from transformers import (
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
)

import fastdw


@dataclass(frozen=True)
class Row:
    """A model, its depthwise convolutions, how many blocks are fused, and what is left and why."""

    make: Callable[[], nn.Module]
    depthwise: int
    blocks: int
    left: dict[str, int] = field(default_factory=dict)


class Heads(nn.Module):
    """A detector up to the raw outputs of its heads: what follows sorts by score."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.detector.backbone(x)
        return self.detector.head(list(maps.values()))


def _timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **settings)


def _smp(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(smp, name)("mobilenet_v2", encoder_weights=None, classes=3)


_tv, _segment = torchvision.models, torchvision.models.segmentation
_BARE: dict[str, Any] = {"weights": None, "weights_backbone": None}


def _ssdlite() -> nn.Module:
    return Heads(torchvision.models.detection.ssdlite320_mobilenet_v3_large(**_BARE))


def _se(blocks: int, no_batch_norm: int, **more: int) -> dict[str, int]:
    return {"squeeze_excite": blocks, "no_batch_norm": no_batch_norm, **more}


TORCHVISION = {
    "mobilenet_v2": Row(_tv.mobilenet_v2, 17, 17),
    "mobilenet_v3_small": Row(_tv.mobilenet_v3_small, 11, 2, _se(9, 18)),
    "mobilenet_v3_large": Row(_tv.mobilenet_v3_large, 15, 7, _se(8, 16)),
    "mnasnet1_0": Row(_tv.mnasnet1_0, 17, 16),
    "efficientnet_b0": Row(_tv.efficientnet_b0, 16, 0, {"no_batch_norm": 32}),
    "shufflenet_v2_x1_0": Row(_tv.shufflenet_v2_x1_0, 19, 19),
    "ssdlite320": Row(_ssdlite, 31, 23, _se(7, 16)),
    "deeplabv3_mobilenet_v3_large": Row(
        lambda: _segment.deeplabv3_mobilenet_v3_large(**_BARE, num_classes=3),
        *(15, 7, _se(8, 17, dense_convolution=4)),
    ),
    "lraspp_mobilenet_v3_large": Row(
        lambda: _segment.lraspp_mobilenet_v3_large(**_BARE, num_classes=3), 15, 7, _se(8, 19)
    ),
}
TIMM = {
    "mobilenetv1_100": Row(_timm("mobilenetv1_100"), 13, 13),
    "mobilenetv2_035": Row(_timm("mobilenetv2_035"), 17, 17),
    "mobilenetv2_100": Row(_timm("mobilenetv2_100"), 17, 17),
    "mobilenetv2_120d": Row(_timm("mobilenetv2_120d"), 26, 26),
    "mobilenetv2_140": Row(_timm("mobilenetv2_140"), 17, 17),
    "efficientnet_lite0": Row(_timm("efficientnet_lite0"), 16, 16),
    "tf_efficientnet_lite0": Row(_timm("tf_efficientnet_lite0"), 16, 16),
    "mobilenetv3_large_100": Row(_timm("mobilenetv3_large_100"), 15, 7, _se(8, 17)),
    "tf_mobilenetv3_large_100": Row(_timm("tf_mobilenetv3_large_100"), 15, 7, _se(8, 17)),
    "mnasnet_100": Row(_timm("mnasnet_100"), 17, 17),
    "mobilenetv4_conv_small": Row(
        _timm("mobilenetv4_conv_small"), 15, 8, {"dense_convolution": 2, "no_pattern": 4}
    ),
    "lcnet_100": Row(_timm("lcnet_100"), 13, 11, _se(2, 5)),
}
TIMM_SETTINGS = {
    "v2_output_stride_8": Row(_timm("mobilenetv2_100", output_stride=8), 17, 17),
    "lite_output_stride_16": Row(_timm("efficientnet_lite0", output_stride=16), 16, 16),
    "v2_pad_same": Row(_timm("mobilenetv2_100", pad_type="same"), 17, 17),
    "v4_pad_same": Row(
        _timm("mobilenetv4_conv_small", pad_type="same"),
        *(15, 8, {"dense_convolution": 2, "no_pattern": 4}),
    ),
    "v2_features": Row(_timm("mobilenetv2_100", features_only=True), 17, 17),
    "v3_features_stride_16": Row(
        _timm("mobilenetv3_large_100", features_only=True, output_stride=16), 15, 7, _se(8, 16)
    ),
    "lcnet_features_silu": Row(
        _timm("lcnet_100", features_only=True, act_layer=nn.SiLU),
        *(13, 11, {"squeeze_excite": 2, "no_batch_norm": 4}),
    ),
}
TRANSFORMERS = {
    "mobilenet_v1": Row(
        lambda: MobileNetV1ForImageClassification(MobileNetV1Config(num_labels=10)), 13, 0
    ),
    "mobilenet_v2": Row(
        lambda: MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=10)), 17, 16
    ),
    "segmentation_stride_8": Row(
        lambda: MobileNetV2ForSemanticSegmentation(
            MobileNetV2Config(num_labels=3, output_stride=8)
        ),
        *(17, 16),
    ),
}
SEGMENTATION_MODELS = {
    "Unet": Row(_smp("Unet"), 17, 17, {"dense_convolution": 11}),
    "DeepLabV3Plus": Row(_smp("DeepLabV3Plus"), 22, 21, {"no_batch_norm": 1}),
    "DeepLabV3": Row(_smp("DeepLabV3"), 17, 17, {"dense_convolution": 4, "no_batch_norm": 1}),
}


def built(row: Row) -> nn.Module:
    torch.manual_seed(0)
    return calibrate(randomize(row.make()))


def is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def check(row: Row) -> nn.Module:
    """Convert, compare, revert; return the converted model."""
    original = built(row)
    assert sum(map(is_depthwise, original.modules())) == row.depthwise, "the table is wrong"
    model = copy.deepcopy(original)
    types = [type(module) for module in model.modules()]
    report = fastdw.convert(model)
    totals = report.totals
    assert totals["depthwise_fused"] == row.depthwise
    assert totals["blocks_fused"] == row.blocks
    assert totals["reasons_left"] == row.left
    assert all(left.reason.sentence in str(report) for left in report.left)

    for x in (photo(1, 64, 64), photo(3, 64, 96)):
        assert_same_answer(model, original, x)
    optimized = fastdw.optimize(original, photo(1, 32, 32), tolerance=math.inf)
    assert_same_answer(optimized, original, photo(2, 32, 64))
    calls = ops_of(lambda: outputs(model, photo(1, 64, 64)))
    fused = {op: count for op, count in calls.items() if op.startswith("fastdw::")}
    assert sum(fused.values()) == len(report.fused), "the report counts sites that do not run"

    state, expected = model.state_dict(), original.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    fast = copy.deepcopy(model)
    fastdw.revert(model)
    assert [type(module) for module in model.modules()] == types
    x = photo(1, 64, 64)
    assert all(map(torch.equal, outputs(model, x), outputs(original, x)))
    return fast


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    check(TORCHVISION[name])


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    check(TIMM[name])


@pytest.mark.parametrize("name", TIMM_SETTINGS)
def test_timm_settings(name: str) -> None:
    check(TIMM_SETTINGS[name])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    check(TRANSFORMERS[name])


@pytest.mark.parametrize("name", SEGMENTATION_MODELS)
def test_segmentation_models_pytorch(name: str) -> None:
    check(SEGMENTATION_MODELS[name])


def test_geometry_changed_after_construction() -> None:
    """An encoder that is dilated when it is fused already computes with the new geometry."""
    torch.manual_seed(0)
    encoder = smp.encoders.get_encoder("mobilenet_v2", weights=None)
    original = calibrate(randomize(encoder))
    model = copy.deepcopy(original)
    assert fastdw.convert(model).totals["blocks_fused"] == 17
    before = outputs(model, photo(1, 64, 96))[-1]
    for net in (original, model):
        net.make_dilated(8)
    assert_same_answer(model, original, photo(1, 64, 96))
    after = outputs(model, photo(1, 64, 96))[-1]
    assert before.shape[2:] == (2, 3) and after.shape[2:] == (8, 12)
    calls = ops_of(lambda: outputs(model, photo(1, 64, 96)))
    assert calls["fastdw::inverted_residual_packed"] == 17


def test_pooling_branch_is_no_mere_list_of_layers() -> None:
    """It is an `nn.Sequential` too, with a forward that does more than run its layers."""
    report = fastdw.explain(SEGMENTATION_MODELS["DeepLabV3Plus"].make())
    rows = {row.name.removeprefix("decoder.aspp."): row.pattern for row in report.fused}
    assert rows["0.convs.4.1"] == "pointwise_conv" and "0.convs.4" not in rows
    assert rows["0.convs.1"] == "separable_block"
    # The batch norm behind this separable convolution is its sibling: fused with the 1x1.
    assert rows["1.0"] == "depthwise_conv" and rows["1.1"] == "pointwise_conv"
