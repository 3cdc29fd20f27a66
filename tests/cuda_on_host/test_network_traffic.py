"""What MobileNet V2 moves as a whole, counted by bench/gpu_traffic.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import gpu_traffic  # noqa: E402
from gpu_traffic import Traffic  # noqa: E402


def count(batch: int, plan: str) -> list[Traffic]:
    return gpu_traffic.count_network("fastdw:mobilenet_v2", "fp16", batch, "A100", plan)


def assert_conflicts_are_known(network: Traffic) -> None:
    """Each place is listed with its reason; together they cost little."""
    assert set(network.bank_conflicts) <= set(gpu_traffic.CONFLICT_REASONS)
    assert network.bank_conflicts.total() <= 0.03 * network.wavefronts


@pytest.mark.parametrize(("batch", "l2"), [(1, 1.8), (4, 1.45)])
def test_a_kernel_a_convolution(batch: int, l2: float) -> None:
    """DRAM: input, output and weights of every convolution, a third of eager's; L2: activations at
    most so many times, as tiles of output channels read the same pixels."""
    *_, network = count(batch, "separate")
    assert network.dram <= network.per_convolution + network.ideal_weights
    assert network.dram - network.ideal_weights <= network.eager / 2.8
    assert network.l2_activations <= l2 * network.per_convolution
    assert_conflicts_are_known(network)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_plan_of_the_fewest_bytes(batch: int) -> None:
    """DRAM: input, output and weights of every block; L2: activations little more than once; little
    is expanded twice."""
    *steps, network = count(batch, "fewest_bytes")
    assert network.dram <= gpu_traffic.MOST_DRAM * network.ideal
    assert gpu_traffic.l2_ratio(network) <= gpu_traffic.MOST_L2
    expanded = {row.step: row.expanded for row in steps if row.expanded}
    assert len(expanded) >= 11
    for step, times in expanded.items():
        most = gpu_traffic.MOST_EXPANDED["28x28" if "28x28" in step else "other"]
        assert 1 <= times <= most, step
    assert_conflicts_are_known(network)


def test_a_kernel_a_block_moves_no_hidden_tensor() -> None:
    """But sums, where thread blocks share hidden channels: the tilings are the fastest ones, not
    those that move the least."""
    *_, network = count(1, "fused")
    assert network.dram <= 2 * network.ideal
    assert network.l2_activations <= network.per_convolution
