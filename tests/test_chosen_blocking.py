"""FASTDW_BLOCKING: the user's own blocking of single steps, and what of it is refused."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from network_builder import NetworkBuilder, fastdw_ops

Threads = Callable[[int], None]
HEIGHT, WIDTH = 58, 46
TAGS = itertools.count()


def network() -> NetworkBuilder:
    """Blocks behind a stem, with stride 2, 5x5, without expansion, and of few rows."""
    net = NetworkBuilder()
    value = net.separable(net.stem("x", 40), 24)
    value = net.inverted_residual(value, 24, residual=True)
    value = net.inverted_residual(value, 40, stride=(2, 2), padding="same")
    value = net.inverted_residual(value, 40, 4, True, kernel=(5, 5), padding=(2, 2, 2, 2))
    value = net.inverted_residual(value, 56, stride=(2, 2))
    value = net.inverted_residual(value, 56, residual=True)
    value = net.separable(value, 72, dilation=(2, 2), padding=(2, 2, 2, 2))
    net.outputs = [net.head(net.pointwise(value, 64), 5), value]
    return net


def fresh(program: str) -> str:
    """The same program with other names: it is planned again."""
    tag = f"v{next(TAGS)}_"
    program = re.sub(r"\b(in|out)=(\d+)", rf"\1={tag}\2", program)
    names = re.search(r"outputs=(\S+)", program)
    assert names is not None
    outputs = ",".join(tag + name for name in names[1].split(","))
    return program.replace(names[0], f"outputs={outputs}")


def steps_of(program: str) -> list[dict[str, Any]]:
    return json.loads(fastdw_ops.explain_network(program, 1, HEIGHT, WIDTH, 2))["steps"]


def blocks_of(steps: list[dict[str, Any]]) -> dict[int, tuple[int, int]]:
    """Which steps are blocks: their rows, and their hidden channels in blocks of 16."""
    found = {}
    for index, step in enumerate(steps):
        if "band_rows" in step["blocking"]:
            hidden = step.get("channels_hidden", 40)  # of the stem
            found[index] = step["output_shape"][2], -(-hidden // 16)
    return found


def choices() -> list[dict[int, tuple[int, int]]]:
    """The smallest, the largest, and legal ones in between."""
    blocks = blocks_of(steps_of(fresh(network().program())))
    choice = random.Random(0)
    between = [
        {
            step: (choice.randint(1, rows), choice.randint(1, most))
            for step, (rows, most) in blocks.items()
        }
        for _ in range(6)
    ]
    return [dict.fromkeys(blocks, (1, 1)), blocks, {4: (3, 2)}, *between]


@pytest.mark.usefixtures("nan_filled")
def test_every_blocking_gives_the_same_bits(
    isa: str, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    packed, x = net.packed(), torch.randn(3, 3, HEIGHT, WIDTH)
    monkeypatch.delenv("FASTDW_BLOCKING", raising=False)
    wanted = fastdw_ops.planned_network(x, packed, fresh(net.program()))
    for output, truth in zip(wanted, net.expected(x), strict=True):
        torch.testing.assert_close(output.double(), truth, rtol=2e-4, atol=2e-4)
    for chosen in choices():
        text = ",".join(f"{step}:{rows}x{blocks}" for step, (rows, blocks) in chosen.items())
        monkeypatch.setenv("FASTDW_BLOCKING", text)
        program = fresh(net.program())
        for count in (1, 2):
            threads(count)
            outputs = fastdw_ops.planned_network(x, packed, program)
            assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True)), text
        told = steps_of(program)
        for step, (rows, blocks) in chosen.items():
            blocking = told[step]["blocking"]
            assert (blocking["band_rows"], blocking["chunk_channels"]) == (rows, 16 * blocks)


def test_a_plan_keeps_its_blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    program = fresh(network().program())
    monkeypatch.setenv("FASTDW_BLOCKING", "2:2x1")
    assert steps_of(program)[2]["blocking"]["band_rows"] == 2
    monkeypatch.setenv("FASTDW_BLOCKING", "")
    assert steps_of(program)[2]["blocking"]["band_rows"] == 2
    assert steps_of(fresh(network().program()))[2]["blocking"]["band_rows"] != 2


@pytest.mark.parametrize(
    "text,message",
    [
        ("2", 'expected STEP:ROWSxBLOCKS as in "13:7x4", got "2"'),
        ("2:4", "expected STEP:ROWSxBLOCKS"),
        ("2:0x1", "expected STEP:ROWSxBLOCKS"),
        ("2:1x0", "expected STEP:ROWSxBLOCKS"),
        ("2:1x1 ", "expected STEP:ROWSxBLOCKS"),
        ("-2:1x1", "expected STEP:ROWSxBLOCKS"),
        ("2:1x99999999999999999999", "expected STEP:ROWSxBLOCKS"),
        ("2:1x1,", 'expected STEP:ROWSxBLOCKS as in "13:7x4", got ""'),
        ("2:1x1,2:2x2", "step 2 stands twice"),
        ("10:1x1", "10:1x1: expected a step from 0 to 9, got 10"),
        ("7:1x1", "7:1x1: step 7 is no block"),
        ("9:1x1", "9:1x1: step 9 is no block"),
        ("0:30x1", "0:30x1: expected 1 to 29 rows, got 30"),
        ("0:1x4", "0:1x4: expected 1 to 3 blocks of 16 hidden channels, got 4"),
    ],
)
def test_nonsense_is_refused(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    monkeypatch.setenv("FASTDW_BLOCKING", text)
    with pytest.raises(RuntimeError, match=re.escape("FASTDW_BLOCKING: ")) as error:
        fastdw_ops.planned_network(
            torch.randn(1, 3, HEIGHT, WIDTH), net.packed(), fresh(net.program())
        )
    assert message in str(error.value)
