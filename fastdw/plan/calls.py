"""The functions that a traced forward may call, and what they were given."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

ACTIVATION_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu6",
    F.hardswish: "hardswish",
    F.silu: "silu",
    "relu": "relu",
    "relu_": "relu",
    F.hardsigmoid: "hardsigmoid",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
}

ADDITIONS_IN_PLACE: tuple[Any, ...] = (operator.iadd, "add_")
ADDITIONS: tuple[Any, ...] = (operator.add, torch.add, "add", *ADDITIONS_IN_PLACE)
PRODUCTS_IN_PLACE: tuple[Any, ...] = (operator.imul, "mul_")
PRODUCTS: tuple[Any, ...] = (operator.mul, torch.mul, "mul", *PRODUCTS_IN_PLACE)
DROPOUTS: tuple[Any, ...] = (F.dropout, F.dropout2d, F.alpha_dropout, torch.dropout)
MEANS: tuple[Any, ...] = (torch.mean, "mean")
FLATTENINGS: tuple[Any, ...] = (torch.flatten, "flatten")
CONCATENATIONS: tuple[Any, ...] = (torch.cat, torch.concat, torch.concatenate)
POOL_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
CHUNKS: tuple[Any, ...] = (torch.chunk, "chunk")
SPLITS: tuple[Any, ...] = (torch.split, "split")
CHANNEL_SHUFFLES: tuple[Any, ...] = (F.channel_shuffle, torch.channel_shuffle)
TRANSPOSES: tuple[Any, ...] = (torch.transpose, "transpose")
VIEWS: tuple[Any, ...] = (torch.reshape, "reshape", "view")

SETTINGS: dict[Any, set[str]] = {
    **dict.fromkeys(ACTIVATION_FUNCTIONS, {"inplace"}),
    **dict.fromkeys(DROPOUTS, {"p", "training", "inplace"}),
    **dict.fromkeys(MEANS, {"dim", "keepdim"}),
    **dict.fromkeys(FLATTENINGS, {"start_dim", "end_dim"}),
    **dict.fromkeys(CONCATENATIONS, {"dim"}),
    **dict.fromkeys(CHUNKS, {"chunks", "dim"}),
    **dict.fromkeys(SPLITS, {"split_size", "split_size_or_sections", "dim"}),
    **dict.fromkeys(CHANNEL_SHUFFLES, {"groups"}),
    F.max_pool2d: {*POOL_SETTINGS},
    F.interpolate: {
        *("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor"),
        "antialias",
    },
}
"""Keyword arguments that functions may come with; with any other they are refused."""


def flattens_after_batch(node: fx.Node) -> bool:
    axes = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    return axes in ((1, -1), (1, 3))


def size_kind(target: Any, kind: str, arguments: tuple[Any, ...]) -> str:
    """The kind of `.size(...)`, of an attribute, or of an item of a shape."""
    if kind in ("batch", "size"):
        return "size"
    whole = ("shape",) if target is getattr else ()
    if kind != "shape" and arguments == whole:
        return "shape"
    return "batch" if target is not getattr and arguments == (0,) else "size"


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def target_name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", repr(target))
