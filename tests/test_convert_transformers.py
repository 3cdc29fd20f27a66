"""transformers' MobileNets: their forward pads, reads a configuration and returns dataclasses."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convert_models import assert_same_answer, calibrate, outputs, photo
from nn_checks import ops_of, randomize
from torch import nn
from transformers import (
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
)

import fastdw


def v1(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = MobileNetV1Config(num_labels=10, depth_multiplier=0.5, **settings)
    return calibrate(randomize(MobileNetV1ForImageClassification(config)))


def v2(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = MobileNetV2Config(num_labels=10, depth_multiplier=0.5, **settings)
    return calibrate(randomize(MobileNetV2ForImageClassification(config)))


def segmentation() -> nn.Module:
    torch.manual_seed(0)
    config = MobileNetV2Config(num_labels=3, depth_multiplier=0.5, output_stride=8)
    return calibrate(randomize(MobileNetV2ForSemanticSegmentation(config)))


def converted(model: nn.Module) -> Any:
    fast = copy.deepcopy(model)
    fastdw.convert(fast)
    return fast


def reasons(model: nn.Module) -> Counter[str]:
    return Counter(row.reason.code for row in fastdw.explain(model))


def pads(model: nn.Module, height: int = 64, width: int = 64) -> int:
    calls = ops_of(lambda: outputs(model, photo(1, height, width)))
    return calls.get("aten::pad", 0)


@pytest.mark.parametrize(("make", "count"), [(v1, 27), (v2, 52), (segmentation, 56)])
def test_padding_is_inside_the_kernels(make: Any, count: int) -> None:
    model = make()
    fast = converted(model)
    assert pads(model) == count
    assert pads(fast) == 0
    for height, width in ((65, 97), (64, 63), (33, 32)):  # where SAME is lopsided, and where not
        assert_same_answer(fast, model, photo(1, height, width))


@pytest.mark.parametrize("make", [v1, v2])
def test_padding_of_torch(make: Any) -> None:
    model = make(tf_padding=False)
    assert reasons(model).keys() == {"fused"}
    assert_same_answer(converted(model), model, photo(1, 65, 97))


def test_dilated_sites_are_fused() -> None:
    """At output stride 8, seven sites of dilation 2 and three of dilation 4."""
    model = segmentation()
    report = fastdw.convert(model)
    dilations: Counter[int] = Counter()
    for row in report.fused:
        for module in model.get_submodule(row.name).modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                dilations[module.dilation[0]] += 1
    assert dilations == {1: 7, 2: 7, 4: 3}


@pytest.mark.parametrize("make", [v1, v2])
def test_hidden_states(make: Any) -> None:
    model = make()
    fast = converted(model)
    with torch.no_grad():
        expected = model(photo(1, 64, 64), output_hidden_states=True).hidden_states
        actual = fast(photo(1, 64, 64), output_hidden_states=True).hidden_states
    assert len(expected) == len(actual) > 10
    for y, stock in zip(actual, expected, strict=True):
        torch.testing.assert_close(y, stock, rtol=1e-3, atol=1e-3)


def _stride_and_dilate(model: Any) -> None:
    conv = model.mobilenet_v2.layer[3].conv_3x3.convolution
    conv.stride, conv.dilation = (2, 2), (2, 2)


def _even_kernel_dilated(model: Any) -> None:
    conv = model.mobilenet_v2.layer[3].conv_3x3.convolution
    conv.kernel_size, conv.dilation, conv.stride = (2, 2), (3, 3), (1, 1)
    conv.weight = nn.Parameter(conv.weight[..., :2, :2].contiguous())


def _pads_itself(model: Any) -> None:
    model.mobilenet_v2.layer[3].conv_3x3.convolution.padding = (1, 1)


@pytest.mark.parametrize("change", [_stride_and_dilate, _even_kernel_dilated, _pads_itself])
def test_padding_that_is_not_same_is_left(change: Any) -> None:
    """`apply_tf_padding` is TensorFlow's SAME only for the networks it was written for."""
    model = v2()
    fast = converted(model)
    outputs(fast, photo(1, 64, 64))  # fills the caches of packed weights
    with torch.no_grad():
        change(model)
        change(fast)
    model.mobilenet_v2.layer[3].use_residual = fast.mobilenet_v2.layer[3].use_residual = False
    # The block; its depthwise layer, and the convolution in that, behind a pad of unknown size.
    assert reasons(model) - Counter(fused=99) == {"not_same": 2, "not_traced": 1}
    for net in (fast, converted(model)):
        assert_same_answer(net, model, photo(1, 64, 64))
    assert "SAME" in fast.mobilenet_v2.layer[3]._fastdw_reason


def test_mobilenet_v1_pads_without_dilation() -> None:
    model = v1()
    conv = model.mobilenet_v1.layer[8].convolution
    conv.dilation = (2, 2)
    assert reasons(model) - Counter(fused=99) == {"not_same": 1, "not_traced": 1}
    assert_same_answer(converted(model), model, photo(1, 96, 96))


def test_configuration_is_read_at_call_time() -> None:
    """The whole model shares one; without its padding, the maps shrink."""
    for block in (v1().mobilenet_v1.layer[2], v2().mobilenet_v2.layer[0]):  # type: ignore[union-attr]
        fast = converted(block)
        first = next(block.parameters())
        x = torch.randn(1, 32 if first.shape[1] == 1 else first.shape[1], 9, 8)
        before = outputs(fast, x)[0]
        for layer in (*block.modules(), *fast.modules()):
            if hasattr(layer, "config"):
                layer.config.tf_padding = False
        assert outputs(fast, x)[0].shape != before.shape
        assert_same_answer(fast, block, x)


@pytest.mark.parametrize("activation", ["relu", "silu", "hardswish"])
def test_activations_by_name(activation: str) -> None:
    model = v1(hidden_act=activation)
    assert reasons(model) == {"fused": 27}
    assert_same_answer(converted(model), model, photo(1, 64, 64))


def test_activations_without_kernel() -> None:
    model = v1(hidden_act="gelu")
    with pytest.warns(UserWarning, match="27 unknown_class"):
        fastdw.convert(model)
    model = v1()
    layer: Any = model.mobilenet_v1.layer[0]
    del layer.activation
    layer.activation = F.relu6  # as a configuration with a function gives it
    assert reasons(model) - Counter(fused=99) == {"unknown_activation": 1, "not_traced": 1}
    assert_same_answer(converted(model), model, photo(1, 64, 64))


def test_training_and_pickle() -> None:
    model = v2()
    fast = converted(model)
    fast = pickle.loads(pickle.dumps(fast))
    assert sum(hasattr(module, "_fastdw_original") for module in fast.modules()) == 20
    gradients = []
    for net in (model, fast):
        torch.manual_seed(1)  # dropout
        net.train()(photo(2, 64, 64)).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
        net.eval()
    assert all(map(torch.equal, *gradients))
    assert_same_answer(fast, model, photo(1, 64, 64))  # with the new statistics
