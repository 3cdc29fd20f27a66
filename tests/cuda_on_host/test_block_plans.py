"""Whether a block is launched as one kernel or convolution by convolution, asked of the planner."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import gpu_resources  # noqa: E402
from machine_code import Kernel  # noqa: E402

BLOCKS = [layer for layer in gpu_resources.layers() if layer.name.startswith("block")]


@pytest.fixture(scope="module")
def launchers() -> gpu_resources.Launchers:
    return gpu_resources.Launchers()


def launches(
    launchers: gpu_resources.Launchers, batch: int, block_plan: str = "fastest"
) -> list[int]:
    gpu = gpu_resources.GPUS["9.0"]
    return [len(launchers.launches(layer, batch, "fp16", gpu, block_plan)) for layer in BLOCKS]


@pytest.mark.parametrize("batch", [1, 32])
def test_either_plan_can_be_had(launchers: gpu_resources.Launchers, batch: int) -> None:
    assert set(launches(launchers, batch, "fused")) == {1}
    expected = [3 if layer.channels_hidden > 0 else 2 for layer in BLOCKS]
    assert launches(launchers, batch, "separate") == expected


def test_small_batches_run_convolution_by_convolution(launchers: gpu_resources.Launchers) -> None:
    """As was faster for every block (bench/results/nvidia-h100-80gb-hbm3)."""
    assert 1 not in launches(launchers, 1)


def test_the_report_lists_every_stack() -> None:
    instructions = {"STL": 1, "LDL": 3}
    kernels = {
        ("9.0", name): Kernel("a", name, name, "9.0", 40, stack, spill, 256, 2, instructions)
        for name, stack, spill in (("lean", 0, 0), ("stacked", 8, 0), ("spilling", 0, 16))
    }
    rows = gpu_resources.stack_rows(kernels)
    assert [(row["kernel"], row["bounds_leave"]) for row in rows] == [
        ("stacked", 128),
        ("spilling", 128),
    ]
