"""What the CUDA kernels need of a GPU, found without one: `make gpu-report`.

    python bench/gpu_resources.py [--targets "8.0 9.0"] [--batch 1 32] [--out FOLDER]

Writes kernels.csv (every kernel of every target: registers, stack, spills, instructions) and
launches.csv and .txt (every launch of MobileNet V1 and V2: the kernel that its launcher takes on
that GPU, threads, shared memory, occupancy), and prints part of it. The kernels are compiled by
nvcc; the launchers run on the host. Nothing here is a time.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "build_tools"), str(ROOT / "tests")]

import cuda_toolkit  # noqa: E402
import machine_code  # noqa: E402
from cuda_on_host import build  # noqa: E402

from fastdw.models import specs  # noqa: E402

COLUMNS = (
    "network layer size channels dtype batch target launch blocks threads registers shared_bytes "
    "blocks_per_multiprocessor occupancy waves LDG.128 LDGSTS LDSM HMMA"
).split()
STACK_COLUMNS = "target kernel stack_bytes spill_bytes STL LDL registers bounds_leave".split()
DTYPES = ("fp32", "fp16", "bf16", "tf32")  # as tests/cuda_on_host/plans.cpp numbers them
HEADER_BYTES = 1024  # of shared memory, that the system keeps for every block
REGISTERS = 65536
# enum BlockPlan of kernels/cuda/params.h
BLOCK_PLANS = ("fastest", "fused", "separate", "fewest_bytes")
REGISTER_UNIT = 256  # registers of a warp are taken in such portions, warps in fours


@dataclass(frozen=True)
class Gpu:
    """The limits of a compute capability (CUDA C++ Programming Guide, table of technical
    specifications) and the multiprocessors of one GPU that has it."""

    name: str
    multiprocessors: int
    threads: int
    blocks: int
    shared_kib: int
    block_shared_kib: int

    def device(self) -> Any:
        """The struct Device of kernels/cuda/params.h."""
        numbers = (
            self.multiprocessors,
            self.block_shared_kib * 1024,
            self.shared_kib * 1024,
            self.threads,
            0,  # no kernel is left out
        )
        return (ctypes.c_int * 5)(*numbers)

    def blocks_at_once(self, threads: int, registers: int, shared_bytes: int) -> int:
        """How many thread blocks one multiprocessor holds."""
        warps = -(-threads // 32)
        warp_registers = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
        by_registers = REGISTERS // warp_registers // 4 * 4 // warps
        by_shared = self.shared_kib * 1024 // (shared_bytes + HEADER_BYTES)
        return min(self.blocks, self.threads // (warps * 32), by_registers, by_shared)


GPUS = {
    "8.0": Gpu("A100", 108, 2048, 32, 164, 163),
    "8.6": Gpu("RTX 3090", 82, 1536, 16, 100, 99),
    "8.9": Gpu("RTX 4090", 128, 1536, 24, 100, 99),
    "9.0": Gpu("H100", 132, 2048, 32, 228, 227),
    "10.0": Gpu("B200", 148, 2048, 32, 228, 227),
    "12.0": Gpu("RTX 5090", 170, 1536, 24, 100, 99),
}


@dataclass(frozen=True)
class Layer:
    """A layer of a network, in the sizes that plans.cpp takes."""

    network: str
    name: str
    op: str
    height: int
    channels_in: int
    channels_hidden: int
    channels_out: int
    kernel: int = 3
    stride: int = 1
    pool: bool = False

    def sizes(self, batch: int, block_plan: str) -> Any:
        """The struct Sizes of tests/cuda_on_host/plans.cpp."""
        numbers = (batch, self.height, self.height, self.channels_in, self.channels_hidden)
        numbers += (self.channels_out, self.kernel, self.stride, self.pool)
        return (ctypes.c_int64 * 10)(*numbers, BLOCK_PLANS.index(block_plan))


def layers() -> Iterator[Layer]:
    """The layers of both networks at width 1 and 224 x 224, equal ones once."""
    networks = {"v1": specs.mobilenet_v1_blocks(), "v2": specs.mobilenet_v2_blocks()}
    for network, blocks in networks.items():
        yield Layer(network, "stem", "stem_conv", 224, 3, 0, blocks[0].in_channels, stride=2)
        seen, size = set(), 112
        for index, block in enumerate(blocks):
            expand = block.expand_ratio > 1
            hidden = block.in_channels * block.expand_ratio if expand else 0
            op = "inverted_residual" if network == "v2" else "separable_block"
            row = (op, size, block.in_channels, hidden, block.out_channels, 3, block.stride)
            if row not in seen:
                yield Layer(network, f"block {index + 1}", *row)
            seen.add(row)
            size = -(-size // block.stride)
        last = blocks[-1].out_channels
        if network == "v2":
            features = specs.MOBILENET_V2_LAST
            yield Layer(network, "last", "pointwise_conv", size, last, 0, features, 1, pool=True)
            yield Layer(network, "head", "classifier_head", 1, features, 0, 1000)
        else:
            yield Layer(network, "head", "classifier_head", size, last, 0, 1000)
            yield Layer(network, "depthwise", "depthwise_conv", 56, 128, 0, 128)


class Launchers:
    """kernels/cuda/*.cu compiled for the host, asked for launches only."""

    def __init__(self) -> None:
        jobs = build.executor_jobs()
        jobs += [(path, []) for path in build.sources("kernels/cuda/*.cu")]
        jobs.append((build.HERE / "plans.cpp", []))
        path = build.Build().shared_library("plans.so", jobs, [])
        self.plan = ctypes.CDLL(str(path)).fastdw_plan
        self.plan.restype = ctypes.c_char_p
        rows = [line.split() for line in _output("nm", str(path)).splitlines()]
        symbols = {int(row[0], 16): row[2] for row in rows if len(row) == 3 and row[1] in "tTwW"}
        names = machine_code.demangle(list(symbols.values()))
        self.names = dict(zip(symbols, map(machine_code.short_name, names), strict=True))

    def launches(
        self, layer: Layer, batch: int, dtype: str, gpu: Gpu, block_plan: str = "fastest"
    ) -> list[dict[str, Any]]:
        """What a layer launches: the kernel's name, blocks, threads and shared bytes."""
        number, sizes = DTYPES.index(dtype), layer.sizes(batch, block_plan)
        text = self.plan(layer.op.encode(), sizes, number, gpu.device())
        found: list[dict[str, Any]] = json.loads(text)
        return [{**launch, "kernel": self.names[launch["offset"]]} for launch in found]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_all(targets: list[str]) -> dict[tuple[str, str], machine_code.Kernel]:
    """Every kernel by target and name."""
    toolkit, nvdisasm = machine_code.find_tools()
    kernels = {}
    for source in cuda_toolkit.kernel_sources(ROOT):
        for target in targets:
            for kernel in machine_code.kernels_of(toolkit, nvdisasm, source, target):
                kernels[target, kernel.name] = kernel
    return kernels


def kernel_rows(kernels: dict[tuple[str, str], machine_code.Kernel]) -> list[dict[str, Any]]:
    return [
        {
            "target": kernel.target,
            "source": kernel.source,
            "kernel": kernel.name,
            "registers": kernel.registers,
            "stack_bytes": kernel.stack_bytes,
            "spill_bytes": kernel.spill_bytes,
            "most_threads": kernel.most_threads,
            **kernel.instructions,
        }
        for kernel in kernels.values()
    ]


def launch_rows(
    kernels: dict[tuple[str, str], machine_code.Kernel], targets: list[str], batches: list[int]
) -> Iterator[dict[str, Any]]:
    launchers = Launchers()
    for layer in layers():
        for dtype in DTYPES:
            for batch in batches:
                for target in targets:
                    gpu = GPUS[target]
                    for launch in launchers.launches(layer, batch, dtype, gpu):
                        kernel = kernels[target, launch["kernel"]]
                        yield launch_row(layer, dtype, batch, target, launch, kernel)


def launch_row(
    layer: Layer,
    dtype: str,
    batch: int,
    target: str,
    launch: dict[str, Any],
    kernel: machine_code.Kernel,
) -> dict[str, Any]:
    gpu, threads, shared_bytes = GPUS[target], launch["threads"], launch["shared_bytes"]
    blocks = gpu.blocks_at_once(threads, kernel.registers, shared_bytes)
    return {
        "network": layer.network,
        "layer": layer.name,
        "size": layer.height,
        "channels": f"{layer.channels_in}-{layer.channels_hidden or ''}-{layer.channels_out}",
        "stride": layer.stride,
        "dtype": dtype,
        "batch": batch,
        "target": target,
        "gpu": gpu.name,
        "launch": launch["name"],
        "kernel": launch["kernel"],
        "blocks": launch["blocks"],
        "threads": threads,
        "registers": kernel.registers,
        "shared_bytes": shared_bytes,
        "blocks_per_multiprocessor": blocks,
        "occupancy": round(blocks * threads / gpu.threads, 3),
        "waves": round(launch["blocks"] / (blocks * gpu.multiprocessors), 2) if blocks else 0,
        **kernel.instructions,
    }


def summary_rows(
    kernels: dict[tuple[str, str], machine_code.Kernel], targets: list[str]
) -> list[dict[str, Any]]:
    """A line per source and target: how many kernels, and the worst of them."""
    rows = []
    for source in sorted({kernel.source for kernel in kernels.values()}):
        for target in targets:
            own = [k for k in kernels.values() if (k.source, k.target) == (source, target)]
            worst = {
                "registers": max(k.registers for k in own),
                "stack_bytes": max(k.stack_bytes for k in own),
                "spill_bytes": max(k.spill_bytes for k in own),
                "LDL": max(k.instructions["LDL"] for k in own),
                "STL": max(k.instructions["STL"] for k in own),
            }
            rows.append({"source": source, "target": target, "kernels": len(own), **worst})
    return rows


def stack_rows(kernels: dict[tuple[str, str], machine_code.Kernel]) -> list[dict[str, Any]]:
    """The kernels that keep something in local memory, and the registers that they might have."""
    return [
        {**row, "bounds_leave": min(255, REGISTERS // (k.most_threads * max(k.least_blocks, 1)))}
        for k, row in zip(kernels.values(), kernel_rows(kernels), strict=True)
        if k.stack_bytes or k.spill_bytes
    ]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_text(rows: list[dict[str, Any]], columns: list[str]) -> str:
    table = [columns, *[[str(row[column]) for column in columns] for row in rows]]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", default=" ".join(GPUS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_report")
    arguments = parser.parse_args()
    targets = arguments.targets.split()
    kernels = compile_all(targets)
    rows = list(launch_rows(kernels, targets, arguments.batch))
    write_csv(arguments.out / "kernels.csv", kernel_rows(kernels))
    write_csv(arguments.out / "launches.csv", rows)
    (arguments.out / "launches.txt").write_text(as_text(rows, COLUMNS) + "\n")
    shown = [r for r in rows if r["dtype"] == "fp16" and r["batch"] == arguments.batch[0]]
    print(as_text(shown, COLUMNS))
    print()
    summary = summary_rows(kernels, targets)
    print(as_text(summary, list(summary[0])))
    print()
    print(f"fp16 at batch {arguments.batch[0]} shown; every dtype and batch in {arguments.out}")
    stacks = stack_rows(kernels)
    if stacks:
        print("in local memory, which no kernel should need; STL and LDL: the instructions that")
        print("store and load it; bounds_leave: the registers that launch bounds leave")
        print(as_text(stacks, STACK_COLUMNS))
        raise SystemExit(f"{len(stacks)} kernels use a stack or spill")


if __name__ == "__main__":
    main()
