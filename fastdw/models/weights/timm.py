"""timm's ``mobilenetv1_*`` and ``mobilenetv2_*``: their names to ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

_INVERTED_RESIDUAL = {
    "conv_pw": "expand.conv",
    "bn1": "expand.bn",
    "conv_dw": "depthwise.conv",
    "bn2": "depthwise.bn",
    "conv_pwl": "project.conv",
    "bn3": "project.bn",
}
_SEPARABLE = {"conv_dw": "depthwise.conv", "bn1": "depthwise.bn"}
_EDGES = {
    "conv_stem": "stem.conv",
    "bn1": "stem.bn",
    "conv_head": "last.conv",
    "bn2": "last.bn",
    "classifier": "head.linear",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(\w+)\.(\w+)")
_EDGE = re.compile(r"(\w+)\.(\w+)")


def recognizes(keys: Iterable[str]) -> bool:
    """Say whether these are the keys of timm's MobileNet V1 or V2."""
    return {"conv_stem.weight", "blocks.0.0.conv_dw.weight", "classifier.weight"} <= set(keys)


def renamed(keys: Iterable[str]) -> dict[str, str]:
    """Return our name for each key; keys that timm's MobileNets do not have are left."""
    known = dict.fromkeys(keys)
    matches = {key: match for key in known if (match := _BLOCK.fullmatch(key))}
    places = sorted({(int(match[1]), int(match[2])) for match in matches.values()})
    second = "project" if "conv_head.weight" in known else "pointwise"  # V2's first block, or V1
    separable = {**_SEPARABLE, "conv_pw": f"{second}.conv", "bn2": f"{second}.bn"}
    names = {}
    for key in known:
        if match := matches.get(key):
            stage, block, layer, leaf = match.groups()
            expands = f"blocks.{stage}.{block}.conv_pwl.weight" in known
            ours = (_INVERTED_RESIDUAL if expands else separable).get(layer, layer)
            names[key] = f"blocks.{places.index((int(stage), int(block)))}.{ours}.{leaf}"
        elif edge := _EDGE.fullmatch(key):
            names[key] = f"{_EDGES.get(edge[1], edge[1])}.{edge[2]}"
        else:
            names[key] = key
    return names
