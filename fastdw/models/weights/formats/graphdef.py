"""Frozen TensorFlow graphs (``.pb``): the constants by name, and the padding of convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdw.models.weights.formats.opening import existing_file
from fastdw.models.weights.formats.protobuf_schema import Schema, message_classes, parse_file
from fastdw.models.weights.formats.tensorflow_types import FLOATING, SHAPE_SCHEMA

# The fields of tensorflow/core/framework/{graph,node_def,attr_value,tensor}.proto that
# constants and convolutions have.
SCHEMA: Schema = {
    **SHAPE_SCHEMA,
    "TensorProto": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "TensorShapeProto"),
        "tensor_content": (4, "bytes"),
        "half_val": (13, "int32*"),
        "float_val": (5, "float*"),
    },
    "AttrValue": {"s": (2, "bytes"), "tensor": (8, "TensorProto")},
    "NodeDef": {
        "name": (1, "string"),
        "op": (2, "string"),
        "attr": (5, "map AttrValue"),
    },
    "GraphDef": {"node": (1, "NodeDef*")},
}


@dataclass(frozen=True)
class FrozenGraph:
    """What a frozen graph holds.

    Attributes:
        tensors: its floating-point constants by name, as fp32 and in TensorFlow's layout.
        paddings: of its convolutions: ``{"SAME"}``, ``{"SAME", "VALID"}``, ...
    """

    tensors: dict[str, Tensor]
    paddings: frozenset[str]


def read_graphdef(path: str | Path) -> FrozenGraph:
    """Read the constants of a TensorFlow GraphDef. No node is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or truncated, or no frozen graph.
        ImportError: the package ``protobuf`` is not installed.
    """
    path = existing_file(path)
    graph = message_classes("fastdw.graphdef", SCHEMA)["GraphDef"]()
    parse_file(graph, path)
    tensors, paddings = {}, set()
    for node in graph.node:
        if node.op == "Const" and node.attr["value"].tensor.dtype in FLOATING:
            try:
                tensors[node.name] = _tensor(node.attr["value"].tensor)
            except ValueError as error:
                raise ValueError(f"path: {path} is damaged: {node.name!r}: {error}") from error
        elif node.op in ("Conv2D", "DepthwiseConv2dNative"):
            paddings.add(node.attr["padding"].s.decode("ascii", "replace"))
    if not tensors:
        raise ValueError(f"path: {path} is no frozen TensorFlow graph: it holds no weights")
    return FrozenGraph(tensors, frozenset(paddings))


def _tensor(proto: Any) -> Tensor:
    """A constant: its bytes, or a list of values whose last one fills the rest."""
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if min(shape, default=0) < 0:
        raise ValueError(f"the shape {shape} is not known")
    dtype = np.dtype(FLOATING[proto.dtype])
    if proto.tensor_content:
        values = np.frombuffer(proto.tensor_content, dtype)
    elif dtype == np.float16:
        values = np.array(proto.half_val, np.uint16).view(np.float16)
    else:
        values = np.array(proto.float_val, np.float32)
    count = math.prod(shape)
    if not proto.tensor_content and 0 < len(values) < count <= MOST_REPEATED:
        values = np.concatenate((values, np.repeat(values[-1:], count - len(values))))
    if len(values) != count:
        raise ValueError(f"expected {count} numbers for the shape {shape}, got {len(values)}")
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


MOST_REPEATED = 1 << 24
"""A constant of one value may stand for more numbers than the file has bytes; up to this many."""
