"""The summary of a run, from its CSV files: written again after every section, printed last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastdw.benchmark.gpu.records import TABLES
from fastdw.benchmark.gpu.settings import Settings
from fastdw.benchmark.report import read_csv

Row = dict[str, str]
MOST_LINES = 40


def headline(told: dict[str, Any]) -> str:
    """The device and the software, two lines."""
    if "failed" in told:
        return f"no device: {told['failed']}"
    libraries = told.get("fastdw_libraries")
    reason = libraries.get("cuda_reason") if isinstance(libraries, dict) else libraries
    return (
        f"{told['device']} ({told['isa']}), torch {told['torch']}, commit {told['commit']}\n"
        f"fastdw's CUDA library: {'loaded' if reason is None else reason}"
    )


def write(settings: Settings) -> str:
    """Write gpu_RUN_summary.txt and return its text."""
    tables = {name: rows_of(settings, name) for name in TABLES}
    parts = [
        *_sections(tables["sections"]),
        *_verdicts(tables),
        *_times("networks", tables["networks"], ("network", "precision", "batch")),
        *_times("choices", tables["choices"], ("network", "op", "case", "precision", "batch")),
        *_times("ops", tables["ops"], ("op", "case", "precision", "batch")),
        *_times("training", tables["training"], ("network", "precision", "batch")),
    ]
    text = "\n".join(parts)
    settings.path("_summary.txt").write_text(text + "\n")
    return text


def rows_of(settings: Settings, table: str) -> list[Row]:
    """The rows of this run, whichever file of the table they are in."""
    paths = sorted(Path(settings.folder).glob(f"gpu_{table}*.csv"))
    return [row for row in read_csv(paths) if row["run"] == settings.run]


def failures(settings: Settings) -> list[Row]:
    """What makes the run a failed one: anything wrong or failed that is not torch's own."""
    rows = [row for table in TABLES for row in rows_of(settings, table)]
    ours = [row for row in rows if not row.get("provider", "").startswith("torch")]
    return [row for row in ours if row["status"] in ("wrong", "failed")]


def is_unchecked(settings: Settings, sections: Sequence[str]) -> bool:
    """Whether no op or network ran to its end, for example without fastdw's CUDA library."""
    rows = rows_of(settings, "correctness")
    return "correctness" in sections and not any(row["status"] == "ok" for row in rows)


def _sections(rows: Sequence[Row]) -> list[str]:
    whole = [row for row in rows if row["seconds"]]
    lines = [f"{r['section']}: {r['status']}, {float(r['seconds']):.0f} s" for r in whole]
    return ["sections", *_indented(lines), ""]


def _verdicts(tables: dict[str, list[Row]]) -> list[str]:
    """How many of each status, and what was not right."""
    lines: list[str] = []
    for name, rows in tables.items():
        if name == "sections":
            rows = [row for row in rows if row["item"] or row["status"] == "skipped"]
        counted = Counter(row["status"] for row in rows)
        counts = ", ".join(f"{count} {status}" for status, count in sorted(counted.items()))
        lines.append(f"{name}: {counts or 'nothing'}")
        notes = [_note(name, row) for row in rows if row["status"] != "ok"]
        distinct = list(Counter(notes).items())
        lines += [f"  {note}" + f" ({n} x)" * (n > 1) for note, n in distinct[:MOST_LINES]]
        if len(distinct) > MOST_LINES:
            lines.append(f"  and {len(distinct) - MOST_LINES} more in gpu_{name}.csv")
    return ["results", *_indented(lines), ""]


_WHERE = (
    *("section", "item", "part", "subject", "op", "network", "case", "tool"),
    *("backend", "provider", "how", "precision", "batch"),
)


def _note(table: str, row: Row) -> str:
    where = " ".join(row[name] for name in _WHERE if row.get(name, "") not in ("", "-"))
    return f"{row['status']}: {where}: {row['reason']}"


def _times(table: str, rows: Sequence[Row], key: tuple[str, ...]) -> list[str]:
    """A line a case and way: milliseconds of every provider, fastdw's best against the others'."""
    cases: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        if row["how"] != "-":
            where = (*(row[name] for name in key), row["how"])
            cases.setdefault(where, {})[row["provider"]] = row
    if not cases:
        return []
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    has_rate = table == "ops"
    header = [*key, "how", "inputs", *providers, "best other / fastdw"]
    lines = [header + ["fastdw of copy"] * has_rate]
    for where, found in cases.items():
        states = sorted({row["inputs"] for row in found.values() if row["inputs"]})
        cells = [*where, "/".join(states), *(_cell(found.get(name)) for name in providers)]
        best = _best(found, "fastdw")
        other = _best(found, "torch")
        ratio = f"{_ms(other) / _ms(best):.2f}" if best and other else "-"
        share = f"{float(best['share_of_copy']):.0%}" if has_rate and best else "-"
        lines.append([*cells, ratio] + [share] * has_rate)
    return [f"{table}: milliseconds a call, medians", *_indented(_aligned(lines)), ""]


def _best(found: dict[str, Row], prefix: str) -> Row | None:
    timed = [r for name, r in found.items() if name.startswith(prefix) and r["status"] == "ok"]
    return min(timed, key=_ms, default=None)


def _ms(row: Row) -> float:
    return float(row["median_ms"])


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row["status"] != "ok":
        return row["status"]
    mark = "*" if row["reason"] else ""  # host-bound
    return f"{_ms(row):.4g}{mark}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]
