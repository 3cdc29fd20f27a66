"""The files of a run: one CSV a kind of result, appended to line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastdw.benchmark.report import append_rows

_ABOUT = ("date", "commit", "cpu", "isa", "torch", "run", "device")
_TIMES = ("status", "median_ms", "p20_ms", "p80_ms", "rounds")

# The columns of gpu_<table>.csv. As with models.csv: new columns, new file.
TABLES: dict[str, tuple[str, ...]] = {
    "sections": (*_ABOUT, "section", "item", "part", "status", "seconds", "reason"),
    "correctness": (
        *(*_ABOUT, "subject", "case", "backend", "precision", "status", "error", "allowed"),
        "reason",
    ),
    "networks": (
        *(*_ABOUT, "network", "batch", "precision", "provider", "how", "inputs", *_TIMES),
        *("images_per_second", "error", "allowed", "reason"),
    ),
    "ops": (
        *(*_ABOUT, "op", "case", "batch", "precision", "provider", "how", "inputs", *_TIMES),
        *("ideal_bytes", "gb_per_s", "copy_gb_per_s", "share_of_copy", "error", "allowed"),
        "reason",
    ),
    "choices": (
        *(*_ABOUT, "network", "op", "case", "batch", "precision", "provider", "how", "inputs"),
        *(*_TIMES, "images_per_second", "ideal_bytes", "gb_per_s", "copy_gb_per_s"),
        *("share_of_copy", "error", "allowed", "reason"),
    ),
    "sanitizer": (*_ABOUT, "tool", "backend", "status", "errors", "seconds", "reason"),
    "training": (
        *(*_ABOUT, "network", "batch", "precision", "provider", "how", "inputs", *_TIMES),
        *("images_per_second", "error", "allowed", "reason"),
    ),
}


class Records:
    """Appends rows to the CSV files of a device's folder.

    Args:
        folder: bench/results/<device>.
        environment: of `environment.describe`, with "isa" and "device" of the GPU.
        run: stands in every row.
    """

    def __init__(self, folder: Path, environment: dict[str, Any], run: str) -> None:
        self._folder, self._environment = folder, environment
        self._about = {"run": run, "device": environment["device"]}

    def add(self, table: str, **row: Any) -> None:
        unknown = set(row) - set(TABLES[table])
        assert not unknown, f"{table}: no column {unknown}"
        append_rows(
            self._folder / f"gpu_{table}.csv",
            TABLES[table],
            [{**self._about, **row}],
            self._environment,
            self._environment["isa"],
        )


def read_environment(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def first_line(error: BaseException | str, limit: int = 400) -> str:
    """One line that says what went wrong, for a cell of a table."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else ""
    if isinstance(error, BaseException):
        line = f"{type(error).__name__}: {line}".rstrip(": ")
    return line[:limit]
