"""From the names and conventions of a source to ours: what is loaded, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from nn_checks import assert_as_accurate_as_torch, image, randomize
from torch import Tensor, nn

import fastdw
from fastdw.models import SSD, mobilenet_v1, mobilenet_v2, specs, ssd, weights
from fastdw.models.weights.conversion import converted
from fastdw.models.weights.convolution import identity_batch_norm, layers_in_order
from fastdw.models.weights.files import WeightsFile, read_file
from fastdw.nn import ConvBNAct

FOLDER = Path(__file__).with_name("weights_files")
TENSORFLOW = {"eps": 1e-3, "padding": "same"}


def hwio(weight: Tensor) -> Tensor:
    """torch's kernel as TensorFlow has it; a depthwise one as [h, w, channels, multiplier]."""
    return weight.permute(2, 3, 0, 1) if weight.shape[1] == 1 else weight.permute(2, 3, 1, 0)


def slim_name(module: str) -> str:
    """What TF-slim calls a layer of our MobileNet V2, and TensorFlow a layer of our SSD."""
    parts = module.removeprefix("backbone.").split(".")
    if parts[0] in ("box_heads", "class_heads"):
        kind = "BoxEncodingPredictor" if parts[0] == "box_heads" else "ClassPredictor"
        return f"BoxPredictor_{parts[1]}/{kind}"
    if parts[0] == "extras":
        pair, half = int(parts[1]) + 2, int(parts[2])
        size = ("1x1", "3x3_s2")[half]
        return f"MobilenetV2/layer_19_{half + 1}_Conv2d_{pair}_{size}_128"
    if parts[0] == "blocks":
        number = "" if parts[1] == "0" else f"_{parts[1]}"
        return f"MobilenetV2/expanded_conv{number}/{parts[2]}"
    fixed = {"stem": "Conv", "last": "Conv_1", "head": "Logits/Conv2d_1c_1x1"}
    return f"MobilenetV2/{fixed[parts[0]]}"


def as_slim(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The weights of our model under TensorFlow's names and in its layout."""
    leaves = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}
    leaves["running_var"] = "moving_variance"
    state = {}
    for name in layers_in_order(model):
        layer, theirs = model.get_submodule(name), prefix + slim_name(name)
        if isinstance(layer, ConvBNAct):
            kernel = layer.conv.weight.detach()
            leaf = "depthwise_weights" if layer.conv.groups > 1 else "weights"
            state[f"{theirs}/{leaf}"] = hwio(kernel)
            for ours, kind in leaves.items():
                state[f"{theirs}/BatchNorm/{kind}"] = getattr(layer.bn, ours).detach()
        else:
            kernel = layer.weight.detach().reshape(*layer.weight.shape[:2], 1, 1)
            state[f"{theirs}/weights"] = kernel.permute(2, 3, 1, 0)
            state[f"{theirs}/biases"] = layer.bias.detach()
    return state


BUILDERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "classifier": (lambda: mobilenet_v2(0.35, 6, **TENSORFLOW), ""),
    "detector": (lambda: ssd("ssd_mobilenet_v2", 4, size=96, width=0.35), "FeatureExtractor/"),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_tensorflows_names(name: str) -> None:
    build, prefix = BUILDERS[name]
    source = randomize(build())
    state = as_slim(source, prefix) | {"global_step": torch.zeros(())}
    state = {key.replace("FeatureExtractor/BoxP", "BoxP"): value for key, value in state.items()}
    twin = weights.load(randomize(build(), seed=1), state)
    for key, tensor in source.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[key]), key


@pytest.mark.parametrize("version", ["V1", "V2"])
@torch.no_grad()
def test_transformers(version: str) -> None:
    config = getattr(transformers, f"MobileNet{version}Config")(
        depth_multiplier=0.5, num_labels=6, min_depth=8
    )
    torch.manual_seed(0)
    theirs = randomize(getattr(transformers, f"MobileNet{version}ForImageClassification")(config))
    build = {"V1": mobilenet_v1, "V2": mobilenet_v2}[version]
    ours = weights.load(build(0.5, 6, **TENSORFLOW), theirs.eval().state_dict()).eval()
    x = image("stem", 64)
    truth = theirs.double()(x.double()).logits
    stock = theirs.float()(x).logits
    assert_as_accurate_as_torch(ours(x), stock, truth, specs.count_layers(ours))


def test_a_batch_norm_without_gamma() -> None:
    state = as_slim(mobilenet_v2(0.35, 6, **TENSORFLOW))
    del state["MobilenetV2/Conv/BatchNorm/gamma"]
    model = weights.load(randomize(mobilenet_v2(0.35, 6, **TENSORFLOW)), state)
    assert torch.equal(model.stem.bn.weight, torch.ones_like(model.stem.bn.weight))


def test_a_checkpoint_of_training_gives_the_averages_of_its_weights() -> None:
    """As published for MobileNet V2: averages and the optimizer's slots beside the weights."""
    source = as_slim(randomize(mobilenet_v2(0.35, 6, **TENSORFLOW)))
    state = dict(source)
    for name, tensor in source.items():
        if "moving_" not in name:
            state[name] = torch.zeros_like(tensor)
            state[f"{name}/ExponentialMovingAverage"] = tensor
            state[f"{name}/RMSProp"] = state[f"{name}/RMSProp_1"] = torch.ones_like(tensor)
    build = partial(mobilenet_v2, 0.35, 6, **TENSORFLOW)
    expected, found = (weights.load(build(), tensors).state_dict() for tensors in (source, state))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    conversion = converted(WeightsFile("TensorFlow checkpoint", state, "HWIO"))
    assert conversion.batch_norm == "kept apart: 52 beside 53 convolutions"


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": Tensor.flatten,
    "one more": lambda tensor: tensor[None],
    "empty": lambda tensor: tensor[:0],
}


@pytest.mark.parametrize("change", SHAPES)
@pytest.mark.parametrize("name", ["v1.pb", "tfjs/weights_manifest.json", "v1.caffemodel"])
def test_names_with_other_shapes_are_refused(name: str, change: str) -> None:
    found = read_file(FOLDER / name)
    padding = "keras_v1" if name.startswith("tfjs") else "same"
    model = mobilenet_v1(1 / 32, 5, eps=1e-3, padding=padding, round_nearest=1)
    for key, tensor in list(found.tensors.items())[:12]:
        changed = replace(found, tensors={**found.tensors, key: SHAPES[change](tensor)})
        try:
            weights.load(model, changed.tensors)
        except ValueError as error:
            assert str(error).startswith(("state_dict: ", "source: "))
        assert converted(changed).tensors


@pytest.mark.parametrize("blobs", [1, 2])
def test_caffe_layers_of_too_few_blobs_are_refused(blobs: int) -> None:
    tensors = weights.read(FOLDER / "v1.caffemodel")
    del tensors["conv0/bn/2" if blobs == 2 else "conv0/scale/1"]
    with pytest.raises(ValueError, match="state_dict: a weight has not the shape"):
        weights.load(mobilenet_v1(1 / 32, 5, eps=1e-3, padding="same", round_nearest=1), tensors)


def test_a_detector_of_no_boxes_has_no_classes() -> None:
    state = {"box_heads.0.bias": torch.zeros(3), "class_heads.0.bias": torch.zeros(6)}
    file = WeightsFile("state_dict", {"stem.conv.weight": torch.zeros(8, 3, 3, 3), **state})
    assert converted(file).classes is None


@pytest.mark.parametrize(
    "build",
    [
        lambda: mobilenet_v1(1 / 32, 5, eps=1e-5, padding="same", round_nearest=1),
        lambda: mobilenet_v1(1 / 32, 5, eps=1e-3, padding="torch", round_nearest=1),
    ],
)
def test_a_model_of_other_conventions_is_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match='eps=0.001 and padding="same".*stem is built otherwise'):
        weights.load(build(), FOLDER / "v1.pb")


def test_tflite_weights_of_another_padding_or_network_are_refused() -> None:
    padded = nn.Sequential(ConvBNAct(3, 2, stride=2, padding="same"))
    with pytest.raises(ValueError, match=r"expected padding \(0, 1, 0, 1\).*got \(1, 1, 1, 1\)"):
        weights.load(padded, FOLDER / "padded.tflite")
    relu = {"stride": 2, "activation": "relu"}
    weights.load(nn.Sequential(ConvBNAct(3, 2, **relu)), FOLDER / "padded.tflite")
    with pytest.raises(ValueError, match="expected the activation relu6, got relu"):
        weights.load(nn.Sequential(ConvBNAct(3, 2, stride=2)), FOLDER / "padded.tflite")
    with pytest.raises(ValueError, match="expected stride, dilation and groups"):
        weights.load(nn.Sequential(ConvBNAct(3, 2)), FOLDER / "padded.tflite")
    with pytest.raises(ValueError, match=r"expected \[4, 3, 3, 3\], got \[2, 3, 3, 3\]"):
        weights.load(nn.Sequential(ConvBNAct(3, 4, stride=2)), FOLDER / "padded.tflite")
    with pytest.raises(ValueError, match="expected 53 convolutions, got 1"):
        weights.load(mobilenet_v2(), FOLDER / "padded.tflite")


def test_folded_weights_become_a_batch_norm_that_adds_the_bias() -> None:
    torch.manual_seed(0)
    model = fastdw.nn.ConvBNAct(3, 8, eps=1e-3, activation="none").eval()
    bias, x = torch.randn(8), image("stem")
    model.bn.load_state_dict(identity_batch_norm(bias, 1e-3), strict=False)
    expected = nn.functional.conv2d(x, model.conv.weight, bias, padding=1)
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


def test_caffe_weights_merged_with_their_batch_norms() -> None:
    """What Caffe's deploy files hold: convolutions with a bias, heads by the name of their map."""
    torch.manual_seed(0)
    source = ssd("ssd_mobilenet_v1_caffe", 3, size=96, width=0.25).eval()
    state: dict[str, Tensor] = {}
    maps = ("conv11", "conv13", "conv14_2", "conv15_2", "conv16_2", "conv17_2")
    for name in layers_in_order(source):
        layer, parts = source.get_submodule(name), name.removeprefix("backbone.").split(".")
        if parts[0] in ("box_heads", "class_heads"):
            theirs = f"{maps[int(parts[1])]}_mbox_{'loc' if parts[0] == 'box_heads' else 'conf'}"
            state |= {f"{theirs}/0": layer.weight, f"{theirs}/1": layer.bias}
            continue
        if parts[0] == "extras":
            theirs = f"conv{int(parts[1]) + 14}_{int(parts[2]) + 1}"
        elif parts[0] == "stem":
            theirs = "conv0"
        else:
            theirs = f"conv{int(parts[1]) + 1}" + ("/dw" if parts[2] == "depthwise" else "")
        bias = torch.randn(layer.conv.out_channels)
        layer.bn.load_state_dict(identity_batch_norm(bias, layer.bn.eps), strict=False)
        state |= {f"{theirs}/0": layer.conv.weight, f"{theirs}/1": bias}
    twin = weights.load(ssd("ssd_mobilenet_v1_caffe", 3, size=96, width=0.25), state).eval()
    assert isinstance(twin, SSD)
    for key, tensor in source.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[key]), key
