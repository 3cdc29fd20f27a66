"""Where a planned network spends its time: each step beside torch's layers for the same step."""

from __future__ import annotations

import copy
import csv
import multiprocessing
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import fastdw.models
from fastdw import native
from fastdw.benchmark.environment import use_cores
from fastdw.benchmark.explanation import explain_program, shape_text
from fastdw.benchmark.models import TOLERANCE, ModelCase, calibrate_batch_norm
from fastdw.benchmark.peak import Bandwidth, measure_bandwidths, measure_gflops
from fastdw.benchmark.timing import SLOT_SECONDS, calls_per_slot
from fastdw.benchmark.torch_steps import StepKey, TorchSteps, relative_error
from fastdw.convert import convert
from fastdw.plan.network import pack
from fastdw.plan.record import record

LAYER_COLUMNS = (
    *("date", "commit", "cpu", "isa", "torch", "model", "resolution", "batch", "threads"),
    *("index", "kind", "shape", "multiply_adds", "bytes", "time_ms", "gflops", "peak_gflops"),
    *("share_of_peak", "gigabytes_per_second", "torch_ms"),
)


@dataclass(frozen=True)
class LayerTime:
    """One step of the plan: medians over the rounds.

    Attributes:
        shape: the sizes as text.
        bytes: input, output, residual and weights, each once.
        torch_ms: conv, batch norm and activation by torch's layers, eager, channels_last.
    """

    index: int
    kind: str
    shape: str
    multiply_adds: int
    bytes: int
    time_ms: float
    torch_ms: float
    peak_gflops: float

    @property
    def gflops(self) -> float:
        return 2e-6 * self.multiply_adds / self.time_ms

    @property
    def share_of_peak(self) -> float:
        return self.gflops / self.peak_gflops

    @property
    def gigabytes_per_second(self) -> float:
        return 1e-6 * self.bytes / self.time_ms

    @property
    def flops_per_byte(self) -> float:
        return 2 * self.multiply_adds / self.bytes

    def to_dict(self) -> dict[str, Any]:
        named = ("index", "kind", "shape", "multiply_adds", "bytes", "time_ms", "gflops")
        rates = ("peak_gflops", "share_of_peak", "gigabytes_per_second", "torch_ms")
        return {name: getattr(self, name) for name in (*named, *rates)}


@dataclass(frozen=True)
class LayerReport:
    """All steps of one case, and the limits of the machine measured in the same process."""

    case: ModelCase
    layers: tuple[LayerTime, ...]
    peak_gflops: float
    bandwidths: tuple[Bandwidth, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.case.model,
            "resolution": self.case.resolution,
            "batch": self.case.batch,
            "threads": self.case.threads,
            "peak_gflops": self.peak_gflops,
            "bandwidths": [bandwidth.to_dict() for bandwidth in self.bandwidths],
            "layers": [layer.to_dict() for layer in self.layers],
        }


def time_layers(
    case: ModelCase, rounds: int = 20, slot_seconds: float = SLOT_SECONDS
) -> LayerReport:
    """Time every step of a planned network in a process of its own.

    A round is one slot of the network (each step is timed inside the running network), one pass
    through torch's layers and one measurement of the peak.

    Raises:
        NotPlannable: the network has no plan.
        ArithmeticError: plan and torch's layers differ: nothing is timed.
        ImportError: the native library is missing.
    """
    context = multiprocessing.get_context("spawn")
    settings: dict[str, Any] = {"initializer": use_cores, "initargs": (case.threads,)}
    with ProcessPoolExecutor(1, context, **settings) as pool:
        return pool.submit(measure, case, rounds, slot_seconds).result()


@torch.no_grad()
def measure(case: ModelCase, rounds: int, slot_seconds: float) -> LayerReport:
    """What `time_layers` does, in this process."""
    native.load()
    torch.manual_seed(0)
    model = fastdw.models.create(case.model)
    calibrate_batch_norm(model, case.resolution)
    fused = copy.deepcopy(model)
    convert(fused)
    recording = record(fused)
    packed, program = pack(recording)
    torch_steps = TorchSteps(record(fused.to(memory_format=torch.channels_last)))
    x = torch.randn(case.batch, 3, case.resolution, case.resolution)
    x_last = x.contiguous(memory_format=torch.channels_last)
    check_outputs(torch.ops.fastdw.planned_network(x, packed, program), torch_steps.run(x_last)[0])

    def profile(runs: int) -> Tensor:  # the first run only warms the caches
        return torch.ops.fastdw.profile_network(x, packed, program, runs + 1)[1:]

    runs = calls_per_slot(lambda: profile(0), slot_seconds)
    torch_runs = calls_per_slot(lambda: torch_steps.run(x_last), slot_seconds)
    ours, theirs, peaks = [], [], []
    for _ in range(rounds):
        ours.append(profile(runs).quantile(0.5, dim=0))
        theirs += [torch_steps.run(x_last)[1] for _ in range(torch_runs + 1)][1:]
        peaks.append(measure_gflops(case.threads))
    told = explain_program(program, case.batch, case.resolution, case.resolution, case.threads)
    times_ms = 1e3 * torch.stack(ours).quantile(0.5, dim=0)
    peak = statistics.median(peaks)
    layers = []
    for index, step in enumerate(told["steps"]):
        torch_ms = 1e3 * statistics.median(torch_seconds(step, seconds) for seconds in theirs)
        sizes = step["kind"], shape_text(step), step["multiply_adds"], sum(step["bytes"].values())
        layers.append(LayerTime(index, *sizes, times_ms[index].item(), torch_ms, peak))
    return LayerReport(case, tuple(layers), peak, tuple(measure_bandwidths(case.threads)))


def torch_seconds(step: dict[str, Any], seconds: dict[StepKey, float]) -> float:
    """What torch's layers took for a step of the plan, which may be two of the program."""
    first, last = step["program_step"], step["last_program_step"]
    if first == last:
        return seconds[first, step["kind"]]
    return sum(took for (index, _), took in seconds.items() if first <= index <= last)


def check_outputs(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Raise ArithmeticError if the plan and torch's layers differ by more than TOLERANCE."""
    error = relative_error(ours, theirs)
    if not error <= TOLERANCE:  # NaN is wrong too
        raise ArithmeticError(
            f"the plan is off by {error:.1e} of torch's largest output, {TOLERANCE:.0e} allowed: "
            "not timed"
        )


def layer_table(report: LayerReport) -> Table:
    """The steps and their sum."""
    case = report.case
    table = Table(
        title=f"{case.model}  {case.resolution}x{case.resolution}  batch {case.batch}  "
        f"threads {case.threads}: steps",
        caption=f"peak {report.peak_gflops:.0f} GFLOP/s; "
        + ", ".join(f"{b.level} {b.gigabytes_per_second:.0f} GB/s" for b in report.bandwidths)
        + "; torch: its layers one after another, eager, channels_last",
        show_footer=True,
    )
    totals = totals_of(report.layers)
    table.add_column("#", justify="right")
    table.add_column("step", "all", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    footers = (
        *("100 %", f"{totals.time_ms:.3f}", f"{totals.gflops:.1f}"),
        *(f"{totals.share_of_peak:.1%}", "", f"{totals.torch_ms:.3f}"),
        f"{totals.torch_ms / totals.time_ms:.2f} x",
    )
    names = ("of all", "ms", "GFLOP/s", "of peak", "GB/s", "torch ms", "faster by")
    for name, footer in zip(names, footers, strict=True):
        table.add_column(name, footer, justify="right", no_wrap=True)
    for layer in report.layers:
        table.add_row(
            *(str(layer.index), layer.kind, layer.shape),
            *(f"{layer.time_ms / totals.time_ms:.1%}", f"{layer.time_ms:.3f}"),
            *(f"{layer.gflops:.1f}", f"{layer.share_of_peak:.1%}"),
            *(f"{layer.gigabytes_per_second:.1f}", f"{layer.torch_ms:.3f}"),
            f"{layer.torch_ms / layer.time_ms:.2f} x",
        )
    return table


def totals_of(layers: Sequence[LayerTime]) -> LayerTime:
    """The layers together, as one."""
    return LayerTime(
        index=len(layers),
        kind="all",
        shape="",
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        bytes=sum(layer.bytes for layer in layers),
        time_ms=sum(layer.time_ms for layer in layers),
        torch_ms=sum(layer.torch_ms for layer in layers),
        peak_gflops=layers[0].peak_gflops,
    )


def layer_rows(report: LayerReport) -> Iterable[dict[str, Any]]:
    """The lines of layers.csv, without what is said about the environment."""
    for layer in report.layers:
        where = {name: getattr(report.case, name) for name in ("model", "resolution", "batch")}
        yield {**where, "threads": report.case.threads, **layer.to_dict()}


def read_layers(path: Path) -> dict[ModelCase, list[LayerTime]]:
    """The newest steps of each case in a layers.csv."""
    found: dict[tuple[ModelCase, str], list[LayerTime]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            sizes = (int(row[name]) for name in ("resolution", "batch", "threads"))
            layer = LayerTime(
                *(int(row["index"]), row["kind"], row["shape"]),
                *(int(row["multiply_adds"]), int(row["bytes"])),
                *(float(row["time_ms"]), float(row["torch_ms"]), float(row["peak_gflops"])),
            )
            found.setdefault((ModelCase(row["model"], *sizes), row["date"]), []).append(layer)
    return {case: layers for (case, _), layers in sorted(found.items(), key=lambda kv: kv[0][1])}
