"""What the Triton kernels move, by the elements that their masked loads and stores touch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from network_builder import small_mobilenet

from fastdw import ops
from fastdw.benchmark.cases import OpCase, dense, depthwise
from fastdw.ops import triton_backend
from fastdw.ops.program import parse_program
from fastdw.triton_kernels import block_plan
from fastdw.triton_kernels.tiles import Tile, forced, recorded
from triton_interpreter import counters
from triton_interpreter.counters import SECTOR


def block(channels: int, hidden: int, size: int) -> OpCase:
    convs = (dense(hidden, channels, "relu6"), depthwise(hidden), dense(channels, hidden))
    x = (1, channels, size, size)
    return OpCase("inverted_residual", "", x, convs, {"stride": 1, "padding": 1})


WAYS = ("read", "written")

# Each reads x at most so often from the L2, if its programs keep in the L1 what they have read:
# small images are cut smaller, for more programs, and read more.
CASES = {
    "depthwise stride 1": (
        OpCase("depthwise_conv", "", (20, 64, 28, 28), (depthwise(64),), {"padding": 1}),
        1.4,
    ),
    "depthwise stride 2": (
        OpCase(
            "depthwise_conv", "", (1, 64, 28, 28), (depthwise(64),), {"stride": 2, "padding": 1}
        ),
        1.7,
    ),
    "pointwise": (OpCase("pointwise_conv", "", (6, 64, 28, 28), (dense(64, 64, "relu6"),)), 1.01),
    "whole block": (block(24, 144, 56), 1.7),
    "depthwise and pointwise": (
        OpCase(
            "separable_block",
            "",
            (1, 64, 28, 28),
            (depthwise(64), dense(128, 64)),
            {"padding": 1},
        ),
        1.6,
    ),
    "stem": (
        OpCase(
            "stem_conv",
            "",
            (1, 3, 96, 96),
            (((32, 3, 3, 3), "relu6"),),
            {"stride": 2, "padding": 1},
        ),
        1.2,
    ),
}


def counted(case: OpCase) -> tuple[list[counters.Launch], int, int]:
    """Return the launches, the ideal bytes and those of x."""
    tensors = case.tensors(torch.float16)
    weights = {
        f"{name} {i}": tensor
        for i, conv in enumerate(tensors.convs)
        if conv
        for name, tensor in zip(("weight", "scale", "bias"), conv[:3], strict=True)
        if tensor is not None
    }
    with counters.counted(x=tensors.x, **weights) as launches, torch.no_grad():
        y = case.call(getattr(ops, case.op), tensors, backend="triton")
    ideal = tensors.x.nbytes + y.nbytes + sum(tensor.nbytes for tensor in weights.values())
    return launches, ideal, tensors.x.nbytes


@pytest.mark.parametrize("name", CASES)
def test_memory_is_touched_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch, and from DRAM no more than input, output and weights: no hidden tensor."""
    monkeypatch.setenv(block_plan.VARIABLE, "fused")
    case, most = CASES[name]
    launches, ideal, x_bytes = counted(case)
    assert len(launches) == 1
    read, written = (counters.total(launches, way) for way in WAYS)
    assert ideal <= read.distinct + written.distinct <= ideal + 8 * SECTOR
    assert written.touched == written.per_program == written.distinct
    assert counters.total(launches, "read", "x").per_program <= most * x_bytes


@pytest.mark.parametrize("batch", [1, 8])
def test_the_head_adds_its_means(batch: int) -> None:
    """Kept in fp32 between its two kernels: few bytes beside the image's."""
    launches, ideal, x_bytes = counted(
        OpCase("classifier_head", "", (batch, 640, 7, 7), (((200, 640), "none"),))
    )
    moved = sum(counters.total(launches, way).distinct for way in WAYS)
    assert moved <= ideal + 2 * 4 * batch * 640 + 8 * SECTOR
    assert counters.total(launches, "read", "x").per_program == x_bytes


# How often its input or output gradient is read from the L2 at most.
@pytest.mark.parametrize(("stride", "grad_reads", "x_reads"), [(1, 2.4, 1.6), (2, 1.5, 1.3)])
def test_gradients_touch_memory_once(stride: int, grad_reads: float, x_reads: float) -> None:
    """But for the partial sums of the chunks: two launches, written once and read once."""
    nhwc, geometry = {"memory_format": torch.channels_last}, ([stride] * 2, [1] * 4, [1, 1])
    x = torch.randn(1, 64, 28, 28).half().to(**nhwc)
    grad = torch.randn(1, 64, 28 // stride, 28 // stride).half().to(**nhwc)
    weight, weight_grad = torch.randn(64, 1, 3, 3).half(), torch.empty(64, 1, 3, 3)
    x_grad = torch.empty_like(x)
    with counters.counted(grad=grad) as launches:
        triton_backend.run_input_grad(x_grad, grad, weight, *geometry)
    moved = [counters.total(launches, way).distinct for way in WAYS]
    assert moved == [grad.nbytes + weight.nbytes, x_grad.nbytes]
    assert counters.total(launches, "read", "grad").per_program <= grad_reads * grad.nbytes

    with counters.counted(x=x, grad=grad, weight_grad=weight_grad) as launches:
        triton_backend.run_weight_grad(weight_grad, grad, x, *geometry)
    chunks = launches[0].grid[0] // 2  # of 32 channels
    partial = (chunks * weight_grad.nbytes,) * 2
    assert tuple(counters.total(launches, way, "other").distinct for way in WAYS) == partial
    assert counters.total(launches, "read", "x", "grad").distinct == x.nbytes + grad.nbytes
    assert counters.total(launches, "written", "weight_grad").touched == weight_grad.nbytes
    assert counters.total(launches, "read", "grad").per_program == grad.nbytes
    assert counters.total(launches, "read", "x").per_program <= x_reads * x.nbytes


def test_the_counters_see_a_smaller_tile_read_more() -> None:
    case, _ = CASES["pointwise"]
    with recorded() as chosen:
        counted(case)
    [(key, tile)] = chosen.items()
    narrow = Tile({**tile.sizes, "BLOCK_OUT": 16, "LEAST_BLOCKS": 99}, tile.num_warps)
    with forced({key: narrow}):
        launches, _, x_bytes = counted(case)
    read = counters.total(launches, "read", "x")
    assert read.per_program == 4 * x_bytes and read.distinct == x_bytes


def test_the_report_counts_every_step_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import triton_traffic

    x = torch.randn(1, 3, 16, 16).half()
    steps = parse_program(small_mobilenet().program()).steps[:-1]  # a pool, beside the head
    for step in steps:
        moved = triton_traffic.Moved("small", "fp16", 1, step.op)
        x = triton_traffic.count(step, x, moved)
        assert moved.launches > 0 and moved.programs >= moved.launches
        assert moved.ideal <= moved.distinct + 8 * SECTOR * moved.launches
    assert steps[-1].op == "classifier_head" and x.shape[1:] == (steps[-1].channels_out,)
