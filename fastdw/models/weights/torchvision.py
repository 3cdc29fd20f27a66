"""torchvision's ``mobilenet_v2``: its names to ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WITH_EXPANSION = {
    "0.0": "expand.conv",
    "0.1": "expand.bn",
    "1.0": "depthwise.conv",
    "1.1": "depthwise.bn",
    "2": "project.conv",
    "3": "project.bn",
}
_WITHOUT_EXPANSION = {
    "0.0": "depthwise.conv",
    "0.1": "depthwise.bn",
    "1": "project.conv",
    "2": "project.bn",
}
_BLOCK = re.compile(r"features\.(\d+)\.conv\.(\d\.\d|\d)\.(\w+)")
_CONV_BN = re.compile(r"features\.(\d+)\.([01])\.(\w+)")


def recognizes(keys: Iterable[str]) -> bool:
    """Say whether these are the keys of torchvision's MobileNet V2."""
    names = set(keys)
    return {"features.0.0.weight", "features.1.conv.0.0.weight", "classifier.1.weight"} <= names


def renamed(keys: Iterable[str]) -> dict[str, str]:
    """Return our name for each key; keys that torchvision's MobileNet V2 does not have are left."""
    known = dict.fromkeys(keys)
    names = {}
    for key in known:
        if block := _BLOCK.fullmatch(key):
            index, place, leaf = block.groups()
            expands = f"features.{index}.conv.3.weight" in known
            layer = (_WITH_EXPANSION if expands else _WITHOUT_EXPANSION).get(place, place)
            names[key] = f"blocks.{int(index) - 1}.{layer}.{leaf}"
        elif edge := _CONV_BN.fullmatch(key):
            index, place, leaf = edge.groups()
            layer = "stem" if index == "0" else "last"
            names[key] = f"{layer}.{('conv', 'bn')[int(place)]}.{leaf}"
        else:
            names[key] = key.replace("classifier.1.", "head.linear.")
    return names
