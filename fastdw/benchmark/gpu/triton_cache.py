"""Fills Triton's cache by all cores at once: else every section waits for one kernel after another.

Nothing is recorded but that it was done; what fails here fails again, and is told, where it counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import fastdw
import fastdw.ops
from fastdw.benchmark.cases import OP_CASES, OpCase
from fastdw.benchmark.gpu.bench import Bench, Item
from fastdw.benchmark.gpu.device import Device, open_device
from fastdw.benchmark.gpu.networks import calibrated
from fastdw.benchmark.gpu.settings import DTYPES, Network, Settings, Sizes, products_in, sizes
from fastdw.benchmark.network_cases import network_cases
from fastdw.ops import triton_backend

MOST_PROCESSES = 16  # each has the device open


def items(bench: Bench) -> Iterator[Item]:
    """One item; nothing where the Triton kernels cannot run."""
    if triton_backend.reason(bench.device.kind) is None:
        yield Item("compile", partial(fill, bench), limit_s=600.0)


def fill(bench: Bench) -> None:
    """Call everything from as many processes as there are cores, each its share."""
    count = max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) - 1))
    begin = time.perf_counter()
    command = [sys.executable, "-m", "fastdw.benchmark.gpu.triton_cache"]
    processes = [
        subprocess.Popen([*command, json.dumps([bench.settings.to_json(), index, count])])
        for index in range(count)
    ]
    for process in processes:
        try:
            process.wait(max(1.0, bench.seconds_left()))
        except subprocess.TimeoutExpired:
            process.kill()
    bench.say(f"{count} processes, {time.perf_counter() - begin:.0f} s")


def calls(sizes: Sizes, device: Device, quick: bool) -> list[Callable[[], Any]]:
    """What the other sections run on Triton, the longest to compile first."""
    found: list[Callable[[], Any]] = []
    for precision in sizes.precisions:
        for network in sizes.networks:
            found.append(partial(_call_network, network, precision, sizes.batches, device))
    for precision in sizes.precisions:
        for op, cases in OP_CASES.items():
            layers = [] if quick else [c for b in sizes.op_batches for c in network_cases(op, b)]
            for case in [*cases[: sizes.cases], *layers]:
                found.append(partial(_call_op, case, precision, device))
    return found


def _call_op(case: OpCase, precision: str, device: Device) -> None:
    tensors = case.tensors(DTYPES[precision]).map(lambda t: t.to(device.torch_device))
    with products_in(precision):
        case.call(getattr(fastdw.ops, case.op), tensors, backend="triton")


def _call_network(
    network: Network, precision: str, batches: tuple[int, ...], device: Device
) -> None:
    dtype, where = DTYPES[precision], device.torch_device
    model = calibrated(network).to(device=where, dtype=dtype)
    for batch in batches:
        x = torch.zeros(batch, 3, network.resolution, network.resolution, dtype=dtype, device=where)
        with products_in(precision):
            fastdw.optimize(model, x[:1], backend="triton", tolerance=float("inf"))(x)


def main(settings_json: str, index: int, count: int) -> None:
    """The share of one process."""
    settings = Settings.from_json(settings_json)
    torch.set_num_threads(1)
    device = open_device(settings.device)
    with torch.no_grad():
        for call in calls(sizes(settings), device, settings.quick)[index::count]:
            try:
                call()
            except Exception as error:  # told by the section that needs the kernel
                print(f"{type(error).__name__}: {str(error)[:200]}", flush=True)
            device.release_memory()


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
