"""One launch of a Triton kernel as data: the ops plan; others run, compile or count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

COUNTS = (
    "pixels images height width height_out width_out out_height out_width tiles_down tiles_across "
    "rows programs_of_image group_rows group_columns groups groups_in groups_hidden groups_out "
    "channels channel_vectors channel_blocks blocks_of_chunk chunks splits taps kernel_h kernel_w "
    "stride_h stride_w dilation_h dilation_w multiplier pad_top pad_left top left top_strides "
    "left_strides"
).split()
"""Parameters by which no address is aligned: rows are multiples of a constexpr (VECTOR, GROUP_IN).

For ``do_not_specialize_on_alignment``: a kernel is not compiled anew where they divide by 16.
"""


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
