"""From a module tree in eval mode to the steps of a planned network, or the reason why not.

The forward is traced with fused modules as leaves; each call becomes a step. Activations and
additions are folded into the step before them, and neighbouring steps are merged into blocks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from fastdw import activation as activations
from fastdw.nn.fused_module import ConvUnit, FusedModule, LinearUnit, NotFusable
from fastdw.nn.units import Unit, check_units, conv_pattern
from fastdw.ops.program import Program
from fastdw.plan.calls import (
    ACTIVATION_FUNCTIONS,
    ADDITIONS,
    ADDITIONS_IN_PLACE,
    DROPOUTS,
    FLATTENINGS,
    MEANS,
    PRODUCTS,
    PRODUCTS_IN_PLACE,
    SETTINGS,
    argument,
    flattens_after_batch,
    size_kind,
    target_name,
)
from fastdw.plan.channels import Selection, without_unread
from fastdw.plan.conditions import Condition
from fastdw.plan.joins import Joins, dense_units
from fastdw.plan.pools import Pools
from fastdw.plan.steps import PlanStep, activate, add_into, merge_blocks, step_of
from fastdw.plan.trace import NotTraceable, Traced, trace_forward
from fastdw.plan.values import NotPlannable, Value


@dataclass(frozen=True)
class Pooling:
    """A global average pool: its result is [N, C] if it flattens, else [N, C, 1, 1]."""

    flatten: bool


@dataclass(frozen=True)
class Recording:
    """What a network does.

    Attributes:
        program: the steps, without places of weights yet.
        units: the layers of each step.
        structure: how the outputs are nested.
        places: which output of the program each of them is; one may be returned twice.
        image: what `forward` calls the image.
        shape: of the image that it was recorded with, if any.
        conditions: the branches on the image's size that `forward` took: an image with which it
            takes others has no plan here.
    """

    program: Program
    units: tuple[tuple[Unit, ...], ...]
    structure: pytree.TreeSpec
    places: tuple[int, ...]
    image: str
    shape: tuple[int, ...] | None = None
    conditions: tuple[Condition, ...] = ()


INERT_TYPES: set[type] = {nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout}
"""Exact classes that hand their input on in eval mode."""

POOLING: dict[type, Callable[[nn.Module], Pooling | None]] = {
    nn.AdaptiveAvgPool2d: lambda pool: (
        Pooling(flatten=False) if pool.output_size in (1, (1, 1), [1, 1]) else None
    )
}
"""Exact classes that may be a global average pool."""

LINEAR_TYPES: set[type] = {nn.Linear}
"""Exact classes that compute what `nn.Linear` does."""

NORMS: dict[type, Callable[[nn.Module], Sequence[nn.Module]]] = {nn.BatchNorm2d: lambda norm: ()}
"""Exact classes that compute what `nn.BatchNorm2d` does, and after it what these layers do, in the
order they run."""

POOLED = ("pooled", "pooled input", "pixel")
"""Kinds of values [N, C, 1, 1], on which a 1x1 convolution is a linear layer."""

READS_MORE = {"pointwise_conv": ["gated"], "classifier_head": ["flat", "vector"]}
"""Kinds of values besides maps that a step can read."""


def record(model: nn.Module, shape: Sequence[int] | None = None) -> Recording:
    """Record what `model` computes in eval mode.

    Args:
        model: a network.
        shape: of an image, for a network that branches on its size.

    Raises:
        NotPlannable: something in it has no step.
    """
    try:
        traced = trace_forward(model, _is_leaf, shape)
    except NotTraceable as error:
        raise NotPlannable(f"torch.fx cannot trace the model: {error}") from error
    recorder = _Recorder(model, traced)
    for node in traced.graph.nodes:
        recorder.take(node)
    known = None if shape is None else tuple(shape)
    return replace(recorder.finish(), shape=known, conditions=traced.conditions)


def _is_leaf(module: nn.Module) -> bool:
    kind = type(module)
    if isinstance(module, FusedModule) or kind in INERT_TYPES | LINEAR_TYPES | NORMS.keys():
        return True
    if kind in POOLING and POOLING[kind](module) is not None:
        return True
    return kind.__module__.startswith("torch.nn.") and kind is not nn.Sequential


class _Recorder(Joins, Pools):
    def __init__(self, model: nn.Module, traced: Traced) -> None:
        self.model, self.traced = model, traced
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.steps: list[PlanStep] = []
        self.values: dict[fx.Node, Value] = {}
        self.selected: dict[tuple[str, Selection], str] = {}
        self.outputs: list[str] = []
        self.structure: pytree.TreeSpec | None = None

    def take(self, node: fx.Node) -> None:
        """Add what `node` computes."""
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "call_module":
            self._module(node, self.modules[str(node.target)])
        elif node.op in ("call_function", "call_method"):
            self._function(node)
        elif node.op == "output":
            self._output()
        elif node.users:
            raise NotPlannable(f"{node.name}: a tensor of the model is used by itself")

    def finish(self) -> Recording:
        """Merge blocks and write the program."""
        steps = merge_blocks(without_unread(self.steps, self.outputs), self.outputs)
        if not steps:
            raise NotPlannable("the model has no step")
        readers = [s.step for s in steps if s.step.input == "x"]
        channels = {step.channels_in or step.channels for step in readers}
        if len(channels) != 1:
            raise NotPlannable("the input is not used as an image")
        assert self.structure is not None
        outputs = tuple(dict.fromkeys(self.outputs))
        places = tuple(outputs.index(value) for value in self.outputs)
        program = Program(channels.pop(), outputs, tuple(s.step for s in steps))
        units = tuple(s.units for s in steps)
        return Recording(program, units, self.structure, places, self.traced.image)

    def _placeholder(self, node: fx.Node) -> None:
        if not node.users:
            return
        if any(value.id == "x" for value in self.values.values()):
            raise NotPlannable("forward takes more than one input")
        self.values[node] = Value("x", "map", node)

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        name, kind = str(node.target), type(module)
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            raise NotPlannable(f"{name}: called with more than one tensor")
        if "forward" in module.__dict__:
            raise NotPlannable(f"{name}: forward was replaced on the instance")
        source = self._read(node)[0]
        activation = activations.name_of(module) or activations.gate_of(module)
        if isinstance(module, FusedModule):
            try:
                units, pattern = module._checked_units(), module._fused_pattern
            except NotFusable as error:
                dense = dense_units(module)
                if dense is None:
                    raise NotPlannable(f"{name}: {error}") from error
                units, pattern = dense, "dense_conv"
            self._step(node, source, pattern, units, module._fused_residual(), name)
        elif kind in INERT_TYPES:
            self.values[node] = source
        elif kind in POOLING:
            pooling = POOLING[kind](module)
            if pooling is None:
                raise NotPlannable(f"{name}: {kind.__name__} is not a global average pool")
            self._pool(node, source, pooling.flatten, name)
        elif kind is nn.Flatten and (module.start_dim, module.end_dim) in ((1, -1), (1, 3)):
            self._flatten(node, source, name)
        elif kind in LINEAR_TYPES and source.kind in ("flat", "vector"):
            assert isinstance(module, nn.Linear)
            self._step(node, source, "classifier_head", (LinearUnit(module),), False, name)
        elif kind is nn.Conv2d:
            assert isinstance(module, nn.Conv2d)
            unit = ConvUnit(module, None, "none")
            try:
                pattern = conv_pattern(unit)
                check_units(pattern, (unit,))
            except NotFusable as error:
                if dense_units(module) is None:
                    raise NotPlannable(f"{name}: {error}") from error
                pattern = "dense_conv"
            self._step(node, source, pattern, (unit,), False, name)
        elif kind in NORMS and self._normalize(node, source, module, self._tail(module)):
            pass
        elif self._join_module(node, source, module):
            pass
        elif activation is not None:
            self._activate(node, source, activation)
        else:
            raise NotPlannable(f"{name}: {kind.__name__} has no step")

    def _tail(self, norm: nn.Module) -> list[str | None]:
        """The activations that a batch norm applies itself; None for another layer."""
        layers = [layer for layer in NORMS[type(norm)](norm) if type(layer) not in INERT_TYPES]
        return [activations.name_of(layer) for layer in layers]

    def _function(self, node: fx.Node) -> None:
        target, arguments = node.target, node.args[1:]
        unknown = node.kwargs.keys() - SETTINGS.get(target, set())
        first = self.values.get(node.all_input_nodes[0]) if node.all_input_nodes else None
        if first is None or unknown:
            with_them = f" with {', '.join(sorted(unknown))}" if unknown else ""
            raise NotPlannable(f"{node.name}: {target_name(target)}{with_them} has no step")
        if self._select(node, first):
            return
        sources = self._read(node)
        source = sources[0]
        assert source is not None
        if target in DROPOUTS and argument(node, 2, "training", True) is False:
            self.values[node] = source
        elif target in ACTIVATION_FUNCTIONS:
            self._activate(node, source, ACTIVATION_FUNCTIONS[target])
        elif self._join(node, source):
            pass
        elif target in ADDITIONS and len(sources) == len(node.args) == 2:
            self._add(node, source, sources[1])
        elif target in PRODUCTS and len(sources) == len(node.args) == 2:
            self._multiply(node, source, sources[1])
        elif target is F.adaptive_avg_pool2d and arguments in ((1,), ((1, 1),), ([1, 1],)):
            self._pool(node, source, False, node.name)
        elif target in MEANS:
            self._mean(node, source)
        elif target in FLATTENINGS and flattens_after_batch(node):
            self._flatten(node, source, node.name)
        elif target in ("size", getattr) or (target is operator.getitem and source.kind == "shape"):
            channels = self._channels(source.id) if source.kind == "map" else 0
            kind = size_kind(target, source.kind, arguments)
            self.values[node] = Value(source.id, kind, node, numbers=(channels,) * (channels > 0))
        elif target in ("view", "reshape", torch.reshape) and self._is_flat(arguments, source):
            self._flatten(node, source, node.name)
        else:
            raise NotPlannable(f"{node.name}: {target_name(target)} has no step")

    def _read(self, node: fx.Node) -> list[Any]:
        """What `node` reads, selected channels as maps of their own."""
        for holder in node.all_input_nodes:
            value = self.values.get(holder)
            if value is not None and value.kind == "selected":
                self.values[holder] = self._selected_map(value)
        return [self.values.get(holder) for holder in node.all_input_nodes]

    def _step(
        self,
        node: fx.Node,
        source: Value,
        pattern: str,
        units: tuple[Unit, ...],
        residual: bool,
        name: str,
    ) -> None:
        kind, taken = ("vector" if pattern == "classifier_head" else "map"), ["map"]
        if pattern == "pointwise_conv" and source.kind in POOLED:
            kind, taken, pattern = "pixel", [source.kind], "classifier_head"
        elif pattern in READS_MORE:
            taken += READS_MORE[pattern]
        if pattern == "pointwise_conv" and source.kind == "mixed":
            source = self._pointwise_on_mixed(node, source, units)
            if source.kind == "map":
                self.values[node] = source
                return
        source = self._as_map(node, source) or source
        if source.kind not in taken:
            raise NotPlannable(f"{name}: expected an image or a feature map, got a {source.kind}")
        value = self._new_id()
        planned = step_of(pattern, units, source.id, value, residual)
        if source.kind == "gated":
            planned = replace(planned, step=replace(planned.step, gate=source.gate))
        self.steps.append(planned)
        self.values[node] = Value(value, kind, node)

    def _activate(self, node: fx.Node, source: Value, activation: str) -> None:
        index = self._only_reader(node, source)
        step = None if index is None else activate(self.steps[index], activation)
        if source.kind not in ("map", "pixel", "vector"):
            step = None
        if index is None or step is None:
            raise NotPlannable(f"{node.name}: {activation} has no step before it to join")
        self.steps[index] = step
        self.values[node] = replace(source, node=node)

    def _add(self, node: fx.Node, left: Value, right: Value | None) -> None:
        """Let the later of the two steps add the other value."""
        assert right is not None
        order = {"x": -1, **{s.step.output: index for index, s in enumerate(self.steps)}}
        if left.kind == right.kind == "map" and not self._overwrites(node, left):
            first, last = sorted((left, right), key=lambda value: order[value.id])
            index = self._only_reader(node, last)
            step = None if index is None else add_into(self.steps[index], first.id)
            if step is not None and self._channels(first.id) == step.channels_out:
                assert index is not None
                self.steps[index] = step
                self.values[node] = replace(last, node=node)
                return
        raise NotPlannable(f"{node.name}: this addition has no step before it to join")

    def _multiply(self, node: fx.Node, left: Value, right: Value | None) -> None:
        """A map times the gates of its channels: the 1x1 convolution that reads it multiplies."""
        assert right is not None
        feature, gate = (right, left) if left.kind == "pixel" else (left, right)
        overwrites = self._overwrites(node, feature)
        kinds, widths = (feature.kind, gate.kind), [self._channels(v.id) for v in (feature, gate)]
        if kinds != ("map", "pixel") or widths[0] != widths[1] or overwrites:
            raise NotPlannable(f"{node.name}: this product is no map times gates of its channels")
        self.values[node] = Value(feature.id, "gated", node, gate.id)

    def _channels(self, value: str) -> int:
        widths = {s.step.output: s.step.channels_out or s.step.channels for s in self.steps}
        readers = (s.step.channels_in for s in self.steps if s.step.input == "x")
        return widths.get(value) or next(readers, 0)

    def _only_reader(self, node: fx.Node, source: Value) -> int | None:
        """The step that computes `source`, if nothing but `node` reads it."""
        if any(len(holder.users) != 1 for holder in self._holders(node, source)):
            return None
        outputs = [s.step.output for s in self.steps]
        return outputs.index(source.id) if source.id in outputs else None

    def _holders(self, node: fx.Node, source: Value) -> list[fx.Node]:
        """The nodes that hand `source` on to `node`, back to the one that computes it."""
        holder = next(n for n in node.all_input_nodes if self.values.get(n) is source)
        holders = [holder]
        while holder is not source.node:
            holder = holder.all_input_nodes[0]
            holders.append(holder)
        return holders

    def _overwrites(self, node: fx.Node, source: Value) -> bool:
        """Say whether something still reads `source` after `node` has added to it in place."""
        later = {user for holder in self._holders(node, source) for user in holder.users}
        in_place = (*ADDITIONS_IN_PLACE, *PRODUCTS_IN_PLACE)
        read_later = any(node < user for user in later) or self._shares_memory(source.id)
        return node.target in in_place and read_later

    def _output(self) -> None:
        leaves, self.structure = pytree.tree_flatten(self.traced.result)
        pooled: dict[str, str] = {}
        for leaf in leaves:
            if not isinstance(leaf, fx.Proxy):
                raise NotPlannable(f"output: {leaf!r} is no tensor that a step computes")
            value = self._selected_map(self.values[leaf.node])
            if value.kind == "flat":
                if value.id not in pooled:
                    pooled[value.id] = self._new_id()
                    self.steps.append(
                        PlanStep.pool(value.id, pooled[value.id], self._channels(value.id))
                    )
                self.outputs.append(pooled[value.id])
            elif value.kind in ("map", "vector") and value.id != "x":
                self.outputs.append(value.id)
            else:
                raise NotPlannable(f"output: a {value.kind} is no output that a step computes")
        if not leaves:
            raise NotPlannable("output: no tensor")
