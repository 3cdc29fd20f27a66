"""TF-slim's expanded_conv, option by option, against plain convolutions padded by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nn_checks import assert_as_accurate_as_torch, fused_ops, image, randomize
from torch import Tensor, nn

import fastdw
from fastdw.benchmark.models import calibrate_batch_norm
from fastdw.benchmark.providers.plain_torch import plain
from fastdw.models import mobilenet_v2, specs, summarize
from fastdw.models.expanded_conv import (
    ExpandedConv,
    SplitConv,
    expand_input,
    expanded_conv,
    split_sizes,
    window_padding,
)
from fastdw.models.mobilenet_v2_forms import mobilenet_v2_keras, mobilenet_v2_slim
from fastdw.nn import InvertedResidual
from fastdw.plan import PlannedNetwork

CHANNELS = 16


def double(expansion_tensor: Tensor, input_tensor: Tensor) -> Tensor:
    """An expansion_transform that reads both of its arguments."""
    return 2 * expansion_tensor + input_tensor.mean((1, 2, 3), keepdim=True)


def subtract(input_tensor: Tensor, output_tensor: Tensor) -> Tensor:
    """A custom residual."""
    return output_tensor - input_tensor


ONE_OP = {"inverted_residual_packed": 1}
EXPAND_DEPTHWISE_PROJECT = {"pointwise_conv_packed": 2, "depthwise_conv_packed": 1}

OPTIONS: dict[str, tuple[dict[str, Any], int, dict[str, int]]] = {
    # name: (options, channels out, fused ops)
    "default": ({}, CHANNELS, ONE_OP),
    "expansion_size as a number": ({"expansion_size": 40}, CHANNELS, ONE_OP),
    "expansion_size as a function": ({"expansion_size": expand_input(2.3)}, CHANNELS, ONE_OP),
    "no expansion": ({"expansion_size": expand_input(1, 1)}, 8, ONE_OP),
    "an expansion below the input": ({"expansion_size": 8}, 8, ONE_OP),
    "stride": ({"stride": 2}, 24, ONE_OP),
    "rate": ({"rate": 2}, CHANNELS, ONE_OP),
    "kernel_size": ({"kernel_size": 5}, CHANNELS, ONE_OP),
    "kernel_size as a pair": ({"kernel_size": (3, 5), "stride": 2}, CHANNELS, ONE_OP),
    "an even kernel": ({"kernel_size": 4, "stride": 2}, CHANNELS, ONE_OP),
    "no residual": ({"residual": False}, CHANNELS, ONE_OP),
    "a residual of one's own": ({"residual": subtract}, CHANNELS, EXPAND_DEPTHWISE_PROJECT),
    "split_expansion": (
        {"split_expansion": 2},
        CHANNELS,
        {"pointwise_conv_packed": 3, "depthwise_conv_packed": 1},
    ),
    "split_projection": (
        {"split_projection": 3, "split_divisible_by": 4, "expansion_size": 40},
        CHANNELS,
        {"pointwise_conv_packed": 4, "depthwise_conv_packed": 1},
    ),
    "a split of too few channels": ({"split_expansion": 4}, CHANNELS, ONE_OP),
    "expansion_transform": ({"expansion_transform": double}, CHANNELS, EXPAND_DEPTHWISE_PROJECT),
    "depthwise_location input": (
        {"depthwise_location": "input", "stride": 2},
        CHANNELS,
        EXPAND_DEPTHWISE_PROJECT,
    ),
    "depthwise_location output": (
        {"depthwise_location": "output"},
        CHANNELS,
        EXPAND_DEPTHWISE_PROJECT,
    ),
    "depthwise_location none": (
        {"depthwise_location": None},
        CHANNELS,
        {"pointwise_conv_packed": 2},
    ),
    "depthwise_channel_multiplier": (
        {"depthwise_channel_multiplier": 2},
        CHANNELS,
        EXPAND_DEPTHWISE_PROJECT,
    ),
    "a multiplier at the input": (
        {"depthwise_channel_multiplier": 2, "depthwise_location": "input", "expansion_size": 24},
        CHANNELS,
        {"pointwise_conv_packed": 1, "depthwise_conv_packed": 1},
    ),
    "a multiplier at the output": (
        {"depthwise_channel_multiplier": 2, "depthwise_location": "output"},
        CHANNELS // 2,
        EXPAND_DEPTHWISE_PROJECT,
    ),
    "use_explicit_padding": ({"use_explicit_padding": True, "stride": 2}, CHANNELS, ONE_OP),
    "use_explicit_padding, even kernel": (
        {"use_explicit_padding": True, "kernel_size": 4, "rate": 2},
        CHANNELS,
        ONE_OP,
    ),
    "padding VALID": ({"padding": "VALID", "residual": False}, CHANNELS, ONE_OP),
    "inner_activation": ({"inner_activation": "hardswish"}, CHANNELS, ONE_OP),
    "depthwise_activation": ({"depthwise_activation": "silu"}, CHANNELS, ONE_OP),
    "project_activation": ({"project_activation": "relu"}, CHANNELS, ONE_OP),
}


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
}


def weights_by_hand(
    convolution: nn.Module, x: Tensor, activation: str, padding: Sequence[int] = (0, 0, 0, 0)
) -> Tensor:
    """Convolution, batch norm and activation in fp64; of the module only its numbers count."""
    conv, bn = convolution.conv, convolution.bn
    weight = conv.weight.double()
    y = F.conv2d(F.pad(x, padding), weight, None, conv.stride, 0, conv.dilation, conv.groups)
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    shift = bn.bias.double() - bn.running_mean.double() * scale
    return ACTIVATIONS[activation](y * scale[:, None, None] + shift[:, None, None])


def slim_sides(x: Tensor, options: dict[str, Any]) -> list[int]:
    """(left, right, top, bottom) as TensorFlow computes them."""
    if options.get("padding") == "VALID":
        return [0, 0, 0, 0]
    kernel = options.get("kernel_size", 3)
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    stride, rate = options.get("stride", 1), options.get("rate", 1)
    sides: list[int] = []
    for size, k in zip(reversed(x.shape[2:]), reversed(kernel), strict=True):
        reach = (k - 1) * rate + 1
        total = reach - 1
        if not options.get("use_explicit_padding"):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        sides += [total // 2, total - total // 2]
    return sides


def pointwise_by_hand(convolution: nn.Module, x: Tensor, activation: str) -> Tensor:
    if not isinstance(convolution, SplitConv):
        return weights_by_hand(convolution, x, activation)
    outputs, begin = [], 0
    for part in convolution.parts:
        end = begin + part.conv.in_channels
        outputs.append(weights_by_hand(part, x[:, begin:end], activation))
        begin = end
    assert begin == x.shape[1]
    return torch.cat(outputs, 1)


def slim_block(block: nn.Module, x: Tensor, options: dict[str, Any]) -> Tensor:
    """What TF-slim's expanded_conv computes with the weights of `block`, in fp64."""
    location = options.get("depthwise_location", "expansion")
    inner = options.get("inner_activation", "relu6")

    def depthwise_at(place: str, y: Tensor) -> Tensor:
        if location != place:
            return y
        activation = options.get("depthwise_activation", inner) if place == "expansion" else "none"
        return weights_by_hand(block.depthwise, y, activation, slim_sides(y, options))

    y = depthwise_at("input", x)
    if block.expand is not None:
        y = pointwise_by_hand(block.expand, y, inner)
    y = depthwise_at("expansion", y)
    if "expansion_transform" in options:
        y = options["expansion_transform"](y, x)
    y = pointwise_by_hand(block.project, y, options.get("project_activation", "none"))
    y = depthwise_at("output", y)
    residual = options.get("residual", True)
    if callable(residual):
        return residual(x, y)
    adds = residual and options.get("stride", 1) == 1 and x.shape[1] == y.shape[1]
    return x + y if adds else y


def randomized(block: nn.Module) -> nn.Module:
    return randomize(block).eval()


def input_of(size: tuple[int, int] = (11, 14), batch: int = 2) -> Tensor:
    return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(11, 14), (12, 9), (1, 1)])
@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_each_option(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    options, channels_out, ops = OPTIONS[name]
    if options.get("padding") == "VALID" and size == (1, 1):
        size = (3, 3)
    block, x = randomized(expanded_conv(CHANNELS, channels_out, **options)), input_of(size)
    truth = slim_block(block, x.double(), options)
    limit = 1e-5 * truth.abs().max().item()
    for found in (block(x), plain(block)(x)):
        torch.testing.assert_close(found.double(), truth, rtol=0, atol=limit)
    assert fused_ops(lambda: block(x)) == ops
    assert isinstance(block, InvertedResidual) == (ops == ONE_OP)


@pytest.mark.parametrize("name", [name for name, row in OPTIONS.items() if row[2] == ONE_OP])
@torch.no_grad()
def test_one_op_computes_what_the_layers_do(name: str) -> None:
    torch.manual_seed(0)
    options, channels_out, _ = OPTIONS[name]
    fused = randomized(expanded_conv(CHANNELS, channels_out, **options))
    layers = ExpandedConv(CHANNELS, channels_out, **options).eval()
    layers.load_state_dict(fused.state_dict())
    torch.testing.assert_close(fused(input_of()), layers(input_of()), rtol=1e-5, atol=1e-5)


def test_hidden_channels() -> None:
    assert expanded_conv(16, 16).depthwise.conv.in_channels == 96
    assert expanded_conv(20, 20, expansion_size=expand_input(2.3)).depthwise.conv.groups == 48
    assert expanded_conv(20, 20, expansion_size=expand_input(1, 1)).expand is None
    assert expanded_conv(20, 20, expansion_size=30).expand.conv.out_channels == 30


def slims_split(channels: int, ways: int, divisible_by: int) -> list[int]:
    """`_split_divisible` of conv_blocks.py, step by step."""
    base, sizes, reached = channels // ways // divisible_by * divisible_by, [], 0
    for part in range(ways):
        size = base
        while reached + size < channels * (part + 1) / ways:
            size += divisible_by
        sizes.append(size)
        reached += size
    assert reached == channels
    return sizes


@pytest.mark.parametrize("ways", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("divisible_by", [1, 4, 8])
def test_split_sizes_are_slims(ways: int, divisible_by: int) -> None:
    for units in range(ways, 5 * ways + 3):
        channels = units * divisible_by
        assert split_sizes(channels, ways, divisible_by) == slims_split(
            channels, ways, divisible_by
        )


def test_split_sizes_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="channels: expected a multiple of 8, at least 16 for 2"):
        split_sizes(20, 2)
    with pytest.raises(ValueError, match="at least 24 for 3 parts, got 16"):
        split_sizes(16, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"depthwise_location": "middle"}, ValueError, "depthwise_location: expected None, input"),
        ({"padding": "FULL"}, ValueError, "padding: expected SAME or VALID, got 'FULL'"),
        (
            {"padding": "VALID", "use_explicit_padding": True},
            ValueError,
            "use_explicit_padding: expected only with padding SAME",
        ),
        ({"padding": "VALID"}, ValueError, "residual: expected False with padding VALID"),
        ({"stride": 0}, ValueError, "stride: expected at least 1"),
        ({"inner_activation": "gelu"}, ValueError, "activation: expected"),
        ({"dilation": 2}, TypeError, "dilation"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        expanded_conv(CHANNELS, CHANNELS, **options)


def test_padding() -> None:
    assert window_padding("SAME", False, 3, 2) == "same"
    assert window_padding("VALID", False, 3) == 0
    assert window_padding("SAME", True, (3, 4), 2) == (3, 3, 2, 2)
    assert window_padding("SAME", True, (2, 4)) == (1, 2, 0, 1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "slim": lambda: mobilenet_v2_slim(0.35, 7),
    "slim, explicit padding": lambda: mobilenet_v2_slim(
        0.35, 7, options={"use_explicit_padding": True}, output_stride=8
    ),
    "slim, depthwise at the input": lambda: mobilenet_v2_slim(
        0.35, 7, options={"depthwise_location": "input"}, block_options={3: {"kernel_size": 5}}
    ),
    "slim, some activations": lambda: mobilenet_v2_slim(
        0.35,
        7,
        options={"inner_activation": "hardswish"},
        block_options={2: {"project_activation": "relu"}},
    ),
    "keras": lambda: mobilenet_v2_keras(0.35, 7, output_stride=16),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_networks_are_planned_and_equal_stock_torch(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    calibrate_batch_norm(model, 64)
    x = torch.randn(2, 3, 64, 50, generator=torch.Generator().manual_seed(1))
    fast, stock = fastdw.optimize(model, x), plain(model)
    assert isinstance(fast, PlannedNetwork), fast.report.plan_reason
    for batch in (x, x[:1]):
        truth = copy.deepcopy(stock).double()(batch.double())
        layers = specs.count_layers(model)
        assert_as_accurate_as_torch(fast(batch), stock(batch), truth, layers)


@torch.no_grad()
def test_split_blocks_run_fused_inside_a_network() -> None:
    torch.manual_seed(0)
    model = mobilenet_v2_slim(0.5, 7, options={"split_projection": 2})
    calibrate_batch_norm(model, 64)
    split = sum(isinstance(module, SplitConv) for module in model.modules())
    assert split > 10
    x = image("stem", 64)
    fast = fastdw.optimize(model, x)
    torch.testing.assert_close(fast(x), plain(model)(x), rtol=1e-4, atol=1e-4)
    ops = fused_ops(lambda: fast(x))
    assert ops["depthwise_conv_packed"] == split
    assert ops["inverted_residual_packed"] == 17 - split


@torch.no_grad()
def test_slims_default_is_mobilenet_v2() -> None:
    torch.manual_seed(0)
    slim = randomize(mobilenet_v2_slim(0.5, 11, finegrain=True)).eval()
    ours = mobilenet_v2(0.5, 11, padding="same", eps=1e-3).eval()
    ours.load_state_dict(slim.state_dict())
    x = image("stem", 50)
    torch.testing.assert_close(slim(x), ours(x))


@pytest.mark.parametrize(
    ("width", "finegrain", "last"), [(0.5, False, 640), (0.5, True, 1280), (1.4, True, 1792)]
)
def test_the_last_convolution(width: float, finegrain: bool, last: int) -> None:
    assert mobilenet_v2_slim(width, finegrain=finegrain).last.conv.out_channels == last


def test_slims_size() -> None:
    summary = summarize(mobilenet_v2_slim(num_classes=1000), 224)
    assert (summary.parameters, summary.multiply_adds) == (3_504_872, 300_774_272)


def test_keras_batch_norms_and_padding() -> None:
    model = mobilenet_v2_keras(0.35)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.001)}
    assert model.stem.padding == "same" and model.head.dropout.p == 0


def test_options_of_all_blocks_and_of_one() -> None:
    model = mobilenet_v2_slim(
        0.35,
        options={"kernel_size": 5, "inner_activation": "relu"},
        block_options={3: {"kernel_size": 7}},
        output_stride=16,
    )
    kernels = [block.depthwise.conv.kernel_size[0] for block in model.blocks]
    assert kernels == [5, 5, 5, 7, *[5] * 13]
    assert all(isinstance(block.depthwise.act, nn.ReLU) for block in model.blocks)
    rates = [block.depthwise.conv.dilation[0] for block in model.blocks]
    assert rates == [1] * 14 + [2] * 3


def test_the_stem_is_padded_as_the_blocks_are() -> None:
    assert mobilenet_v2_slim(0.35).stem.padding == "same"
    explicit = mobilenet_v2_slim(0.35, options={"use_explicit_padding": True}).stem
    assert explicit.padding is None and explicit.conv.padding == (1, 1)
    valid = mobilenet_v2_slim(0.35, options={"padding": "VALID", "residual": False}).stem
    assert valid.padding is None and valid.conv.padding == (0, 0)


def test_block_options_of_no_block() -> None:
    with pytest.raises(ValueError, match="block_options: expected blocks 0 to 16, got 17"):
        mobilenet_v2_slim(block_options={17: {"rate": 2}})
