"""What the Triton kernels of a network move, counted in the interpreter: part of `make gpu-report`.

    python bench/triton_traffic.py [--model NAME] [--dtype fp16] [--batch 1] [--csv FILE]

Every step of the network runs on its Triton kernels; its masked loads and stores are counted:
distinct 32-byte sectors of a launch (what DRAM must move), and of each program (what the L2 must
deliver if the L1 keeps them). Beside them: the ideal (input, output and weights once), and what the
CUDA kernels move (from the CSV of bench/gpu_traffic.py, where there is one). No time is told.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import argparse  # noqa: E402
import csv  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict, dataclass, fields  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from gpu_traffic import DTYPES, step_groups  # noqa: E402
from gpu_traffic import name_of as name_of_group  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from triton_interpreter import bf16_repair, counters  # noqa: E402

import fastdw  # noqa: E402
from fastdw.models import registry  # noqa: E402
from fastdw.ops.program import Program, Step, parse_program  # noqa: E402


@dataclass
class Moved:
    """Bytes that one step, or a whole network, moves in one call."""

    model: str
    dtype: str
    batch: int
    step: str
    launches: int = 0
    programs: int = 0
    ideal: int = 0
    ideal_weights: int = 0
    distinct: int = 0
    per_program_weights: int = 0
    per_program_activations: int = 0
    touched: int = 0
    cuda_dram: int = 0

    def add(self, other: Moved) -> None:
        for field in fields(self)[4:]:
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def operands(step: Step, dtype: torch.dtype) -> tuple[list[Tensor | None], list[Any]]:
    """Random weights of a step, and the other arguments of its op."""

    def conv(*shape: int) -> list[Tensor | None]:
        return [torch.randn(shape).to(dtype), torch.rand(shape[0]), torch.rand(shape[0])]

    window = [list(step.stride), list(step.padding), list(step.dilation)]
    inner, last = step.channels_in, step.channels_out
    if step.op == "stem_conv":
        return conv(last, inner, *step.kernel), [*window[:2], step.activation]
    if step.op == "pointwise_conv":
        return conv(last, inner, 1, 1), [None, step.activation]
    if step.op == "depthwise_conv":
        return conv(last, 1, *step.kernel), [*window, step.activation]
    if step.op == "classifier_head":
        return [torch.randn(last, inner).to(dtype), torch.rand(last)], []
    if step.op == "separable_block":
        tensors = [*conv(inner, 1, *step.kernel), *conv(last, inner, 1, 1)]
        return tensors, [*window, step.depthwise_activation, step.pointwise_activation]
    hidden = step.channels_hidden
    expand = conv(hidden, inner, 1, 1) if step.expand else [None] * 3
    tensors = [*expand, *conv(hidden, 1, *step.kernel), *conv(last, hidden, 1, 1)]
    activations = (step.expand_activation, step.depthwise_activation, step.project_activation)
    return tensors, [*window, step.residual == "1", *activations]


def count(step: Step, x: Tensor, moved: Moved) -> Tensor:
    """Run a step on ``x`` and put what it moves into ``moved``."""
    tensors, settings = operands(step, x.dtype)
    weights = {f"weight {i}": t for i, t in enumerate(tensors) if t is not None}
    with counters.counted(x=x, **weights) as launches:
        y = getattr(torch.ops.fastdw_triton, step.op)(x, *tensors, *settings)
    weight_bytes = sum(tensor.nbytes for tensor in weights.values())
    read, written = counters.total(launches, "read"), counters.total(launches, "written")
    of_weights = counters.total(launches, "read", *weights)
    moved.launches += len(launches)
    moved.programs += sum(torch.Size(launch.grid).numel() for launch in launches)
    moved.ideal += x.nbytes + y.nbytes + weight_bytes
    moved.ideal_weights += weight_bytes
    moved.distinct += read.distinct + written.distinct
    moved.touched += read.touched + written.touched
    moved.per_program_weights += of_weights.per_program
    activations = read.per_program - of_weights.per_program + written.per_program
    moved.per_program_activations += activations
    return y


def count_network(model: str, dtype: str, batch: int, cuda: dict[str, int]) -> list[Moved]:
    """Count every step of a network, the sum last."""
    network = fastdw.optimize(registry.create(model).eval(), torch.randn(1, 3, 224, 224))
    program: Program = parse_program(network.program)
    x = torch.randn(batch, 3, 224, 224).to(DTYPES[dtype])
    rows: list[Moved] = []
    groups = list(step_groups(program))
    for group in track(groups, f"{model} batch {batch}", console=Console(stderr=True)):
        name = name_of_group(group, x.shape)
        moved = Moved(model, dtype, batch, name, cuda_dram=cuda.get(name, 0))
        for step in group.steps:
            x = count(step, x, moved)
            x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        rows.append(moved)
    whole = Moved(model, dtype, batch, "network")
    for row in rows:
        whole.add(row)
    return [*rows, whole]


def cuda_figures(path: Path, model: str, dtype: str, batch: int) -> dict[str, int]:
    """DRAM bytes of the CUDA kernels by step, from the CSV of bench/gpu_traffic.py."""
    if not path.exists():
        return {}
    with path.open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["model"], row["dtype"], row["batch"]) == (model, dtype, str(batch))
        ]
    return {row["step"]: int(row["dram"]) for row in rows}


def table_of(rows: Sequence[Moved]) -> Table:
    columns = ("step", "launches", "programs", "ideal KB", "DRAM KB", "ratio", "CUDA DRAM KB")
    columns += ("L2 act. ratio", "weights read", "touched / ideal")
    first = rows[0]
    table = Table(*columns, title=f"{first.model} {first.dtype} batch {first.batch}, Triton")
    for row in rows:
        activations = row.ideal - row.ideal_weights
        table.add_row(
            row.step,
            str(row.launches),
            str(row.programs),
            f"{row.ideal / 1e3:.0f}",
            f"{row.distinct / 1e3:.0f}",
            f"{row.distinct / row.ideal:.3f}",
            f"{row.cuda_dram / 1e3:.0f}" if row.cuda_dram else "-",
            f"{row.per_program_activations / activations:.2f}",
            f"{row.per_program_weights / max(row.ideal_weights, 1):.1f} x",
            f"{row.touched / row.ideal:.2f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", action="append", help="default: MobileNet V2 and V1, 1.0-224")
    parser.add_argument("--dtype", default="fp16", choices=DTYPES)
    parser.add_argument("--batch", type=int, action="append", help="default: 1")
    parser.add_argument("--cuda", type=Path, default=ROOT / "build/gpu_report/traffic.csv")
    parser.add_argument("--csv", type=Path, help="write all rows to this file")
    options = parser.parse_args()
    bf16_repair.install()
    everything: list[Moved] = []
    for model in options.model or ["fastdw:mobilenet_v2", "fastdw:mobilenet_v1"]:
        for batch in options.batch or [1]:
            cuda = cuda_figures(options.cuda, model, options.dtype, batch)
            rows = count_network(model, options.dtype, batch, cuda)
            Console(width=150).print(table_of(rows))
            everything += rows
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Moved)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in everything)


if __name__ == "__main__":
    main()
