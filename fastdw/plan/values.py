"""What the nodes of a traced forward hold, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx


class NotPlannable(Exception):
    """Why a network cannot run as one op; the message names the layer."""


@dataclass(frozen=True)
class Value:
    """What a node of the graph holds (for more kinds, `like` and `parts` see `Joins`).

    Attributes:
        id: the value in the program; of a pooled one the map that is pooled.
        kind: "map" [N, C, H, W], "pooled" [N, C, 1, 1] not computed yet, "flat" the same as [N, C],
            "rows" [N, C, H] (the mean over width), "vector" [N, C] computed; of a tensor also its
            "shape", its "batch" size, or another "size" or attribute, which nothing can use.
        node: the node that computed it, before those that only hand it on.
    """

    id: str
    kind: str
    node: fx.Node
    like: str = ""
    parts: tuple[Value, ...] = ()


def flattens_after_batch(node: fx.Node) -> bool:
    """Say whether `node` flattens all but the batch."""
    axes = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    return axes in ((1, -1), (1, 3))


def kind_of_size(target: Any, kind: str, arguments: tuple[Any, ...]) -> str:
    """The kind of `.size(...)`, of an attribute, or of an item of a shape."""
    if kind in ("batch", "size"):
        return "size"
    whole = ("shape",) if target is getattr else ()
    if kind != "shape" and arguments == whole:
        return "shape"
    return "batch" if target is not getattr and arguments == (0,) else "size"


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """Return an argument that is given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def name_of(target: Any) -> str:
    """Return what to call the function or method of a node."""
    return target if isinstance(target, str) else getattr(target, "__name__", repr(target))
