"""What the Triton kernels need of a GPU, compiled without one: a part of `make gpu-report`.

    python bench/triton_resources.py [--targets "sm_80 gfx942"] [--every-layer] [--out FOLDER]

Compiles a launch for every tile of the shipped table, in every dtype, with every stride and every
set of pointers that the layers of MobileNet V1 and V2 (and of `other_cases`) run it with, gradients
included, blocks in one kernel; --every-layer: all launches of all layers, which differ in the sizes
of their windows too. On all cores; prints the worst of each kernel; triton.csv has all. Nothing
here is a time of a kernel. What is compiled is kept until its source changes: a run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_tools"))

import triton_machine_code as machine_code  # noqa: E402
from triton_machine_code import Compiled  # noqa: E402

from fastdw.benchmark import triton_launches  # noqa: E402
from fastdw.benchmark.gpu.settings import DTYPES, products_in  # noqa: E402
from fastdw.benchmark.triton_launches import Launch  # noqa: E402
from fastdw.triton_kernels.block_plan import VARIABLE as BLOCKS  # noqa: E402
from fastdw.triton_kernels.launch import Target  # noqa: E402

MULTIPROCESSORS = {"sm_80": 108, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_120": 170}
"""Of A100, RTX 4090, H100, B200, RTX 5090; an MI300X has 304."""

Job = tuple[str, str, Launch]
"""(precision, target, launch)."""


def jobs(targets: Sequence[str], batches: Sequence[int], every_layer: bool) -> Iterator[Job]:
    """The launches that differ, each once with the first layer that needs it."""
    os.environ[BLOCKS] = "fused"  # apart, they run the kernels of the other ops
    seen = set()
    for (precision, dtype), name in product(DTYPES.items(), targets):
        target = Target(name, MULTIPROCESSORS.get(name, 304))
        with products_in(precision):
            planned = list(triton_launches.network_launches(dtype, target, batches))
        for launch in planned:
            code = (name, machine_code.identity(launch.launch))
            use = code if every_layer else (name, precision, *use_of(launch))
            if code not in seen and use not in seen:
                seen |= {code, use}
                yield precision, name, launch


def use_of(launch: Launch) -> tuple[Any, ...]:
    """What two launches of a kernel by the same rows of the table share, but for sizes."""
    arguments = launch.launch.arguments
    absent = tuple(name for name, value in arguments.items() if value is None)
    strides = tuple(arguments.get(name) for name in ("STRIDE_H", "stride_h", "column_stride"))
    return launch.launch.kernel.__name__, launch.rows, absent, strides


def compile_from(chosen: Sequence[Any], index: int, count: int) -> None:
    """Compile, from the index-th of ``count`` parts on, what no other process has compiled."""
    work = list(jobs(*chosen))
    begin = index * len(work) // count
    for _, target, launch in work[begin:] + work[:begin]:
        with suppress(Exception):  # told by `main`, which meets it too
            machine_code.compile_launch(launch.launch, target)


def row_of(job: Job, compiled: Compiled) -> dict[str, Any]:
    precision, target, launch = job
    return {
        "op": launch.op,
        "kernel": compiled.kernel,
        "target": target,
        "precision": precision,
        "first case": launch.case,
        "sizes": " ".join(f"{name}={value}" for name, value in compiled.sizes.items()),
        "num_warps": compiled.num_warps,
        "num_stages": compiled.num_stages,
        "registers": compiled.registers,
        "stack_bytes": compiled.stack_bytes,
        "spills": compiled.spills,
        "shared_bytes": compiled.shared_bytes,
        "fits": compiled.fits,
        "LDG.128": compiled.instructions["LDG.128"],
        "tensor cores": compiled.instructions["tensor cores"],
        "compile_s": compiled.compile_s,
    }


def worst(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A line per kernel, precision and target: how many variants, the worst of each column."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kernel"], row["precision"], row["target"]), []).append(row)
    for (kernel, precision, target), own in groups.items():
        line = {"kernel": kernel, "precision": precision, "target": target, "variants": len(own)}
        for column in ("registers", "shared_bytes", "stack_bytes", "spills", "compile_s"):
            line[column] = max(row[column] for row in own)
        line["fewest tensor core instructions"] = min(row["tensor cores"] for row in own)
        yield line


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", default=" ".join(machine_code.SHARED_KIB))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--every-layer", action="store_true", help="not one of each tile: all")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_report")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    count = arguments.processes
    chosen = arguments.targets.split(), arguments.batch, arguments.every_layer
    work = list(jobs(*chosen))
    context = multiprocessing.get_context("spawn")  # Triton's compiler has threads
    others = [
        context.Process(target=compile_from, args=(chosen, index, count), daemon=True)
        for index in range(1, count)
    ]
    for process in others:
        process.start()
    rows, failed = [], []
    for job in track(work, "compiling", console=Console(stderr=True)):
        precision, target, launch = job
        try:
            rows.append(row_of(job, machine_code.compile_launch(launch.launch, target)))
        except Exception as error:  # of Triton's compiler: any
            what = f"{launch.op} {precision} {target} {launch.case}"
            failed.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "triton.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    console = Console(width=160)
    console.print(table_of(list(worst(rows))))
    bad = [row for row in rows if row["stack_bytes"] or row["spills"] or not row["fits"]]
    for row in bad:
        what = " ".join(str(row[name]) for name in ("kernel", "precision", "target", "first case"))
        need = "registers {registers}, stack {stack_bytes}, spills {spills}, shared {shared_bytes}"
        console.print(f"{what}: {need.format(**row)} ({row['sizes']})", markup=False)
    console.print(f"{len(rows)} variants, {len(bad)} of them with stack, spills or too much shared")
    for line in failed:
        console.print(f"failed: {line}", markup=False)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
