"""Which kernels the Triton backend runs a block and a 1x1 convolution with; the values:
tests/triton_interpreter."""

from __future__ import annotations

import pytest
import torch

from fastdw.benchmark import triton_launches
from fastdw.benchmark.network_cases import network_cases
from fastdw.ops import triton_backend

if triton_backend.missing() is not None:
    pytest.skip(str(triton_backend.missing()), allow_module_level=True)

from fastdw.triton_kernels import block_plan  # noqa: E402
from fastdw.triton_kernels.launch import Target  # noqa: E402

BLOCKS = ("inverted_residual", "separable_block")


def fused(op: str, batch: int) -> list[str]:
    """The layers whose kernel is the block's own."""
    target = Target("sm_90", 132)
    return [
        case.label
        for case in network_cases(op, batch)
        if any(
            launch.kernel.__name__ == f"{op}_kernel"
            for launch in triton_launches.launches(case, torch.float16, target)
        )
    ]


def test_small_blocks_run_convolution_by_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(block_plan.VARIABLE, raising=False)
    assert fused("inverted_residual", 1) == []
    assert fused("separable_block", 1) == fused("separable_block", 32) == []


def test_large_expansions_stay_on_the_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CUDA kernels of a block were faster on an H100: see block_plan.py."""
    monkeypatch.setenv(block_plan.VARIABLE, "fastest")
    assert {label.partition("x")[0] for label in fused("inverted_residual", 32)} == {
        "112",
        "56",
        "28",
    }
    assert "112x112, 32 to 16" not in fused("inverted_residual", 32)


@pytest.mark.parametrize("op", BLOCKS)
@pytest.mark.parametrize("batch", [1, 32])
def test_the_variable_decides(op: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(block_plan.VARIABLE, "separate")
    assert fused(op, batch) == []
    monkeypatch.setenv(block_plan.VARIABLE, "fused")
    expanding = [case for case in network_cases(op, batch) if case.convs[0]]
    assert fused(op, batch) == [case.label for case in expanding]


def test_the_variable_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(block_plan.VARIABLE, "quickest")
    with pytest.raises(ValueError, match="expected fastest, fused or separate, got 'quickest'"):
        fused("separable_block", 1)


def test_small_convolutions_take_small_tiles_and_write_no_partial_sums() -> None:
    target = Target("sm_90", 132)
    cases = network_cases("pointwise_conv", 1)
    plans = [triton_launches.launches(case, torch.float16, target) for case in cases]
    assert {len(plan) for plan in plans} == {1}
    smallest = min(cases, key=lambda case: case.x[2] * case.x[3] * case.convs[0][0][0])
    [launch] = plans[cases.index(smallest)]
    assert (launch.arguments["BLOCK_PIXELS"], launch.arguments["BLOCK_OUT"]) == (32, 32)
    least_programs = min(launch.grid[0] for [launch] in plans)
    assert least_programs >= 10
