"""What a trace of the forward proves: which convolution feeds which batch norm and activation.

A model that torch.fx cannot trace as a whole is tried child by child; what is proved then holds for
the forward of that child.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastdw.convert.handover import READERS
from fastdw.convert.report import Reason
from fastdw.convert.rules import (
    Refused,
    activation_name,
    check_gain,
    check_norm,
    check_untouched,
    conv_unit,
    is_norm,
    units_of,
)
from fastdw.convert.siblings import SIBLINGS, Passed, Path, Site
from fastdw.nn.fused_module import FusedModule
from fastdw.plan.trace import NotTraceable, trace

log = logging.getLogger(__name__)


@dataclass
class Proof:
    """What was found for the convolutions that no block takes.

    Attributes:
        sites: name of the convolution -> the names of it and of what it swallows.
        refused: name of the convolution -> why it is left.
        graphs: what was traced: the module's name and its graph.
    """

    sites: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, Reason] = field(default_factory=dict)
    graphs: list[tuple[str, fx.Graph]] = field(default_factory=list)


def prove(model: nn.Module, blocks: Collection[nn.Module]) -> Proof:
    """Trace `model` with `blocks` closed and look at every other convolution."""
    proof = Proof()
    context = _Context(model, blocks)
    with _eval_flags(model):
        _prove(model, "", context, proof)
    return proof


class _Context:
    """What must be known of the whole model, while its parts are traced.

    Attributes:
        closed: `id`s of the modules inside blocks.
        names: name of a module, by `id`; the first one if it has several.
        places: in how many places a module stands, by `id`.
    """

    def __init__(self, model: nn.Module, blocks: Collection[nn.Module]) -> None:
        self.closed = {id(module) for block in blocks for module in block.modules()}
        self.names = {id(module): name for name, module in model.named_modules()}
        self.places = Counter(
            id(child) for module in model.modules() for child in module._modules.values()
        )


def _prove(scope: nn.Module, prefix: str, context: _Context, proof: Proof) -> None:
    pending = [
        name
        for name, module in scope.named_modules(prefix=prefix)
        if isinstance(module, nn.Conv2d)
        and id(module) not in context.closed
        and context.names[id(module)] == name
    ]
    if not pending and not any(type(module) in READERS for module in scope.modules()):
        return
    graph = _try_trace(scope, context.closed)
    if graph is None:
        for name, child in scope.named_children():
            full_name = f"{prefix}.{name}" if prefix else name
            if isinstance(child, nn.Conv2d) and full_name in pending:
                proof.refused[full_name] = Reason.NOT_TRACED
            else:
                _prove(child, full_name, context, proof)
        return
    proof.graphs.append((prefix, graph))
    calls = _Calls(scope, graph, prefix, context.places)
    for name in pending:
        try:
            proof.sites[name] = calls.site(name)
        except Refused as refused:
            proof.refused[name] = refused.reason


def _is_leaf(closed: set[int], module: nn.Module) -> bool:
    """Stop at convolutions, batch norms, closed blocks, and modules that hold none of these."""
    layers = (nn.Conv2d, _BatchNorm)
    if id(module) in closed or isinstance(module, (*layers, FusedModule)):
        return True
    return not isinstance(module, nn.Sequential) and not any(
        isinstance(inner, layers) for inner in module.modules()
    )


def _try_trace(scope: nn.Module, closed: set[int]) -> fx.Graph | None:
    if isinstance(scope, nn.Conv2d):
        return None
    try:
        return trace(scope, partial(_is_leaf, closed))
    except NotTraceable as error:
        log.debug("torch.fx cannot trace %s: %s", type(scope).__name__, error)
        return None


@contextlib.contextmanager
def _eval_flags(model: nn.Module) -> Iterator[None]:
    """Trace what runs in eval mode, without calling anybody's `train()`."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


class _Calls:
    """The module calls of one traced graph."""

    def __init__(
        self, scope: nn.Module, graph: fx.Graph, prefix: str, places: Counter[int]
    ) -> None:
        self.prefix = prefix
        self.by_name = dict(scope.named_modules(remove_duplicate=False))
        self.nodes = [node for node in graph.nodes if node.op == "call_module"]
        self.counts = Counter(id(self.by_name[str(node.target)]) for node in self.nodes)
        self.places = places

    def site(self, name: str) -> list[str]:
        """Return the names of the convolution and of what it may swallow, or raise `Refused`."""
        local = name[len(self.prefix) + 1 :] if self.prefix else name
        conv = self.by_name[local]
        check_untouched(conv)
        conv_unit(conv)
        nodes = [n for n in self.nodes if self.by_name[str(n.target)] is conv]
        if not nodes:
            raise Refused(Reason.NOT_CALLED)
        node = nodes[0]
        self._check_once(node)
        if len(node.users) > 1:
            raise Refused(Reason.USED_TWICE)
        chain, following = [node], self._next(node)
        if following is not None and is_norm(self._module(following)):
            check_norm(self._module(following))
            self._check_once(following)
            chain.append(following)
            following = self._next(following)
        units = units_of(map(self._module, chain))
        if units[0].activation == "none" and following and self._may_swallow(following):
            chain.append(following)
        check_gain(units_of(map(self._module, chain)))
        return [self._full_name(n) for n in chain]

    def _module(self, node: fx.Node) -> nn.Module:
        return self.by_name[str(node.target)]

    def _full_name(self, node: fx.Node) -> str:
        return f"{self.prefix}.{node.target}" if self.prefix else str(node.target)

    def _next(self, node: fx.Node) -> fx.Node | None:
        """The one call of a module that takes `node`'s value, and nothing else, or None."""
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_module" or users[0].all_input_nodes != [node]:
            return None
        return users[0]

    def _check_once(self, node: fx.Node) -> None:
        module = self._module(node)
        if len(node.args) != 1 or node.kwargs:
            raise Refused(Reason.UNKNOWN_CLASS)
        if self.counts[id(module)] > 1:
            raise Refused(Reason.USED_TWICE)
        if self.places[id(module)] > 1:
            raise Refused(Reason.SHARED_MODULE)
        if isinstance(module, Passed):
            raise Refused(Reason.PARTLY_CONVERTED)
        check_untouched(module)

    def _may_swallow(self, act: fx.Node) -> bool:
        """Say whether a convolution may compute this activation; if not, it stays where it is."""
        try:
            self._check_once(act)
        except Refused:
            return False
        module = self._module(act)
        return type(module) in SIBLINGS and activation_name(module) is not None


def site_of(model: nn.Module, names: list[str]) -> Site:
    """Describe a site from the lowest module that holds all its members."""
    paths: list[Path] = [tuple(name.split(".")) for name in names]
    depth = 0
    while depth < len(paths[0]) - 1 and len({path[: depth + 1] for path in paths}) == 1:
        depth += 1
    parent = model.get_submodule(".".join(paths[0][:depth]))
    return Site(parent, tuple(path[depth:] for path in paths))
