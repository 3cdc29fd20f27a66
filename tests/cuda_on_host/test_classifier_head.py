"""The CUDA classifier_head, run on the host: values, repeatability, what it moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import schema_arguments
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, arguments, ids

from cuda_on_host import host_library
from cuda_on_host.host_checks import DTYPES, check_guarded_on_host, check_on_host, check_same_bits

OP = "classifier_head"
SECTOR = 32
pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(OP, channels=c, channels_out=o) for c in AWKWARD_CHANNELS for o in (1, 16, 33)),
    *(Case(OP, channels=20, channels_out=c) for c in AWKWARD_CHANNELS),
    *(Case(OP, channels=17, channels_out=17, layout=layout) for layout in LAYOUTS),
    *(Case(OP, channels=20, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1), (13, 29))),
    *(Case(OP, channels=c, channels_out=10, batch=batch) for c in (33, 48)
      for batch in (0, 1, 3, 4, 5, 8, 9, 33)),
    *(Case(OP, channels=c, channels_out=20, height=1, width=1, batch=batch) for c in (33, 48)
      for batch in (1, 4, 8, 9, 33)),
    Case(OP, channels=1280, channels_out=101, batch=1, height=7, width=7),
    Case(OP, channels=1280, channels_out=101, batch=12, height=1, width=1),
    Case(OP, epilogue=False),
    Case(OP, epilogue=False, channels=16, batch=20),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case: Case, dtype: torch.dtype) -> None:
    check_on_host(case, "normal", dtype)


@pytest.mark.parametrize("order", host_library.ORDERS[1:])
def test_values_in_any_order_of_threads(order: str) -> None:
    for case in CASES[::4]:
        check_on_host(case, "normal", torch.float16, order, "H100")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_data(kind: str) -> None:
    for batch in (1, 3, 6, 12):
        check_on_host(Case(OP, channels=19, channels_out=21, batch=batch), kind)
        check_on_host(Case(OP, channels=48, channels_out=5, batch=batch), kind)


@settings(max_examples=60)
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    case = Case(
        OP,
        batch=data.draw(st.integers(0, 12)),
        channels=data.draw(st.integers(1, 140)),
        channels_out=data.draw(st.integers(1, 70)),
        height=data.draw(st.integers(1, 8)),
        width=data.draw(st.integers(1, 8)),
        epilogue=data.draw(st.booleans()),
        layout=data.draw(st.sampled_from(LAYOUTS)),
    )
    check_on_host(case, "normal", data.draw(st.sampled_from(DTYPES)))


@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
@pytest.mark.parametrize(
    "case",
    [
        *(Case(OP, channels=c, channels_out=c) for c in (*AWKWARD_CHANNELS, 24, 64)),
        *(
            Case(OP, channels=64, channels_out=20, batch=b, height=h)
            for b in (1, 4, 7, 12)
            for h in (1, 8)
        ),
    ],
    ids=ids,
)
def test_reads_nothing_outside(case: Case, at_end: bool) -> None:
    for dtype in DTYPES[:2]:
        check_guarded_on_host(case, dtype, at_end)


def test_same_bits_in_any_order() -> None:
    for batch in (1, 4, 7, 12):
        check_same_bits(Case(OP, channels=136, channels_out=50, batch=batch), torch.float16)
        check_same_bits(Case(OP, channels=130, channels_out=50, batch=batch))


def _counted(case: Case, dtype: torch.dtype) -> tuple[list[dict[str, Any]], tuple[Any, ...]]:
    call = schema_arguments(case, *arguments(case, "normal", dtype))
    host_library.op(OP)
    with host_library.counted(x=call[0], weight=call[1]) as launches:
        host_library.op(OP)(*call)
    return launches, call


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 4, 8])
def test_traffic(batch: int, dtype: torch.dtype) -> None:
    case = Case(OP, channels=1280, channels_out=1000, batch=batch, height=7, width=7)
    launches, (x, weight, _) = _counted(case, dtype)
    pool, linear = (launch["buffers"] for launch in launches)
    for read, tensor in ((pool["x"]["read"], x), (linear["weight"]["read"], weight)):
        sectors = tensor.nbytes // SECTOR
        assert read["distinct_sectors"] == read["request_sectors"] == sectors
        assert read["bytes"] >= 0.9 * 16 * 32 * read["requests"]  # 16 a lane
    assert all(site["conflicts"] == 0 for launch in launches for site in launch["shared"])
