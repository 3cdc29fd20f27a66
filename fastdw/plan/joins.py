"""What joins maps in a plan: concatenations, resizes, and the image-level feature of DeepLab."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastdw.geometry import normalize_pair
from fastdw.nn.fused_module import ConvUnit, FusedModule, NotFusable
from fastdw.nn.units import Unit, check_units
from fastdw.ops.program import Step
from fastdw.plan.calls import CONCATENATIONS, POOL_SETTINGS, argument
from fastdw.plan.channels import Selections
from fastdw.plan.steps import PlanStep, activate, step_of
from fastdw.plan.values import Value

ADDITIONS: tuple[Any, ...] = (operator.add, torch.add)
UPSAMPLINGS: tuple[type, ...] = (nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d)


@dataclass(frozen=True)
class SlicedUnit(ConvUnit):
    """A 1x1 convolution over some of its input channels, with its bias or without.

    Args:
        ranges: (first, last) of the input channels.
        has_bias: whether the bias is added here.
    """

    ranges: tuple[tuple[int, int], ...] = ()
    has_bias: bool = True

    @property
    def weight(self) -> Tensor:
        return torch.cat([self.conv.weight[:, first:last] for first, last in self.ranges], 1)

    def scale_bias(self) -> tuple[Tensor | None, Tensor | None]:
        scale, bias = super().scale_bias()
        return scale, bias if self.has_bias else None


class Joins(Selections):
    """The part of the recorder that joins maps. A value's kind may then also be

    "broadcast" a pixel at the size of the map ``like``, "mixed" a
    concatenation of maps and broadcasts, "zeros" a map of zeros; "sides", "height" and "width" of
    the map ``id``.
    """

    modules: dict[str, nn.Module]

    def _only_reader(self, node: fx.Node, source: Value) -> int | None:
        raise NotImplementedError

    def _new_id(self) -> str:
        taken = {planned.step.output for planned in self.steps}
        number = len(self.values)
        while str(number) in taken:
            number += 1
        return str(number)

    def _join(self, node: fx.Node, source: Value) -> bool:
        """Record a function that joins maps; False if `node` does something else."""
        target = node.target
        sources = [self.values.get(argument) for argument in node.all_input_nodes]
        value: Value | None = None
        if target in CONCATENATIONS:
            value = self._concatenated(node)
        elif target is F.max_pool2d:
            value = self._max_pooled(node, source, *_pool_arguments(node))
        elif target is F.interpolate:
            value = self._resized(node, source, *_resize_arguments(node))
        elif target is torch.zeros_like and source.kind == "map":
            value = replace(source, kind="zeros", node=node)
        elif target in ADDITIONS and sorted(s.kind for s in sources if s) == ["pixel", "zeros"]:
            pixel, zeros = sorted((s for s in sources if s), key=lambda s: s.kind)
            value = replace(pixel, kind="broadcast", like=zeros.id, node=node)
        else:
            kind = _side(node, source)
            value = None if kind is None else replace(source, kind=kind, node=node)
        if value is not None:
            self.values[node] = value
        return value is not None

    def _join_module(self, node: fx.Node, source: Value, module: nn.Module) -> bool:
        """Record a module that resizes, shuffles or pools maps; False if it has no step."""
        kind, value = type(module), None
        if kind in UPSAMPLINGS:
            assert isinstance(module, nn.Upsample)
            mode = _mode(module.mode, module.align_corners)
            value = self._resized(node, source, module.size, module.scale_factor, mode)
        elif kind is nn.ChannelShuffle and source.kind == "map" and source.id != "x":
            value = self._shuffled(node, source, module.groups)
        elif kind is nn.MaxPool2d:
            settings = [getattr(module, name) for name in POOL_SETTINGS]
            value = self._max_pooled(node, source, *settings)
        if value is not None:
            self.values[node] = value
        return value is not None

    def _max_pooled(
        self,
        node: fx.Node,
        source: Value,
        kernel: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        ceil_mode: Any,
        return_indices: Any,
    ) -> Value | None:
        if source.kind != "map" or ceil_mode or return_indices:
            return None
        try:
            sizes = [
                tuple(normalize_pair(size, "size")) for size in (kernel, stride or kernel, dilation)
            ]
            sides = normalize_pair(padding, "padding", 0)
        except (TypeError, ValueError):
            return None
        step = Step(
            "max_pool",
            source.id,
            self._new_id(),
            kernel=sizes[0],
            stride=sizes[1],
            padding=(sides[1], sides[1], sides[0], sides[0]),
            dilation=sizes[2],
        )
        return self._weightless(node, source, step)

    def _resized(
        self, node: fx.Node, source: Value, size: Any, scale: Any, mode: str | None
    ) -> Value | None:
        like, factors = self._size_of(size), _whole_factors(scale)
        if mode is None or source.kind not in ("map", "gated", "pixel"):
            return None
        if like is not None and scale is None:
            if source.kind == "pixel":
                return replace(source, kind="broadcast", like=like, node=node)
            step = Step("resize", source.id, self._new_id(), like=like, mode=mode)
        elif size is None and factors is not None and source.kind != "pixel":
            step = Step("resize", source.id, self._new_id(), scale=factors, mode=mode)
        else:
            return None
        resized = self._weightless(node, source, step)
        if resized is None or source.kind == "map":
            return resized
        return replace(resized, kind="gated")  # gates may as well multiply what is resized

    def _weightless(self, node: fx.Node, source: Value, step: Step) -> Value | None:
        channels = step.channels or self._channels(source.id)
        if channels == 0:  # of the network's input, before anything tells
            return None
        self.steps.append(PlanStep(replace(step, channels=channels), ()))
        return replace(source, id=step.output, kind="map", node=node, parts=())

    def _size_of(self, size: Any) -> str | None:
        """The map whose height and width these are."""
        if isinstance(size, fx.Node):
            value = self.values.get(size)
            return value.id if value is not None and value.kind == "sides" else None
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            return None
        sides = [self.values.get(side) if isinstance(side, fx.Node) else None for side in size]
        if [side.kind if side else "" for side in sides] != ["height", "width"]:
            return None
        ids = {side.id for side in sides if side}
        return ids.pop() if len(ids) == 1 else None

    def _concatenated(self, node: fx.Node) -> Value | None:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        listed = node.args[0]
        if dim not in (1, -3) or not isinstance(listed, (tuple, list)):
            return None
        parts = [self.values.get(p) if isinstance(p, fx.Node) else None for p in listed]
        known = [p for p in parts if p is not None and p.kind in ("map", "broadcast")]
        if len(known) != len(listed) or any(p.id == "x" for p in known):
            return None
        mixed = replace(known[0], kind="mixed", node=node, parts=tuple(known))
        if any(p.kind == "broadcast" for p in known):
            return mixed
        return self._concat(node, known)

    def _concat(self, node: fx.Node, maps: Sequence[Value]) -> Value | None:
        if len(maps) == 1:
            return replace(maps[0], node=node, parts=())
        channels = sum(self._channels(part.id) for part in maps)
        names = ",".join(part.id for part in maps)
        step = Step("concat", names, self._new_id(), channels=channels)
        return self._weightless(node, maps[0], step)

    def _as_map(self, node: fx.Node, source: Value) -> Value | None:
        """`source` as a map that any step may read."""
        if source.kind == "broadcast":
            step = Step("resize", source.id, self._new_id(), like=source.like)
            return self._weightless(node, source, step)
        if source.kind == "mixed":
            maps = [p if p.kind == "map" else self._as_map(node, p) for p in source.parts]
            known = [p for p in maps if p is not None]
            return self._concat(node, known) if len(known) == len(maps) else None
        return source if source.kind == "map" else None

    def _pointwise_on_mixed(self, node: fx.Node, source: Value, units: tuple[Unit, ...]) -> Value:
        """A 1x1 convolution of maps and broadcasts: what the broadcasts give is one vector for all
        pixels of an image, from which the sums over the maps start."""
        unit = units[0]
        assert isinstance(unit, ConvUnit)
        ranges: dict[str, list[tuple[int, int]]] = {"map": [], "broadcast": []}
        first = 0
        for part in source.parts:
            last = first + self._channels(part.id)
            ranges[part.kind].append((first, last))
            first = last
        maps = [part for part in source.parts if part.kind == "map"]
        pixels = [part for part in source.parts if part.kind == "broadcast"]
        joined = self._concat(node, maps) if len(pixels) == 1 and maps else None
        if joined is None:
            whole = self._as_map(node, source)
            if whole is None:
                return source
            return self._add_step(node, step_of("pointwise_conv", units, whole.id, "", False))
        plain = SlicedUnit(unit.conv, unit.bn, "none", unit.padding, tuple(ranges["broadcast"]))
        rest = replace(
            plain, activation=unit.activation, ranges=tuple(ranges["map"]), has_bias=False
        )
        out = unit.channels_out
        wide = self._channels(pixels[0].id)
        head = Step("classifier_head", pixels[0].id, "", channels_in=wide, channels_out=out)
        vector = self._add_step(node, PlanStep(head, (plain,)))
        step = Step(
            "biased_pointwise_conv",
            joined.id,
            "",
            channels_in=self._channels(joined.id),
            channels_out=out,
            bias=vector.id,
            activation=unit.activation,
        )
        return self._add_step(node, PlanStep(step, (rest,)))

    def _add_step(self, node: fx.Node, planned: PlanStep) -> Value:
        planned = replace(planned, step=replace(planned.step, output=self._new_id()))
        self.steps.append(planned)
        return Value(planned.step.output, "map", node)

    def _normalize(
        self, node: fx.Node, source: Value, norm: nn.Module, tail: Sequence[str | None]
    ) -> bool:
        """Fold a batch norm and the activations after it into the convolution before it; False if
        it cannot be."""
        index = self._only_reader(node, source)
        if index is None or source.kind not in ("map", "pixel"):
            return False
        planned = self.steps[index]
        unit = planned.units[-1] if len(planned.units) == 1 else None
        if type(unit) is not ConvUnit or planned.adds:
            return False
        if unit.bn is not None or planned.step.activation != "none":
            return False
        normed = replace(unit, bn=norm)
        try:
            check_units("dense_conv", (normed,), norm_types=(type(norm),))
        except NotFusable:
            return False
        done: PlanStep | None = replace(planned, units=(normed,))
        for activation in tail:
            done = activate(done, activation) if done and activation else None
        if done is None:
            return False
        self.steps[index] = done
        self.values[node] = replace(source, node=node)
        return True


def dense_units(module: nn.Module) -> tuple[Unit, ...] | None:
    """The unit of a dense convolution that only a plan runs, or None."""
    try:
        if isinstance(module, FusedModule):
            if module._fused_pattern != "stem_conv":
                return None
            return module._checked_units("dense_conv")
        if type(module) is nn.Conv2d:
            unit = ConvUnit(module, None, "none")
            check_units("dense_conv", (unit,))
            return (unit,)
    except NotFusable:
        pass
    return None


def _side(node: fx.Node, source: Value) -> str | None:
    """Which sides `node` takes from a shape: "height", "width" or, of both, "sides"."""
    target = node.target
    arguments: tuple[Any, ...] = node.args[1:]
    takes = target == "size" and source.kind == "map" and len(arguments) == 1
    if takes or (target is operator.getitem and source.kind == "shape"):
        index = arguments[0]
        if isinstance(index, slice):
            both = slice(2, None), slice(2, 4), slice(-2, None)
            return "sides" if index in both else None
        return {2: "height", -2: "height", 3: "width", -1: "width"}.get(index)
    if target is operator.getitem and source.kind == "sides":
        index = arguments[0]
        return {0: "height", -2: "height", 1: "width", -1: "width"}.get(index)
    return None


def _resize_arguments(node: fx.Node) -> tuple[Any, Any, str | None]:
    """size, scale factor and mode of `F.interpolate`."""
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    plain = not given.get("antialias") and not given.get("recompute_scale_factor")
    mode = _mode(given.get("mode", "nearest"), given.get("align_corners"))
    return given.get("size"), given.get("scale_factor"), mode if plain else None


def _pool_arguments(node: fx.Node) -> list[Any]:
    """The arguments of `F.max_pool2d`, in the order of `POOL_SETTINGS`."""
    defaults = (0, None, 0, 1, False, False)
    return [
        argument(node, position, name, default)
        for position, (name, default) in enumerate(zip(POOL_SETTINGS, defaults, strict=True), 1)
    ]


def _mode(mode: Any, align_corners: Any) -> str | None:
    if mode == "nearest":
        return "nearest"
    return ("bilinear_aligned" if align_corners else "bilinear") if mode == "bilinear" else None


def _whole_factors(scale: Any) -> tuple[int, int] | None:
    factors = scale if isinstance(scale, (tuple, list)) else (scale, scale)
    if len(factors) != 2 or not all(isinstance(f, (int, float)) for f in factors):
        return None
    if any(f < 1 or f != int(f) for f in factors):
        return None
    return int(factors[0]), int(factors[1])
