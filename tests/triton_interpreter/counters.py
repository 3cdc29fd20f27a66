"""Counts what interpreted kernels move: the elements that masked loads and stores touch.

Three counts of bytes, per launch and buffer: ``touched``, every element of every load or store;
``per program``, the distinct 32-byte sectors of each program, which the L2 must deliver if its L1
keeps them; ``distinct``, the distinct sectors of the launch, which DRAM must move.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from triton.runtime import interpreter

SECTOR = 32
OTHER = "other"
_Builder = interpreter.InterpreterBuilder


@dataclass
class Count:
    """Bytes of one buffer in one direction."""

    touched: int = 0
    per_program: int = 0
    distinct: int = 0


@dataclass
class Launch:
    """What one kernel moved: (buffer, read or written) -> bytes."""

    kernel: str
    grid: tuple[int, ...]
    counts: dict[tuple[str, str], Count] = field(default_factory=dict)


class Counters:
    """Collects; see ``counted``."""

    def __init__(self, buffers: Mapping[str, Tensor]) -> None:
        self.launches: list[Launch] = []
        self._ranges = {
            name: (tensor.data_ptr(), tensor.data_ptr() + _extent_bytes(tensor))
            for name, tensor in buffers.items()
        }
        self._program: dict[tuple[str, str], list[Any]] = {}
        self._sectors: dict[tuple[str, str], list[Any]] = {}

    def access(self, direction: str, addresses: Any, mask: Any, element_bytes: int) -> None:
        touched = np.broadcast_to(addresses, np.broadcast_shapes(addresses.shape, mask.shape))
        touched = touched[np.broadcast_to(mask, touched.shape).astype(bool)]
        if not touched.size:
            return
        key = (self._name_of(int(touched.flat[0])), direction)
        count = self.launches[-1].counts.setdefault(key, Count())
        count.touched += touched.size * element_bytes
        self._program.setdefault(key, []).append(np.unique(touched // SECTOR))

    def end_program(self) -> None:
        for key, parts in self._program.items():
            sectors = np.unique(np.concatenate(parts))
            self.launches[-1].counts[key].per_program += SECTOR * sectors.size
            self._sectors.setdefault(key, []).append(sectors)
        self._program = {}

    def end_launch(self) -> None:
        self.end_program()
        for key, parts in self._sectors.items():
            distinct = np.unique(np.concatenate(parts)).size
            self.launches[-1].counts[key].distinct = SECTOR * distinct
        self._sectors = {}

    def _name_of(self, address: int) -> str:
        for name, (begin, end) in self._ranges.items():
            if begin <= address < end:
                return name
        return OTHER


def _extent_bytes(tensor: Tensor) -> int:
    steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


@contextmanager
def counted(**buffers: Tensor) -> Iterator[list[Launch]]:
    """Count the launches inside; buffers that are not named come as ``other``."""
    counters = Counters(buffers)
    load, store = _Builder.create_masked_load, _Builder.create_masked_store
    place, run = _Builder.set_grid_idx, interpreter.GridExecutor.__call__

    def counting_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        counters.access("read", pointers.data, mask.data, _element_bytes(pointers))
        return load(self, pointers, mask, *rest)

    def counting_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counters.access("written", pointers.data, mask.data, _element_bytes(pointers))
        return store(self, pointers, value, mask, *rest)

    def counting_place(self: Any, *index: Any) -> None:
        counters.end_program()
        place(self, *index)

    def counting_run(self: Any, *arguments: Any, **settings: Any) -> None:
        grid = self.grid if isinstance(self.grid, tuple) else (self.grid,)
        counters.launches.append(Launch(self.fn.__name__, grid))
        run(self, *arguments, **settings)
        counters.end_launch()

    _Builder.create_masked_load, _Builder.create_masked_store = counting_load, counting_store
    _Builder.set_grid_idx, interpreter.GridExecutor.__call__ = counting_place, counting_run
    try:
        yield counters.launches
    finally:
        _Builder.create_masked_load, _Builder.create_masked_store = load, store
        _Builder.set_grid_idx, interpreter.GridExecutor.__call__ = place, run


def _element_bytes(pointers: Any) -> int:
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)


def total(launches: list[Launch], direction: str, *names: str) -> Count:
    """The sum over launches of the buffers named (all if none), in one direction."""
    whole = Count()
    for launch in launches:
        for (name, way), count in launch.counts.items():
            if way == direction and (not names or name in names):
                whole.touched += count.touched
                whole.per_program += count.per_program
                whole.distinct += count.distinct
    return whole
