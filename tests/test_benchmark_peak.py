"""The peak beside the times: which buffers are read, and the process that measures."""

from __future__ import annotations

import os
import time

import pytest

from fastdw.benchmark import environment, peak
from fastdw.benchmark.peak import MEMORY_BYTES, PeakProcess, buffer_bytes

KIB, MIB = 2**10, 2**20
DESKTOP = {"L1": 48 * KIB, "L2": MIB, "L3": 32 * MIB}


def test_a_buffer_fits_its_level_and_no_nearer_one() -> None:
    for threads in (1, 2):
        sizes = buffer_bytes(DESKTOP, threads)
        assert list(sizes) == ["L1", "L2", "L3", "memory"]
        assert sizes["L1"] <= DESKTOP["L1"] < sizes["L2"] <= DESKTOP["L2"] < sizes["L3"]
        assert threads * sizes["L3"] <= DESKTOP["L3"] < threads * sizes["memory"]


def test_a_buffer_for_memory_stays_within_reason() -> None:
    """A virtual machine may be told the caches of its whole host, or none at all."""
    lowest, highest = MEMORY_BYTES
    assert buffer_bytes({**DESKTOP, "L3": 2**40}, 2)["memory"] == highest // 2
    assert buffer_bytes({}, 1) == {"memory": lowest}
    assert "L3" not in buffer_bytes({"L1": 32 * KIB, "L2": 2 * MIB, "L3": 2 * MIB}, 1)


def test_cache_sizes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"L1 data": "48K", "L1 instruction": "64K", "L2 unified": "2M", "L3 unified": "99"}
    monkeypatch.setattr(environment, "caches", lambda: told)
    assert environment.data_cache_bytes() == {"L1": 48 * KIB, "L2": 2 * MIB, "L3": 99}


@pytest.mark.slow  # starts a process that imports torch
def test_the_process_measures_and_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    with PeakProcess(1) as process:
        first = process.gflops(0.005)
        [child] = process._pool._processes
        assert 0.5 < first < 1000 and child != os.getpid()
        if hasattr(os, "sched_getaffinity"):
            assert len(os.sched_getaffinity(child)) == 1
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")


def test_bandwidths_are_of_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"L1": 16 * KIB, "memory": 32 * MIB}
    monkeypatch.setattr(peak, "buffer_bytes", lambda caches, threads: sizes)
    found = peak.measure_bandwidths(1, 0.01)
    assert [(bandwidth.level, bandwidth.bytes) for bandwidth in found] == list(sizes.items())
    assert found[0].gigabytes_per_second > found[1].gigabytes_per_second > 0


def test_without_the_library_there_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ImportError("not built")

    monkeypatch.setattr(peak.native, "library_path", missing)
    with pytest.raises(ImportError, match="not built"):
        PeakProcess(1)
