"""One forward of a copy of the model on shapes alone, without data.

It tells the multiply-adds of the convolutions, and checks what torch.fx proved: a forward may do
something else with tensors than with the proxies of a trace.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastdw.nn.fused_module import FusedModule

log = logging.getLogger(__name__)
DEFAULT_SIZE = (224, 224)
Size = tuple[int, int, int]


@dataclass(frozen=True)
class ShapeRun:
    """What the run showed; nothing if the model does not run on one such image.

    Attributes:
        input_size: (channels, height, width) of the image, or None.
        multiply_adds: by `id` of the convolution.
        disproved: `id`s of the first layers of the chains that are none.
    """

    input_size: Size | None = None
    multiply_adds: dict[int, int] = field(default_factory=dict)
    disproved: set[int] = field(default_factory=set)


def input_size_of(model: nn.Module) -> Size | None:
    """Return (channels of the first convolution, 224, 224), or None for a model without one."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return (module.in_channels, *DEFAULT_SIZE)
    return None


def run_on_shapes(
    model: nn.Module,
    chains: Sequence[Sequence[nn.Module]],
    revert: Callable[[nn.Module], nn.Module],
) -> ShapeRun:
    """Run a copy of `model` in eval mode on one image; neither the model nor its hooks are run.

    Args:
        model: the model.
        chains: layers of it that should follow each other, only the next reading what one gives.
        revert: how to unfuse the copy, so that each convolution runs by itself.
    """
    size = input_size_of(model)
    if size is None:
        return ShapeRun()
    run, witness = ShapeRun(size), _Witness()
    try:
        meta = revert(_meta_copy(model)).eval()
        copies = {id(a): b for a, b in zip(model.modules(), meta.modules(), strict=True)}
        for original, module in copies.items():
            _clear_hooks(module)
            if isinstance(module, FusedModule):
                module.__dict__["forward"] = module._unfused_forward
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(_counter(run.multiply_adds, original))
        for chain in chains:
            witness.watch(id(chain[0]), [copies[id(layer)] for layer in chain])
        with torch.device("meta"), torch.no_grad(), witness:
            outputs = meta(torch.empty(1, *size))
    except Exception as error:  # a copy of somebody's model may fail in any way
        log.debug("%s does not run on shapes: %s", type(model).__name__, error)
        return ShapeRun()
    run.disproved.update(witness.verdict(outputs))
    return run


@dataclass
class _Handed:
    """A value on its way from one layer of a chain to the next."""

    tensor: Tensor  # kept, so that no other tensor gets its id
    chain: int
    reader: nn.Module
    read: bool = False


class _Witness(TorchDispatchMode):
    """Sees who reads the values inside of chains."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: dict[int, _Handed] = {}
        self.broken: set[int] = set()

    def watch(self, chain: int, layers: Sequence[nn.Module]) -> None:
        """Expect that each of `layers` reads what the one before it gives, and nothing else."""
        for layer, reader in pairwise(layers):
            self._watch(chain, layer, reader)

    def _watch(self, chain: int, layer: nn.Module, reader: nn.Module) -> None:
        reading: list[_Handed] = []

        def give(_: nn.Module, __: Any, output: Tensor) -> None:
            self.handed[id(output)] = _Handed(output, chain, reader)

        def begin(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            value = self.handed.pop(id(arguments[0]), None) if arguments else None
            if value is None or value.reader is not reader or value.read:
                self.broken.add(chain)
            else:
                reading.append(value)

        def end(_: nn.Module, __: Any, output: Any) -> None:
            value = reading.pop() if reading else None
            if value is not None and output is not value.tensor:  # else it was overwritten
                value.read = True
                self.handed[id(value.tensor)] = value

        layer.register_forward_hook(give)
        reader.register_forward_pre_hook(begin)
        reader.register_forward_hook(end)

    def _meet(self, values: Any) -> None:
        for leaf in pytree.tree_leaves(values):
            if id(leaf) in self.handed:
                self.broken.add(self.handed[id(leaf)].chain)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._meet((args, kwargs))
        return func(*args, **(kwargs or {}))

    def verdict(self, outputs: Any) -> set[int]:
        """The chains that are none, after the run."""
        self._meet(outputs)
        return self.broken | {value.chain for value in self.handed.values() if not value.read}


def _meta_copy(model: nn.Module) -> nn.Module:
    """Copy the modules, but put meta tensors in the place of parameters and buffers."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, memo)


def _clear_hooks(module: nn.Module) -> None:
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(module, name).clear()


def _counter(counts: dict[int, int], key: int) -> Callable[[nn.Conv2d, Any, Tensor], None]:
    def count(conv: nn.Conv2d, _: Any, output: Tensor) -> None:
        taps = math.prod(conv.kernel_size) * conv.in_channels // conv.groups
        counts[key] = counts.get(key, 0) + output[0].numel() * taps

    return count
