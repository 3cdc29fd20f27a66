"""What pools a map over its pixels in a plan, and what makes [N, C] of the result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from fastdw.plan.calls import argument
from fastdw.plan.values import NotPlannable, Value

FLATTENED = ("pooled", "pixel", "flat", "vector")
"""Kinds of values that may be viewed as [N, C]."""


class Pools:
    """The part of the recorder that pools."""

    values: dict[fx.Node, Value]

    def _channels(self, value: str) -> int:
        raise NotImplementedError

    def _is_flat(self, shape: tuple[Any, ...], source: Value) -> bool:
        """Say whether a view of `source` as `shape` is [batch, channels]."""
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        if len(shape) != 2 or source.kind not in FLATTENED:
            return False
        batch, channels = shape
        knows_channels = not isinstance(channels, fx.Node) and channels == self._channels(source.id)
        if isinstance(batch, fx.Node) and self.values[batch].kind == "batch":
            return knows_channels or channels == -1
        return knows_channels and batch == -1

    def _pool(self, node: fx.Node, source: Value, flatten: bool, name: str) -> None:
        kind = "flat" if flatten else "pooled"
        if source.id == "x" and self._channels("x"):
            kind = "pooled input"  # which only a 1x1 convolution reads
        elif source.kind != "map" or source.id == "x":
            raise NotPlannable(f"{name}: pools something else than a feature map")
        self.values[node] = Value(source.id, kind, node)

    def _flatten(self, node: fx.Node, source: Value, name: str) -> None:
        if source.kind not in FLATTENED:
            raise NotPlannable(f"{name}: flattens a {source.kind}")
        kind = {"pooled": "flat", "pixel": "vector"}.get(source.kind, source.kind)
        self.values[node] = replace(source, kind=kind, node=node)

    def _mean(self, node: fx.Node, source: Value) -> None:
        axes = argument(node, 1, "dim", None)
        keeps = bool(argument(node, 2, "keepdim", False))
        if isinstance(axes, (tuple, list)):
            axes = tuple(axes)
        if source.kind == "map" and axes in ((2, 3), (3, 2), (-2, -1), (-1, -2)):
            self._pool(node, source, not keeps, node.name)
        elif source.kind == "map" and axes in (3, -1) and not keeps:
            self.values[node] = Value(source.id, "rows", node)
        elif source.kind == "rows" and axes in (2, -1) and not keeps:
            self.values[node] = Value(source.id, "flat", node)
        else:
            raise NotPlannable(f"{node.name}: a mean that is no global average pool")
