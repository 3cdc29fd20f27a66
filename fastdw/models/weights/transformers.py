"""transformers' MobileNet V1 and V2: their names to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_PARTS = {"convolution": "conv", "normalization": "bn"}
_LAYERS = {"expand_1x1": "expand", "conv_3x3": "depthwise", "reduce_1x1": "project"}

# The name of a layer -> our module. V1 counts depthwise and pointwise layers in one row, V2 has its
# first block in the stem.
_RULES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"mobilenet_v1\.conv_stem", lambda m: "stem"),
    (
        r"mobilenet_v1\.layer\.(\d+)",
        lambda m: f"blocks.{int(m[1]) // 2}.{('depthwise', 'pointwise')[int(m[1]) % 2]}",
    ),
    (r"mobilenet_v2\.conv_stem\.first_conv", lambda m: "stem"),
    (r"mobilenet_v2\.conv_stem\.(conv_3x3|reduce_1x1)", lambda m: f"blocks.0.{_LAYERS[m[1]]}"),
    (
        r"mobilenet_v2\.layer\.(\d+)\.(expand_1x1|conv_3x3|reduce_1x1)",
        lambda m: f"blocks.{int(m[1]) + 1}.{_LAYERS[m[2]]}",
    ),
    (r"mobilenet_v2\.conv_1x1", lambda m: "last"),
)


def recognizes(keys: Iterable[str]) -> bool:
    """Say whether these are the keys of a MobileNet classifier of transformers."""
    names = set(keys)
    stems = ("mobilenet_v1.conv_stem", "mobilenet_v2.conv_stem.first_conv")
    return any(f"{stem}.convolution.weight" in names for stem in stems)


def renamed(keys: Iterable[str]) -> dict[str, str]:
    """Return our name for each key; keys that these MobileNets do not have are left."""
    return {key: _renamed(key) for key in keys}


def _renamed(key: str) -> str:
    for pattern, ours in _RULES:
        if match := re.fullmatch(rf"{pattern}\.(convolution|normalization)\.(\w+)", key):
            part, leaf = match[match.re.groups - 1], match[match.re.groups]
            return f"{ours(match)}.{_PARTS[part]}.{leaf}"
    return re.sub(r"^classifier\.", "head.linear.", key)
