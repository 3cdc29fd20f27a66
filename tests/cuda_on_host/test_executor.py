"""The host executor itself: bugs planted into small kernels are named, the right kernels pass."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from cuda_on_host import build, host_library

THREADS = 64

# Which of two accesses without a barrier between them comes first, the order decides.
TOO_EARLY = "is read (after it was written by thread|before anything was written)"
TOO_LATE = "is (written after it was read|read after it was written) by thread"

# What the executor says of each kernel's mistake, in every order of the threads.
MISTAKES = {
    "reads_after_write": TOO_EARLY,
    "writes_after_read": TOO_LATE,
    "writes_twice": "written after it was written by thread",
    "barrier_in_branch": "32 threads of the block ended before a barrier",
    "barriers_of_two_branches": "meet at different barriers",
    "barrier_within_warp": "wait apart: lanes 0, 2, 4,",
    "returns_before_barrier": "1 threads of the block ended before a barrier",
    "reads_in_warp": TOO_EARLY,
    "shuffle_orders_nothing": TOO_EARLY,
    "shuffle_in_branch": "wait apart",
    "shuffle_from_ended_lane": "reads from lane 31, which is absent",
    "lane_outside_mask": "missing from the mask",
    "product_of_part": "whole warp",
    "product_not_rounded": "has not been rounded to tf32",
    "shared_off_by_one": "at byte 256 lies outside",
    "shared_before_begin": "at byte -4 lies outside",
    "shared_unwritten": "at byte 160 is read before anything was written",
    "shared_unaligned": "is not aligned",
    "global_off_by_one": "lies outside every known buffer",
    "global_store_off_by_one": "lies outside every known buffer",
    "global_unaligned": "is not aligned",
    "global_named_shared": "names shared memory",
    "copy_not_awaited": "read while an asynchronous copy",
    "copy_not_committed": "read while an asynchronous copy",
    "copy_of_later_group": "read while an asynchronous copy",
    "copy_without_barrier": TOO_EARLY,
    "copy_over_what_others_read": TOO_LATE,
    "ends_with_copies": "has not waited for",
    "copy_from_unaligned": "is not aligned",
    "copy_to_unaligned": "is not aligned",
    "matrix_unaligned": "is not aligned",
    "matrix_outside": "lies outside",
    "matrix_without_barrier": TOO_EARLY,
    "waits_for_later_block": "waits for thread blocks that have not arrived",
}
BY_ORDER_ONLY = {"blocks_in_order"}


@cache
def load() -> ctypes.CDLL:
    library = host_library.with_types(ctypes.CDLL(str(build.planted_bugs_library())))
    for function in ("run", "launch", "names"):
        getattr(library, f"fastdw_planted_{function}").restype = ctypes.c_char_p
    library.fastdw_planted_run.argtypes = [
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    library.fastdw_planted_launch.argtypes = [
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_uint64,
        ctypes.c_void_p,
    ]
    return library


@pytest.fixture
def library() -> Iterator[ctypes.CDLL]:
    """The executor as it starts: threads forward, nothing counted."""
    library = load()
    yield library
    library.fastdw_host_set_order(0, 0)
    library.fastdw_host_watch(0, 0)
    library.fastdw_host_forget_buffers()
    library.fastdw_host_check_order(1)


def buffers(library: ctypes.CDLL) -> tuple[Tensor, Tensor]:
    """64 known floats to read and 64 to write, with room for one more."""
    values, out = torch.arange(80.0), torch.full((80,), torch.nan)
    for name, tensor in ((b"in", values), (b"out", out)):
        library.fastdw_host_know_buffer(name, tensor.data_ptr(), THREADS * 4)
    return values, out


def run(library: ctypes.CDLL, name: str, wrong: bool) -> tuple[str, Tensor]:
    """Run a planted kernel: (the error, what it wrote)."""
    values, out = buffers(library)
    library.fastdw_host_watch(0, 1)
    text = library.fastdw_planted_run(name.encode(), wrong, values.data_ptr(), out.data_ptr())
    library.fastdw_host_forget_buffers()
    return text.decode(), out[:THREADS]


@pytest.mark.parametrize("order", host_library.ORDERS)
@pytest.mark.parametrize("name", MISTAKES)
def test_planted_bug_is_named(library: ctypes.CDLL, name: str, order: str) -> None:
    library.fastdw_host_set_order(host_library.ORDERS.index(order), 3)
    error, out = run(library, name, wrong=False)
    assert error == ""
    assert not out.isnan().any()
    error, _ = run(library, name, wrong=True)
    assert error.startswith("unspecified launch failure: ")
    assert re.search(MISTAKES[name], error)
    assert "[block (0, 0, 0)" in error
    # What a failed launch leaves behind does not disturb the next one.
    assert run(library, name, wrong=False)[0] == ""


def test_every_planted_kernel_is_tested() -> None:
    assert set(load().fastdw_planted_names().decode().split()) == set(MISTAKES) | BY_ORDER_ONLY


def test_errors_name_the_line(library: ctypes.CDLL) -> None:
    lines = (build.ROOT / build.HERE / "planted_bugs.cu").read_text().splitlines()
    error, _ = run(library, "reads_after_write", wrong=True)
    number = int(error.split("planted_bugs.cu:")[1].split(" ")[0])
    assert "load_shared(shared_floats() + kThreads - 1" in lines[number - 1]


def test_order_shows_what_no_check_sees(library: ctypes.CDLL) -> None:
    for wrong in (False, True):
        outputs = []
        for order in range(len(host_library.ORDERS)):
            library.fastdw_host_set_order(order, 3)
            error, out = run(library, "blocks_in_order", wrong)
            assert error == ""
            outputs.append(out)
        same = [torch.equal(outputs[0], out) for out in outputs]
        assert same == [True, not wrong, not wrong]


def test_order_of_shared_memory_need_not_be_checked(library: ctypes.CDLL) -> None:
    library.fastdw_host_check_order(0)
    error, forward = run(library, "reads_after_write", wrong=True)
    assert error == ""
    assert forward.isnan().any()  # thread 0 came before those that it reads from


@pytest.mark.parametrize(
    ("configuration", "text"),
    [
        ((1, 32, 0), ""),
        ((1, 1024, 48 << 10), ""),
        ((1, 1025, 0), "invalid configuration"),
        ((1, 0, 0), "invalid configuration"),
        ((0, 32, 0), "invalid configuration"),
        ((65536, 32, 0), "invalid configuration"),
        ((1, 32, 163 << 10), ""),
        ((1, 32, (163 << 10) + 1), "more shared memory than a block may have"),
    ],
)
def test_launch_limits(
    library: ctypes.CDLL, configuration: tuple[int, int, int], text: str
) -> None:
    out = torch.empty(1024)
    error = library.fastdw_planted_launch(*configuration, out.data_ptr()).decode()
    assert text in error and bool(text) == bool(error)


def assert_ends_the_process(right: str, wrong: str) -> str:
    """Run Python code in a process that survives ``right`` and not ``wrong``; return its errors."""
    types = "[ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]"
    program = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); libc = ctypes.CDLL(None);"
        "libc.malloc.restype = ctypes.c_void_p; libc.malloc.argtypes = [ctypes.c_size_t];"
        f"library.fastdw_planted_run.argtypes = {types};"
        "values, out = libc.malloc(256), libc.malloc(256); ctypes.memset(values, 0, 256);"
        f"{right} print('before', flush=True); {wrong}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(build.planted_bugs_library())],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "before\n"
    assert done.returncode != 0
    return done.stderr


def test_a_shared_pointer_cannot_be_followed() -> None:
    """Shared memory is reached through ptx.cuh alone, or nothing is checked or counted."""
    assert_ends_the_process(
        "library.fastdw_host_shared_memory.restype = ctypes.c_void_p;"
        "library.fastdw_planted_run(b'ends_with_copies', 0, values, out);",
        "print(ctypes.c_float.from_address(library.fastdw_host_shared_memory()).value)",
    )


@pytest.mark.skipif(os.environ.get("FASTDW_SANITIZE") != "1", reason="needs sanitize.sh")
@pytest.mark.parametrize("name", ["global_off_by_one", "global_store_off_by_one"])
def test_sanitizer_sees_what_lies_outside(name: str) -> None:
    """Without any known buffer; the sanitizer ends the process."""
    error = assert_ends_the_process(
        f"library.fastdw_planted_run(b'{name}', 0, values, out);",
        f"library.fastdw_planted_run(b'{name}', 1, values, out)",
    )
    assert "heap-buffer-overflow" in error
