"""The counters of the host executor, on kernels whose traffic is known by hand."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from cuda_on_host import build, host_library

GLOBAL, SHARED, WIDE, MATRIX, UNEVEN = range(5)


@cache
def load() -> ctypes.CDLL:
    library = host_library.with_types(ctypes.CDLL(str(build.planted_bugs_library())))
    library.fastdw_counted_run.restype = ctypes.c_char_p
    library.fastdw_counted_run.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *(ctypes.c_int,) * 3,
        ctypes.c_uint,
    ]
    return library


@pytest.fixture(params=host_library.ORDERS)
def library(request: pytest.FixtureRequest) -> Iterator[ctypes.CDLL]:
    library = load()
    library.fastdw_host_set_order(host_library.ORDERS.index(request.param), 5)
    yield library
    library.fastdw_host_set_order(0, 0)
    library.fastdw_host_watch(0, 0)
    library.fastdw_host_forget_buffers()


def count(
    library: ctypes.CDLL, what: int, stride: int, lanes: int = 32, visits: int = 1, blocks: int = 1
) -> dict[str, Any]:
    """Run a kernel once and return what was counted."""
    storage, out = torch.ones(4200), torch.empty(40)
    start = -storage.data_ptr() % 128 // 4  # the first float of a 128-byte line
    values = storage[start : start + 4096]
    library.fastdw_host_forget_buffers()
    library.fastdw_host_know_buffer(b"in", values.data_ptr(), values.nbytes)
    library.fastdw_host_watch(1, 0)
    library.fastdw_host_forget_counts()
    arguments = (what, values.data_ptr(), out.data_ptr(), stride, lanes, visits, blocks)
    assert library.fastdw_counted_run(*arguments) == b""
    library.fastdw_host_watch(0, 0)
    (launch,) = json.loads(library.fastdw_host_counts())
    return launch


def read(requests: int, request_sectors: int, distinct_sectors: int, floats: int) -> dict[str, int]:
    return {
        "requests": requests,
        "request_sectors": request_sectors,
        "distinct_sectors": distinct_sectors,
        "bytes": 4 * floats,
    }


@pytest.mark.parametrize(
    ("stride", "lanes", "visits", "expected"),
    [
        (1, 32, 1, read(1, 4, 4, 32)),
        (1, 20, 1, read(1, 3, 3, 20)),
        (0, 32, 1, read(1, 1, 1, 32)),
        (8, 32, 1, read(1, 32, 32, 32)),
        (2, 32, 1, read(1, 8, 8, 32)),
        (1, 0, 1, None),
        # Each visit of the warp is a request: the second begins 4 bytes later, in one sector more.
        (1, 32, 2, read(2, 4 + 5, 5, 64)),
        (8, 32, 8, read(8, 8 * 32, 32, 256)),
        (8, 5, 8, read(8, 8 * 5, 5, 40)),
    ],
)
def test_global_sectors(
    library: ctypes.CDLL, stride: int, lanes: int, visits: int, expected: dict[str, int] | None
) -> None:
    launch = count(library, GLOBAL, stride, lanes, visits)
    assert launch["buffers"].get("in", {}).get("read") == expected
    if expected is not None:
        assert launch["buffers"]["other"]["written"]["bytes"] == 4 * lanes
    assert launch["incomplete_requests"] == 0
    assert launch["shared"] == []


def test_blocks_share_sectors_but_not_requests(library: ctypes.CDLL) -> None:
    launch = count(library, GLOBAL, 1, blocks=3)
    assert launch["buffers"]["in"]["read"] == read(3, 12, 4, 96)
    assert launch["grid"] == [3, 1, 1]


@pytest.mark.parametrize(
    ("stride", "lanes", "turns"),
    [(1, 32, 1), (0, 1, 1), (2, 32, 2), (4, 32, 4), (32, 32, 32), (33, 32, 1), (32, 3, 3)],
)
def test_bank_conflicts(library: ctypes.CDLL, stride: int, lanes: int, turns: int) -> None:
    (site,) = count(library, SHARED, stride, lanes, visits=5)["shared"]
    assert (site["access"], site["requests"]) == ("store", 5)
    assert (site["wavefronts"], site["conflicts"]) == (5 * turns, 5 * (turns - 1))


@pytest.mark.parametrize(
    ("stride", "lanes", "wavefronts", "conflicts"),
    [(4, 32, 4, 0), (4, 8, 1, 0), (8, 32, 8, 4), (32, 32, 32, 28), (36, 32, 4, 0)],
)
def test_bank_conflicts_of_16_bytes(
    library: ctypes.CDLL, stride: int, lanes: int, wavefronts: int, conflicts: int
) -> None:
    (site,) = count(library, WIDE, stride, lanes)["shared"]
    assert (site["requests"], site["wavefronts"], site["conflicts"]) == (1, wavefronts, conflicts)


def test_16_bytes_go_by_quarters_of_the_warp(library: ctypes.CDLL) -> None:
    """Even where all lanes read the same."""
    launch = count(library, WIDE, 4, visits=4)
    (site,) = (site for site in launch["shared"] if site["access"] == "load")
    assert (site["requests"], site["wavefronts"], site["conflicts"]) == (3, 12, 0)


@pytest.mark.parametrize(("stride", "conflicts"), [(4, 0), (8, 4), (16, 12), (32, 28), (36, 0)])
def test_copies_and_matrices(library: ctypes.CDLL, stride: int, conflicts: int) -> None:
    launch = count(library, MATRIX, stride)
    sites = {site["access"]: site for site in launch["shared"]}
    assert set(sites) == {"copy", "matrix"}
    for site in sites.values():
        assert (site["requests"], site["conflicts"]) == (1, conflicts)
    assert launch["buffers"]["in"]["read"] == read(1, 16, 16, 128)
    assert launch["multiply_adds"] == 16 * 8 * 16 + 32


def test_copies_of_zeros_read_nothing(library: ctypes.CDLL) -> None:
    launch = count(library, MATRIX, 4, lanes=8)
    assert launch["buffers"]["in"]["read"] == read(1, 4, 4, 32)


def test_lanes_are_in_step_again_after_they_met(library: ctypes.CDLL) -> None:
    """Lane 0 stores twice, the others once, and all that twice: alone, it has no conflict."""
    launch = count(library, UNEVEN, 1, lanes=33)
    (site,) = launch["shared"]
    assert (site["requests"], site["wavefronts"], site["conflicts"]) == (4, 4, 0)
    assert launch["incomplete_requests"] == 2


def test_sites_are_lines_of_the_source(library: ctypes.CDLL) -> None:
    (site,) = count(library, SHARED, 1)["shared"]
    (place,) = host_library.lines_of(build.planted_bugs_library(), [site["site"]])
    lines = (build.ROOT / build.HERE / "counted_kernels.cu").read_text().splitlines()
    name, number = place.rsplit(":", 1)
    assert name.endswith("counted_kernels.cu")
    assert "store_shared_if(mine, 1.f" in lines[int(number) - 1]
