"""What the Triton kernels need of a GPU, compiled without one: a part of `make gpu-report`.

    python bench/triton_resources.py [--targets "sm_80 gfx942"] [--batch 1 32] [--out FOLDER]

Compiles every launch of every layer of MobileNet V1 and V2, gradients included, in every dtype, on
all cores, and prints the worst of each kernel; triton.csv has them all. Nothing here is a time of a
kernel. What is compiled is kept until its source changes: a run that was stopped goes on.
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
from fastdw.triton_kernels.launch import Target  # noqa: E402

MULTIPROCESSORS = {"sm_80": 108, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_120": 170}
"""Of A100, RTX 4090, H100, B200, RTX 5090; an MI300X has 304."""

Job = tuple[str, str, str, str, Any]
"""(op, precision, target, label of a case, ``KernelLaunch``)."""


def jobs(targets: Sequence[str], batches: Sequence[int]) -> Iterator[Job]:
    """The launches that differ, each once with the first layer that needs it."""
    seen = set()
    for (precision, dtype), name in product(DTYPES.items(), targets):
        target = Target(name, MULTIPROCESSORS.get(name, 304))
        with products_in(precision):
            planned = list(triton_launches.network_launches(dtype, target, batches))
        for op, label, launch in planned:
            key = (name, machine_code.identity(launch))
            if key not in seen:
                seen.add(key)
                yield op, precision, name, label, launch


def compile_share(targets: Sequence[str], batches: Sequence[int], index: int, count: int) -> None:
    """Compile every count-th launch; what comes out is kept for `main`."""
    for job in list(jobs(targets, batches))[index::count]:
        try:
            machine_code.compile_launch(job[-1], job[2])
        except Exception:  # told by `main`, which finds nothing kept
            continue


def row_of(job: Job, compiled: Compiled) -> dict[str, Any]:
    op, precision, target, label, _ = job
    return {
        "op": op,
        "kernel": compiled.kernel,
        "target": target,
        "precision": precision,
        "first case": label,
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
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_report")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    targets, count = arguments.targets.split(), arguments.processes
    work = list(jobs(targets, arguments.batch))
    context = multiprocessing.get_context("spawn")  # Triton's compiler has threads
    others = [
        context.Process(target=compile_share, args=(targets, arguments.batch, index, count))
        for index in range(1, count)
    ]
    for process in others:
        process.start()
    # This process begins with its own share, so that nothing is compiled twice.
    for job in track(work[::count], f"compiling 1 of {count} shares", console=Console(stderr=True)):
        with suppress(Exception):
            machine_code.compile_launch(job[-1], job[2])
    for process in others:
        process.join()
    rows, failed = [], []
    for job in work:
        try:
            rows.append(row_of(job, machine_code.compile_launch(job[-1], job[2])))
        except Exception as error:  # of Triton's compiler: any
            failed.append(f"{' '.join(job[:4])}: {type(error).__name__}: {str(error)[:200]}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "triton.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    console = Console(width=160)
    console.print(table_of(list(worst(rows))))
    bad = [row for row in rows if row["stack_bytes"] or row["spills"] or not row["fits"]]
    if bad:
        console.print(table_of(bad))
    console.print(f"{len(rows)} variants, {len(bad)} of them with stack, spills or too much shared")
    for line in failed:
        console.print(f"failed: {line}", markup=False)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
