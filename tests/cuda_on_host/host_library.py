"""The ops of csrc/cuda on the host executor, and what a test may set and count there."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cuda_on_host import build

ORDERS = ("forward", "reverse", "random")
DEVICES = ("A100", "H100", "RTX 4090")


# What torch.backends.cuda.matmul.allow_tf32 says to the real library.
_tf32 = [False]
_answer_tf32 = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: int(_tf32[0]))


@cache
def path() -> Path:
    """Build what has changed of the library; FASTDW_CUDA_ON_HOST names one that is built."""
    return Path(os.environ.get("FASTDW_CUDA_ON_HOST") or build.ops_library())


@cache
def load() -> ctypes.CDLL:
    """Register the ops, and return the library."""
    torch.ops.load_library(str(path()))
    library = with_types(ctypes.CDLL(str(path())))
    library.fastdw_cuda_set_tf32_question(_answer_tf32)
    return library


def with_types(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the control functions of executor/control.cpp."""
    library.fastdw_host_set_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
    library.fastdw_host_set_device.argtypes = [ctypes.c_char_p]
    library.fastdw_host_know_buffer.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64]
    library.fastdw_host_counts.restype = ctypes.c_char_p
    library.fastdw_host_run_last.argtypes = [ctypes.c_uint64]
    library.fastdw_host_graphs_built.restype = ctypes.c_int64
    library.fastdw_host_early_launches.restype = ctypes.c_int64
    library.fastdw_host_graph_launches.restype = ctypes.c_int64
    return library


def op(name: str) -> Any:
    """Return ``torch.ops.fastdw_cuda_on_host.<name>``."""
    load()
    return getattr(torch.ops.fastdw_cuda_on_host, name)


@contextmanager
def thread_order(order: str, seed: int = 1) -> Iterator[None]:
    """Run the threads of a warp, the warps, the blocks and a graph's nodes in this order."""
    load().fastdw_host_set_order(ORDERS.index(order), seed)
    try:
        yield
    finally:
        load().fastdw_host_set_order(0, 0)


@contextmanager
def device(name: str) -> Iterator[None]:
    """Let the runtime say that the device is this one; otherwise it is an A100."""
    if not load().fastdw_host_set_device(name.encode()):
        raise ValueError(f"no device {name!r}, only {', '.join(DEVICES)}")
    try:
        yield
    finally:
        load().fastdw_host_set_device(DEVICES[0].encode())


@contextmanager
def last_blocks(count: int) -> Iterator[None]:
    """Execute only so many thread blocks of each launch, the last ones."""
    load().fastdw_host_run_last(count)
    try:
        yield
    finally:
        load().fastdw_host_run_last(2**64 - 1)


@contextmanager
def tf32() -> Iterator[None]:
    """Let fp32 products be rounded to tf32."""
    load()
    _tf32[0] = True
    try:
        yield
    finally:
        _tf32[0] = False


@contextmanager
def capturing() -> Iterator[None]:
    """Let every stream say that it is being captured. Launches are executed all the same."""
    load().fastdw_host_set_capturing(1)
    try:
        yield
    finally:
        load().fastdw_host_set_capturing(0)


def graphs_built() -> int:
    """How many CUDA graphs have been instantiated."""
    return int(load().fastdw_host_graphs_built())


def early_launches() -> int:
    """How many launches, and nodes of graphs, might begin before the one in front had ended."""
    return int(load().fastdw_host_early_launches())


def graph_launches() -> int:
    """How many CUDA graphs have been launched."""
    return int(load().fastdw_host_graph_launches())


def lines_of(library: Path, sites: list[int]) -> list[str]:
    """Return "file:line" of the places of a count, the innermost that is not the executor's."""
    done = subprocess.run(
        ["addr2line", "-i", "-a", "-e", str(library), *(hex(site - 1) for site in sites)],
        check=True,
        capture_output=True,
        text=True,
    )
    blocks = re.split(r"^0x\w+\n", done.stdout, flags=re.MULTILINE)[1:]
    places = [next(x for x in block.split("\n") if "/include/" not in x) for block in blocks]
    return [place.split(" ")[0] for place in places]


def _memory_of(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


@contextmanager
def counted(**buffers: Tensor) -> Iterator[list[dict[str, Any]]]:
    """Count what is launched inside; the list is filled at the end, one entry a launch.

    ``buffers`` names the tensors that traffic is told apart by; what lies in none is "other".
    """
    library = load()
    for name, tensor in buffers.items():
        library.fastdw_host_know_buffer(name.encode(), *_memory_of(tensor))
    library.fastdw_host_forget_counts()
    library.fastdw_host_watch(1, 0)
    launches: list[dict[str, Any]] = []
    try:
        yield launches
        launches += json.loads(library.fastdw_host_counts())
    finally:
        library.fastdw_host_watch(0, 0)
        library.fastdw_host_forget_buffers()
