"""Keras models and weights in HDF5 (``.h5``), as Keras 1 to 3 write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdw.models.weights.formats.opening import damaged, existing_file

MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class KerasModel:
    """What an ``.h5`` file of Keras holds.

    Attributes:
        tensors: the weights as ``"layer/weight"``, such as ``"Conv1/kernel"``, in Keras' layout.
        padding: of its convolutions: ``same`` or ``valid``, and what ``ZeroPadding2D`` layers add;
            empty if the file holds weights only.
    """

    tensors: dict[str, Tensor]
    padding: str


def read_keras(path: str | Path) -> KerasModel:
    """Read the weights of a Keras ``.h5`` file; its optimizer's state is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or truncated, or not one of Keras'.
        ImportError: the package ``h5py`` is not installed.
    """
    path = existing_file(path)
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f".h5 files need the package h5py ({error})") from error
    tensors: dict[str, Tensor] = {}

    def collect(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset) and found.dtype.kind == "f":
            if found.external or found.is_virtual:
                raise ValueError(f"its {name} lies in another file, which is not read")
            if "/vars/" in name or _name(name) in tensors:
                raise ValueError(f"its weights have no names of their own ({name}), save as .h5")
            tensors[_name(name)] = torch.from_numpy(found[()]).float()

    try:
        with h5py.File(path, "r") as file:
            weights = file["model_weights"] if "model_weights" in file else file
            weights.visititems(collect)
            config = json.loads(file.attrs.get("model_config", "{}"))
        padding = ", ".join(sorted(set(_paddings(config))))
    except Exception as error:  # the HDF5 library follows whatever offsets the bytes hold
        raise damaged(path, error) from error
    if not tensors:
        raise ValueError(f"path: {path} holds no weights of Keras")
    return KerasModel(tensors, padding)


def _name(path: str) -> str:
    """The last two parts: files repeat a layer's name, nest models, and append ``:0``."""
    *_, layer, weight = ("", *path.split("/"))
    return f"{layer}/{weight.removesuffix(':0')}".removeprefix("/")


def _paddings(config: dict[str, Any]) -> Iterator[str]:
    """The padding of every layer, those of nested models too."""
    settings = config.get("config", {})
    for layer in settings.get("layers", []):
        if layer["class_name"] == "ZeroPadding2D":
            yield f"ZeroPadding2D {layer['config']['padding']}"
        elif layer["class_name"] in ("Conv2D", "DepthwiseConv2D"):
            yield str(layer["config"]["padding"])
        yield from _paddings(layer)
