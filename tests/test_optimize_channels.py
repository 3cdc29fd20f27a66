"""Channels joined at any width, cut, and shuffled in a plan; max pools between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nn_checks import fused_ops
from test_optimize_joins import Joining, built, shuffle
from torch import Tensor, nn

import fastdw
from fastdw.benchmark.torch_steps import TorchSteps
from fastdw.nn import ConvBNAct, InvertedResidual, PointwiseConvBNAct
from fastdw.plan.record import NotPlannable, record


def chosen(chunks: Any, *indexes: int) -> Tensor:
    return torch.cat([chunks[index] for index in indexes], 1)


class Overwritten(nn.Module):
    """A map, or a view of it, that is overwritten while the other is still read."""

    def __init__(self, base: bool) -> None:
        super().__init__()
        self.stem, self.base = ConvBNAct(3, 16), base
        self.layer = PointwiseConvBNAct(16, 16) if base else PointwiseConvBNAct(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.stem(x)
        part = whole[:, :8]
        changed = whole if self.base else part
        changed = changed.add_(self.layer(changed))
        return torch.cat((changed, part if self.base else whole), 1)


@pytest.mark.parametrize("base", [True, False])
def test_no_view_of_what_is_overwritten_is_planned(base: bool) -> None:
    with pytest.raises(NotPlannable, match="this addition has no step"):
        record(built(Overwritten(base)))


JOINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "uneven": lambda a, b: torch.cat((b, a), 1),
    "twice": lambda a, b: torch.cat((b, a, b), 1),
    "chunks": lambda a, b: chosen(b.chunk(3, 1), 2, 0, -2),
    "split": lambda a, b: chosen(b.split((3, 9, 8), dim=1), 1, 2),
    "split evenly": lambda a, b: torch.cat((torch.split(b, 7, 1)[-1], a), 1),
    "slices": lambda a, b: torch.cat((b[:, 3:], a[:, :-3, ...], b[:, 5:17, :, :][:, 1:]), 1),
    "shuffled": lambda a, b: shuffle(torch.cat((a, b), 1), 2),
    "part of a shuffle": lambda a, b: shuffle(torch.cat((b, a, b), 1), 7).chunk(2, 1)[1],
    "shuffled twice": lambda a, b: shuffle(shuffle(torch.cat((a, b), 1), 2)[:, 2:20], 3),
    "functional": lambda a, b: F.channel_shuffle(b, 5),
    "read twice": lambda a, b: torch.cat((b[:, 2:9], F.max_pool2d(b[:, 2:9], 3, 1, padding=1)), 1),
    "max pool": lambda a, b: torch.cat(
        (F.max_pool2d(a, 3, 2), nn.functional.max_pool2d(b, (4, 5), stride=2, padding=(0, 1))), 1
    ),
}


@pytest.mark.parametrize("name", JOINED)
@torch.no_grad()
def test_channels_are_joined_and_selected(name: str) -> None:
    model = built(nn.Sequential(Joining(JOINED[name]), nn.MaxPool2d(3, 2, 1)))
    x = torch.randn(2, 3, 12, 12)
    fast = fastdw.optimize(model, x, strict=True)
    assert fused_ops(lambda: fast(x)) == {"planned_network": 1}
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


class Shuffled(nn.Module):
    """A ShuffleNet's blocks: half of the channels passes, the other half is computed anew."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBNAct(3, width), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.ModuleList(InvertedResidual(width // 2, width // 2) for _ in range(3))
        self.mix = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        for block in self.blocks:
            passed, taken = x.chunk(2, dim=1)
            x = self.mix(torch.cat((passed, block(taken)), 1))
        return x, x.mean((2, 3))


@torch.no_grad()
def test_shuffled_blocks() -> None:
    model, x = built(Shuffled(44)), torch.randn(2, 3, 20, 28)
    fast = fastdw.optimize(model, x, strict=True)
    assert fused_ops(lambda: fast(x)) == {"planned_network": 1}
    for found, expected in zip(fast(x), model(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    fastdw.convert(model)
    recording = record(model)
    outputs, _ = TorchSteps(recording).run(x)
    torch.testing.assert_close(outputs[0], fast(x)[0], rtol=1e-4, atol=1e-5)
    joins = [step for step in recording.program.steps if step.op == "concat"]
    assert [step.channels for step in joins] == 6 * [22] + [44]  # each once, and what is read


def test_what_two_read_is_selected_once() -> None:
    steps = record(built(Joining(JOINED["read twice"]))).program.steps
    assert [step.op for step in steps[2:]] == ["concat", "max_pool", "concat"]
