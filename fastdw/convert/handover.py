"""Poolings that take the means which the depthwise convolution before them leaves with its result.

A squeeze-excite begins with a global average of the map that it will multiply. Where a trace proves
that it reads a fused depthwise convolution first, that convolution adds up what it writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.fx import Proxy

from fastdw.convert.rules import Refused, check_untouched
from fastdw.convert.siblings import Passed, Path
from fastdw.nn.fused_module import has_hooks
from fastdw.nn.means import means_of
from fastdw.plan.record import POOLING

Ways = tuple[str, ...]
"""Names of modules that a value passes, one after another."""


class ReadsMeans(nn.Module):
    """A module that begins with the global average of its input, in whose place means may be."""

    _fastdw_original: ClassVar[type[nn.Module]]

    def _after_pooling(self, x: Tensor, means: Tensor) -> Tensor:
        """What the original's forward computes from `x` and its means, [batch, channels, 1, 1]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return self._traced_forward(x)
        means = means_of(x)
        if means is None:
            return self._fastdw_original.forward(self, x)
        return self._after_pooling(x, means.to(x.dtype).view(*means.shape, 1, 1))

    def _traced_forward(self, x: Proxy) -> Any:
        return self._fastdw_original.forward(self, x)


class HandedAdaptiveAvgPool2d(ReadsMeans, nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d(1)` behind a depthwise convolution that may hand over its means."""

    _fastdw_original = nn.AdaptiveAvgPool2d

    def _after_pooling(self, x: Tensor, means: Tensor) -> Tensor:
        return means

    def _traced_forward(self, x: Proxy) -> Any:
        tracer: Any = x.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (x,), {})


READERS: dict[type, type[ReadsMeans]] = {nn.AdaptiveAvgPool2d: HandedAdaptiveAvgPool2d}
"""Exact classes that may begin with a global average, and the subclass that takes their place."""

POOLING[HandedAdaptiveAvgPool2d] = POOLING[nn.AdaptiveAvgPool2d]


class Handover:
    """A depthwise convolution and the reader of its means: names below one parent module.

    Args:
        parent: a module that holds both.
        giver: path of the module that computes the result.
        way: paths to what the result passes: layers that only hand it on, and the reader.
    """

    def __init__(self, parent: nn.Module, giver: Path, way: tuple[Path, ...]) -> None:
        self.parent = parent
        self.giver = giver
        self.way = way
        self._seen: _Modules | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}

    def active(self) -> bool:
        """Say whether the means would be read: the reader stands in its place, and no layer or hook
        might write to the result before the reader sees it."""
        compiling = torch.compiler.is_compiling()
        if not compiling and self._seen is not None and self._seen.stand():
            return True
        giver, *way = (self._along(path) for path in (self.giver, *self.way))
        active = (
            all((giver, *way))
            and isinstance(way[-1][-1], ReadsMeans)
            and all(_hands_on(modules[-1], giver[-1]) for modules in way[:-1])
            and not any(has_hooks(module) for modules in (giver, *way) for module in modules)
        )
        if active and not compiling:
            self._seen = _Modules(self.parent, (giver, *way), (self.giver, *self.way))
        return active

    def _along(self, path: Path) -> list[nn.Module]:
        """The modules on the way from the parent down to `path`; none if it leads nowhere."""
        found, module = [], self.parent
        for name in path:
            child = module._modules.get(name)
            if child is None:
                return []
            found.append(child)
            module = child
        return found


class _Modules:
    """The modules of a handover as they stood when it was active: 1 us to see that they still do,
    where looking each of them up anew takes 5."""

    def __init__(
        self,
        parent: nn.Module,
        found: Sequence[Sequence[nn.Module]],
        paths: Sequence[Path],
    ) -> None:
        places = {
            (id(above), name): (above._modules, name, module)
            for modules, path in zip(found, paths, strict=True)
            for above, name, module in zip((parent, *modules[:-1]), path, modules, strict=True)
        }
        self.holders, self.names, self.modules = zip(*places.values(), strict=True)
        self.hooks = [
            hooks
            for module in self.modules
            for hooks in (
                *(module._forward_hooks, module._forward_pre_hooks),
                *(module._backward_hooks, module._backward_pre_hooks),
            )
        ]

    def stand(self) -> bool:
        same = all(map(is_, map(dict.get, self.holders, self.names), self.modules))
        return same and not any(self.hooks)


def _hands_on(module: nn.Module, giver: nn.Module) -> bool:
    return module is giver or isinstance(module, Passed) or type(module) is nn.Identity


def find_handovers(
    model: nn.Module, graphs: Iterable[tuple[str, fx.Graph]], givers: Mapping[str, str]
) -> dict[str, Ways]:
    """Return, by the names of the givers, the names of what their results pass, reader last.

    Args:
        model: the model.
        graphs: traced forwards, each with the name of the module that was traced.
        givers: the depthwise convolutions that might hand over, by the names of the layers that
            return their results.
    """
    modules = dict(model.named_modules())
    places = Counter(id(child) for m in model.modules() for child in m._modules.values())
    found: dict[str, Ways] = {}
    for prefix, graph in graphs:
        poolings = Counter(reader for node in graph.nodes for reader in _readers(node, prefix))
        calls = Counter(_name(prefix, n.target) for n in graph.nodes if n.op == "call_module")
        for node in graph.nodes:
            last = _name(prefix, node.target) if node.op == "call_module" else ""
            if last not in givers or calls[last] > 1:
                continue
            first, way = _first_user(node, prefix, modules)
            for reader in () if first is None else _readers(first, prefix):
                once = poolings[reader] == 1 and places[id(modules.get(reader))] == 1
                if once and _reads_means(modules[reader]):
                    found[givers[last]] = (*way, reader)
    return found


def _first_user(
    node: fx.Node, prefix: str, modules: Mapping[str, nn.Module]
) -> tuple[fx.Node | None, Ways]:
    """What reads the value of `node` first, and through which layers that only hand it on."""
    way: Ways = (_name(prefix, node.target),)
    while True:
        users = list(node.users)
        if not users or users[0].all_input_nodes != [node]:
            return None, way
        name = _name(prefix, users[0].target)
        is_identity = users[0].op == "call_module" and type(modules[name]) is nn.Identity
        if not is_identity or len(users) > 1:
            return users[0], way
        node, way = users[0], (*way, name)


def _readers(node: fx.Node, prefix: str) -> Iterator[str]:
    """The names of modules whose global average `node` may be."""
    if node.op == "call_module":
        yield _name(prefix, node.target)
    elif node.op == "call_method" and node.target == "mean":
        stack = list(node.meta.get("nn_module_stack", ()))
        if stack:
            yield _name(prefix, stack[-1])


def _name(prefix: str, target: Any) -> str:
    return f"{prefix}.{target}" if prefix else str(target)


def _reads_means(module: nn.Module) -> bool:
    kind = type(module)
    if kind not in READERS or (kind in POOLING and POOLING[kind](module) is None):
        return False
    try:
        check_untouched(module)
    except Refused:
        return False
    return True


def handover_of(model: nn.Module, giver: str, way: Ways) -> Handover:
    """Describe a handover from the lowest module that holds all of it."""
    paths: list[Path] = [tuple(name.split(".")) for name in (giver, *way)]
    depth = 0
    while depth < min(map(len, paths)) - 1 and len({path[: depth + 1] for path in paths}) == 1:
        depth += 1
    parent = model.get_submodule(".".join(paths[0][:depth]))
    first, *rest = (path[depth:] for path in paths)
    return Handover(parent, first, tuple(rest))
