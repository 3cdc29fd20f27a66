"""fastdw::profile_network and fastdw::explain_network against the call that they tell of."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from network_builder import NetworkBuilder, fastdw_ops, plan_header, small_mobilenet

from fastdw.ops.program import parse_program

Threads = Callable[[int], None]
# tests/sanitize/run.sh replaces the allocator by one that does not tell what it gave.
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
KINDS = (
    *("stem_block", "inverted_residual", "separable_block", "depthwise_conv", "pointwise_conv"),
    *("inverted_residual", "pointwise_conv", "global_pool", "global_pool", "classifier_head"),
)


def explain(net: NetworkBuilder, *call: int) -> dict[str, Any]:
    return json.loads(fastdw_ops.explain_network(net.program(), *call))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_steps_add_up_to_the_call(batch: int, count: int, threads: Threads) -> None:
    net = small_mobilenet()
    packed, program, x = net.packed(), net.program(), torch.randn(batch, 3, 160, 160)
    threads(count)
    runs, shares = 5, []
    for _ in range(8):  # the other tests' processes may take the cores between two steps
        begin = time.perf_counter()
        seconds = fastdw_ops.profile_network(x, packed, program, runs)
        whole = time.perf_counter() - begin
        assert seconds.shape == (runs, len(KINDS)) and seconds.dtype == torch.float64
        assert (seconds >= 0).all() and seconds.sum() <= whole
        shares.append(seconds.sum().item() / whole)
    # Several threads wait for one another between two steps, where the cores are taken.
    assert max(shares) > (0.5 if count == 1 else 0.2)
    # The head multiplies 64 x 11; the first block works on 80 x 80 pixels.
    least = seconds.min(0).values
    assert least[0] > 3 * least[-1]


def test_the_profile_tells_the_slow_step_from_the_fast_one() -> None:
    """One 1x1 convolution has 16 times the arithmetic of the other."""
    net = NetworkBuilder()
    wide = net.pointwise(net.stem("x", 64), 256)
    net.outputs = [net.pointwise(net.pointwise(wide, 256), 16)]
    x = torch.randn(1, 3, 96, 96)
    seconds = fastdw_ops.profile_network(x, net.packed(), net.program(), 15).median(0).values
    assert 5 < seconds[2] / seconds[3] < 60


@pytest.mark.parametrize(
    "batch,runs,message",
    [(1, 0, "runs: expected 1 to"), (1, 2**40, "runs: expected"), (0, 1, "x: expected at least")],
)
def test_bad_profiles_are_refused(batch: int, runs: int, message: str) -> None:
    net = small_mobilenet()
    with pytest.raises(RuntimeError, match=message):
        x = torch.randn(batch, 3, 32, 32)
        fastdw_ops.profile_network(x, net.packed(), net.program(), runs)
    with pytest.raises(RuntimeError, match="a header of 64 bytes"):
        fastdw_ops.profile_network(torch.randn(1, 3, 32, 32), plan_header(1)[:9], net.program(), 1)


@pytest.mark.parametrize("batch,count", [(1, 1), (1, 2), (2, 2), (5, 2), (3, 4)])
def test_explanation(isa: str, batch: int, count: int) -> None:
    net = small_mobilenet()
    told = explain(net, batch, 64, 48, count)
    program = parse_program(net.program())
    assert told["isa"] == isa and told["input_shape"] == [batch, 3, 64, 48]
    schedule = told["schedule"]
    workers, whole = schedule["workers"], schedule["whole_images_per_worker"]
    assert 1 <= workers <= count and whole * workers + schedule["images_split_by_rows"] == batch
    steps = told["steps"]
    assert tuple(step["kind"] for step in steps) == KINDS
    shapes = program.value_shapes(batch, 64, 48)
    for step in steps:
        lines = program.steps[step["program_step"] : step["last_program_step"] + 1]
        assert len(lines) == (2 if step["kind"] == "stem_block" else 1)
        line = lines[0]
        if step["kind"] == "classifier_head":
            assert step["input_shape"] == [batch, 64]  # of the pool that goes before
        else:
            assert step["input_shape"] == list(shapes[line.input])
            arithmetic = sum(part.multiply_adds(shapes[part.input]) for part in lines)
            assert step["multiply_adds"] == (0 if step["kind"] == "global_pool" else arithmetic)
        assert step["bytes"]["x"] == 4 * math.prod(step["input_shape"])
        assert step["bytes"]["y"] == 4 * math.prod(step["output_shape"])
        split = step["split"]
        units = split["units_of_each_worker"]
        assert sum(units) == split["units"] and max(units) - min(units) <= 1
        assert len(units) == (1 if split["whole_images"] else workers)
        assert step["scratch_bytes"] <= told["memory"]["scratch_bytes_per_worker"]
    counted = sum(step["multiply_adds"] for step in steps)
    assert counted == program.multiply_adds(batch, 64, 48)
    weights = sum(step["bytes"]["weights"] for step in steps)
    assert weights + 64 == net.packed().numel()
    assert steps[1]["bytes"]["residual"] == steps[1]["bytes"]["x"]  # adds its own input
    assert steps[4]["bytes"]["residual"] == steps[4]["bytes"]["y"]
    assert steps[0]["bytes"]["residual"] == 0


def test_the_blocking_is_the_kernels(isa: str) -> None:
    """Whatever it chose: the parts that it names are the scratch that it asks for."""
    steps = explain(small_mobilenet(), 1, 224, 224, 1)["steps"]
    for step in (steps[0], steps[1], steps[2], steps[5]):  # blocks with and without expansion
        blocking = step["blocking"]
        parts = {name: size for name, size in blocking.items() if name.endswith("_bytes")}
        assert sum(parts.values()) == step["scratch_bytes"] > 0
        assert all(f"{name.removesuffix('_bytes')}_fits" in blocking for name in parts)
        assert 1 <= blocking["band_rows"] <= step["output_shape"][2]
        assert blocking["tile_pixels"] >= 1 and blocking["tile_channels"] % 16 == 0
    assert steps[-2]["blocking"] == {}  # a pool has nothing to choose


@pytest.mark.parametrize(
    "call,message",
    [
        ((0, 32, 32, 1), "batch: expected at least 1"),
        ((1, 0, 32, 1), "height, width: expected at least 1"),
        ((1, 32, 32, 0), "threads: expected at least 1"),
        ((2**40, 2**20, 32, 1), "the size .* is too large"),
    ],
)
def test_bad_explanations_are_refused(call: tuple[int, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        explain(small_mobilenet(), *call)
    with pytest.raises(RuntimeError, match="program: expected a first line"):
        fastdw_ops.explain_network("", 1, 32, 32, 1)


MEASURE = """
import ctypes, json, sys, torch
from network_builder import fastdw_ops, small_mobilenet
batch, size, threads = map(int, sys.argv[1:])
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
def allocated():
    info = mallinfo2()
    return info.uordblks + info.hblkhd
torch.set_num_threads(threads)
net = small_mobilenet()
packed, program = net.packed(), net.program()
x = torch.randn(batch, 3, size, size)
fastdw_ops.planned_network(torch.randn(batch, 3, 8, 8), packed, program)  # the pool's threads
told = json.loads(fastdw_ops.explain_network(program, batch, size, size, threads))
before = allocated()
outputs = fastdw_ops.planned_network(x, packed, program)  # outputs, arena and scratch stay
print(allocated() - before, told["memory"]["peak_bytes"], told["schedule"]["workers"])
"""


@pytest.mark.skipif(SANITIZED, reason="another allocator")
@pytest.mark.parametrize("batch,size,threads", [(1, 224, 1), (3, 160, 2)])
def test_memory_is_what_a_call_allocates(batch: int, size: int, threads: int) -> None:
    command = [sys.executable, "-c", MEASURE, *map(str, (batch, size, threads))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    allocated, told, workers = map(int, done.stdout.split())
    assert workers == threads
    # The tiny call before holds some already; the allocator adds headers.
    assert 0.97 * told - 200_000 < allocated < 1.01 * told + 200_000


def test_a_copy_of_the_input_counts() -> None:
    net = NetworkBuilder(channels=8)
    net.outputs = [net.pointwise("x", 16)]
    assert explain(net, 2, 10, 10, 1)["memory"]["input_copy_bytes"] == 4 * 2 * 8 * 100
    assert explain(small_mobilenet(), 2, 10, 10, 1)["memory"]["input_copy_bytes"] == 0
