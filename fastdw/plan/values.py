"""What the nodes of a traced forward hold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx


class NotPlannable(Exception):
    """Why a network cannot run as one op; the message names the layer."""


@dataclass(frozen=True)
class Value:
    """What a node of the graph holds (for more kinds and fields see `Joins` and
    `Selections`).

    Attributes:
        id: the value in the program; of a pooled one the map that is pooled.
        kind: "map" [N, C, H, W], "gated" a map times a gate, "pooled" [N, C, 1, 1] not computed
            yet, "flat" the same as [N, C], "rows" [N, C, H] (the mean over width), "pixel"
            [N, C, 1, 1] computed, "vector" [N, C] computed; of a tensor also its "shape", its
            "batch" size, or another "size" or attribute, which nothing can use.
        node: the node that computed it, before those that only hand it on.
        gate: the value [N, C] that multiplies a gated map.
    """

    id: str
    kind: str
    node: fx.Node
    gate: str = "-"
    like: str = ""
    parts: tuple[Value, ...] = ()
    numbers: tuple[int, ...] = ()
    selection: object = None
