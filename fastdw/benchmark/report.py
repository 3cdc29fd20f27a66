"""Benchmark results as a table, as append-only CSV, and as the README's table."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdw.benchmark.models import IDLE_CPU_LIMIT, Result
from fastdw.benchmark.providers import PROVIDERS

if TYPE_CHECKING:
    from rich.table import Table

# The columns of models.csv, in order. A measured file is never rewritten: new columns, new file.
COLUMNS = (
    *("date", "commit", "cpu", "isa", "torch"),
    *("model", "resolution", "batch", "threads", "provider", "allocator", "precision", "status"),
    *("median_ms", "p20_ms", "p80_ms", "rounds", "images_per_second", "multiply_adds", "gflops"),
    *("peak_gflops", "share_of_peak", "peak_memory_bytes", "error", "idle_cpu_share", "reason"),
)


def result_table(results: Sequence[Result]) -> Table:
    """The providers of one case side by side."""
    from rich.table import Table  # not everything that writes CSV files prints tables

    case = results[0].case
    table = Table(
        title=f"{case.model}  {case.resolution}x{case.resolution}  "
        f"batch {case.batch}  threads {case.threads}"
    )
    for name in ("provider", "precision"):
        table.add_column(name)
    names = ("median ms", "p20 - p80", "of peak", "images/s", "fastdw is faster by", "error")
    for name in names:
        table.add_column(name, justify="right")
    ours = next((r.timing for r in results if r.provider.name == "fastdw" and r.timing), None)
    for result in results:
        label, timing = result.provider.label, result.timing
        if timing is None:
            table.add_row(label, result.provider.precision, f"[bold red]{result.status}")
            continue
        ratio = "" if ours is None else f"{timing.median_ms / ours.median_ms:.2f} x"
        table.add_row(
            label,
            result.provider.precision,
            f"{timing.median_ms:.2f}",
            f"{timing.p20_ms:.2f} - {timing.p80_ms:.2f}",
            "" if result.share_of_peak is None else f"{result.share_of_peak:.1%}",
            f"{1e3 * case.batch / timing.median_ms:.1f}",
            "" if result.provider.name == "fastdw" else ratio,
            f"{result.error:.0e}",
        )
    table.caption = "\n".join(notes(results)) or None
    return table


def notes(results: Iterable[Result]) -> list[str]:
    """The peak, fastdw's memory, why a provider has no time, and which one was not idle."""
    results = list(results)
    lines = []
    peak = next((r.peak_gflops for r in results if r.peak_gflops is not None), None)
    if peak is not None:
        lines.append(f"peak: {peak:.1f} GFLOP/s of multiply-adds on these threads, in these rounds")
    for result in results:
        if result.peak_memory_bytes is not None:
            memory = f"{result.peak_memory_bytes / 2**20:.2f} MiB beside input and weights"
            lines.append(f"{result.provider.label}: {memory}")
        if result.reason:
            lines.append(f"{result.provider.label}: {result.status}: {result.reason}")
        if (result.idle_cpu_share or 0) > IDLE_CPU_LIMIT:
            lines.append(
                f"{result.provider.label}: used {result.idle_cpu_share:.0%} of a core while it "
                "should have been idle: repeat the measurement"
            )
    return lines


def append_csv(
    path: Path, results: Iterable[Result], environment: dict[str, Any], isa: str
) -> Path:
    """Add one line a result to a models.csv; what stands in the file already is never touched.

    Returns:
        The file: beside `path` if that has other columns (models-2.csv, ...).
    """
    return append_rows(path, COLUMNS, (result.to_dict() for result in results), environment, isa)


def append_rows(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[dict[str, Any]],
    environment: dict[str, Any],
    isa: str,
) -> Path:
    """Add lines to a CSV that holds such columns; see `append_csv`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path = _file_with(path, columns)
    is_new = not path.exists() or path.stat().st_size == 0
    about = {key: environment[key] for key in ("date", "commit", "cpu", "torch")} | {"isa": isa}
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerows({**about, **_rounded(row)} for row in rows)
    return path


def _file_with(path: Path, columns: Sequence[str]) -> Path:
    """The first of NAME.csv, NAME-2.csv, ... that has these columns, or is not there yet."""
    for number in itertools.count(1):
        file = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        if not file.exists() or file.stat().st_size == 0:
            return file
        with file.open(newline="") as lines:
            if next(csv.reader(lines)) == list(columns):
                return file
    raise AssertionError("unreachable")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: f"{v:.5g}" if isinstance(v, float) else v for key, v in row.items()}


def read_csv(paths: Iterable[Path]) -> list[dict[str, str]]:
    rows = []
    for path in paths:
        with path.open(newline="") as file:
            rows += list(csv.DictReader(file))
    return rows


Cases = dict[tuple[str, ...], dict[str, dict[str, str]]]


def newest_rows(rows: Iterable[dict[str, str]]) -> Cases:
    """(cpu, model, resolution, threads, batch) -> provider -> the last row of that case."""
    cases: Cases = {}
    for row in rows:
        key = tuple(row[name] for name in ("cpu", "model", "resolution", "threads", "batch"))
        cases.setdefault(key, {})[row["provider"]] = row
    return cases


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """The newest measurement of each case and provider, fastdw against the others, in Markdown.

    Args:
        rows: of `read_csv`; a later row replaces an earlier one of the same case on the same CPU.
    """
    cases = newest_rows(rows)
    measured = {name for providers in cases.values() for name in providers}
    shown = [name for name in PROVIDERS if name in measured]
    lines = []
    for cpu in dict.fromkeys(key[0] for key in cases):
        own = {key: providers for key, providers in cases.items() if key[0] == cpu}
        all_rows = sorted((row for found in own.values() for row in found.values()), key=_date)
        last, commits = all_rows[-1], list(dict.fromkeys(row["commit"] for row in all_rows))
        lines += [
            f"{cpu}, {last['isa']}, torch {last['torch']}, commit {', '.join(commits)}, "
            f"{last['date'][:10]}; milliseconds a batch, medians, fp32 (share of the fp32 peak of "
            "these threads, measured in the same rounds); `make bench`:",
            "",
            "| network | threads | batch | "
            + " | ".join([*map(_label, shown), "best other / fastdw |"]),
            "|---|---|---|" + "---|" * (len(shown) + 1),
        ]
        for (_, model, resolution, threads, batch), found in own.items():
            times = [_time_cell(found.get(name)) for name in shown]
            lines.append(
                f"| `{model}` {resolution} | {threads} | {batch} | "
                + " | ".join(times)
                + f" | {_ratio(found)} |"
            )
        lines.append("")
    return "\n".join(lines).strip()


def _date(row: dict[str, str]) -> str:
    return row["date"]


def _label(name: str) -> str:
    return PROVIDERS[name].label


def _time_cell(row: dict[str, str] | None) -> str:
    if row is None:
        return "-"
    if row["status"] != "ok":
        return row["status"]
    share = row.get("share_of_peak")  # older files have none
    return f"{float(row['median_ms']):.2f}" + (f" ({float(share):.0%})" if share else "")


def _ratio(found: dict[str, dict[str, str]]) -> str:
    """The best other provider's time over fastdw's."""
    times = {n: float(row["median_ms"]) for n, row in found.items() if row["status"] == "ok"}
    ours = times.pop("fastdw", math.nan)
    if not times or math.isnan(ours):
        return "-"
    return f"{min(times.values()) / ours:.2f}"
