"""fastdw::planned_network itself: values, threads, memory, bad programs and bad weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from guarded_memory import Arena
from network_builder import (
    NetworkBuilder,
    fastdw_ops,
    plan_header,
    random_step,
    small_mobilenet,
)
from torch import Tensor

planned_network = fastdw_ops.planned_network.default
SHAPES = [(1, 3, 33, 40), (2, 3, 32, 32), (5, 3, 17, 19), (8, 3, 32, 24)]

Threads = Callable[[int], None]


def assert_near(outputs: list[Tensor], truths: list[Tensor]) -> None:
    assert len(outputs) == len(truths)
    for output, truth in zip(outputs, truths, strict=True):
        torch.testing.assert_close(output.double(), truth, rtol=2e-4, atol=2e-4)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_values(isa: str, shape: tuple[int, ...], count: int, threads: Threads) -> None:
    net = small_mobilenet()
    x = torch.randn(shape)
    threads(count)
    outputs = planned_network(x, net.packed(), net.program())
    assert_near(outputs, net.expected(x))
    assert outputs[1].is_contiguous(memory_format=torch.channels_last)
    assert [output.dim() for output in outputs] == [2, 4, 2]


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("act", ["relu6", "silu"])
@pytest.mark.parametrize(
    "size,channels,stem,block",
    [
        ((9, 11), 5, {}, {}),
        ((3, 3), 16, {"stride": (3, 3)}, {}),  # one column
        ((31, 57), 17, {"kernel": (5, 5), "padding": (2, 2, 2, 2)}, {"stride": (2, 2)}),
        ((40, 30), 33, {"stride": (1, 1)}, {"kernel": (5, 5), "padding": (2, 2, 2, 2)}),
        ((29, 43), 48, {"kernel": (7, 7), "padding": (6, 0, 0, 6)}, {"dilation": (2, 2)}),
        ((224, 192), 32, {}, {}),  # several bands
    ],
)
def test_stem_and_block_in_one_pass(
    isa: str,
    size: tuple[int, int],
    channels: int,
    stem: dict[str, Any],
    block: dict[str, Any],
    act: str,
    threads: Threads,
) -> None:
    net = NetworkBuilder()
    net.outputs = [net.separable(net.stem("x", channels, act, **stem), 24, **block)]
    for count, layout in ((1, torch.contiguous_format), (3, torch.channels_last)):
        threads(count)
        x = torch.randn(2, 3, *size).contiguous(memory_format=layout)
        assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


@pytest.mark.parametrize("kept", ["output", "read twice"])
def test_a_stem_that_others_read_too_is_written(kept: str) -> None:
    net = NetworkBuilder()
    stem = net.stem("x", 20)
    block = net.inverted_residual(stem, 20, expansion=1)
    last = net.pointwise(block, 20, residual=stem) if kept == "read twice" else block
    net.outputs = [last, stem] if kept == "output" else [last]
    x = torch.randn(2, 3, 30, 30)
    assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


def test_a_stem_far_apart_takes_no_memory_for_it() -> None:
    net = NetworkBuilder()
    net.outputs = [net.stem("x", 8, stride=(10**8, 10**8))]
    x = torch.randn(1, 3, 9, 9)
    assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
def test_layouts_of_x(layout: str) -> None:
    net = small_mobilenet()
    x = {
        "channels_last": torch.randn(2, 3, 32, 24).to(memory_format=torch.channels_last),
        "sliced": torch.randn(2, 5, 40, 24)[:, 1:4, 4:36],
        "transposed": torch.randn(2, 3, 24, 32).transpose(2, 3),
        "expanded": torch.randn(1, 3, 32, 1).expand(2, 3, 32, 24),
    }[layout]
    assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


def test_x_read_by_other_steps_than_stems() -> None:
    net = NetworkBuilder(channels=7)
    wide = net.stem("x", 7, stride=(1, 1))
    net.outputs = [net.pointwise(wide, 7, residual="x"), net.depthwise("x", multiplier=3)]
    for x in (torch.randn(2, 7, 9, 8), torch.randn(2, 9, 8, 7).permute(0, 3, 1, 2)):
        assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


def test_head_of_a_pooled_value_and_of_a_head() -> None:
    net = NetworkBuilder()
    net.outputs = [net.head(net.head(net.pool(net.stem("x", 20)), 33), 5)]
    x = torch.randn(3, 3, 12, 12)
    assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


@pytest.mark.parametrize("seed", range(12))
def test_random_chains(seed: int) -> None:
    """Long chains whose arenas reuse memory, with residuals that keep old values alive."""
    net, choice = NetworkBuilder(seed=seed), random.Random(seed)
    values = [net.stem("x", 12)]
    for _ in range(12):
        values.append(random_step(net, values, choice))
    net.outputs = [values[-1], values[6]]
    x = torch.randn(3, 3, 15, 14)
    assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_same_bits_every_time(count: int, threads: Threads) -> None:
    net = small_mobilenet()
    packed, program, x = net.packed(), net.program(), torch.randn(3, 3, 40, 40)
    threads(count)
    first = planned_network(x, packed, program)
    for _ in range(30):
        again = planned_network(x, packed, program)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_many_python_threads_with_two_networks() -> None:
    nets = [small_mobilenet(seed) for seed in (1, 2)]
    calls = [(torch.randn(n, 3, 24 + 8 * n, 32), net) for n in (1, 2, 3, 4) for net in nets]
    calls = [(x, net.packed(), net.program()) for x, net in calls]
    wanted = [planned_network(*call) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: planned_network(*calls[i % 8]), range(160)))
    for index, outputs in enumerate(results):
        for output, reference in zip(outputs, wanted[index % 8], strict=True):
            assert torch.equal(output, reference)


def test_empty_batch_and_half_precision() -> None:
    net = small_mobilenet()
    packed, program = net.packed(), net.program()
    shapes = [tuple(y.shape) for y in planned_network(torch.randn(0, 3, 32, 32), packed, program)]
    assert shapes == [(0, 11), (0, 24, 16, 16), (0, 64)]
    x = torch.randn(2, 3, 32, 32).bfloat16()
    for output, truth in zip(planned_network(x, packed, program), net.expected(x), strict=True):
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.double(), truth, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("offset", [1, 2, 4, 36])
def test_unaligned_weights(offset: int) -> None:
    net = small_mobilenet()
    packed, x = net.packed(), torch.randn(2, 3, 32, 32)
    moved = torch.cat([torch.zeros(offset, dtype=torch.uint8), packed])[offset:]
    assert moved.data_ptr() % 64 != 0
    for a, b in zip(
        planned_network(x, packed, net.program()),
        planned_network(x, moved, net.program()),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("at_end", [False, True])
def test_reads_nothing_beyond_x_and_weights(isa: str, at_end: bool) -> None:
    net = small_mobilenet()
    for shape in SHAPES[:2]:
        x = torch.randn(shape)
        with Arena() as arena:
            guarded_x, guarded = arena.copy(x, at_end), arena.copy(net.packed(), at_end)
            assert_near(planned_network(guarded_x, guarded, net.program()), net.expected(x))
            del guarded_x, guarded


def test_more_programs_and_sizes_than_the_cache_holds() -> None:
    net = NetworkBuilder()
    net.outputs = [net.stem("x", 4)]
    packed = net.packed()
    for _ in range(2):
        for size in range(3, 90):
            x = torch.ones(1, 3, size, size)
            (y,) = planned_network(x, packed, net.program())
            assert y.shape == (1, 4, (size + 1) // 2, (size + 1) // 2)
    x = torch.randn(1, 3, 30, 30)
    assert_near(planned_network(x, packed, net.program()), net.expected(x))


STEM = (
    "stem_conv in=x out=0 channels_in=3 channels_out=4 kernel=3,3 stride=2,2 padding=1,1,1,1 "
    "activation=relu6 weights=64"
)
HEAD = "fastdw-program version=1 channels=3 outputs=0"
BAD_PROGRAMS = {
    "": "expected a first line",
    "fastdw-program version=2 channels=3 outputs=0\n" + STEM: "expected version=1",
    "fastdw-program version=1 channels=3 outputs=7\n" + STEM: 'the value "7"',
    "fastdw-program version=1 channels=3 outputs=x\n" + STEM: "x is the input",
    "fastdw-program version=1 channels=3 outputs=0,0\n" + STEM: "stands twice",
    "fastdw-program version=1 channels=0 outputs=0\n" + STEM: "channels: expected at least 1",
    "fastdw-program version=1 channels=3 outputs=0 depth=3\n" + STEM: "unknown key depth",
    HEAD + "\n" + STEM + "\n\n": "key=value|unknown step|in= is missing",
    HEAD + "\n" + STEM.replace("stem_conv", "stern_conv"): "line 2: stern_conv: unknown step",
    HEAD + "\n" + STEM.replace("in=x", "in=3"): 'the value "3"',
    HEAD + "\n" + STEM.replace("out=0", "out=x"): "does not exist yet",
    HEAD + "\n" + STEM.replace("channels_in=3", "channels_in=5"): "a value of 5 channels, got 3",
    HEAD + "\n" + STEM.replace("kernel=3,3", "kernel=3"): "kernel: expected 2 numbers",
    HEAD + "\n" + STEM.replace("kernel=3,3", "kernel=3,0"): "kernel: expected 2 numbers",
    HEAD + "\n" + STEM.replace("kernel=3,3 ", ""): "kernel= is missing",
    HEAD + "\n" + STEM.replace("stride=2,2", "stride=2,-2"): "stride: expected a number",
    HEAD + "\n" + STEM.replace("stride=2,2", "stride=2,99999999999999999999"): "expected a number",
    HEAD + "\n" + STEM.replace("padding=1,1,1,1", "padding=valid"): "padding: expected a number",
    HEAD + "\n" + STEM.replace("relu6", "gelu"): 'silu, got "gelu"',
    HEAD + "\n" + STEM.replace("weights=64", "weights=65"): "a multiple of 64",
    HEAD + "\n" + STEM.replace("weights=64", "weights=6400"): "truncated",
    HEAD + "\n" + STEM.replace("weights=64", "weights=0"): "not a fastdw blob",
    HEAD + "\n" + STEM + " weights=64": "stands twice",
    HEAD + "\n" + STEM + " groups=2": "unknown key groups",
    HEAD + "\n" + STEM.replace("channels_out=4", "channels_out=8"): "out 8.*out 4",
    HEAD + "\n" + STEM.replace("kernel=3,3", "kernel=50,3"): "height 8 with padding",
    HEAD + "\n" + STEM.replace("padding=1,1,1,1", f"padding={2**31 - 1},1,{2**31 - 1},1"): (
        "the size .* is too large"
    ),
    HEAD + "\n" + STEM + "\nglobal_pool in=0 out=1 channels=4\nglobal_pool in=1 out=2 channels=4": (
        "line 4: global_pool: in: expected images"
    ),
    HEAD + "\n" + STEM + "\npointwise_conv in=0 out=1 channels_in=4 channels_out=3 residual=x "
    "activation=none weights=64": "residual: expected images of 4x4, got 8x8",
}


@pytest.mark.parametrize("program", BAD_PROGRAMS)
def test_bad_program(program: str) -> None:
    blob = fastdw_ops.pack_stem_conv(torch.ones(4, 3, 3, 3), None, None)
    packed = torch.cat([plan_header(max(program.rstrip().count("\n"), 1)), blob])
    with pytest.raises(RuntimeError, match=BAD_PROGRAMS[program]):
        planned_network(torch.ones(1, 3, 8, 8), packed, program)
    good = torch.cat([plan_header(1), blob])
    (y,) = planned_network(torch.ones(1, 3, 8, 8), good, f"{HEAD}\n{STEM}")
    assert y.shape == (1, 4, 4, 4)


def test_bad_weights_and_input() -> None:
    net = small_mobilenet()
    packed, program, x = net.packed(), net.program(), torch.ones(1, 3, 32, 32)
    steps = len(net.lines)
    for bad, message in [
        (packed[:32], "a header of 64 bytes"),
        (packed[:-64], "truncated"),
        (packed.to(torch.int32), "bytes"),
        (packed.view(-1, 64), "one contiguous row of bytes"),
        (torch.cat([plan_header(steps, magic=1), packed[64:]]), "not the weights"),
        (torch.cat([plan_header(steps, version=9), packed[64:]]), "not the weights"),
        (torch.cat([plan_header(steps + 1), packed[64:]]), "steps"),
        (torch.cat([packed[:64], packed[128:], packed[:64]]), "not a fastdw blob"),
    ]:
        with pytest.raises(RuntimeError, match=f"packed: .*{message}"):
            planned_network(x, bad, program)
    for bad_x in (torch.ones(3, 32, 32), torch.ones(1, 4, 32, 32), torch.ones(1, 3, 32, 0)):
        with pytest.raises(RuntimeError, match="x: expected"):
            planned_network(bad_x, packed, program)
    with pytest.raises(RuntimeError, match="x: expected dtype"):
        planned_network(x.double(), packed, program)
