"""Blocks of a planned network whose hidden channels the workers share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from network_builder import NetworkBuilder, fastdw_ops
from torch import Tensor

from fastdw import activation

Threads = Callable[[int], None]
COUNTS = (1, 2, 3, 4, 7)


def hidden_shares(net: NetworkBuilder, height: int, width: int) -> list[int]:
    text = fastdw_ops.explain_network(net.program(), 1, height, width, 2)
    return [step["blocking"].get("hidden_shares", 1) for step in json.loads(text)["steps"]]


def shared_blocks(channels: int, expansion: int, window: dict[str, Any]) -> NetworkBuilder:
    """From x in NHWC, between the steps, and to an output in NHWC; with and without a residual."""
    net = NetworkBuilder(channels=channels)
    value = net.inverted_residual("x", channels, expansion, **window)
    value = net.inverted_residual(value, channels, expansion, residual=True)
    value = net.separable(value, channels + 9)
    net.outputs = [net.inverted_residual(value, channels, expansion), value]
    return net


def run(net: NetworkBuilder, x: Tensor) -> list[Tensor]:
    return fastdw_ops.planned_network(x, net.packed(), net.program())


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    "size,channels,expansion,window",
    [
        ((7, 7), 64, 6, {}),
        ((14, 13), 72, 5, {"stride": (2, 2)}),  # 7 x 7
        ((9, 5), 57, 4, {"kernel": (5, 5), "padding": (2, 2, 2, 2)}),
        ((3, 4), 40, 3, {"dilation": (2, 2), "padding": (2, 2, 2, 2)}),
        ((1, 11), 33, 6, {}),
        ((5, 210), 39, 6, {}),  # several bands
    ],
    ids=str,
)
def test_values_and_bits(
    isa: str,
    size: tuple[int, int],
    channels: int,
    expansion: int,
    window: dict[str, Any],
    batch: int,
    threads: Threads,
) -> None:
    """Right, and the same bits whoever takes which shares of which images."""
    net = shared_blocks(channels, expansion, window)
    shares = hidden_shares(net, *size)
    assert shares[0] == shares[1] == shares[3] == 2
    x = torch.randn(batch, channels, *size)
    results = []
    for count in COUNTS:
        threads(count)
        results.append(run(net, x))
    for output, truth in zip(results[0], net.expected(x), strict=True):
        torch.testing.assert_close(output.double(), truth, rtol=2e-4, atol=2e-4)
    for outputs in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], outputs, strict=True))


def test_an_image_has_the_same_bits_in_every_batch(threads: Threads) -> None:
    net = shared_blocks(64, 6, {})
    x = torch.randn(5, 64, 7, 7)
    threads(2)
    together = run(net, x)
    for image in range(5):
        alone = run(net, x[image : image + 1])
        assert all(
            torch.equal(a[image : image + 1], b) for a, b in zip(together, alone, strict=True)
        )


@pytest.mark.parametrize("act", ["relu", "relu6", "hardswish", "silu"])
def test_activation_after_the_sum(isa: str, act: str, threads: Threads) -> None:
    """Applied to the sum of the shares, not to the shares."""
    nets = []
    for name in (act, "none"):
        net = NetworkBuilder(channels=128)
        net.outputs = [net.separable("x", 120)]
        net.lines = [line.replace("=hardswish", f"={name}") for line in net.lines]
        assert hidden_shares(net, 1, 9) == [2]
        nets.append(net)
    x = torch.randn(1, 128, 1, 9)
    for count in (1, 2):
        threads(count)
        active, plain = (run(net, x)[0] for net in nets)
        torch.testing.assert_close(active, activation.apply(act, plain), rtol=1e-5, atol=1e-5)


def test_few_rows_are_shared_and_many_are_not() -> None:
    net = NetworkBuilder(channels=32)
    net.outputs = [net.inverted_residual("x", 32, residual=True)]
    assert hidden_shares(net, 7, 7) == [2]
    assert hidden_shares(net, 56, 56) == [1]
    thin = NetworkBuilder(channels=16)  # one block of hidden channels: nothing to share
    thin.outputs = [thin.separable("x", 16)]
    assert hidden_shares(thin, 3, 3) == [1]


def test_nan_stays_in_its_image_and_passes_the_sum(threads: Threads) -> None:
    net = shared_blocks(64, 6, {})
    x = torch.randn(3, 64, 7, 7)
    x[1, 5] = float("nan")
    threads(2)
    output = run(net, x)[0]
    assert output[1].isnan().all() and output[[0, 2]].isfinite().all()
