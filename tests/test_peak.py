"""fastdw::measure_peak and fastdw::measure_bandwidth: the limits of the machine."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastdw import native

native.load()
ops = torch.ops.fastdw
OBJECTS = Path(__file__).resolve().parents[1] / "build" / "objects" / "kernels" / "cpu" / "isa"
# tests/sanitize/run.sh: an instrumented library at -O1, whose speed means nothing.
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
LANES = {"avx512": 16, "avx2": 8, "portable": 4}


@pytest.mark.skipif(SANITIZED, reason="an instrumented library")
def test_the_wider_the_registers_the_higher_the_peak() -> None:
    peaks = {}
    for isa in native.supported_isas():
        with native.force_isa(isa):
            rates = ops.measure_peak(1, 0.03)
        assert rates.dtype == torch.float64 and rates.dim() == 1 and len(rates) >= 3
        peaks[isa] = rates.max().item()
    ordered = [peaks[isa] for isa in ("avx512", "avx2", "portable") if isa in peaks]
    # An AVX-512 of two 256-bit passes (Zen 4) is as fast as AVX2.
    assert all(wide > 0.7 * narrow for wide, narrow in zip(ordered, ordered[1:], strict=False))


def test_no_core_does_more_than_its_clock_allows(isa: str) -> None:
    """Two units of so many lanes, two operations each, at 7 GHz: a folded loop would be beyond."""
    assert 0.5 < ops.measure_peak(1, 0.01).max().item() < 7 * 2 * 2 * LANES[isa]


@pytest.mark.skipif(not (OBJECTS / "avx512").exists(), reason="no AVX-512 objects here")
@pytest.mark.parametrize("isa,register", [("avx512", "zmm"), ("avx2", "ymm")])
def test_the_sums_stay_in_registers(isa: str, register: str) -> None:
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(OBJECTS / isa / "peak.o")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    [body] = re.findall(r"run_fma_chains.*?>:\n(.*?)(?:\n\n|\Z)", listing, re.DOTALL)
    fused = re.findall(r"vfm\w+ps .*", body)
    assert len(fused) >= 4 * 12 and all(register in line for line in fused)
    assert not [line for line in fused if "(" in line], "an operand from memory"


@pytest.mark.skipif(SANITIZED, reason="an instrumented library")
@pytest.mark.usefixtures("isa")
def test_a_small_buffer_is_read_faster_than_a_large_one() -> None:
    ratios = []
    for _ in range(5):  # other processes may have the core for a while
        small = ops.measure_bandwidth(1, 16 << 10, 0.02).max()
        ratios.append((small / ops.measure_bandwidth(1, 64 << 20, 0.02).max()).item())
    assert max(ratios) > 1.3


def test_more_threads_than_cores_are_possible() -> None:
    assert ops.measure_peak(4, 0).numel() == 3
    assert (ops.measure_bandwidth(3, 4096, 0) > 0).all()


def test_the_work_of_all_workers_counts(threads: Callable[[int], None]) -> None:
    """One thread that does the items of four workers achieves what it does alone."""
    threads(1)
    for measure in (
        lambda workers: ops.measure_peak(workers, 0.02),
        lambda workers: ops.measure_bandwidth(workers, 8 << 10, 0.02),
    ):
        one, four = measure(1).max(), measure(4).max()
        assert 0.6 * one < four < 1.6 * one


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: ops.measure_peak(0, 0.1), "threads: expected 1 to 1024, got 0"),
        (lambda: ops.measure_peak(1, -1.0), "seconds: expected 0 to 60, got -1"),
        (lambda: ops.measure_peak(1, float("nan")), "seconds: expected 0 to 60, got nan"),
        (lambda: ops.measure_bandwidth(1, 64, 0.1), "bytes: expected at least 768, got 64"),
        (lambda: ops.measure_bandwidth(1024, 2**60, 0.1), "bytes: the size .* is too large"),
    ],
)
def test_bad_calls_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(RuntimeError, match=message):
        call()
