"""Steps that only the CPU's plan knows: dense convolutions, resizes, concatenations, vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarded_memory import Arena
from network_builder import NetworkBuilder, fastdw_ops
from test_planned_network import assert_near
from torch import Tensor
from torch.nn import functional as F

planned_network = fastdw_ops.planned_network.default
Threads = Callable[[int], None]

# channels in, out, (height, width), window
DENSE: list[tuple[int, int, tuple[int, int], dict[str, Any]]] = [
    (16, 32, (9, 11), {}),
    (17, 33, (5, 5), {"stride": (2, 2)}),
    (7, 15, (1, 13), {"kernel": (1, 3), "padding": (1, 1, 0, 0)}),
    (31, 8, (16, 1), {"kernel": (3, 1), "padding": (0, 0, 1, 1)}),
    (100, 16, (6, 29), {"padding": "same", "stride": (2, 3)}),
    (24, 40, (12, 12), {"kernel": (1, 1), "padding": (0, 0, 0, 0), "stride": (2, 2)}),
    (33, 17, (14, 31), {"kernel": (5, 2), "padding": (3, 0, 0, 4)}),
    (16, 16, (13, 15), {"dilation": (2, 2), "padding": (2, 2, 2, 2)}),
    (20, 24, (14, 17), {"dilation": (6, 9), "padding": (9, 9, 6, 6)}),
    (20, 24, (11, 9), {"dilation": (12, 12), "padding": (12, 12, 12, 12)}),
    (70, 33, (13, 16), {"dilation": (5, 6), "padding": (6, 6, 5, 5)}),  # stretches of 4 columns
    (17, 40, (19, 3), {"kernel": (3, 2)}),
    (18, 20, (14, 15), {"dilation": (5, 3), "stride": (2, 2), "padding": (3, 5, 7, 1)}),
    (5, 6, (10, 9), {"dilation": (4, 1), "stride": (1, 2), "padding": (2, 0, 8, 6)}),
    (480, 20, (3, 4), {"padding": "same"}),  # two chunks of channels
    (16, 20, (300, 75), {}),  # several slabs
    (2, 3, (4, 4), {"padding": (6, 6, 6, 6), "dilation": (3, 3)}),  # no tap meets the image
]
IDS = [f"{i}-{o}-{h}x{w}-{'-'.join(k[:3] for k in win)}" for i, o, (h, w), win in DENSE]


def dense_network(
    channels_in: int, channels_out: int, window: dict[str, Any], act: str
) -> NetworkBuilder:
    """One dense convolution of the user's image, and one of a value between the steps."""
    net = NetworkBuilder(channels_in)
    first = net.dense("x", channels_out, act, **window)
    inner = net.pointwise("x", channels_in)
    net.outputs = [first, net.dense(inner, channels_out, act, **window)]
    return net


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("case", DENSE, ids=IDS)
@pytest.mark.parametrize("act", ["relu6", "hardswish"])
def test_dense_conv(
    isa: str, case: tuple[int, int, tuple[int, int], dict[str, Any]], act: str, threads: Threads
) -> None:
    channels_in, channels_out, size, window = case
    net = dense_network(channels_in, channels_out, window, act)
    x = torch.randn(2, channels_in, *size)
    threads(1)
    alone = planned_network(x, net.packed(), net.program())
    assert_near(alone, net.expected(x))
    for count in (2, 3):
        threads(count)
        outputs = planned_network(x[:1], net.packed(), net.program())
        assert all(torch.equal(y, z[:1]) for y, z in zip(outputs, alone, strict=True))


def test_a_dense_conv_passes_nan_as_torch_does(isa: str) -> None:
    net = NetworkBuilder(24)
    net.outputs = [net.dense("x", 17, "relu6")]
    x = torch.randn(1, 24, 9, 9)
    x[0, 3, 4, 5] = float("nan")
    (y,), (truth,) = planned_network(x, net.packed(), net.program()), net.expected(x)
    assert torch.equal(y.isnan(), truth.isnan()) and y.isnan().sum() == 9 * 17


RESIZES = [
    ("bilinear", (2, 2), (5, 7)),
    ("bilinear", (3, 1), (1, 4)),
    ("bilinear_aligned", (4, 3), (6, 1)),
    ("bilinear_aligned", (1, 16), (3, 9)),
    ("nearest", (2, 3), (4, 5)),
    ("nearest", (1, 1), (3, 3)),
]


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize(("mode", "scale", "size"), RESIZES)
@pytest.mark.parametrize("channels", [1, 16, 21, 40])
def test_resize(
    isa: str,
    mode: str,
    scale: tuple[int, int],
    size: tuple[int, int],
    channels: int,
    threads: Threads,
) -> None:
    net = NetworkBuilder(channels)
    inner = net.resize(net.pointwise("x", channels), mode, scale=scale)
    net.outputs = [net.resize("x", mode, scale=scale), net.pointwise(inner, 5)]
    x = torch.randn(3, channels, *size)
    threads(2)
    assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bilinear_aligned"])
@pytest.mark.parametrize("size", [(9, 31), (5, 5), (33, 2), (1, 1)])
def test_resize_to_the_size_of_another(isa: str, mode: str, size: tuple[int, int]) -> None:
    net = NetworkBuilder(20)
    small = net.depthwise("x", stride=(3, 4))
    net.outputs = [net.resize(small, mode, like="x")]
    x = torch.randn(2, 20, *size)
    assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


def decoder(outputs: list[int]) -> NetworkBuilder:
    """A part that others read too, a part in two wholes, a whole in a whole, resized parts."""
    net = NetworkBuilder(16)
    early = net.depthwise("x", multiplier=2)
    deep = net.inverted_residual(early, 48, stride=(2, 2))
    up = net.resize(deep, "bilinear", like=early)
    side = net.pointwise(early, 20, act="relu")
    joined = net.concat(up, early, side)
    twice = net.concat(net.dense(joined, 16), early)
    nested = net.concat(twice, net.pointwise(twice, 9))
    pooled = net.pool(nested)
    vector = net.head(net.head(pooled, 24, act="relu"), 19)
    last = net.biased_pointwise(nested, 19, vector, act="relu6")
    wide = net.resize(pooled, "bilinear", like=last)
    values = [last, joined, early, wide, nested, net.dense(wide, 5), vector]
    net.outputs = [values[index] for index in outputs]
    return net


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("outputs", [[0, 5], [1, 0], [2, 0], [4, 3], [6, 4, 1, 2]], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_joins(isa: str, outputs: list[int], batch: int, threads: Threads) -> None:
    net = decoder(outputs)
    x = torch.randn(batch, 16, 13, 10)
    truth = net.expected(x)
    first: list[Tensor] = []
    for count in (1, 2, 3):
        threads(count)
        found = planned_network(x, net.packed(), net.program())
        assert_near(found, truth)
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))


def part_read_after_its_whole() -> NetworkBuilder:
    net = NetworkBuilder(16)
    part = net.depthwise("x", multiplier=2)
    whole = net.concat(part, net.pointwise(part, 16))
    later = net.dense(net.dense(whole, 48), 48)  # as large as the whole: would take its place
    net.outputs = [net.pointwise(later, 32, residual=part)]
    return net


def stem_as_part() -> NetworkBuilder:
    net = NetworkBuilder()
    part = net.stem("x", 16)
    net.outputs = [net.pointwise(net.concat(part, net.depthwise(part)), 24)]
    return net


def pooled_part() -> NetworkBuilder:
    net = NetworkBuilder(16)
    first = net.pointwise("x", 32)
    part = net.depthwise(first)
    whole = net.concat(first, part)
    net.outputs = [net.pointwise(whole, 24), net.head(net.pool(part), 9)]
    return net


def linear_layer_at_every_pixel() -> NetworkBuilder:
    net = NetworkBuilder(16)
    vector = net.head(net.pool("x"), 20, act="relu")
    net.outputs = [net.pointwise(net.resize(vector, "bilinear", like="x"), 24)]
    return net


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize(
    "build",
    [part_read_after_its_whole, stem_as_part, pooled_part, linear_layer_at_every_pixel],
)
def test_what_others_read_too(build: Callable[[], NetworkBuilder], isa: str) -> None:
    net = build()
    x = torch.randn(2, net.channels["x"], 13, 10)
    assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("widths", [(20, 10, 18), (7, 29, 6), (16, 33, 4), (1, 2, 60)], ids=str)
def test_channels_of_any_widths(
    isa: str, groups: int, widths: tuple[int, ...], threads: Threads
) -> None:
    net = NetworkBuilder(8)
    parts = [net.pointwise("x", width) for width in widths]
    whole = net.concat(*parts, parts[0], parts[1], groups=groups)
    total = net.channels[whole]
    half = net.concat(*parts, parts[0], parts[1], groups=groups, first=total // 2)
    few = net.concat(half, groups=1, first=3, channels=net.channels[half] - 4)
    net.outputs = [whole, net.pointwise(few, 9), net.concat(few, whole), net.depthwise(parts[1])]
    x = torch.randn(3, 8, 7, 5)
    threads(1)
    alone = planned_network(x, net.packed(), net.program())
    assert_near(alone, net.expected(x))
    threads(2)
    for y, z in zip(planned_network(x, net.packed(), net.program()), alone, strict=True):
        assert torch.equal(y, z)


POOLS: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((9, 12), {"stride": (2, 2)}),
    ((5, 1), {"kernel": (2, 1), "stride": (2, 1), "padding": (0, 0, 0, 0)}),
    ((13, 8), {"padding": "same", "stride": (2, 3), "kernel": (3, 5)}),
    ((12, 11), {"dilation": (2, 3), "padding": (1, 1, 1, 1)}),
]


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize(("size", "window"), POOLS)
@pytest.mark.parametrize("channels", [5, 16, 24])
def test_max_pool(
    isa: str, size: tuple[int, int], window: dict[str, Any], channels: int, threads: Threads
) -> None:
    net = NetworkBuilder(channels)
    inner = net.max_pool(net.pointwise("x", 2 * channels), **window)
    net.outputs = [net.max_pool("x", **window), inner]
    x = torch.randn(2, channels, *size)
    threads(2)
    assert_near(planned_network(x, net.packed(), net.program()), net.expected(x))


def test_a_max_pool_passes_nan_and_infinity_as_torch_does(isa: str) -> None:
    net = NetworkBuilder(17)
    net.outputs = [net.max_pool("x", padding=(1, 1, 1, 1))]
    x = torch.randn(1, 17, 9, 9)
    x[0, 3, 4, 5], x[0, 4, 2, 2], x[0, 16] = float("nan"), float("inf"), float("-inf")
    (y,) = planned_network(x, net.packed(), net.program())
    torch.testing.assert_close(y, F.max_pool2d(x, 3, 1, 1), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("at_end", [False, True])
def test_no_byte_beyond_a_buffer_is_touched(isa: str, at_end: bool) -> None:
    networks = [dense_network(i, o, window, "relu") for i, o, _, window in DENSE]
    sizes = [size for _, _, size, _ in DENSE]
    shuffled = NetworkBuilder(20)
    parts = shuffled.max_pool("x", stride=(2, 2)), shuffled.pointwise("x", 20)
    narrow = shuffled.concat("0", shuffled.depthwise(parts[1], stride=(2, 2)), groups=2, first=7)
    shuffled.outputs = [narrow, shuffled.concat(narrow, parts[0])]
    others = [(decoder([0, 5]), (7, 9)), (shuffled, (7, 6))]
    for net, size in [*zip(networks, sizes, strict=True), *others]:
        x = torch.randn(1, net.channels["x"], *size)
        with Arena() as arena:
            x_at, weights = arena.copy(x, at_end), arena.copy(net.packed(), at_end)
            assert_near(planned_network(x_at, weights, net.program()), net.expected(x))
            del x_at, weights


BAD = {
    "concat in=x out=1 channels=16": "expected feature maps",
    "concat in=0 out=1 channels=17": "channels: expected at most 16 from 0, got 17",
    "concat in=0,0 out=1 channels=8 first=25": "channels: expected at most 7 from 25, got 8",
    "concat in=0 out=1 channels=16 groups=3": "groups: expected a divisor of 16, got 3",
    "resize in=0 out=1 channels=16 like=9 scale=1,1 mode=nearest": 'the value "9"',
    "resize in=0 out=1 channels=16 like=- scale=1,0 mode=nearest": "scale",
    "resize in=0 out=1 channels=16 like=- scale=1,1 mode=cubic": "mode: expected nearest",
    "global_pool in=0,x out=1 channels=16": "in: expected one value",
    "biased_pointwise_conv in=0 out=1 channels_in=16 channels_out=16 bias=0 activation=none "
    "weights=64": r"bias: expected \[batch, 16\]",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_joins_are_refused(line: str) -> None:
    first = "depthwise_conv in=x out=0 channels_in=16 channels_out=16 kernel=1,1 stride=1,1 "
    first += "padding=0,0,0,0 dilation=1,1 activation=none weights=64"
    text = "\n".join(["fastdw-program version=1 channels=16 outputs=1", first, line])
    with pytest.raises(RuntimeError, match=BAD[line]):
        planned_network(torch.zeros(1, 16, 4, 4), torch.zeros(64, dtype=torch.uint8), text)


def test_maps_of_other_sizes_are_not_joined() -> None:
    net = NetworkBuilder(16)
    net.outputs = [net.concat(net.depthwise("x"), net.depthwise("x", stride=(2, 2)))]
    with pytest.raises(RuntimeError, match="expected images of 6x6, got 3x3"):
        planned_network(torch.zeros(1, 16, 6, 6), net.packed(), net.program())


@pytest.mark.parametrize("step", ["dense", "resize", "concat", "max_pool"])
def test_no_gpu_runs_them(step: str) -> None:
    net = NetworkBuilder(16)
    value = net.depthwise("x")
    joined = {
        "dense": lambda: net.dense(value, 16),
        "resize": lambda: net.resize(value, "nearest", scale=(2, 2)),
        "concat": lambda: net.concat(value, net.pointwise(value, 4)),
        "max_pool": lambda: net.max_pool(value),
    }
    net.outputs = [joined[step]()]
    text = net.program().replace("\n", " target=cuda_fp16\n", 1)
    with pytest.raises(RuntimeError, match="only the CPU runs this step"):
        planned_network(torch.zeros(1, 16, 6, 6), net.packed(), text)
