"""Tracing a module's forward with torch.fx, optional arguments at their defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fastdw.plan.conditions import Condition, condition_of, drop_unused_sizes

IsLeaf = Callable[[nn.Module], bool]


class _Tracer(fx.Tracer):
    def __init__(self, is_leaf: IsLeaf, shape: Sequence[int] | None) -> None:
        super().__init__()
        self.is_leaf, self.shape = is_leaf, shape
        self.conditions: list[Condition] = []
        self.branched = False
        self.result: Any = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_leaf(m)

    def create_arg(self, a: Any) -> Any:
        argument = super().create_arg(a)
        self.result = a  # outer ones after inner ones: at the end, what forward returned
        return argument

    # Both raise, but the forward may catch that and go another way than with tensors.

    def to_bool(self, obj: fx.Proxy) -> bool:
        condition = None if self.shape is None else condition_of(obj.node, self.shape)
        if condition is not None:
            self.conditions.append(condition)
            return condition.answer
        self.branched = True
        return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        self.branched = True
        return super().iter(obj)


class NotTraceable(Exception):
    """torch.fx cannot follow the forward; the message says what it met."""


@dataclass(frozen=True)
class Traced:
    """What torch.fx saw.

    Attributes:
        graph: the calls.
        image: name of the argument that stands for the image.
        result: what `forward` returned: proxies in its own containers.
        conditions: the branches on the image's size that it took.
    """

    graph: fx.Graph
    image: str
    result: Any
    conditions: tuple[Condition, ...] = ()


def trace(module: nn.Module, is_leaf: IsLeaf) -> fx.Graph:
    """Return the graph of `module.forward`, see `trace_forward`."""
    return trace_forward(module, is_leaf).graph


def trace_forward(module: nn.Module, is_leaf: IsLeaf, shape: Sequence[int] | None = None) -> Traced:
    """Trace `module.forward`.

    Args:
        module: what to trace, as its training flags stand.
        is_leaf: says which modules stay a single call.
        shape: of an image; then branches on its height and width are taken as this one takes them.

    Raises:
        NotTraceable: the forward does not run on proxies.
    """
    if "forward" in module.__dict__:  # torch.fx would take the one of the class
        raise NotTraceable("forward was replaced on the instance")
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        if parameters and parameters[0].name in defaults and parameters[0].default is None:
            del defaults[parameters[0].name]  # an image all the same: None, and forward refuses
        tracer = _Tracer(is_leaf, shape)
        graph = tracer.trace(module, concrete_args=defaults or None)
    except Exception as error:  # somebody's forward may raise anything at all on a proxy
        message = str(error).splitlines()[0] if str(error) else ""
        raise NotTraceable(f"{type(error).__name__}: {message}") from error
    if tracer.branched:
        raise NotTraceable("TraceError: control flow depends on a traced value")
    _drop_assertions(graph, defaults)
    if tracer.conditions:
        drop_unused_sizes(graph)
    conditions = tuple(dict.fromkeys(tracer.conditions))
    return Traced(graph, parameters[0].name if parameters else "", tracer.result, conditions)


def _drop_assertions(graph: fx.Graph, defaults: Collection[str]) -> None:
    """torch.fx asserts that optional arguments have the values they were traced with."""
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "placeholder":
            if str(node.target) in defaults or str(node.target).rpartition("_")[0] in defaults:
                constant.add(node)
        elif inputs and constant.issuperset(inputs):
            constant.add(node)
    for node in reversed(graph.nodes):
        if node in constant and node.op == "call_function" and not node.users:
            graph.erase_node(node)
