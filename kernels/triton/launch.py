"""One launch of a Triton kernel as data: the ops plan; others run, compile or count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Target(NamedTuple):
    """Where a kernel runs: ``sm_80``, ``gfx942``, ... or ``interpreter``."""

    arch: str
    multiprocessors: int = 108


@dataclass(frozen=True)
class KernelLaunch:
    """A kernel, its grid, its arguments by parameter name: tensors, numbers, None, constexprs."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    num_warps: int
    num_stages: int


def run(launches: Sequence[KernelLaunch]) -> None:
    """Launch the kernels one after another on the current device and stream."""
    for launch in launches:
        launch.kernel[launch.grid](
            **launch.arguments, num_warps=launch.num_warps, num_stages=launch.num_stages
        )


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)
