"""A network as a plain list of layers, for writers that know nothing of torch.

`list_layers` reads the graph of torch.export; `fastdw/benchmark/keras_writer.py` builds Keras
layers from it, in an environment without torch. Nothing is folded here: the converter does that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

Layer = dict[str, Any]


class NotListable(Exception):
    """The network has an operation that the list has no word for."""


class _Reader:
    """The arguments of one node by their names in the schema, and its weights."""

    def __init__(self, node: Node, tensors: dict[str, Tensor]) -> None:
        schema: Any = node.target
        names = [argument.name for argument in schema._schema.arguments]
        self.arguments = {a.name: a.default_value for a in schema._schema.arguments}
        self.arguments |= dict(zip(names, node.args, strict=False)) | node.kwargs
        self.shapes = [argument.meta["val"].shape for argument in node.all_input_nodes]
        self.tensors = tensors
        self.weights: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def keep(self, *names: str) -> None:
        """Keep the tensors of these arguments; one that is None is left out."""
        for name in names:
            node = self.arguments[name]
            if node is None:
                continue
            if node.name not in self.tensors:
                raise NotListable(f"{name} of {node.name} is computed, not a weight")
            self.weights[name] = self.tensors[node.name].detach().numpy()


def list_layers(model: nn.Module, x: Tensor) -> tuple[list[Layer], dict[str, np.ndarray]]:
    """List the layers of `model` for input like `x`.

    Args:
        model: in eval mode, of plain torch operations.
        x: the input, `[batch, channels, height, width]`; the batch is part of the result.

    Returns:
        The layers in order: {"kind", "name", "inputs", ...}, the first of kind "input", the last
        the network's output; and their weights: {"<layer>/<argument>": array}.

    Raises:
        NotListable: an operation has no word here; the message names it.
    """
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    tensors = _weights_of(program)
    layers: list[Layer] = []
    weights: dict[str, np.ndarray] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in tensors:
            layers.append({"kind": "input", "name": node.name, "inputs": [], "shape": [*x.shape]})
        elif node.op == "call_function":
            read = _READERS.get(getattr(node.target, "overloadpacket", node.target))
            if read is None:
                raise NotListable(f"no layer for {node.target}")
            reader = _Reader(node, tensors)
            layer = read(reader)
            inputs = [n.name for n in node.all_input_nodes if n.name not in tensors]
            layers.append({**layer, "name": node.name, "inputs": inputs})
            weights |= {f"{node.name}/{name}": array for name, array in reader.weights.items()}
    outputs = [n.name for n in program.graph.output_node().all_input_nodes]
    if not layers or outputs != [layers[-1]["name"]]:
        raise NotListable(f"expected one output, that of the last layer, got {outputs}")
    return layers, weights


def _weights_of(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Parameters and buffers by the name of their placeholder."""
    signature = program.graph_signature
    names = signature.inputs_to_parameters | signature.inputs_to_buffers
    return {placeholder: program.state_dict[name] for placeholder, name in names.items()}


def _conv(read: _Reader) -> Layer:
    read.keep("weight", "bias")
    padding = read["padding"]
    if padding == "same":
        raise NotListable("padding='same' of a convolution")
    symmetric = [0, 0] if padding == "valid" else list(padding) * (3 - len(padding))
    return {
        "kind": "conv",
        "stride": _pair(read["stride"]),
        "padding": symmetric,
        "dilation": _pair(read["dilation"]),
        "groups": read["groups"],
    }


def _batch_norm(read: _Reader) -> Layer:
    if read["training"]:
        raise NotListable("a batch norm in training mode")
    read.keep("weight", "bias", "running_mean", "running_var")
    return {"kind": "batch_norm", "eps": read["eps"]}


def _clamp(low: str | float, high: str | float) -> Callable[[_Reader], Layer]:
    """A clamp whose ends are numbers, or the names of arguments."""

    def read_clamp(read: _Reader) -> Layer:
        ends = [read[end] if isinstance(end, str) else end for end in (low, high)]
        return {"kind": "clamp", "low": ends[0], "high": None if ends[1] == math.inf else ends[1]}

    return read_clamp


def _add(read: _Reader) -> Layer:
    if not isinstance(read["other"], Node) or read["alpha"] != 1 or len({*read.shapes}) > 1:
        raise NotListable("an addition of other than two tensors of one shape")
    return {"kind": "add"}


def _multiply(read: _Reader) -> Layer:
    if len(read.shapes) != 2 or (1, 1) not in {shape[2:] for shape in read.shapes}:
        raise NotListable("a product of other than an image and a factor for each channel")
    return {"kind": "multiply"}


def _activation(function: str) -> Callable[[_Reader], Layer]:
    return lambda read: {"kind": "activation", "function": function}


def _adaptive_pool(read: _Reader) -> Layer:
    if _pair(read["output_size"]) != [1, 1]:
        raise NotListable(f"a pool to {read['output_size']}")
    return {"kind": "global_pool", "keep": True}


def _mean(read: _Reader) -> Layer:
    if sorted(d % 4 for d in read["dim"]) != [2, 3] or len(read.shapes[0]) != 4:
        raise NotListable(f"a mean over the dimensions {read['dim']}")
    return {"kind": "global_pool", "keep": bool(read["keepdim"])}


def _flatten(read: _Reader) -> Layer:
    if read["start_dim"] != 1 or math.prod(read.shapes[0][2:]) != 1:
        raise NotListable("a flatten of more than channels")
    return {"kind": "flatten"}


def _linear(read: _Reader) -> Layer:
    read.keep("weight", "bias")
    return {"kind": "linear"}


def _dropout(read: _Reader) -> Layer:
    if read["train"]:
        raise NotListable("a dropout in training mode")
    return {"kind": "identity"}


def _pad(read: _Reader) -> Layer:
    sides = list(read["pad"])
    if read["mode"] != "constant" or read["value"] not in (None, 0) or len(sides) != 4:
        raise NotListable("a padding by other than zeros of height and width")
    return {"kind": "pad", "sides": sides}


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


_ATEN = torch.ops.aten
_READERS: dict[Any, Callable[[_Reader], Layer]] = {
    _ATEN.conv2d: _conv,
    _ATEN.batch_norm: _batch_norm,
    _ATEN.relu: _clamp(0, math.inf),
    _ATEN.relu_: _clamp(0, math.inf),
    _ATEN.relu6: _clamp(0, 6),
    _ATEN.relu6_: _clamp(0, 6),
    _ATEN.hardtanh: _clamp("min_val", "max_val"),
    _ATEN.hardtanh_: _clamp("min_val", "max_val"),
    _ATEN.hardswish: _activation("hardswish"),
    _ATEN.hardswish_: _activation("hardswish"),
    _ATEN.hardsigmoid: _activation("hardsigmoid"),
    _ATEN.hardsigmoid_: _activation("hardsigmoid"),
    _ATEN.silu: _activation("silu"),
    _ATEN.silu_: _activation("silu"),
    _ATEN.sigmoid: _activation("sigmoid"),
    _ATEN.sigmoid_: _activation("sigmoid"),
    _ATEN.mul: _multiply,
    _ATEN.mul_: _multiply,
    _ATEN.add: _add,
    _ATEN.add_: _add,
    _ATEN.adaptive_avg_pool2d: _adaptive_pool,
    _ATEN.mean: _mean,
    _ATEN.flatten: _flatten,
    _ATEN.linear: _linear,
    _ATEN.dropout: _dropout,
    _ATEN.dropout_: _dropout,
    _ATEN.pad: _pad,
}
