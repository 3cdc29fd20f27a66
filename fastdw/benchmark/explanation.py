"""What the plan of a network does, as the native library tells it: no timing is needed.

The blocking comes from the kernels themselves; here it is only shown.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastdw import native
from fastdw.convert import convert
from fastdw.plan.record import NotPlannable, record

if TYPE_CHECKING:
    from rich.table import Table

MIB = 2**20


def program_of(model: nn.Module) -> str:
    """The program that `fastdw.optimize` would plan for a model in eval mode, without weights.

    Raises:
        NotPlannable: something in the model has no step.
    """
    fused = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be fused shows below
        convert(fused)
    return str(record(fused).program)


def explain_program(
    program: str, batch: int, height: int, width: int, threads: int
) -> dict[str, Any]:
    """The plan for one call: schedule, memory, and each step with the blocking of its kernel."""
    native.load()
    text = torch.ops.fastdw.explain_network(program, batch, height, width, threads)
    return json.loads(text)


def explain_model(model: nn.Module, batch: int, resolution: int, threads: int) -> dict[str, Any]:
    """`explain_program` of a model in eval mode.

    Raises:
        NotPlannable: there is no plan to explain, and why.
        ImportError: the native library is missing.
    """
    return explain_program(program_of(model), batch, resolution, resolution, threads)


def peak_memory_bytes(model: nn.Module, batch: int, resolution: int, threads: int) -> int | None:
    """What a planned call takes beside its input and the packed weights; None without a plan."""
    try:
        told = explain_model(model, batch, resolution, threads)
    except (NotPlannable, ImportError):
        return None
    return int(told["memory"]["peak_bytes"])


def summary_lines(told: Mapping[str, Any]) -> list[str]:
    """Schedule, caches and memory, a sentence each."""
    schedule, memory = told["schedule"], told["memory"]
    workers, whole = schedule["workers"], schedule["whole_images_per_worker"]
    rest = schedule["images_split_by_rows"]
    work = [f"{whole} whole image{'s' * (whole != 1)} each"] if whole else []
    work += [f"{rest} split by rows, step by step"] if rest else []
    caches = ", ".join(f"{level} {_size(size)}" for level, size in told["caches"].items() if size)
    return [
        f"{told['isa']}, {workers} worker{'s' * (workers != 1)}: {' and '.join(work)}",
        f"caches: {caches or 'not told by this system'}",
        f"memory beside input and weights: {memory['peak_bytes'] / MIB:.2f} MiB = "
        f"values {_size(memory['arena_bytes'])} + scratch {workers} x "
        f"{_size(memory['scratch_bytes_per_worker'])} + outputs {_size(memory['output_bytes'])}"
        + (f" + copy of x {_size(copied)}" if (copied := memory["input_copy_bytes"]) else ""),
    ]


def step_table(title: str, told: Mapping[str, Any]) -> Table:
    """The steps, one a line."""
    from rich.table import Table

    table = Table(title=title, caption="\n".join(summary_lines(told)), caption_justify="left")
    table.add_column("#", justify="right")
    for name in ("step", "shape"):
        table.add_column(name, no_wrap=True)
    for name in ("M mult-adds", "weights", "moved"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("split", no_wrap=True)
    table.add_column("blocking", overflow="fold")
    for index, step in enumerate(told["steps"]):
        moved = step["bytes"]
        table.add_row(
            str(index),
            step["kind"],
            shape_text(step),
            f"{step['multiply_adds'] / 1e6:.2f}",
            _size(moved["weights"]),
            _size(moved["x"] + moved["y"] + moved["residual"]),
            _split(step["split"]),
            _blocking(step["blocking"]),
        )
    return table


def shape_text(step: Mapping[str, Any]) -> str:
    """Sizes of a step: "112x112x16 x6 -> 56x56x24 3x3/2"."""
    x, y = (_image(step[name]) for name in ("input_shape", "output_shape"))
    hidden = step.get("channels_hidden", step["input_shape"][1])
    expand = f" x{hidden / step['input_shape'][1]:g}" if hidden != step["input_shape"][1] else ""
    window = ""
    if "kernel" in step:
        window = " " + "x".join(map(str, step["kernel"]))
        if max(step["stride"]) > 1:
            window += f"/{step['stride'][0]}"
    return f"{x}{expand} -> {y}{window}"


def _image(shape: Sequence[int]) -> str:
    return "x".join(map(str, (*shape[2:], shape[1])))


def _split(split: Mapping[str, Any]) -> str:
    if split["whole_images"]:
        return "whole images"
    return f"{split['units']} = {' + '.join(map(str, split['units_of_each_worker']))}"


def _blocking(blocking: Mapping[str, Any]) -> str:
    """ "band_rows 7, tile 14x32, slab 284 KiB in L2"."""
    parts = []
    for name, value in blocking.items():
        what = name.rsplit("_", 1)[0]
        if name.endswith("_bytes"):
            parts.append(f"{what} {_size(value)} in {blocking[f'{what}_fits']}")
        elif name == "tile_pixels":
            parts.append(f"tile {value}x{blocking['tile_channels']}")
        elif not name.endswith("_fits") and name != "tile_channels":
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _size(size_bytes: int) -> str:
    if size_bytes >= 10 * MIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / 1024:.0f} KiB" if size_bytes >= 10240 else f"{size_bytes} B"
