"""TensorFlow.js weights: a JSON manifest beside binary shards, fp32 or quantised to 8 or 16 bits.

A layers model or graph model (``model.json``) holds the manifest under ``weightsManifest``; a bare
manifest is a list of groups.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdw.models.weights.formats.opening import existing_file

_DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "int32": "<i4",
    "uint8": "u1",
    "uint16": "<u2",
    "bool": "?",
}


def read_tfjs(path: str | Path) -> dict[str, Tensor]:
    """Read the weights that a TensorFlow.js manifest lists, by name and in TensorFlow's layout.

    A quantised weight is ``stored * scale + min``. All numbers come as fp32.

    Args:
        path: the manifest or the ``model.json``; its shards lie in the same folder.

    Raises:
        FileNotFoundError: there is no such file, or a shard is missing.
        ValueError: it is no manifest, or a shard has another length than the manifest says.
    """
    path = existing_file(path)
    try:
        manifest = json.loads(path.read_bytes())
        groups = manifest["weightsManifest"] if isinstance(manifest, dict) else manifest
        listed = [(list(group["paths"]), list(group["weights"])) for group in groups]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"path: {path} is no TensorFlow.js manifest ({error})") from error
    tensors: dict[str, Tensor] = {}
    for paths, weights in listed:
        shards = b"".join(_shard(path, name) for name in paths)
        try:
            tensors |= _split(weights, shards)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"path: {path}: {error}") from error
    return tensors


def _shard(manifest: Path, name: Any) -> bytes:
    """The bytes of a shard, which lies beside the manifest and nowhere else."""
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ValueError(f"path: {manifest}: the shard {name!r} is no file beside the manifest")
    shard = manifest.with_name(name)
    if not shard.is_file():
        raise FileNotFoundError(f"path: no file {str(shard)!r}, which {manifest.name} names")
    return shard.read_bytes()


def _split(weights: list[dict[str, Any]], data: bytes) -> dict[str, Tensor]:
    """Cut the shards into the weights that the manifest lists, one after another."""
    tensors, offset_bytes = {}, 0
    for weight in weights:
        name, quantization = weight["name"], weight.get("quantization")
        kind = quantization["dtype"] if quantization else weight["dtype"]
        if kind not in _DTYPES:
            raise ValueError(f"{name!r} is {kind}, a type that is not read")
        dtype, shape = np.dtype(_DTYPES[kind]), [int(size) for size in weight["shape"]]
        count = math.prod(shape)
        end = offset_bytes + count * dtype.itemsize
        if min(shape, default=0) < 0 or end > len(data):
            raise ValueError(f"the shards end before {name!r}: damaged or truncated")
        values = np.frombuffer(data, dtype, count, offset_bytes).reshape(shape)
        if quantization and "scale" in quantization:
            values = values.astype(np.float64) * quantization["scale"] + quantization["min"]
        tensors[str(name)] = torch.from_numpy(np.array(values, np.float32))
        offset_bytes = end
    if offset_bytes != len(data):
        raise ValueError(f"the shards have {len(data)} bytes, the manifest lists {offset_bytes}")
    return tensors
