"""The CUDA separable_block, run on the host: the block kernel without expansion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import expected, random_windows
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, ids

from cuda_on_host import host_library
from cuda_on_host.block_checks import check_block, check_error_against_eager, counted
from cuda_on_host.host_checks import DTYPES, check_same_bits, run_on_host
from fastdw.models.specs import mobilenet_v1_blocks

OP = "separable_block"
BLOCK = Case(OP, channels=24, channels_out=16)
pytestmark = pytest.mark.usefixtures("nan_filled")


@pytest.fixture(autouse=True, scope="module")
def fused_blocks() -> Iterator[None]:
    """One kernel a block: by default small blocks are launched convolution by convolution."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDW_CUDA_BLOCKS", "fused")
        yield


CASES = [
    *(replace(BLOCK, channels=c) for c in AWKWARD_CHANNELS),
    *(replace(BLOCK, channels_out=c, channels=150) for c in (*AWKWARD_CHANNELS, 170, 520)),
    *(replace(BLOCK, layout=layout, stride=2) for layout in LAYOUTS),
    *(
        replace(BLOCK, kernel=kernel, padding="same", height=11, width=10, stride=stride)
        for kernel in ((1, 1), (2, 2), (4, 4), (5, 5), (7, 7), (5, 3))
        for stride in (1, 2)
    ),
    *(replace(BLOCK, activation=a) for a in ("none", "relu", "hardswish", "silu")),
    *(replace(BLOCK, dilation=d, padding=d) for d in (2, (3, 1))),
    *(replace(BLOCK, padding=p) for p in (0, "keras_v1", (1, 3, 0, 2), (9, 0, 20, 0))),
    *(replace(BLOCK, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (12, 40), (37, 5))),
    replace(BLOCK, epilogue=False, activation="none"),
    replace(BLOCK, batch=0),
    replace(BLOCK, batch=7, height=4, width=3),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case: Case, dtype: torch.dtype) -> None:
    check_block(case, "normal", dtype)


def _network(size: int, batch: int = 1) -> list[Case]:
    """The blocks of MobileNet V1, each shape once, from an image of this size."""
    cases, height = [], size // 2
    for spec in mobilenet_v1_blocks():
        cases.append(
            Case(
                OP,
                channels=spec.in_channels,
                channels_out=spec.out_channels,
                height=height,
                width=height,
                batch=batch,
                stride=spec.stride,
            )
        )
        height = -(-height // spec.stride)
    return list(dict.fromkeys(cases))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", _network(64), ids=ids)
def test_mobilenet_blocks(case: Case, dtype: torch.dtype) -> None:
    check_block(case, "normal", dtype)


@pytest.mark.parametrize("device", host_library.DEVICES)
def test_several_images(device: str) -> None:
    for case in _network(64, 5)[1::3]:
        check_block(case, "normal", torch.bfloat16, device=device)


@pytest.mark.parametrize("case", [*CASES[::7], _network(64)[2]], ids=ids)
def test_values_in_tf32(case: Case) -> None:
    args, kwargs, truth, magnitude = expected(case, "normal", torch.float32)
    with host_library.tf32():
        y = run_on_host(case, args, kwargs)
    assert ((y - truth).abs() <= 2**-10 * magnitude).all()  # 2 factors of 10 bits, rounded


@pytest.mark.parametrize("order", host_library.ORDERS[1:])
def test_values_in_any_order_of_threads(order: str) -> None:
    for case in CASES[::4]:
        check_block(case, "normal", torch.float16, order, "H100")


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu"])
def test_data(activation: str, kind: str) -> None:
    case = replace(BLOCK, activation=activation)
    check_block(case, kind)
    if kind != "large":  # beyond fp16
        check_block(case, kind, torch.float16)


@settings(max_examples=60)
@given(case=random_windows(OP), dtype=st.sampled_from(DTYPES))
def test_random_shapes(case: Case, dtype: torch.dtype) -> None:
    check_block(case, "normal", dtype)


def test_same_bits_in_any_order() -> None:
    for case in (replace(BLOCK, height=30, width=31), _network(64)[-1]):
        check_same_bits(case, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_error_is_at_most_twice_that_of_eager_torch(dtype: torch.dtype) -> None:
    check_error_against_eager(_network(64)[1::3], dtype)


def test_hidden_tensor_never_reaches_global_memory() -> None:
    """Where hidden channels are split over thread blocks, their sums do."""
    whole = 0
    for case in _network(224)[2:]:  # the first are slow
        (launch,) = counted(case, torch.float16)
        for name in ("x", "depthwise", "project"):
            assert launch.distinct(name) == launch.ideal[name], case
        if launch.splits == 1:
            whole += 1
            beyond = launch.distinct("other") + launch.distinct("other", "written")
            scales = 8 * (case.channels + case.channels_out)
            assert beyond <= launch.ideal["y"] + scales, case
        assert launch.conflicts.get("matrix", 0) == 0
    assert whole >= 1
