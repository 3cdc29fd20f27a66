"""Whole networks: check every provider's output, then time them in interleaved rounds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastdw.models
from fastdw.benchmark.explanation import peak_memory_bytes
from fastdw.benchmark.peak import PeakProcess
from fastdw.benchmark.processes import ProviderFailed, ProviderProcess, Work
from fastdw.benchmark.providers import Provider
from fastdw.benchmark.providers.plain_torch import plain
from fastdw.benchmark.timing import SLOT_SECONDS, Timing, interleave

# Largest difference from the float64 network over the largest output. Fifty layers in fp32 stay
# within a few 1e-6; a wrong tap or a wrong fold is beyond 1e-2.
TOLERANCE = 1e-4
# A provider that used more of a core than this while another ran has disturbed the measurement.
IDLE_CPU_LIMIT = 0.02


@dataclass(frozen=True)
class ModelCase:
    """One line of a benchmark: a network by its MODEL name, and how it is run."""

    model: str
    resolution: int = 224
    batch: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Result:
    """One provider in one case; `timing` only where status is "ok".

    Attributes:
        multiply_adds: of one call, by torch's convolutions and linear layers.
        peak_gflops: of the threads of the case, measured between the rounds; median.
        peak_memory_bytes: fastdw's plan, beside input and weights.
    """

    case: ModelCase
    provider: Provider
    status: str  # ok, wrong, failed, skipped
    reason: str | None = None
    error: float | None = None
    timing: Timing | None = None
    idle_cpu_share: float | None = None
    multiply_adds: int | None = None
    peak_gflops: float | None = None
    peak_memory_bytes: int | None = None

    @property
    def gflops(self) -> float | None:
        if self.timing is None or self.multiply_adds is None:
            return None
        return 2e-6 * self.multiply_adds / self.timing.median_ms

    @property
    def share_of_peak(self) -> float | None:
        if self.gflops is None or self.peak_gflops is None:
            return None
        return self.gflops / self.peak_gflops

    def to_dict(self) -> dict[str, Any]:
        images = 1e3 * self.case.batch / self.timing.median_ms if self.timing else None
        timing = self.timing.to_dict() if self.timing else dict.fromkeys(Timing.__annotations__)
        return {
            **asdict(self.case),
            "provider": self.provider.name,
            "allocator": self.provider.allocator,
            "precision": self.provider.precision,
            "status": self.status,
            **timing,
            "images_per_second": images,
            "multiply_adds": self.multiply_adds,
            "gflops": self.gflops,
            "peak_gflops": self.peak_gflops,
            "share_of_peak": self.share_of_peak,
            "peak_memory_bytes": self.peak_memory_bytes,
            "error": self.error,
            "idle_cpu_share": self.idle_cpu_share,
            "reason": self.reason,
        }


def run_case(
    case: ModelCase,
    providers: Sequence[Provider],
    *,
    rounds: int = 20,
    slot_seconds: float = SLOT_SECONDS,
    on_step: Callable[[str], object] = lambda step: None,
) -> list[Result]:
    """Time the providers on one case.

    Args:
        case: the network and how it is run.
        providers: in the order of the table.
        rounds: how often each gets a slot.
        slot_seconds: how long a slot is, at least one call.
        on_step: told what is being done; called once a provider built and once a round.

    Returns:
        One result a provider. An output beyond TOLERANCE gives "wrong" and no time. The peak of
        the machine is measured once a round.
    """
    torch.manual_seed(0)
    x = torch.randn(case.batch, 3, case.resolution, case.resolution)
    model = fastdw.models.create(case.model)
    calibrate_batch_norm(model, case.resolution)
    results: dict[str, Result] = {}
    running: dict[str, ProviderProcess] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        state_file, input_file = str(Path(folder) / "state.pt"), str(Path(folder) / "input.pt")
        torch.save(model.state_dict(), state_file)
        torch.save(x, input_file)
        work = Work(case.model, state_file, input_file, case.threads, slot_seconds)
        truth = float64_output(model, x)
        for provider in providers:
            on_step(f"building {provider.label}")
            if reason := provider.unavailable():
                results[provider.name] = Result(case, provider, "skipped", reason)
                continue
            process = ProviderProcess(provider, work)
            stack.callback(process.close)
            results[provider.name] = result = check(case, process, truth)
            if result.status == "ok":
                running[provider.name] = process
        slots = {name: process.slot for name, process in running.items()}
        peak = start_peak(case.threads, stack) if running else None
        peaks: list[float] = []

        def end_round() -> None:
            if peak is not None:
                peaks.append(peak.gflops())
            on_step("timing")

        timings = interleave(slots, rounds, end_round)
        for name, process in running.items():
            results[name] = replace(
                results[name],
                timing=timings[name],
                idle_cpu_share=process.idle_cpu_share(),
                multiply_adds=multiply_adds(model, case),
                peak_gflops=statistics.median(peaks) if peaks else None,
            )
    if "fastdw" in running:
        memory = peak_memory_bytes(model, case.batch, case.resolution, case.threads)
        results["fastdw"] = replace(results["fastdw"], peak_memory_bytes=memory)
    return [results[provider.name] for provider in providers]


def start_peak(threads: int, stack: ExitStack) -> PeakProcess | None:
    """What measures the peak until the stack closes; None where fastdw is not built."""
    try:
        peak = stack.enter_context(PeakProcess(threads))
    except ImportError:
        return None
    peak.gflops()  # its process has started and its core is awake
    return peak


def multiply_adds(model: nn.Module, case: ModelCase) -> int | None:
    """Of one call; None where a model cannot run on fake tensors."""
    try:
        return case.batch * fastdw.models.summarize(model, case.resolution).multiply_adds
    except Exception:  # any model's forward
        return None


def check(case: ModelCase, process: ProviderProcess, truth: np.ndarray) -> Result:
    """Compare a provider's output with the float64 network's, before anything is timed."""
    try:
        output = process.output()
        process.wait_until_ready()
    except ProviderFailed as failure:
        return Result(case, process.provider, "failed", str(failure))
    provider = process.provider  # with the precision that it read back
    if output.shape != truth.shape:
        reason = f"output: expected {list(truth.shape)}, got {list(output.shape)}"
        return Result(case, provider, "wrong", reason)
    error = float(np.abs(output - truth).max() / np.abs(truth).max())
    if not error <= TOLERANCE:  # NaN is wrong too
        reason = f"off by {error:.1e} of the largest output, {TOLERANCE:.0e} allowed"
        return Result(case, provider, "wrong", reason, error if np.isfinite(error) else None)
    return Result(case, provider, "ok", error=error)


def calibrate_batch_norm(model: nn.Module, resolution: int) -> None:
    """Give an untrained network the running statistics of random input, in eval mode afterwards.

    With the initial ones the signal dies out over the depth, and a wrong layer would go unnoticed.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a cumulative average: after one pass the statistics of that pass
    with torch.no_grad():
        model.train()(torch.randn(4, 3, resolution, resolution))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def float64_output(model: nn.Module, x: Tensor) -> np.ndarray:
    """The truth, a few images at a time: float64 activations of a whole batch are large."""
    wide = plain(model).double()
    with torch.no_grad():
        return torch.cat([wide(part.double()) for part in x.split(4)]).numpy()
