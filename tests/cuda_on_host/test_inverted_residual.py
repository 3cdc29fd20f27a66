"""The CUDA inverted_residual, run on the host: values, repeatability, what it moves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import expected, random_windows
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, arguments, ids

from cuda_on_host import host_library
from cuda_on_host.block_checks import check_block, check_error_against_eager, counted
from cuda_on_host.host_checks import DTYPES, check_same_bits, run_on_host
from fastdw.models.specs import mobilenet_v2_blocks

OP = "inverted_residual"
BLOCK = Case(OP, channels=8, channels_out=8, hidden=24)
pytestmark = pytest.mark.usefixtures("nan_filled")


@pytest.fixture(autouse=True, scope="module")
def fused_blocks() -> Iterator[None]:
    """One kernel a block: by default small blocks are launched convolution by convolution."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDW_CUDA_BLOCKS", "fused")
        yield


CASES = [
    *(replace(BLOCK, channels=c, channels_out=c, residual=True) for c in AWKWARD_CHANNELS),
    *(replace(BLOCK, hidden=h, channels=9) for h in AWKWARD_CHANNELS),
    *(replace(BLOCK, hidden=None, channels=c) for c in AWKWARD_CHANNELS),
    *(replace(BLOCK, channels_out=c, stride=2, hidden=70) for c in (1, 7, 16, 33, 170, 330)),
    *(replace(BLOCK, layout=layout, residual=True) for layout in LAYOUTS),
    *(
        replace(BLOCK, kernel=kernel, padding="same", height=11, width=10, stride=stride)
        for kernel in ((1, 1), (2, 2), (4, 4), (5, 5), (7, 7), (3, 5))
        for stride in (1, 2)
    ),
    *(replace(BLOCK, activation=a, residual=True) for a in ("none", "relu", "hardswish", "silu")),
    *(replace(BLOCK, dilation=d, padding=d, residual=True) for d in (2, (1, 3))),
    *(replace(BLOCK, padding=p) for p in (0, "keras_v1", (0, 2, 1, 3), (0, 3, 30, 40))),
    *(replace(BLOCK, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (12, 40), (37, 5))),
    replace(BLOCK, stride=3, kernel=(2, 2), height=31),  # rows of x that no output sees
    replace(BLOCK, hidden=None, residual=True, batch=3),
    replace(BLOCK, epilogue=False, activation="none"),
    replace(BLOCK, batch=0, residual=True),
    replace(BLOCK, batch=5, height=3, width=3, residual=True),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case: Case, dtype: torch.dtype) -> None:
    check_block(case, "normal", dtype)


def _network(size: int, batch: int = 1) -> list[Case]:
    """The blocks of MobileNet V2, each shape once, from an image of this size."""
    cases, height = [], size // 2
    for spec in mobilenet_v2_blocks():
        hidden = spec.in_channels * spec.expand_ratio if spec.expand_ratio > 1 else None
        residual = spec.stride == 1 and spec.in_channels == spec.out_channels
        cases.append(
            Case(
                OP,
                channels=spec.in_channels,
                hidden=hidden,
                channels_out=spec.out_channels,
                height=height,
                width=height,
                batch=batch,
                stride=spec.stride,
                residual=residual,
            )
        )
        height = -(-height // spec.stride)
    return list(dict.fromkeys(cases))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", _network(96), ids=ids)
def test_mobilenet_blocks(case: Case, dtype: torch.dtype) -> None:
    check_block(case, "normal", dtype)


@pytest.mark.parametrize("device", host_library.DEVICES)
@pytest.mark.parametrize("batch", [2, 5])
def test_several_images(batch: int, device: str) -> None:
    for case in _network(64, batch)[2::3]:
        check_block(case, "normal", torch.bfloat16, device=device)


@pytest.mark.parametrize("case", [*CASES[::7], _network(96)[4]], ids=ids)
def test_values_in_tf32(case: Case) -> None:
    args, kwargs, truth, magnitude = expected(case, "normal", torch.float32)
    with host_library.tf32():
        y = run_on_host(case, args, kwargs)
    assert ((y - truth).abs() <= 2**-9 * magnitude).all()  # twice 2 factors of 10 bits, rounded


@pytest.mark.parametrize("order", host_library.ORDERS[1:])
def test_values_in_any_order_of_threads(order: str) -> None:
    for case in CASES[::4]:
        check_block(case, "normal", torch.float16, order, "H100")


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish", "silu"])
def test_data(activation: str, kind: str) -> None:
    case = replace(BLOCK, activation=activation, residual=True)
    check_block(case, kind)
    check_block(replace(BLOCK, activation=activation, hidden=None, stride=2), kind)
    if kind != "large":  # beyond fp16
        check_block(case, kind, torch.float16)


@settings(max_examples=60)
@given(case=random_windows(OP), dtype=st.sampled_from(DTYPES))
def test_random_shapes(case: Case, dtype: torch.dtype) -> None:
    check_block(case, "normal", dtype)


def test_same_bits_in_any_order() -> None:
    check_same_bits(replace(BLOCK, hidden=100, height=30, width=31, residual=True))
    split = replace(_network(224)[-1], batch=1)
    assert counted(split, torch.float16)[0].counts["grid"][0] > 2  # hidden channels are split
    check_same_bits(split, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_error_is_at_most_twice_that_of_eager_torch(dtype: torch.dtype) -> None:
    check_error_against_eager(_network(64)[1::3], dtype)


def test_blocks_that_fit_no_thread_block_run_one_by_one() -> None:
    for case, device in (
        (replace(BLOCK, channels=700, channels_out=20, hidden=40), "RTX 4090"),
        (replace(BLOCK, kernel=(25, 25), padding="same", height=9, residual=True), "A100"),
        (replace(BLOCK, hidden=None, kernel=(25, 25), padding="same"), "RTX 4090"),
    ):
        steps = 2 if case.hidden is None else 3
        assert len(counted(case, torch.float32, device)) == steps, case
        check_block(case, "normal", torch.float32, device=device)
    check_same_bits(replace(BLOCK, kernel=(25, 25), padding="same"))


@pytest.mark.parametrize("batch", [1, 4])
def test_hidden_tensor_never_reaches_global_memory(batch: int) -> None:
    """Every byte of x, weights and y moves once; beyond that there are scales, biases and, where
    hidden channels are split over thread blocks, their sums."""
    whole = 0
    for case in _network(224, batch):
        (launch,) = counted(case, torch.float16)
        for name in ("x", "expand", "depthwise", "project"):
            if name in launch.ideal:
                assert launch.distinct(name) == launch.ideal[name], case
        if launch.splits == 1:
            whole += 1
            beyond = launch.distinct("other") + launch.distinct("other", "written")
            scales = 8 * (2 * (case.hidden or case.channels) + case.channels_out)
            assert beyond <= launch.ideal["y"] + scales, case
    assert whole >= 3


def test_the_wish_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDW_CUDA_BLOCKS", "quickest")
    with pytest.raises(RuntimeError, match="separate, fewest_bytes, got quickest"):
        counted(BLOCK, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_convolution_by_convolution(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDW_CUDA_BLOCKS", "separate")
    for case in (BLOCK, replace(BLOCK, hidden=None, stride=2), *_network(64)[::4]):
        check_block(case, "normal", dtype)


def test_bank_conflicts() -> None:
    """None where tensor cores multiply. Else few: rows of the image whose width banks do not divide
    meet where hidden values are stored, and a last slab of few channels where they are filtered."""
    for case in _network(224):
        (launch,) = counted(case, torch.float16)
        wavefronts = sum(site["wavefronts"] for site in launch.counts["shared"])
        assert launch.conflicts.get("matrix", 0) == 0
        assert launch.conflicts.get("load", 0) <= 0.055 * wavefronts, case
        assert sum(launch.conflicts.values()) <= 0.08 * wavefronts, case


def test_strips_of_a_last_slab_lie_in_different_banks() -> None:
    """Of 16 channels 4 strips are read and stored together, in whole groups of rows."""
    (launch,) = counted(Case(OP, 16, 16, 13, 21, 1, hidden=16, residual=True), torch.float16)
    wavefronts = sum(site["wavefronts"] for site in launch.counts["shared"])
    assert launch.conflicts["store"] <= 0.0045 * wavefronts


def test_stride_of_three() -> None:
    """Of the windows that have code of their own the stride is 1 or 2."""
    for kernel in (3, 5):
        case = Case(OP, hidden=24, height=13, width=14, stride=3, kernel=(kernel, kernel))
        check_block(case, "normal", torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_infinite_input_spoils_no_other_channel(dtype: torch.dtype) -> None:
    """Hidden channels beyond the last are zeros, not 0 x inf."""
    args, kwargs = arguments(BLOCK, "normal", dtype)
    args[0][0, 3, 2, 2] = torch.inf
    assert torch.isfinite(run_on_host(BLOCK, args, kwargs)).all()
