"""What takes some of a map's channels or another order of them: slices, chunks, channel shuffles.

Nothing is computed before a step reads the result; one ``concat`` then joins, shuffles and cuts.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from fastdw.ops.program import Step
from fastdw.plan.calls import CHANNEL_SHUFFLES, CHUNKS, SPLITS, TRANSPOSES, VIEWS, argument
from fastdw.plan.steps import PlanStep
from fastdw.plan.values import Value

WHOLE = slice(None)


@dataclass(frozen=True)
class Selection:
    """Channels of a map: `count` from `first` on, after a shuffle in `groups`."""

    groups: int
    first: int
    count: int


class Selections:
    """The part of the recorder that selects channels. A value's kind may then also be

    "selected" the channels `selection` of the map ``id``, "chunks" several of them, cut where
    `numbers` says, "groups" a map viewed as [N, numbers[0], C / numbers[0], H, W], "transposed" the
    same with these two axes swapped, "number" the int `numbers[0]`.
    """

    steps: list[PlanStep]
    values: dict[fx.Node, Value]
    selected: dict[tuple[str, Selection], str]

    def _channels(self, value: str) -> int:
        raise NotImplementedError

    def _new_id(self) -> str:
        raise NotImplementedError

    def _select(self, node: fx.Node, source: Value) -> bool:
        """Record a function that selects channels; False if `node` does something else."""
        value = self._selected_by(node, source)
        if value is not None:
            self.values[node] = value
        return value is not None

    def _selected_by(self, node: fx.Node, source: Value) -> Value | None:
        target, kind = node.target, source.kind
        if target is operator.getitem and kind in ("shape", "chunks"):
            return _item(node, source)
        if target is operator.floordiv and kind == "number" and isinstance(node.args[1], int):
            return replace(source, numbers=(source.numbers[0] // node.args[1],), node=node)
        if target == "contiguous" and len(node.args) == 1 and not node.kwargs:
            return source if kind in ("map", "selected", "transposed") else None
        if target in VIEWS:
            return self._viewed(node, source)
        if target in TRANSPOSES and kind == "groups" and node.args[1:] in ((1, 2), (2, 1)):
            return replace(source, kind="transposed", node=node)
        if kind not in ("map", "selected") or source.id == "x" or not self._count(source):
            return None
        if target == "size" and kind == "map" and node.args[1:] in ((1,), (-3,)):
            return replace(source, kind="number", node=node, numbers=(self._count(source),))
        if target in CHANNEL_SHUFFLES:
            return self._shuffled(node, source, argument(node, 1, "groups", 0))
        if target is operator.getitem:
            return self._sliced(node, source, node.args[1])
        return self._cut(node, source)

    def _shuffled(self, node: fx.Node, source: Value, groups: Any) -> Value | None:
        count = self._count(source)
        if not isinstance(groups, int) or groups < 1 or not count or count % groups:
            return None
        whole = self._selected_map(source)
        selection = Selection(groups, 0, count)
        return replace(whole, kind="selected", node=node, selection=selection, numbers=())

    def _count(self, source: Value) -> int:
        if source.kind == "selected":
            assert isinstance(source.selection, Selection)
            return source.selection.count
        return self._channels(source.id)

    def _part(self, node: fx.Node, source: Value, first: int, count: int) -> Value | None:
        if count < 1:
            return None
        was = source.selection
        whole = was if isinstance(was, Selection) else Selection(1, 0, 0)
        selection = Selection(whole.groups, whole.first + first, count)
        return replace(source, kind="selected", node=node, selection=selection)

    def _sliced(self, node: fx.Node, source: Value, index: Any) -> Value | None:
        axes = tuple(axis for axis in index if axis is not Ellipsis) if _is_index(index) else ()
        cut = axes[1] if len(axes) > 1 else None
        if not isinstance(cut, slice) or any(axis != WHOLE for axis in axes[:1] + axes[2:]):
            return None
        bounds = (cut.start, cut.stop, cut.step)
        if any(isinstance(bound, fx.Node) for bound in bounds) or cut.step not in (None, 1):
            return None
        first, last, _ = cut.indices(self._count(source))
        return self._part(node, source, first, last - first)

    def _cut(self, node: fx.Node, source: Value) -> Value | None:
        count = self._count(source)
        if argument(node, 2, "dim", 0) not in (1, -3):
            return None
        if node.target in CHUNKS:
            parts = argument(node, 1, "chunks", 0)
            if not isinstance(parts, int) or parts < 1:
                return None
            size: Any = -(-count // parts)
        elif node.target in SPLITS:
            size = argument(node, 1, "split_size", node.kwargs.get("split_size_or_sections", 0))
        else:
            return None
        if isinstance(size, int) and size > 0:
            sizes = [min(size, count - first) for first in range(0, count, size)]
        elif isinstance(size, (tuple, list)) and all(isinstance(part, int) for part in size):
            sizes = list(size)
        else:
            return None
        if sum(sizes) != count or min(sizes) < 1:
            return None
        chunks = self._part(node, source, 0, count)
        return None if chunks is None else replace(chunks, kind="chunks", numbers=tuple(sizes))

    def _viewed(self, node: fx.Node, source: Value) -> Value | None:
        """A view of a map as groups of channels, or of transposed groups as a map."""
        arguments: tuple[Any, ...] = node.args[1:]
        if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)):
            arguments = tuple(arguments[0])
        sizes = [self._dimension(size) for size in arguments]
        outer, middle = sizes[:1] + sizes[-2:], sizes[1:-2]
        if outer != [(side, source.id) for side in ("batch", "height", "width")]:
            return None
        channels = self._channels(source.id)
        if source.kind == "transposed" and middle in ([channels], [-1]):
            return self._shuffled(node, replace(source, kind="map"), source.numbers[0])
        if source.kind != "map" or len(middle) != 2 or not channels:
            return None
        groups, of_group = middle
        if not isinstance(groups, int) or groups < 1 or of_group not in (-1, channels // groups):
            return None
        return replace(source, kind="groups", node=node, numbers=(groups,))

    def _dimension(self, size: Any) -> int | tuple[str, str]:
        """An int, or which side of which value."""
        if isinstance(size, int):
            return size
        value = self.values.get(size) if isinstance(size, fx.Node) else None
        if value is None:
            return "", ""
        return value.numbers[0] if value.kind == "number" else (value.kind, value.id)

    def _selected_map(self, source: Value) -> Value:
        """`source` as a map that steps may read: computed once, however many read it."""
        if source.kind != "selected":
            return source
        selection = source.selection
        assert isinstance(selection, Selection)
        key = source.id, selection
        if key not in self.selected:
            joined = next((s.step for s in self.steps if s.step.output == source.id), None)
            is_plain = joined is not None and joined.op == "concat" and joined.groups == 1
            if joined is None or not is_plain or joined.first or "," not in joined.input:
                inputs = source.id
            else:
                inputs = joined.input
            step = Step(
                "concat",
                inputs,
                self._new_id(),
                channels=selection.count,
                groups=selection.groups,
                first=selection.first,
            )
            self.steps.append(PlanStep(step, ()))
            self.selected[key] = step.output
        return replace(source, id=self.selected[key], kind="map", selection=None)

    def _shares_memory(self, value: str) -> bool:
        """Whether some other value is a view of this one in torch, or it is one itself."""
        bases = {v.id for v in self.values.values() if v.kind in ("selected", "chunks", "groups")}
        return value in bases or any(value in (k[0], v) for k, v in self.selected.items())


def without_unread(steps: list[PlanStep], outputs: list[str]) -> list[PlanStep]:
    """Leave out concatenations of which only selections are read."""

    def needed() -> Iterator[PlanStep]:
        read = set(outputs)
        for planned in reversed(steps):
            if planned.step.op != "concat" or planned.step.output in read:
                read.update(planned.step.reads)
                yield planned

    return list(needed())[::-1]


def _item(node: fx.Node, source: Value) -> Value | None:
    """The channels of a shape, or one of several chunks."""
    index = node.args[1]
    if not isinstance(index, int):
        return None
    if source.kind == "shape":
        known = index in (1, -3) and source.numbers
        return replace(source, kind="number", node=node) if known else None
    sizes, whole = source.numbers, source.selection
    if not -len(sizes) <= index < len(sizes):
        return None
    index %= len(sizes)
    assert isinstance(whole, Selection)
    part = replace(whole, first=whole.first + sum(sizes[:index]), count=sizes[index])
    return replace(source, kind="selected", node=node, numbers=(), selection=part)


def _is_index(index: Any) -> bool:
    return (
        isinstance(index, tuple)
        and index.count(Ellipsis) <= 1
        and (Ellipsis not in index or index[-1] is Ellipsis)
    )
