"""The CUDA depthwise_conv, run on the host: values, repeatability, what it moves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import random_windows, schema_arguments
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, arguments, ids

from cuda_on_host import host_library
from cuda_on_host.host_checks import DTYPES, check_on_host, check_same_bits
from fastdw.models import specs

OP = "depthwise_conv"
SECTOR = 32
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(OP, channels=c, height=5, width=9, layout=layout) for c in AWKWARD_CHANNELS
      for layout in LAYOUTS[:2]),
    *(Case(OP, channels=c, kernel=(k, k), padding=k // 2, stride=s, width=33, height=6)
      for c in (16, 20, 7) for k in (3, 5, 7) for s in (1, 2)),
    *(Case(OP, channels=9, kernel=(k, k), padding=k // 2, stride=s, width=40, layout="contiguous")
      for k in (3, 5, 7) for s in (1, 2)),
    *(Case(OP, channels=17, kernel=kernel, padding="same", height=11, width=10, stride=stride)
      for kernel in ((1, 1), (2, 2), (4, 4), (3, 5)) for stride in (1, 2)),
    *(Case(OP, channels=8, activation=a) for a in ("none", "relu", "hardswish", "silu")),
    *(Case(OP, channels=c, multiplier=m, layout=layout) for c, m in ((1, 2), (5, 3), (16, 2))
      for layout in LAYOUTS[:2]),
    *(Case(OP, channels=c, dilation=d, padding=d, height=11, width=13, layout=layout)
      for c in (9, 16) for d in (2, (1, 3), 5) for layout in LAYOUTS[:2]),
    *(Case(OP, channels=16, dilation=2, padding=2, stride=s, height=9, width=9) for s in (2, 3)),
    *(Case(OP, channels=16, padding=p) for p in (0, (0, 1), (0, 2, 1, 3), (5, 0, 0, 4))),
    *(Case(OP, stride=s, padding="keras_v1", height=9, width=8) for s in (1, 2)),
    *(Case(OP, stride=s, height=11, width=11) for s in ((1, 2), (3, 1), 4)),
    *(Case(OP, channels=24, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (2, 2))),
    *(Case(OP, channels=16, layout=layout) for layout in LAYOUTS[2:]),
    Case(OP, channels=96, height=14, width=14),
    Case(OP, channels=64, height=7, width=7, batch=3),
    Case(OP, channels=8, height=30, width=70),
    Case(OP, channels=200, height=29, width=31, batch=4),  # two columns a thread
    Case(OP, channels=200, height=61, width=31, batch=4, stride=2),
    Case(OP, epilogue=False, activation="none"),
    Case(OP, batch=0),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case: Case, dtype: torch.dtype) -> None:
    check_on_host(case, "normal", dtype)


@pytest.mark.parametrize("order", host_library.ORDERS[1:])
def test_values_in_any_order_of_threads(order: str) -> None:
    for case in CASES[::5]:
        check_on_host(case, "normal", torch.float16, order, "H100")


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu6", "silu"])
def test_data(activation: str, kind: str) -> None:
    for kernel, layout in (((3, 3), "channels_last"), ((5, 5), "contiguous"), ((2, 4), "sliced")):
        case = Case(OP, channels=16, height=9, kernel=kernel, layout=layout, activation=activation)
        check_on_host(case, kind)


@settings(max_examples=40)
@given(case=random_windows(OP), dtype=st.sampled_from(DTYPES))
def test_random_shapes(case: Case, dtype: torch.dtype) -> None:
    check_on_host(case, "normal", dtype)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_same_bits_in_any_order(layout: str) -> None:
    check_same_bits(Case(OP, channels=32, height=20, width=31, layout=layout), torch.float16)
    check_same_bits(Case(OP, channels=20, kernel=(5, 5), stride=2, padding=2, layout=layout))


def _as_call(case: Case, dtype: torch.dtype) -> tuple[object, ...]:
    return schema_arguments(case, *arguments(case, "normal", dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_tensors(dtype: torch.dtype) -> None:
    case = Case(OP, channels=16, layout="channels_last")
    x, weight, *rest = _as_call(case, dtype)
    expected = host_library.op(OP)(x, weight, *rest)
    memory = torch.empty(x.numel() + 1, dtype=dtype)
    moved = memory[1:].view(2, 7, 6, 16).permute(0, 3, 1, 2).copy_(x)
    weight_memory = torch.empty(weight.numel() + 3, dtype=dtype)
    moved_weight = weight_memory[3:].view(weight.shape).copy_(weight)
    assert moved.data_ptr() % 16 and moved_weight.data_ptr() % 16
    torch.testing.assert_close(host_library.op(OP)(moved, moved_weight, *rest), expected)


def _of_networks() -> list[Case]:
    """The depthwise convolutions of MobileNet V1 and V2, equal ones once."""
    cases = []
    for blocks in (specs.mobilenet_v1_blocks(), specs.mobilenet_v2_blocks()):
        size = 112
        for block in blocks:
            channels = block.in_channels * block.expand_ratio
            cases.append(Case(OP, channels, 8, size, size, 1, stride=block.stride))
            size = -(-size // block.stride)
    return list(dict.fromkeys(cases))


SHAPES = [
    *(Case(OP, channels=c, height=size, width=size, stride=s, batch=1)
      for c, size, s in ((32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2), (192, 28, 1),
                         (384, 14, 1), (576, 14, 2), (960, 7, 1))),
    Case(OP, channels=64, height=56, width=56, stride=2, batch=1, padding=(0, 1, 0, 1)),
    Case(OP, channels=192, height=28, width=28, kernel=(5, 5), padding=2, batch=1),
    Case(OP, channels=96, height=56, width=56, kernel=(7, 7), padding=3, batch=1),
    Case(OP, channels=128, height=28, width=28, dilation=2, padding=2, batch=1),
]  # fmt: skip


def _counted(case: Case, dtype: torch.dtype) -> tuple[dict, torch.Tensor, torch.Tensor]:
    call = _as_call(case, dtype)
    host_library.op(OP)
    with host_library.counted(x=call[0], weight=call[1]) as launches:
        y = host_library.op(OP)(*call)
    assert len(launches) == 1
    return launches[0], call[0], y


MOST_LOADS = 1.5  # of an element of x, from the L2


def _check_traffic(case: Case, dtype: torch.dtype) -> dict:
    launch, x, y = _counted(case, dtype)
    read = launch["buffers"]["x"]["read"]
    ideal = x.nbytes // SECTOR
    assert read["distinct_sectors"] == ideal
    assert read["request_sectors"] <= MOST_LOADS * ideal
    written = launch["buffers"]["other"]["written"]
    assert written["distinct_sectors"] == written["request_sectors"] == y.nbytes // SECTOR
    # A warp that ends a strip and begins the next may meet its own banks.
    loads = [site for site in launch["shared"] if site["access"] == "load"]
    conflicts = sum(site["conflicts"] for site in loads)
    assert conflicts <= 0.1 * sum(site["wavefronts"] for site in loads)
    return launch


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("case", SHAPES, ids=ids)
def test_traffic(case: Case, batch: int) -> None:
    for dtype in (torch.float16, torch.float32):
        _check_traffic(replace(case, batch=batch), dtype)


@pytest.mark.parametrize("device,multiprocessors", [("A100", 108), ("H100", 132)])
def test_one_image_of_a_network(device: str, multiprocessors: int) -> None:
    """Few loads, and work for all multiprocessors or, at 14x14 and 7x7 pixels, for most."""
    with host_library.device(device):
        for case in _of_networks():
            launch = _check_traffic(case, torch.float16)
            least = 0.55 if case.height <= 14 else 0.8
            assert math.prod(launch["grid"]) >= least * multiprocessors, case


def test_traffic_of_planes() -> None:
    case = replace(SHAPES[2], channels=16, layout="contiguous")
    launch, x, _ = _counted(case, torch.float32)
    read = launch["buffers"]["x"]["read"]
    assert read["distinct_sectors"] == x.nbytes // SECTOR
    assert read["request_sectors"] <= 2 * x.nbytes // SECTOR  # rows begin anywhere in a sector
