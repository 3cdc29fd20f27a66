"""TensorFlow's names: TF-slim's MobileNets, TensorFlow's SSDs, and face-api's detector, to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fastdw.models.weights.convolution import identity_batch_norm

EPS = 1e-3
"""Of every batch norm that TF-slim and Keras train in a MobileNet."""

_BATCH_NORM = {
    "BatchNorm/gamma": "bn.weight",
    "BatchNorm/beta": "bn.bias",
    "BatchNorm/moving_mean": "bn.running_mean",
    "BatchNorm/moving_variance": "bn.running_var",
}
_AVERAGE = "/ExponentialMovingAverage"
"""What training appends to a weight's name for its running average, which is what is evaluated."""

_KERNELS = ("weights", "depthwise_weights")
_FOLDED = ("convolution_bn_offset",)
_LEAVES = "|".join((*_KERNELS, *_FOLDED, "biases", *_BATCH_NORM))

# What a layer is called -> our module. The last group is the leaf.
_V1 = r"(?:FeatureExtractor/)?MobilenetV1/"
_V2 = r"(?:FeatureExtractor/)?MobilenetV2/"
_RULES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (_V1 + r"Conv2d_0(?:_pointwise)?", lambda m: "stem"),
    (_V1 + r"Conv2d_(\d+)_(depthwise|pointwise)", lambda m: f"blocks.{int(m[1]) - 1}.{m[2]}"),
    (_V1 + r"Conv2d_13_pointwise_([12])_Conv2d_(\d)_\w+", lambda m: _extra(m[2], m[1])),
    (_V2 + r"Conv", lambda m: "stem"),
    (_V2 + r"expanded_conv(?:_(\d+))?/(\w+)", lambda m: f"blocks.{int(m[1] or 0)}.{m[2]}"),
    (_V2 + r"Conv_1", lambda m: "last"),
    (_V2 + r"layer_19_([12])_Conv2d_(\d)_\w+", lambda m: _extra(m[2], m[1])),
    (r"MobilenetV[12]/Logits/Conv2d_1c_1x1", lambda m: "head.linear"),
    (r"Prediction/Conv2d_(\d)_pointwise", lambda m: f"extras.{int(m[1]) // 2}.{int(m[1]) % 2}"),
    (r"(?:Prediction/)?BoxPredictor_(\d)/BoxEncodingPredictor", lambda m: f"box_heads.{m[1]}"),
    (r"(?:Prediction/)?BoxPredictor_(\d)/ClassPredictor", lambda m: f"class_heads.{m[1]}"),
)
_ANCHORS = "Output/extra_dim"
_BACKBONE = ("stem", "blocks", "last")


def recognizes(keys: Iterable[str]) -> bool:
    """Say whether these are weights of a MobileNet as TF-slim names them."""
    return any(re.match(r"(FeatureExtractor/)?MobilenetV[12]/", key) for key in keys)


def translated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under our names and in torch's layout; other constants are left out.

    A batch norm that the file has folded into its convolution becomes one that only adds the bias.
    Where a checkpoint of training holds the average of a weight, that is taken.
    """
    averages = {
        name.removesuffix(_AVERAGE): tensor
        for name, tensor in tensors.items()
        if name.endswith(_AVERAGE)
    }
    tensors = {**tensors, **averages}
    detector = any("BoxPredictor_" in name for name in tensors)
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = _place(name)
        if name == _ANCHORS:
            state["anchors"] = tensor.reshape(-1, 4)
        if place is None:
            continue
        module, leaf = place
        if detector and module.startswith(_BACKBONE):
            module = f"backbone.{module}"
        state |= _entries(module, leaf, tensor)
    for name in [name for name in state if name.endswith("bn.running_var")]:
        gamma = name.replace("running_var", "weight")
        state.setdefault(gamma, torch.ones_like(state[name]))  # trained with scale=False
    return state


def _place(name: str) -> tuple[str, str] | None:
    """Our module and the leaf that a name stands for."""
    for pattern, ours in _RULES:
        if match := re.fullmatch(f"{pattern}/({_LEAVES})", name):
            return ours(match), match[match.re.groups]
    return None


def _extra(pair: str, half: str) -> str:
    """TensorFlow counts the pairs of extra layers from 2, and the layers of a pair from 1."""
    return f"extras.{int(pair) - 2}.{int(half) - 1}"


def _entries(module: str, leaf: str, tensor: Tensor) -> dict[str, Tensor]:
    plain = module.startswith(("head", "box_heads", "class_heads"))  # without a batch norm
    if leaf in _FOLDED:
        norm = identity_batch_norm(tensor, EPS)
        return {f"{module}.bn.{key}": value for key, value in norm.items()}
    if leaf in _BATCH_NORM:
        return {f"{module}.{_BATCH_NORM[leaf]}": tensor}
    if leaf == "biases":
        return {f"{module}.bias": tensor}
    weight = depthwise_kernel(tensor) if leaf == "depthwise_weights" else kernel(tensor)
    if module == "head.linear":
        weight = weight.flatten(1)
    return {f"{module}.weight" if plain else f"{module}.conv.weight": weight}


def kernel(tensor: Tensor) -> Tensor:
    """TensorFlow's ``[h, w, in, out]`` as torch's ``[out, in, h, w]``."""
    return tensor.permute(3, 2, 0, 1).contiguous()


def depthwise_kernel(tensor: Tensor) -> Tensor:
    """TensorFlow's ``[h, w, channels, multiplier]`` as ``[channels * multiplier, 1, h, w]``."""
    return tensor.flatten(2).permute(2, 0, 1).unsqueeze(1).contiguous()
