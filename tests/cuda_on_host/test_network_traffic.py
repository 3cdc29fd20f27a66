"""What MobileNet V2 moves as a whole, counted by bench/gpu_traffic.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import gpu_traffic  # noqa: E402


@pytest.mark.parametrize(("batch", "l2"), [(1, 1.8), (4, 1.45)])
def test_a_kernel_a_convolution(batch: int, l2: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """DRAM: input, output and weights of every convolution, a third of eager's; L2: activations at
    most so many times, as tiles of output channels read the same pixels."""
    monkeypatch.setenv("FASTDW_CUDA_BLOCKS", "separate")
    *_, network = gpu_traffic.count_network("fastdw:mobilenet_v2", "fp16", batch, "A100")
    assert network.dram <= network.per_convolution + network.ideal_weights
    assert network.dram - network.ideal_weights <= network.eager / 2.8
    assert network.l2_activations <= l2 * network.per_convolution


def test_a_kernel_a_block_moves_no_hidden_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """But sums, where thread blocks share hidden channels: the tilings are the fastest ones, not
    those that move the least."""
    monkeypatch.setenv("FASTDW_CUDA_BLOCKS", "fused")
    *_, network = gpu_traffic.count_network("fastdw:mobilenet_v2", "fp16", 4, "A100")
    assert network.dram <= 2 * network.ideal
    assert network.l2_activations <= 0.6 * network.per_convolution
