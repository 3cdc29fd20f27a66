"""Networks from darknet's .cfg form: every way in which MobileNet V1 is published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nn_checks import assert_as_accurate_as_torch, fused_ops, image
from torch import nn

import fastdw
from fastdw.benchmark.models import calibrate_batch_norm
from fastdw.benchmark.providers.plain_torch import plain
from fastdw.models import mobilenet_v1, specs, summarize
from fastdw.models.darknet import DarknetNetwork, darknet, parse_cfg
from fastdw.plan import PlannedNetwork

HEAD = "[avgpool]\n[convolutional]\nfilters=10\nsize=1\nstride=1\npad=0\nactivation=linear\n"
ENDING = "[softmax]\ngroups=1\n\n[cost]\ntype=sse\n"


def convolution(kind: str, activation: str, **options: int) -> str:
    settings = {"batch_normalize": 1, **options, "activation": activation}
    return f"[{kind}]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())


def mobilenet_cfg(dialect: str = "groups", activation: str = "relu", width: float = 0.25) -> str:
    """MobileNet V1 as a .cfg; `dialect` says how a depthwise convolution is written."""
    table = specs.mobilenet_v1_blocks(width)
    parts = ["# MobileNet\n[net]\nheight=64\nwidth=96\nchannels=3\nlearning_rate=0.1\n"]
    stem = table[0].in_channels
    parts.append(convolution("convolutional", activation, filters=stem, size=3, stride=2, pad=1))
    for number, block in enumerate(table):
        window = {"size": 3, "stride": block.stride, "pad": 1}
        parts.append(f"\n# block {number}\n")
        if dialect == "depthwise_convolutional":
            parts.append(convolution(dialect, activation, **window))
        else:
            channels = {"filters": block.in_channels, dialect: block.in_channels}
            parts.append(convolution("convolutional", activation, **channels, **window))
        sides = {"filters": block.out_channels, "size": 1, "stride": 1, "pad": 0}
        parts.append(convolution("convolutional", activation, **sides))
    return "".join([*parts, HEAD, ENDING])


def build(text: str) -> DarknetNetwork:
    torch.manual_seed(0)
    network = DarknetNetwork(parse_cfg(text))
    calibrate_batch_norm(network, 64)
    return network


@pytest.mark.parametrize("dialect", ["groups", "group", "depthwise_convolutional"])
@torch.no_grad()
def test_it_is_mobilenet_v1(dialect: str) -> None:
    network = build(mobilenet_cfg(dialect))
    ours = mobilenet_v1(0.25, 10)
    for module in ours.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    tensors = list(network.state_dict().values())
    assert len(tensors) == len(ours.state_dict())
    ours.load_state_dict(dict(zip(ours.state_dict(), tensors, strict=True)))
    x = image("stem", 64)
    torch.testing.assert_close(network(x), ours.eval()(x), rtol=1e-4, atol=1e-4)


def test_cost_is_the_papers() -> None:
    text = mobilenet_cfg("depthwise_convolutional", "leaky", 1.0).replace("=10\n", "=1000\n")
    summary = summarize(DarknetNetwork(parse_cfg(text)), 224)
    assert (summary.parameters, summary.multiply_adds) == (4_231_976, 568_740_352)


@torch.no_grad()
def test_with_relu_it_is_planned_in_blocks() -> None:
    network, x = build(mobilenet_cfg()), image("stem", 50)
    fast = fastdw.optimize(network, x)
    assert isinstance(fast, PlannedNetwork), fast.report.plan_reason
    assert fast.program.count("\nseparable_block") == 13
    truth = plain(network).double()(x.double())
    layers = specs.count_layers(network)
    assert_as_accurate_as_torch(fast(x), plain(network)(x), truth, layers)


@torch.no_grad()
def test_a_leaky_activation_runs_through_torch() -> None:
    network, x = build(mobilenet_cfg("group", "leaky")), image("stem", 50)
    slopes = {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.1}
    fast = fastdw.optimize(network, x)
    truth = plain(network).double()(x.double())
    assert_as_accurate_as_torch(fast(x), plain(network)(x), truth, specs.count_layers(network))
    assert fused_ops(lambda: fast(x)) == {
        "stem_conv_packed": 1,
        "depthwise_conv_packed": 13,
        "pointwise_conv_packed": 13,
        "classifier_head_packed": 1,
    }


@torch.no_grad()
def test_shortcuts_are_inverted_residuals() -> None:
    text = "[net]\nchannels=3\n" + convolution("convolutional", "relu", filters=8, size=3, pad=1)
    wide = {"filters": 24, "size": 1}
    text += convolution("convolutional", "relu", **wide)
    text += convolution("convolutional", "relu", filters=24, groups=24, size=3, pad=1)
    text += convolution("convolutional", "linear", filters=8, size=1)
    for place in ("-4", "0"):
        network = build(f"{text}[shortcut]\nfrom={place}\nactivation=linear\n")
        assert network.earlier == [None, None, None, None, 0]
        x = image("stem")
        block = nn.Sequential(*list(network.layers)[1:4])
        stem = network.layers[0](x)
        torch.testing.assert_close(network(x), stem + block(stem))
        fast = fastdw.optimize(network, x)
        assert "inverted_residual" in fast.program and "residual=1" in fast.program
        torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_detector_gives_the_map_that_region_reads() -> None:
    text = mobilenet_cfg().removesuffix(HEAD + ENDING)
    text += "[convolutional]\nsize=1\nstride=1\npad=1\nfilters=25\nactivation=linear\n"
    network = build(text + "[region]\nanchors = 0.7,0.9, 2.4,2.7\nnum=2\n")
    assert network.layers[-1].bias is not None
    assert network.input_size == (3, 64, 96)
    assert network(image("stem", 64)).shape == (2, 25, 2, 2)


def test_defaults_of_a_convolution() -> None:
    [layer] = build("[net]\n[convolutional]\n").layers
    conv, act = layer
    assert (conv.out_channels, conv.kernel_size, conv.padding) == (1, (1, 1), (0, 0))
    assert isinstance(act, nn.Sigmoid)


@pytest.mark.parametrize(
    ("options", "padding"), [("pad=1", 2), ("padding=1", 1), ("pad=1\ndilation=2", 4), ("", 0)]
)
def test_padding(options: str, padding: int) -> None:
    text = f"[net]\n[convolutional]\nsize=5\nactivation=linear\n{options}\n"
    assert build(text).layers[0].padding == (padding, padding)


def test_comments_and_blanks() -> None:
    sections = parse_cfg("; a\n\n[net]\n  # b\nwidth = 3 \n[ avgpool ]\n")
    assert [(s.kind, s.options, s.line) for s in sections] == [
        ("net", {"width": "3"}, 3),
        ("avgpool", {}, 6),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sections: expected .net. first, got nothing"),
        ("[convolutional]\n", "sections: expected .net. first, got .convolutional."),
        ("[net]\n", "expected a layer after .net., got none"),
        ("width=3\n", "line 1: expected a section or an option in one, got 'width=3'"),
        ("[net]\nnonsense\n", "line 2: expected a section"),
        ("[net]\nwidth=3\nwidth=4\n", "line 3: width comes twice in .net."),
        ("[net]\nchannels=x\n[avgpool]\n", "line 1: .net.: channels: expected a whole number"),
        ("[net]\n[lstm]\n", "line 2: .lstm.: expected one of .convolutional."),
        ("[net]\n[convolutional]\nstride=0\n", "stride: expected a whole number of at least 1"),
        ("[net]\n[convolutional]\nxnor=1\n", "xnor: an option that is not known"),
        ("[net]\n[convolutional]\nactivation=loggy\n", "activation: expected one of linear, relu"),
        ("[net]\n[convolutional]\nfilters=4\ngroups=2\n", "groups: 2 do not divide 3 and 4"),
        ("[net]\n[avgpool]\n[shortcut]\nfrom=3\n", "from: no layer of 3 channels stands there"),
        (
            "[net]\n[conv]\nfilters=4\n[conv]\nfilters=5\n[shortcut]\nfrom=0\n",
            "from: no layer of 5 channels stands there, got 0",
        ),
        ("[net]\n[avgpool]\n[shortcut]\nfrom=-2\n", "from: expected a whole number of at least -1"),
        ("[net]\n[dropout]\nprobability=often\n", "probability: expected a number from 0 to 1"),
        ("[net]\n[softmax]\n[avgpool]\n", "line 3: .avgpool.: no layer can stand behind .softmax."),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.cfg"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        darknet(path)
    assert str(error.value).startswith(f"path: {path}: ")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mobilenet.cfg"
    path.write_text(mobilenet_cfg())
    assert len(darknet(path).layers) == 29
    with pytest.raises(FileNotFoundError, match="path: no file"):
        darknet(tmp_path / "other.cfg")
    path.write_bytes(b"\xff\xfe[net]")
    with pytest.raises(ValueError, match="is no text"):
        darknet(str(path))
