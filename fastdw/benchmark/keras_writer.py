"""Write a `.tflite` file from a list of layers: `python keras_writer.py FOLDER`.

Runs in the environment of `make bench-env`, which has TensorFlow and no torch. FOLDER holds
`layers.json` and `weights.npz` (`fastdw/benchmark/layer_list.py`) and gets `model.tflite`, in fp32.
Each layer becomes its Keras layer; folding and fusing is left to TensorFlow's converter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Weights = dict[str, np.ndarray]


def build(layers: list[dict[str, Any]], weights: Weights) -> Any:
    """The Keras model of a list of layers, NHWC, with its weights."""
    values: dict[str, Any] = {}
    for layer in layers:
        name = layer["name"]
        own = {
            key.rpartition("/")[2]: w for key, w in weights.items() if key.startswith(f"{name}/")
        }
        inputs = [values[source] for source in layer["inputs"]]
        values[name] = BUILDERS[layer["kind"]](layer, own, *inputs)
    return keras.Model(values[layers[0]["name"]], values[layers[-1]["name"]])


def _input(layer: dict[str, Any], weights: Weights) -> Any:
    batch, channels, height, width = layer["shape"]
    return keras.Input(batch_shape=(batch, height, width, channels))


def _conv(layer: dict[str, Any], weights: Weights, x: Any) -> Any:
    weight = weights["weight"]
    channels_out, group_channels, *kernel = weight.shape
    padding = "valid"
    if any(layer["padding"]):
        if _is_same(layer, kernel):
            padding = "same"
        else:
            x = keras.layers.ZeroPadding2D(tuple(layer["padding"]))(x)
    options = {
        "kernel_size": tuple(kernel),
        "strides": tuple(layer["stride"]),
        "dilation_rate": tuple(layer["dilation"]),
        "padding": padding,
        "use_bias": "bias" in weights,
    }
    groups = layer["groups"]
    if groups > 1 and group_channels == 1 and groups == x.shape[-1]:
        # [channels * multiplier, 1, height, width] to [height, width, channels, multiplier]
        kernel_weight = weight.reshape(groups, -1, *kernel).transpose(2, 3, 0, 1)
        conv = keras.layers.DepthwiseConv2D(depth_multiplier=channels_out // groups, **options)
    else:
        kernel_weight = weight.transpose(2, 3, 1, 0)
        conv = keras.layers.Conv2D(channels_out, groups=groups, **options)
    y = conv(x)
    conv.set_weights([kernel_weight, *([weights["bias"]] if "bias" in weights else [])])
    return y


def _is_same(layer: dict[str, Any], kernel: list[int]) -> bool:
    """Whether Keras' "same" pads as the list says; with a stride it depends on the input's size."""
    reach = [(k - 1) * d for k, d in zip(kernel, layer["dilation"], strict=True)]
    return layer["stride"] == [1, 1] and [2 * p for p in layer["padding"]] == reach


def _batch_norm(layer: dict[str, Any], weights: Weights, x: Any) -> Any:
    norm = keras.layers.BatchNormalization(
        epsilon=layer["eps"], center="bias" in weights, scale="weight" in weights
    )
    y = norm(x)
    names = ("weight", "bias", "running_mean", "running_var")
    norm.set_weights([weights[name] for name in names if name in weights])
    return y


def _clamp(layer: dict[str, Any], weights: Weights, x: Any) -> Any:
    if layer["low"] != 0:
        raise ValueError(f"no Keras layer for a clamp from {layer['low']}")
    return keras.layers.ReLU(max_value=layer["high"])(x)


def _activation(layer: dict[str, Any], weights: Weights, x: Any) -> Any:
    """As Keras' own MobileNet V3 and EfficientNet spell them: the converter knows these forms."""

    def hardsigmoid() -> Any:
        return keras.layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)

    functions = {
        "hardsigmoid": hardsigmoid,
        "hardswish": lambda: keras.layers.Multiply()([x, hardsigmoid()]),
        "silu": lambda: keras.layers.Activation("silu")(x),
        "sigmoid": lambda: keras.layers.Activation("sigmoid")(x),
    }
    return functions[layer["function"]]()


def _pad(layer: dict[str, Any], weights: Weights, x: Any) -> Any:
    left, right, top, bottom = layer["sides"]
    return keras.layers.ZeroPadding2D(((top, bottom), (left, right)))(x)


def _linear(layer: dict[str, Any], weights: Weights, x: Any) -> Any:
    weight = weights["weight"]
    linear = keras.layers.Dense(weight.shape[0], use_bias="bias" in weights)
    y = linear(x)
    linear.set_weights([weight.T, *([weights["bias"]] if "bias" in weights else [])])
    return y


def _global_pool(layer: dict[str, Any], weights: Weights, x: Any) -> Any:
    return keras.layers.GlobalAveragePooling2D(keepdims=layer["keep"])(x)


BUILDERS: dict[str, Callable[..., Any]] = {
    "input": _input,
    "conv": _conv,
    "batch_norm": _batch_norm,
    "clamp": _clamp,
    "activation": _activation,
    "add": lambda layer, weights, x, y: keras.layers.Add()([x, y]),
    "multiply": lambda layer, weights, x, y: keras.layers.Multiply()([x, y]),
    "pad": _pad,
    "global_pool": _global_pool,
    "flatten": lambda layer, weights, x: keras.layers.Flatten()(x),
    "linear": _linear,
    "identity": lambda layer, weights, x: x,
}


def main() -> None:
    folder = Path(sys.argv[1])
    layers = json.loads((folder / "layers.json").read_text())
    with np.load(folder / "weights.npz") as file:
        model = build(layers, dict(file))
    (folder / "model.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


if __name__ == "__main__":
    main()
