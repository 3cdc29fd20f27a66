"""The CUDA stem_conv, run on the host: values, repeatability, what it moves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import expected, random_windows, schema_arguments, truth_of
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, arguments, ids

from cuda_on_host import host_library
from cuda_on_host.host_checks import DTYPES, check_on_host, check_same_bits, run_on_host

OP = "stem_conv"
SECTOR = 32
IMAGE = Case(OP, channels=3, channels_out=24, height=11, width=13, stride=2)
pytestmark = pytest.mark.usefixtures("nan_filled")

# Windows of more terms than a warp keeps weights of in registers.
LONG = [
    *(
        replace(IMAGE, kernel=kernel, stride=s, channels_out=o, width=w, padding=p, layout=layout)
        for kernel, s, o, w, p in (
            ((7, 7), 2, 64, 40, 3),
            ((5, 5), 2, 33, 21, "same"),
            ((11, 11), 4, 96, 35, 2),
            ((4, 6), (4, 3), 7, 50, (3, 0, 1, 2)),
        )
        for layout in LAYOUTS[:2]
    ),
    *(
        replace(IMAGE, channels=c, channels_out=130, layout=layout)
        for c, layout in ((8, LAYOUTS[0]), (13, LAYOUTS[1]), (16, LAYOUTS[1]), (32, LAYOUTS[0]))
    ),
    replace(IMAGE, kernel=(16, 16), stride=16, padding=0, height=33, width=50, channels_out=40),
]
CASES = [
    *(
        replace(IMAGE, channels_out=c, layout=layout)
        for c in AWKWARD_CHANNELS
        for layout in LAYOUTS[:2]
    ),
    *(replace(IMAGE, layout=layout) for layout in LAYOUTS[2:]),
    *(replace(IMAGE, channels=c, layout=layout) for c in (1, 4, 17) for layout in LAYOUTS[:2]),
    *(replace(IMAGE, stride=s, padding=p) for s in (1, 2, 3, (1, 2)) for p in (0, 1, "same")),
    *(replace(IMAGE, padding=p, height=8) for p in ("keras_v1", (0, 1, 0, 1), (3, 0, 1, 2))),
    *(
        replace(IMAGE, kernel=kernel, padding="same", layout=layout)
        for kernel in ((1, 1), (2, 2), (5, 5), (7, 7), (3, 5), (5, 3))
        for layout in LAYOUTS[:2]
    ),
    *(replace(IMAGE, activation=a) for a in ("none", "relu", "hardswish", "silu")),
    *(replace(IMAGE, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (2, 2), (7, 150))),
    replace(IMAGE, channels_out=80, height=70, width=40, layout="contiguous"),
    replace(IMAGE, channels=400, channels_out=9),  # staged in several rounds
    replace(IMAGE, channels=1, kernel=(1100, 1), padding=(0, 0, 600, 600)),  # cannot be staged
    *(replace(IMAGE, channels_out=c, height=7, width=36) for c in (40, 64, 72, 130, 320)),
    *(
        replace(IMAGE, channels=c, channels_out=16, width=40, stride=s, layout=layout)
        for c, s in ((1, 1), (1, 3), (2, 1), (6, 2), (7, 1))  # 1, 2 and 4 steps of 16 terms
        for layout in LAYOUTS[:2]
    ),
    *(replace(IMAGE, width=w, stride=1) for w in (16, 20, 24, 128, 130, 300)),
    *(replace(IMAGE, batch=b, height=9, width=9) for b in (170, 230, 300)),  # of several rows
    *LONG,
    replace(IMAGE, kernel=(1, 40), channels=1, padding="same", width=70),
    replace(IMAGE, epilogue=False, activation="none"),
    replace(IMAGE, batch=0),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case: Case, dtype: torch.dtype) -> None:
    check_on_host(case, "normal", dtype)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_in_tf32(case: Case) -> None:
    args, kwargs, truth, magnitude = expected(case, "normal", torch.float32)
    with host_library.tf32():
        y = run_on_host(case, args, kwargs)
    assert ((y - truth).abs() <= 2**-10 * magnitude).all()  # 2 factors of 10 bits, rounded


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("kernel", [(3, 3), (7, 7)], ids=str)
def test_special_values_in_tf32(kernel: tuple[int, int], layout: str) -> None:
    """Windows beside NaN and inf stay finite: what lies beyond the last term is not multiplied."""
    case = replace(IMAGE, kernel=kernel, height=60, width=60, layout=layout, activation="none")
    args, kwargs = arguments(case, "normal", torch.float32)
    args[0][0, 2, 21, 21] = math.inf  # the last term of a window
    args[0][1, 1, 40, 41] = math.nan
    truth, magnitude = truth_of(case, args, kwargs)
    with host_library.tf32():
        y = run_on_host(case, args, kwargs).double()
    finite = truth.isfinite()
    assert finite.any() and not finite.all()
    assert torch.equal(y.isnan(), truth.isnan()) and torch.equal(y.isinf(), truth.isinf())
    assert ((y - truth).abs() <= 2**-10 * magnitude)[finite].all()


COMMON = [  # kernel, stride, channels, channels_out: networks' first convolutions
    ((3, 3), 2, 3, 32),
    ((3, 3), 1, 3, 64),
    ((3, 3), 2, 32, 32),
    ((5, 5), 2, 3, 48),
    ((7, 7), 2, 3, 64),
    ((4, 4), 4, 3, 96),
    ((7, 7), 4, 3, 64),
    ((11, 11), 4, 3, 64),
    ((16, 16), 16, 3, 192),
    ((3, 3), 2, 1, 16),
]


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("kernel,stride,channels,channels_out", COMMON, ids=str)
def test_common_stems_use_tensor_cores(
    kernel: tuple[int, int], stride: int, channels: int, channels_out: int, layout: str
) -> None:
    case = Case(OP, channels, channels_out, 48, 50, 1, kernel=kernel, layout=layout)
    case = replace(case, stride=stride, padding=kernel[0] // 2)
    for dtype in DTYPES:
        call = schema_arguments(case, *arguments(case, "normal", dtype))
        with host_library.tf32(), host_library.counted() as launches:
            host_library.op(OP)(*call)
        (launch,) = launches
        assert any(site["access"] == "matrix" for site in launch["shared"]), dtype


@pytest.mark.parametrize("order", host_library.ORDERS[1:])
def test_values_in_any_order_of_threads(order: str) -> None:
    for case in CASES[::4]:
        check_on_host(case, "normal", torch.float16, order, "H100")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("activation", ["none", "relu6", "silu"])
def test_data(activation: str, kind: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS[:2]:
        for channels in (1, 3, 6):
            case = replace(IMAGE, channels=channels, activation=activation, layout=layout)
            check_on_host(case, kind, dtype)


@settings(max_examples=30)
@given(case=random_windows(OP), dtype=st.sampled_from(DTYPES))
def test_random_shapes(case: Case, dtype: torch.dtype) -> None:
    check_on_host(case, "normal", dtype)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_same_bits_in_any_order(layout: str) -> None:
    check_same_bits(replace(IMAGE, channels_out=32, height=30, width=31, layout=layout))
    check_same_bits(replace(IMAGE, channels_out=72, width=60, layout=layout), torch.float16)
    check_same_bits(replace(IMAGE, channels=40, layout=layout), torch.bfloat16)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_traffic(dtype: torch.dtype, layout: str) -> None:
    case = replace(IMAGE, channels_out=32, height=224, width=224, batch=1, layout=layout)
    x, *rest = schema_arguments(case, *arguments(case, "normal", dtype))
    host_library.op(OP)
    with host_library.counted(x=x) as launches:
        y = host_library.op(OP)(x, *rest)
    (launch,) = launches
    read = launch["buffers"]["x"]["read"]
    assert read["distinct_sectors"] == x.nbytes // SECTOR
    # 3 rows of x for each of y, and where rows are split to have more thread blocks, their ends.
    assert read["request_sectors"] <= 1.65 * x.nbytes // SECTOR
    written = launch["buffers"]["other"]["written"]
    assert written["distinct_sectors"] == written["request_sectors"] == y.nbytes // SECTOR
    assert math.prod(launch["grid"]) >= 100
    # Pixels of 3 channels, read as they lie in memory, meet in banks.
    most = 1.0 if layout == "channels_last" and dtype != torch.float32 else 0.0
    loads = [site for site in launch["shared"] if site["access"] == "load"]
    assert all(site["conflicts"] <= most * site["requests"] for site in loads)


@pytest.mark.parametrize("kernel", [(3, 3), (7, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_traffic_of_tensor_cores(dtype: torch.dtype, kernel: tuple[int, int]) -> None:
    """fp32 in tf32 too: 16 bytes a lane at a time where they lie so, nothing twice but borders."""
    case = replace(IMAGE, kernel=kernel, channels_out=64, height=224, width=224, batch=1)
    case = replace(case, padding=kernel[0] // 2, layout="contiguous")
    x, *rest = schema_arguments(case, *arguments(case, "normal", dtype))
    with host_library.tf32(), host_library.counted(x=x) as launches:
        y = host_library.op(OP)(x, *rest)
    (launch,) = launches
    read = launch["buffers"]["x"]["read"]
    assert read["distinct_sectors"] == x.nbytes // SECTOR
    # Rows of y are dealt out one by one here: 7 rows of x for each of them.
    most = 1.65 if kernel == (3, 3) else 4.3
    assert read["bytes"] >= 15 * read["requests"]
    assert read["request_sectors"] <= most * x.nbytes // SECTOR
    written = launch["buffers"]["other"]["written"]
    assert written["distinct_sectors"] == written["request_sectors"] == y.nbytes // SECTOR
    # 16 bytes between the starts of rows: of fp32, two rows' terms may share a bank.
    loads = [site for site in launch["shared"] if site["access"] == "load"]
    assert sum(s["conflicts"] for s in loads) <= sum(s["requests"] for s in loads)
