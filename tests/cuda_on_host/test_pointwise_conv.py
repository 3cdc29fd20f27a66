"""The CUDA pointwise_conv, run on the host: values, repeatability, what it moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_builder import NetworkBuilder
from op_checks import expected, schema_arguments
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, arguments, ids

from cuda_on_host import host_library
from cuda_on_host.host_checks import (
    DTYPES,
    check_guarded_on_host,
    check_on_host,
    check_same_bits,
    run_on_host,
)
from fastdw.plan.packed_layout import to_cuda_layout

OP = "pointwise_conv"
SECTOR = 32
pytestmark = pytest.mark.usefixtures("nan_filled")

# Pixels and channels that a tile of each size takes, and some more or less.
SIZES = [(1, 1), (7, 9), (8, 8), (5, 13), (11, 13), (1, 129)]
CASES = [
    *(Case(OP, channels=c, channels_out=o) for c in AWKWARD_CHANNELS for o in (1, 16, 33)),
    *(Case(OP, channels=20, channels_out=c, residual=True) for c in AWKWARD_CHANNELS),
    *(Case(OP, channels=17, channels_out=17, layout=layout, residual=True) for layout in LAYOUTS),
    *(Case(OP, activation=a, residual=True) for a in ("none", "relu", "hardswish", "silu")),
    *(Case(OP, channels=24, channels_out=40, height=h, width=w, residual=True) for h, w in SIZES),
    *(Case(OP, channels=64, channels_out=c, height=9, width=15) for c in (16, 24, 32, 64, 72, 136)),
    Case(OP, channels=960, channels_out=160, batch=1, height=7, width=7, residual=True),
    Case(OP, channels=320, channels_out=200, batch=1, height=7, width=7),
    Case(OP, channels=333, channels_out=20, batch=1, height=7, width=7),
    Case(OP, epilogue=False, activation="none"),
    Case(OP, batch=0, residual=True),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case: Case, dtype: torch.dtype) -> None:
    check_on_host(case, "normal", dtype)


@pytest.mark.parametrize("case", [*CASES[::5], *CASES[-5:]], ids=ids)
def test_values_in_tf32(case: Case) -> None:
    args, kwargs, truth, magnitude = expected(case, "normal", torch.float32)
    with host_library.tf32():
        y = run_on_host(case, args, kwargs)
    assert ((y - truth).abs() <= 2**-10 * magnitude).all()  # 2 factors of 10 bits, rounded


# Every tile size, by the device's size: pixels enough to fill it.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_out", [16, 32, 64, 128])
def test_values_of_many_pixels(channels_out: int, dtype: torch.dtype) -> None:
    check_on_host(
        Case(OP, channels=40, channels_out=channels_out, batch=1, height=99, width=101),
        "normal",
        dtype,
    )


@pytest.mark.parametrize("order", host_library.ORDERS[1:])
def test_values_in_any_order_of_threads(order: str) -> None:
    for case in CASES[::4]:
        check_on_host(case, "normal", torch.float16, order, "H100")


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu"])
def test_data(activation: str, kind: str) -> None:
    check_on_host(Case(OP, channels=19, channels_out=21, activation=activation), kind)
    case = Case(OP, channels=16, channels_out=40, activation=activation, residual=True)
    check_on_host(case, kind)
    if kind != "large":  # beyond fp16
        check_on_host(case, kind, torch.float16)


@settings(max_examples=60)
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    case = Case(
        OP,
        batch=data.draw(st.integers(0, 3)),
        channels=data.draw(st.integers(1, 140)),
        channels_out=data.draw(st.integers(1, 140)),
        height=data.draw(st.integers(1, 12)),
        width=data.draw(st.integers(1, 12)),
        residual=data.draw(st.booleans()),
        epilogue=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from(["none", "relu", "relu6", "hardswish", "silu"])),
        layout=data.draw(st.sampled_from(LAYOUTS)),
    )
    check_on_host(case, "normal", data.draw(st.sampled_from(DTYPES)))


@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
@pytest.mark.parametrize(
    "case",
    [
        *(Case(OP, channels=c, channels_out=c, residual=True) for c in (*AWKWARD_CHANNELS, 24, 64)),
        *(Case(OP, channels=64, channels_out=24, height=h, width=w) for h, w in SIZES),
        Case(OP, channels=960, channels_out=24, batch=1),
    ],
    ids=ids,
)
def test_reads_nothing_outside(case: Case, at_end: bool) -> None:
    for dtype in DTYPES[:2]:
        check_guarded_on_host(case, dtype, at_end)


def test_same_bits_in_any_order() -> None:
    check_same_bits(Case(OP, channels=33, channels_out=50, height=20, width=21), torch.float16)
    check_same_bits(Case(OP, channels=960, channels_out=160, batch=1), torch.float16)
    check_same_bits(Case(OP, channels=320, channels_out=96, batch=1))


def _as_call(case: Case, dtype: torch.dtype) -> tuple[Any, ...]:
    return schema_arguments(case, *arguments(case, "normal", dtype))


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same values, one element beyond an aligned address."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    moved = torch.as_strided(memory, tensor.shape, tensor.stride(), 1).copy_(tensor)
    assert moved.data_ptr() % 16
    return moved


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_tensors(dtype: torch.dtype) -> None:
    case = Case(OP, channels=64, channels_out=24, residual=True, layout="channels_last")
    call = _as_call(case, dtype)
    expected = host_library.op(OP)(*call)
    for i in range(5):  # x, weight, scale, bias, residual
        moved = host_library.op(OP)(*call[:i], _moved(call[i]), *call[i + 1 :])
        torch.testing.assert_close(moved, expected)


# An image's pixels: fewer than a tile, a tile, and more.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (8, 8), (9, 9), (12, 15)], ids=str)
def test_mean_over_pixels(size: tuple[int, int], dtype: torch.dtype) -> None:
    height, width = size
    for batch, channels, channels_out in ((1, 320, 136), (5, 20, 19), (3, 96, 64)):
        net = NetworkBuilder(channels)
        net.outputs = [net.pool(net.pointwise("x", channels_out, act="relu6"))]
        weights = to_cuda_layout(net.packed(), net.program(), dtype)
        x = torch.randn(batch, channels, height, width).to(dtype)
        with host_library.counted(x=x) as launches:
            (mean,) = host_library.op("planned_network").default(x, *weights)
        # The pool is no kernel, but for the sums of an image's tiles.
        assert len(launches) <= (1 if height * width <= 64 else 2)
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        (truth,) = net.expected(x)
        torch.testing.assert_close(mean.double(), truth, rtol=tolerance, atol=tolerance)


def _counted(case: Case, dtype: torch.dtype) -> tuple[dict[str, Any], tuple[Any, ...]]:
    call = _as_call(case, dtype)
    host_library.op(OP)
    buffers = {"x": call[0], "weight": call[1], "residual": call[4]}
    buffers = {name: tensor for name, tensor in buffers.items() if tensor is not None}
    with host_library.counted(**buffers) as launches:
        host_library.op(OP)(*call)
    assert len(launches) == 1
    return launches[0], call


# Convolutions of MobileNet V2: wide, narrow, few pixels, and the last.
SHAPES = [
    Case(OP, channels=c, channels_out=o, height=size, width=size, batch=1, residual=residual)
    for c, o, size, residual in (
        (16, 96, 112, False),
        (144, 24, 56, True),
        (64, 384, 14, False),
        (384, 64, 14, True),
        (960, 160, 7, True),
        (320, 1280, 7, False),
    )
]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("case", SHAPES, ids=ids)
def test_traffic(case: Case, dtype: torch.dtype) -> None:
    launch, (x, weight, *_, residual, _) = _counted(case, dtype)
    buffers = launch["buffers"]
    for name, tensor in (("x", x), ("weight", weight), ("residual", residual)):
        if tensor is not None:
            assert buffers[name]["read"]["distinct_sectors"] == tensor.nbytes // SECTOR
    # Tiles in a row of tiles read the same pixels: from the L2, once for each.
    tiles = -(-case.channels_out // 16)
    assert buffers["x"]["read"]["request_sectors"] <= tiles * x.nbytes // SECTOR
    if residual is not None:
        # A warp asks for the halves of a sector after one another: the second comes from L1.
        assert buffers["residual"]["read"]["request_sectors"] <= 2 * residual.nbytes // SECTOR
    assert all(site["conflicts"] == 0 for site in launch["shared"])


def test_few_pixels_occupy_the_device() -> None:
    for case in SHAPES[-2:]:
        launch, _ = _counted(case, torch.float16)
        assert launch["grid"][0] >= 10 and launch["block"][0] >= 128, case
        assert case.channels < 900 or launch["block"][0] == 256, case  # groups of warps share K
