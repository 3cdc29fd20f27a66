"""What the machine can do at most, measured beside what it is compared with.

The peak: multiply-adds in registers, independent chains, on every thread at once, in the
instruction set that the kernels use. The bandwidth: reading buffers that each cache can hold.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch

from fastdw import native
from fastdw.benchmark.environment import data_cache_bytes, use_cores

PEAK_SECONDS = 0.02
BANDWIDTH_SECONDS = 0.05
# What no cache is expected to hold; a virtual machine may report a cache of its whole host.
MEMORY_BYTES = (64 << 20, 512 << 20)


@dataclass(frozen=True)
class Bandwidth:
    """Reading buffers of `bytes` on each thread, GB/s of all threads together."""

    level: str
    bytes: int
    gigabytes_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class PeakProcess:
    """A process of its own that measures the limits and sleeps in between.

    Args:
        threads: on how many threads and cores.

    Raises:
        ImportError: the native library, which holds the measuring kernels, is missing.
    """

    def __init__(self, threads: int) -> None:
        native.library_path()
        self._threads = threads
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=use_cores, initargs=(threads,))

    def gflops(self, seconds: float = PEAK_SECONDS) -> float:
        """The peak now: the median of slices of a millisecond."""
        return self._pool.submit(measure_gflops, self._threads, seconds).result()

    def bandwidths(self, seconds: float = BANDWIDTH_SECONDS) -> list[Bandwidth]:
        return self._pool.submit(measure_bandwidths, self._threads, seconds).result()

    def __enter__(self) -> PeakProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown()


def measure_gflops(threads: int, seconds: float = PEAK_SECONDS) -> float:
    """GFLOP/s of fp32 multiply-adds in registers, in this process."""
    native.load()
    return statistics.median(torch.ops.fastdw.measure_peak(threads, seconds).tolist())


def measure_bandwidths(threads: int, seconds: float = BANDWIDTH_SECONDS) -> list[Bandwidth]:
    """GB/s of each level of the memory, in this process, the nearest level first."""
    native.load()
    found = []
    for level, size in buffer_bytes(data_cache_bytes(), threads).items():
        rates = torch.ops.fastdw.measure_bandwidth(threads, size, seconds)
        found.append(Bandwidth(level, size, statistics.median(rates.tolist())))
    return found


def buffer_bytes(caches: Mapping[str, int], threads: int) -> dict[str, int]:
    """A buffer for each level that fits there and not in the level before.

    Args:
        caches: {"L1": bytes, ...}; those of the first core, the last one shared by all.
        threads: how many such buffers there are at once.
    """
    sizes = {level: caches[level] // 2 for level in ("L1", "L2") if level in caches}
    nearer = max(sizes.values(), default=0)
    last = min(caches.get("L3", 0) // (2 * threads), 8 * nearer)
    if last >= 4 * nearer > 0:
        sizes["L3"] = last
    lowest, highest = MEMORY_BYTES
    beyond = 2 * max(caches.values(), default=0)
    sizes["memory"] = min(max(beyond, lowest), highest) // threads
    return sizes
