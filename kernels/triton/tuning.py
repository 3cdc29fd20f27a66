"""Tiles that suit the user's own GPU: the search, and the file that keeps what it found."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from fastdw.triton_kernels.tiles import Tile

MOST_WARPS, MOST_STAGES, LARGEST_SIZE = 16, 6, 512

Table = dict[str, dict[str, Tile]]
"""op -> shape class -> tile."""


def table_path(device_name: str) -> Path:
    """The file for a GPU, in the user's cache folder (``XDG_CACHE_HOME`` or ``~/.cache``)."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return Path(cache) / "fastdw" / f"triton-tiles-{slug}.json"


def load(path: Path) -> Table:
    """Read a table; none where there is no file, or (with a warning) where it is damaged."""
    if not path.exists():
        return {}
    try:
        return {
            op: {name: _tile(row) for name, row in rows.items()}
            for op, rows in json.loads(path.read_text()).items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(
            f"{path}: not a table of tiles ({type(error).__name__}: {error}); the shipped tiles "
            "are used; `fastdw tune` writes a new one",
            stacklevel=2,
        )
        return {}


def _tile(row: Mapping[str, object]) -> Tile:
    sizes, warps, stages = row["sizes"], row["num_warps"], row["num_stages"]
    if not isinstance(sizes, dict) or not all(
        isinstance(value, int) and value > 0 for value in (*sizes.values(), warps, stages)
    ):
        raise ValueError(f"expected sizes, num_warps and num_stages, got {row!r:.80}")
    return Tile(sizes, int(str(warps)), int(str(stages)))


def save(path: Path, table: Table) -> None:
    """Add the rows to the file; a reader never sees half of it."""
    whole = load(path)
    for op, rows in table.items():
        whole.setdefault(op, {}).update(rows)
    plain = {op: {name: asdict(tile) for name, tile in rows.items()} for op, rows in whole.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(plain, indent=1))
    unfinished.replace(path)


def neighbours(tile: Tile) -> Iterator[Tile]:
    """The tiles one step away: a size or the warps halved or doubled, a stage more or less."""
    for name, size in tile.sizes.items():
        for other in (size // 2, size * 2):
            if 1 <= other <= LARGEST_SIZE:
                yield Tile({**tile.sizes, name: other}, tile.num_warps, tile.num_stages)
    for warps in (tile.num_warps // 2, tile.num_warps * 2):
        if 1 <= warps <= MOST_WARPS:
            yield Tile(tile.sizes, warps, tile.num_stages)
    for stages in (tile.num_stages - 1, tile.num_stages + 1):
        if 1 <= stages <= MOST_STAGES:
            yield Tile(tile.sizes, tile.num_warps, stages)


def search(
    start: Tile, measure: Callable[[Tile], float | None], gain: float = 0.02, most: int = 60
) -> tuple[Tile, float]:
    """Walk to the best neighbour until none is better by ``gain``.

    Args:
        start: a tile that works.
        measure: milliseconds with a tile; None where it does not compile or is wrong.
        gain: the share of time that a step must save.
        most: measurements, at most.

    Returns:
        The tile and its milliseconds.

    Raises:
        ValueError: ``start`` does not work.
    """
    first = measure(start)
    if first is None:
        raise ValueError(f"start: expected a tile that works, got {start}")
    best, best_ms = start, first
    tried = {repr(start)}
    while True:
        step, step_ms = best, best_ms
        for tile in neighbours(best):
            if repr(tile) in tried or len(tried) >= most:
                continue
            tried.add(repr(tile))
            time_ms = measure(tile)
            if time_ms is not None and time_ms < step_ms * (1 - gain):
                step, step_ms = tile, time_ms
        if step is best:
            return best, best_ms
        best, best_ms = step, step_ms
