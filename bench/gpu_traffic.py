"""What the CUDA kernels of a network move, counted on the host: a part of `make gpu-report`.

Every step of the planned network runs on the host executor (tests/cuda_on_host), which counts
distinct 32-byte sectors (what DRAM must move) and the sectors of executed requests (what the L2
must deliver). Beside them stand the ideal (input, output and weights once), what a kernel per
convolution and what eager torch move, and the least time that follows: a bound, not a speed.

Twice: as planned by default, for the least time, and with FASTDW_CUDA_BLOCKS=fewest_bytes. An H100
took four times as long for a plan by bytes, but it is that plan which the bars hold for.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cuda_on_host import host_library  # noqa: E402

import fastdw  # noqa: E402
from fastdw.ops.program import Program, Step, parse_program  # noqa: E402
from fastdw.plan.packed_layout import to_cuda_layout  # noqa: E402

SECTOR_BYTES = 32
PLANS = ("fastest", "fewest_bytes")  # of FASTDW_CUDA_BLOCKS
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
GPUS = {  # GB/s of memory, TFLOP/s of dense fp16 tensor cores with fp32 sums: the makers' figures
    "A100": (1555, 312),
    "H100": (3350, 989),
    "RTX 4090": (1008, 165),
}

# The bars of MobileNet V2's plan of the fewest bytes. Pixels of 28 x 28 images, and of others, may
# be expanded so many times.
MOST_DRAM, MOST_L2, MOST_EXPANDED = 1.1, 1.4, {"28x28": 1.15, "other": 1.35}
_LAST_SLAB = "rows of a last slab that has few channels: a pixel of it does not fill the banks"
CONFLICT_REASONS = {  # none in a loop over products; where a tile is brought in or left
    "copy depthwise_conv_tile.cuh": "stride 2: even and odd columns lie apart, for the loads' sake",
    "copy stem_conv_mma_tiles.cuh": "rows of the image that the banks do not divide",
    "store stem_conv_mma_tiles.cuh": "weights, as ldmatrix wants them; once a thread block",
    "copy inverted_residual_tile.cuh": "x, where a row of a tile ends within eight chunks",
    "load inverted_residual_copies.cuh": "taps that are transposed, once a slab",
    "store inverted_residual_copies.cuh": "taps that are transposed, once a slab",
    "store inverted_residual_slabs.cuh": "hidden rows whose width the banks do not divide",
    "load inverted_residual_filter.cuh": _LAST_SLAB,
    "store inverted_residual_filter.cuh": _LAST_SLAB,
    "load inverted_residual_results.cuh": "the residual, in x's rows, padded for ldmatrix",
}


@dataclass(frozen=True)
class Traffic:
    """Bytes that one step, or a whole network, moves in one call."""

    model: str
    dtype: str
    batch: int
    device: str
    plan: str
    step: str
    expanded: float = 0  # pixels, by all thread blocks, of those of x; 0: no kernel for a block
    launches: int = 0
    thread_blocks: int = 0
    ideal: int = 0  # input + output + weights
    dram: int = 0  # distinct sectors of each launch
    l2_weights: int = 0  # sectors of requests
    l2_activations: int = 0
    ideal_weights: int = 0
    per_convolution: int = 0  # activations of a kernel per convolution, batch norm etc. inside
    eager: int = 0  # activations of a kernel per convolution, batch norm, activation and addition
    multiply_adds: int = 0
    wavefronts: int = 0  # turns of shared memory
    bank_conflicts: Counter[str] = field(default_factory=Counter)  # of them lost, by place

    def __add__(self, other: Traffic) -> Traffic:
        sums = {
            column.name: getattr(self, column.name) + getattr(other, column.name)
            for column in fields(self)[7:]
        }
        return replace(self, expanded=max(self.expanded, other.expanded), **sums)


def step_groups(program: Program) -> Iterator[Program]:
    """Yield every step as a network of its own; a last convolution stays with the head."""
    steps = list(program.steps)
    while steps:
        with_head = len(steps) == 2 and steps[1].op == "classifier_head"
        group = steps[: 2 if with_head else 1]
        del steps[: len(group)]
        first = replace(group[0], input="x")
        if first.residual not in ("-", "0", "1"):
            raise SystemExit(f"{first.op}: a residual from elsewhere is not counted yet")
        channels = first.channels_in or first.channels
        rest = tuple(group[1:])
        yield replace(program, channels=channels, outputs=(group[-1].output,), steps=(first, *rest))


def name_of(group: Program, shape: Sequence[int]) -> str:
    """Name a group of steps for people."""
    step = group.steps[0]
    hidden = f"-{step.channels_hidden}" if step.expand else ""
    stride = f" /{step.stride[0]}" if step.stride and step.stride[0] > 1 else ""
    name = f"{step.op} {group.channels}{hidden}-{step.channels_out or group.channels}"
    return f"{name} {shape[2]}x{shape[3]}{stride}" + (" + head" if len(group.steps) > 1 else "")


def unfused_elements(step: Step, shape: Sequence[int]) -> tuple[int, int]:
    """Return the activations that a kernel per convolution, and that eager torch, read and write.

    Eager: a convolution reads and writes, and so do batch norm and the activation, in place or
    not; an addition reads two tensors and writes one.
    """
    shape = tuple(shape)
    out = torch.Size(step.output_shape(shape)).numel()
    source = torch.Size(shape).numel()
    if step.op in ("global_pool", "classifier_head"):
        return source + out, source + out
    if step.op not in ("inverted_residual", "separable_block"):
        has_activation = step.activation != "none"
        return source + out, source + out + 2 * out * (1 + has_activation)
    hidden = step.channels_hidden or step.channels_in
    before = shape[0] * hidden * shape[2] * shape[3]
    after = shape[0] * hidden * torch.Size(step.output_shape(shape)[2:]).numel()
    residual = out if step.residual == "1" else 0
    convolutions = [(before, after), (after, out)]
    if step.expand:
        convolutions.insert(0, (source, before))
    fused = sum(read + written for read, written in convolutions) + residual
    last = step.pointwise_activation != "none" or step.project_activation != "none"
    with_activation = [written for _, written in convolutions[:-1]] + ([out] if last else [])
    passes = 2 * sum(written for _, written in convolutions) + 2 * sum(with_activation)
    return fused, fused + passes + 2 * residual


def expanded_times(launch: dict[str, Any], x: Tensor, y: Tensor) -> float:
    """Return how often a pixel of x is expanded, on average: as often as it is read.

    Each of the thread blocks that share hidden channels expands its own; all but one of them leave
    fp32 sums beside y.
    """
    moved = {
        (name, way): traffic
        for name, ways in launch["buffers"].items()
        for way, traffic in ways.items()
    }
    sums = moved["other", "written"]["bytes"] - y.nbytes
    splits = 1 + round(sums / (4 * y.numel()))
    return moved["x", "read"]["bytes"] / (splits * x.nbytes)


def conflicts_by_place(launches: Sequence[dict[str, Any]]) -> Counter[str]:
    """Return in which file, and at which kind of access, turns of shared memory were lost."""
    sites = [site for launch in launches for site in launch["shared"] if site["conflicts"]]
    found: Counter[str] = Counter()
    if sites:
        lines = host_library.lines_of(host_library.path(), [site["site"] for site in sites])
        for site, line in zip(sites, lines, strict=True):
            found[f"{site['access']} {Path(line.rpartition(':')[0]).name}"] += site["conflicts"]
    return found


def count(group: Program, weights: Tensor, x: Tensor, row: Traffic) -> Traffic:
    """Run a group on `x` and return what it moved."""
    packed, text = to_cuda_layout(weights, str(group), x.dtype)
    with host_library.counted(x=x, weights=packed) as launches:
        (y,) = host_library.op("planned_network")(x, packed, text)

    def total(kind: str, names: Sequence[str] = ("x", "weights", "other")) -> int:
        return SECTOR_BYTES * sum(
            traffic[kind]
            for launch in launches
            for name in names
            for traffic in launch["buffers"].get(name, {}).values()
        )

    shapes = [x.shape, *([group.steps[0].output_shape(x.shape)] if len(group.steps) > 1 else [])]
    unfused = [unfused_elements(s, shape) for s, shape in zip(group.steps, shapes, strict=True)]
    weight_bytes = len(packed) - 64
    one_kernel = len(launches) == 1 and group.steps[0].expand
    return replace(
        row,
        expanded=expanded_times(launches[0], x, y) if one_kernel else 0,
        launches=len(launches),
        thread_blocks=sum(torch.Size(launch["grid"]).numel() for launch in launches),
        ideal=x.nbytes + y.nbytes + weight_bytes,
        dram=total("distinct_sectors"),
        l2_weights=total("request_sectors", ["weights"]),
        l2_activations=total("request_sectors", ["x", "other"]),
        ideal_weights=weight_bytes,
        per_convolution=x.itemsize * sum(fused for fused, _ in unfused),
        eager=x.itemsize * sum(eager for _, eager in unfused),
        multiply_adds=group.multiply_adds(*(x.shape[i] for i in (0, 2, 3))),
        wavefronts=sum(site["wavefronts"] for launch in launches for site in launch["shared"]),
        bank_conflicts=conflicts_by_place(launches),
    )


@contextmanager
def planned(plan: str) -> Iterator[None]:
    """Set FASTDW_CUDA_BLOCKS; its former value comes back."""
    before = os.environ.get("FASTDW_CUDA_BLOCKS")
    os.environ["FASTDW_CUDA_BLOCKS"] = plan
    try:
        yield
    finally:
        del os.environ["FASTDW_CUDA_BLOCKS"]
        if before is not None:
            os.environ["FASTDW_CUDA_BLOCKS"] = before


def count_network(
    model: str, dtype: str, batch: int, device: str, plan: str = PLANS[0], resolution: int = 224
) -> list[Traffic]:
    """Count every step of a network under a plan of its blocks, the sum last."""
    from fastdw.models import registry

    network = fastdw.optimize(
        registry.create(model).eval(), torch.randn(1, 3, resolution, resolution)
    )
    program = parse_program(network.program)
    row = Traffic(model, dtype, batch, device, plan, "")
    rows: list[Traffic] = []
    shape: tuple[int, ...] = (batch, 3, resolution, resolution)
    with host_library.device(device), planned(plan):
        for group in step_groups(program):
            x = torch.randn(shape).to(DTYPES[dtype]).to(memory_format=torch.channels_last)
            if not rows:
                x = x.contiguous()  # the image, as users hold it
            rows.append(count(group, network.packed, x, replace(row, step=name_of(group, shape))))
            for step in group.steps:
                shape = step.output_shape(shape)
    return [*rows, sum(rows[1:], replace(rows[0], step="network"))]


def least_times(row: Traffic) -> dict[str, float]:
    """Return the least microseconds on each GPU: bytes over bandwidth or operations over peak."""
    return {
        name: max(row.dram / bandwidth / 1e3, 2 * row.multiply_adds / peak / 1e6)
        for name, (bandwidth, peak) in GPUS.items()
    }


def l2_ratio(row: Traffic) -> float:
    """Return the activations that the L2 delivers and takes, of those of the ideal."""
    return row.l2_activations / (row.ideal - row.ideal_weights)


COLUMNS: dict[str, Any] = {
    "step": lambda row: row.step,
    "launches": lambda row: row.launches,
    "blocks": lambda row: row.thread_blocks,
    "ideal KB": lambda row: f"{row.ideal / 1e3:.0f}",
    "DRAM KB": lambda row: f"{row.dram / 1e3:.0f}",
    "ratio": lambda row: f"{row.dram / row.ideal:.3f}",
    "L2 act. ratio": lambda row: f"{l2_ratio(row):.2f}",
    "expanded": lambda row: f"{row.expanded:.2f} x" if row.expanded else "-",
    "weights read": lambda row: f"{row.l2_weights / max(row.ideal_weights, 1):.1f} x",
    "per conv KB": lambda row: f"{(row.per_convolution + row.ideal_weights) / 1e3:.0f}",
    "eager KB": lambda row: f"{(row.eager + row.ideal_weights) / 1e3:.0f}",
    "conflicts": lambda row: f"{100 * row.bank_conflicts.total() / max(row.wavefronts, 1):.1f} %",
    **{f"bound us {name}": lambda row, name=name: f"{least_times(row)[name]:.1f}" for name in GPUS},
}


def as_text(rows: Sequence[Traffic]) -> str:
    """Return the table of one network."""
    table = [list(COLUMNS), *([str(cell(row)) for cell in COLUMNS.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in table
    ]
    head = (
        f"{rows[0].model} {rows[0].dtype} batch {rows[0].batch}, "
        f"tiles chosen for {rows[0].device}, blocks: {rows[0].plan}"
    )
    return "\n".join([head, *lines])


def plans_as_text(networks: Sequence[Traffic]) -> str:
    """Return the plans of each network beside what the one of the fewest bytes is held to."""
    lines = [
        f"planned as {' and as '.join(PLANS)}; the latter, for MobileNet V2 in fp16, is held to",
        f"DRAM {MOST_DRAM} x of the ideal, activations from the L2 {MOST_L2} x, pixels expanded "
        f"{MOST_EXPANDED['28x28']} x at 28x28 and {MOST_EXPANDED['other']} x elsewhere",
    ]
    for row in networks:
        lines.append(
            f"{row.model} batch {row.batch} {row.plan:>12}: DRAM {row.dram / 1e3:.0f} KB = "
            f"{row.dram / row.ideal:.3f} x, L2 {l2_ratio(row):.2f} x, expanded "
            f"{COLUMNS['expanded'](row)}, weights read {COLUMNS['weights read'](row)}, "
            f"eager {COLUMNS['eager KB'](row)} KB"
        )
    return "\n".join(lines)


def conflicts_as_text(networks: Sequence[Traffic]) -> str:
    """Return where turns of shared memory are lost, and why. Products, by ldmatrix, lose none."""
    wavefronts = sum(row.wavefronts for row in networks)
    found = sum((row.bank_conflicts for row in networks), Counter[str]())
    lines = [f"bank conflicts, of {wavefronts} turns of shared memory, by access and file"]
    for place, turns in found.most_common():
        reason = CONFLICT_REASONS.get(place, "no reason known")
        lines.append(f"  {100 * turns / wavefronts:.2f} % {place}: {reason}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="default: MobileNet V2 and V1, 1.0-224")
    parser.add_argument("--dtype", default="fp16", choices=DTYPES)
    parser.add_argument("--batch", type=int, action="append", help="default: 1 and 4")
    parser.add_argument("--device", default="A100", choices=host_library.DEVICES)
    parser.add_argument("--csv", type=Path, help="write all rows to this file")
    options = parser.parse_args()
    everything: list[Traffic] = []
    for model in options.model or ["fastdw:mobilenet_v2", "fastdw:mobilenet_v1"]:
        for batch in options.batch or [1, 4]:
            for plan in PLANS:
                rows = count_network(model, options.dtype, batch, options.device, plan)
                print(as_text(rows), end="\n\n", flush=True)
                everything += rows
    networks = [row for row in everything if row.step == "network"]
    print(plans_as_text(networks), end="\n\n")
    print(conflicts_as_text(networks))
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        with options.csv.open("w", newline="") as file:
            columns = [column.name for column in fields(Traffic)]
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for row in everything:
                values = {name: getattr(row, name) for name in columns}
                writer.writerow({**values, "bank_conflicts": row.bank_conflicts.total()})


if __name__ == "__main__":
    main()
