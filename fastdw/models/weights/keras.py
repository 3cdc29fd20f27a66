"""Keras' ``MobileNet`` and ``MobileNetV2`` applications: their names to ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from fastdw.models.weights.slim import depthwise_kernel, kernel

_BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_CLASSIFIERS = ("dense", "predictions", "conv_preds")

# The name of a layer -> our module. V1's stem is conv1, V2's Conv1.
_RULES = (
    (r"[Cc]onv1", "stem.conv"),
    (r"conv1_bn|bn_Conv1", "stem.bn"),
    (r"conv_(?P<kind>dw|pw)_(?P<v1>\d+)(?P<bn>_bn)?", ""),
    (r"expanded_conv_(?P<layer>depthwise|project)(?P<bn>_BN)?", ""),
    (r"block_(?P<v2>\d+)_(?P<layer>expand|depthwise|project)(?P<bn>_BN)?", ""),
    (r"Conv_1", "last.conv"),
    (r"Conv_1_bn", "last.bn"),
)
_V1_LAYERS = {"dw": "depthwise", "pw": "pointwise"}


def recognizes(keys: Iterable[str]) -> bool:
    """Say whether these are weights of Keras' MobileNet V1 or V2."""
    names = set(keys)
    return any(
        {"Conv1/kernel", f"expanded_conv_depthwise/{kernel_name}"} <= names
        or {"conv1/kernel", f"conv_dw_1/{kernel_name}"} <= names
        for kernel_name in ("kernel", "depthwise_kernel")
    )


def translated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under our names and in torch's layout; an unknown name stays as it is."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition("/")
        module = "head.linear" if layer.startswith(_CLASSIFIERS) else _module(layer)
        if module is None:
            state[name] = tensor
        elif leaf in _BATCH_NORM:
            state[f"{module}.{_BATCH_NORM[leaf]}"] = tensor
        elif leaf == "bias":
            state[f"{module}.bias"] = tensor
        else:
            state[f"{module}.weight"] = _weight(module, leaf, tensor)
    return state


def _weight(module: str, leaf: str, tensor: Tensor) -> Tensor:
    if module == "head.linear":  # a Dense [in, out], or a 1x1 Conv2D in V1
        return tensor.reshape(-1, tensor.shape[-1]).T.contiguous()
    depthwise = leaf == "depthwise_kernel" or ".depthwise." in module
    return depthwise_kernel(tensor) if depthwise else kernel(tensor)


def _module(layer: str) -> str | None:
    for pattern, fixed in _RULES:
        match = re.fullmatch(pattern, layer)
        if match is None:
            continue
        if fixed:
            return fixed
        groups = match.groupdict()
        leaf = "bn" if groups["bn"] else "conv"
        if "kind" in groups:
            return f"blocks.{int(groups['v1']) - 1}.{_V1_LAYERS[groups['kind']]}.{leaf}"
        return f"blocks.{int(groups.get('v2') or 0)}.{groups['layer']}.{leaf}"
    return None
