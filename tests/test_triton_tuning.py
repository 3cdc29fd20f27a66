"""The search for tiles, the file that keeps them, and which tile a call gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastdw.triton_kernels import tiles, tuning
from fastdw.triton_kernels.tiles import Tile

START = Tile({"ROWS": 4, "COLUMNS": 16}, num_warps=4, num_stages=2)


def distance_to(rows: int, columns: int, warps: int):
    """A time that is least at one tile."""

    def measure(tile: Tile) -> float:
        sizes = (tile.sizes["ROWS"] / rows, tile.sizes["COLUMNS"] / columns, tile.num_warps / warps)
        return sum(max(size, 1 / size) for size in sizes) + tile.num_stages / 10

    return measure


def test_the_search_walks_to_the_best_tile() -> None:
    measure = distance_to(32, 2, 8)
    best = Tile({"ROWS": 32, "COLUMNS": 2}, num_warps=8, num_stages=1)
    assert tuning.search(START, measure, gain=0.01) == (best, measure(best))


def test_the_search_measures_no_tile_twice_and_stops() -> None:
    seen: list[str] = []

    def measure(tile: Tile) -> float:
        seen.append(repr(tile))
        return 1 / len(seen)  # always better

    tuning.search(START, measure, most=25)
    assert len(seen) == len(set(seen)) == 25


def test_tiles_that_do_not_work_are_passed_over() -> None:
    measure = distance_to(32, 16, 4)

    def with_hole(tile: Tile) -> float | None:
        return None if tile.num_warps != 4 else measure(tile)

    best, _ = tuning.search(START, with_hole, gain=0.01)
    assert (best.sizes["ROWS"], best.num_warps) == (32, 4)
    with pytest.raises(ValueError, match="expected a tile that works"):
        tuning.search(START, lambda tile: None)


def test_neighbours_stay_within_limits() -> None:
    smallest = Tile({"ROWS": 1}, num_warps=1, num_stages=1)
    for tile in tuning.neighbours(smallest):
        assert tile.sizes["ROWS"] >= 1 and tile.num_warps >= 1 and tile.num_stages >= 1
    largest = Tile({"ROWS": tuning.LARGEST_SIZE}, tuning.MOST_WARPS, tuning.MOST_STAGES)
    assert all(
        tile.sizes["ROWS"] <= tuning.LARGEST_SIZE and tile.num_warps <= tuning.MOST_WARPS
        for tile in tuning.neighbours(largest)
    )


def test_a_table_is_kept_and_rows_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tuning.table_path("NVIDIA H100 80GB HBM3")
    assert path == tmp_path / "fastdw" / "triton-tiles-nvidia-h100-80gb-hbm3.json"
    assert tuning.load(path) == {}
    tuning.save(path, {"stem_conv": {"a": START}})
    other = Tile({"ROWS": 8}, 2, 1)
    tuning.save(path, {"stem_conv": {"b": other}, "pointwise_conv": {"c": other}})
    assert tuning.load(path) == {
        "stem_conv": {"a": START, "b": other},
        "pointwise_conv": {"c": other},
    }
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"stem_conv": {"a": {"sizes": {"ROWS": "x"}, "num_warps": 4, "num_stages": 1}}}',
        '{"stem_conv": {"a": {"sizes": {"ROWS": 8}, "num_warps": 0, "num_stages": 1}}}',
        '{"stem_conv": {"a": {"num_warps": 4, "num_stages": 1}}}',
    ],
)
def test_a_damaged_table_is_passed_over_with_a_warning(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.warns(UserWarning, match=r"table\.json: not a table of tiles"):
        assert tuning.load(path) == {}


def test_which_tile_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    op, shape_class = "stem_conv", next(iter(tiles.TABLE["stem_conv"]))
    shipped = tiles.TABLE[op][shape_class][tiles.ANY]
    assert tiles.choose(op, shape_class, "sm_80") is shipped
    own = Tile(shipped.sizes, 8, 1)
    monkeypatch.setitem(tiles.TABLE[op], shape_class, {tiles.ANY: shipped, "sm_90": own})
    assert tiles.choose(op, shape_class, "sm_90") is own
    assert tiles.choose(op, shape_class, "sm_80") is shipped
    tuned = Tile(shipped.sizes, 16, 1)
    monkeypatch.setitem(tiles.tuned, "sm_90", {op: {shape_class: tuned}})
    with tiles.recorded() as chosen:
        assert tiles.choose(op, shape_class, "sm_90") is tuned
        assert tiles.choose(op, shape_class, "sm_80") is shipped
        with tiles.forced({op: own}):
            assert tiles.choose(op, shape_class, "sm_80") is own
    assert chosen == {(op, shape_class): own}


def test_json_of_a_table_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    tuning.save(path, {"stem_conv": {"a": START}})
    row = {"sizes": {"ROWS": 4, "COLUMNS": 16}, "num_warps": 4, "num_stages": 2}
    assert json.loads(path.read_text()) == {"stem_conv": {"a": row}}
