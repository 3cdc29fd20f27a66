"""MobileNet-SSD's names in Caffe to ours: BatchNorm and Scale layers apart, or merged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from fastdw.models.weights.convolution import identity_batch_norm

EPS = 1e-5
"""Of Caffe's BatchNorm layers."""

_MAPS = ("conv11", "conv13", "conv14_2", "conv15_2", "conv16_2", "conv17_2")
_RULES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"conv0", lambda m: "stem"),
    (r"conv(\d+)/dw", lambda m: f"blocks.{int(m[1]) - 1}.depthwise"),
    (r"conv([1-9]|1[0-3])", lambda m: f"blocks.{int(m[1]) - 1}.pointwise"),
    (r"conv(1[4-7])_([12])", lambda m: f"extras.{int(m[1]) - 14}.{int(m[2]) - 1}"),
    (r"(conv\w+)_mbox_loc", lambda m: f"box_heads.{_MAPS.index(m[1])}"),
    (r"(conv\w+)_mbox_conf", lambda m: f"class_heads.{_MAPS.index(m[1])}"),
    (r"fc7", lambda m: "head.linear"),
)


def recognizes(keys: Iterable[str]) -> bool:
    """Say whether these are the blobs of a MobileNet V1 as MobileNet-SSD names them."""
    return {"conv0/0", "conv1/dw/0", "conv13/0"} <= set(keys)


def translated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under our names; an unknown name stays as it is.

    Caffe's BatchNorm keeps sums and the number to divide them by. A merged one becomes a batch norm
    that only adds the bias.
    """
    detector = any("_mbox_" in name for name in tensors)
    state: dict[str, Tensor] = {}
    for layer in dict.fromkeys(name.rpartition("/")[0] for name in tensors):
        blobs = [tensors[name] for name in tensors if name.rpartition("/")[0] == layer]
        conv = layer.removesuffix("/bn").removesuffix("/scale")
        module = _module(conv)
        if module is None:
            state |= {f"{layer}/{number}": blob for number, blob in enumerate(blobs)}
            continue
        if detector and module.startswith(("stem", "blocks")):
            module = f"backbone.{module}"
        if layer.endswith("/bn"):
            factor = blobs[2].item() or 1.0
            state[f"{module}.bn.running_mean"] = blobs[0] / factor
            state[f"{module}.bn.running_var"] = blobs[1] / factor
        elif layer.endswith("/scale"):
            state[f"{module}.bn.weight"], state[f"{module}.bn.bias"] = blobs
        else:
            state |= _convolution(module, blobs)
    return state


def _convolution(module: str, blobs: list[Tensor]) -> dict[str, Tensor]:
    if module == "head.linear":
        return {f"{module}.weight": blobs[0].flatten(1), f"{module}.bias": blobs[1]}
    if module.startswith(("box_heads", "class_heads")):
        return {f"{module}.weight": blobs[0], f"{module}.bias": blobs[1]}
    state = {f"{module}.conv.weight": blobs[0]}
    if len(blobs) > 1:
        norm = identity_batch_norm(blobs[1], EPS)
        state |= {f"{module}.bn.{key}": value for key, value in norm.items()}
    return state


def _module(layer: str) -> str | None:
    for pattern, ours in _RULES:
        if match := re.fullmatch(pattern, layer):
            return ours(match)
    return None
