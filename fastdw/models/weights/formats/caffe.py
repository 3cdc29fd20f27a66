"""Caffe's ``.caffemodel``: the blobs of every layer. Their layout is torch's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdw.models.weights.formats.opening import existing_file
from fastdw.models.weights.formats.protobuf_schema import Schema, message_classes, parse_file

# The fields of caffe.proto that hold weights; V1LayerParameter is what Caffe wrote until 2014.
SCHEMA: Schema = {
    "BlobShape": {"dim": (1, "int64*")},
    "BlobProto": {
        "num": (1, "int32"),
        "channels": (2, "int32"),
        "height": (3, "int32"),
        "width": (4, "int32"),
        "data": (5, "float*"),
        "shape": (7, "BlobShape"),
        "double_data": (8, "double*"),
    },
    "LayerParameter": {"name": (1, "string"), "blobs": (7, "BlobProto*")},
    "V1LayerParameter": {"name": (4, "string"), "blobs": (6, "BlobProto*")},
    "NetParameter": {"layers": (2, "V1LayerParameter*"), "layer": (100, "LayerParameter*")},
}


def read_caffe(path: str | Path) -> dict[str, Tensor]:
    """Read a ``.caffemodel``.

    Returns:
        fp32 tensors called ``"layer/number"``: ``"conv1/dw/0"`` is the first blob of ``conv1/dw``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or truncated, or holds no weights.
        ImportError: the package ``protobuf`` is not installed.
    """
    path = existing_file(path)
    network = message_classes("fastdw.caffe", SCHEMA)["NetParameter"]()
    parse_file(network, path)
    tensors = {}
    for layer in (*network.layers, *network.layer):
        for number, blob in enumerate(layer.blobs):
            try:
                tensors[f"{layer.name}/{number}"] = _tensor(blob)
            except ValueError as error:
                raise ValueError(f"path: {path} is damaged: {layer.name!r}: {error}") from error
    if not tensors:
        raise ValueError(f"path: {path} is no Caffe model: it holds no weights")
    return tensors


def _tensor(blob: Any) -> Tensor:
    if blob.HasField("shape"):
        shape = list(blob.shape.dim)
    else:
        shape = [blob.num, blob.channels, blob.height, blob.width]
    values = np.array(blob.data or blob.double_data, np.float32)
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{len(values)} numbers for a blob of shape {shape}")
    return torch.from_numpy(values.reshape(shape))
