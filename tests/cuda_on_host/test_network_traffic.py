"""What MobileNet V2 moves as a whole, counted by bench/gpu_traffic.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import gpu_traffic  # noqa: E402


@pytest.mark.parametrize("batch", [1, 4])
def test_mobilenet_v2_moves_little_more_than_it_must(batch: int) -> None:
    """DRAM: input, output and weights of every step; L2: activations once."""
    *_, network = gpu_traffic.count_network("fastdw:mobilenet_v2", "fp16", batch, "A100")
    assert network.dram <= 1.1 * network.ideal
    assert network.l2_activations <= 1.4 * (network.ideal - network.ideal_weights)
