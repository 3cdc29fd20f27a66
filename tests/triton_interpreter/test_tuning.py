"""`fastdw tune` on interpreted kernels: what it measures, and that wrong tiles get no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fastdw.benchmark import tuning
from fastdw.benchmark.cases import OpCase, depthwise
from fastdw.benchmark.gpu.device import Device
from fastdw.cli import main
from fastdw.triton_kernels import tiles

CASES = {
    "depthwise_conv": [
        OpCase("depthwise_conv", f"small {size}", (1, 8, size, size), (depthwise(8),), options)
        for size, options in ((5, {"stride": 1, "padding": 1}), (6, {"stride": 2, "padding": 1}))
    ],
    "classifier_head": [OpCase("classifier_head", "small", (2, 32, 3, 3), (((10, 32), "none"),))],
}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "network_cases", lambda op, batch: CASES[op])
    monkeypatch.setattr(tuning, "SLOT_SECONDS", 0.0)


def tuned(*ops: str, most_tiles: int = 3) -> list[tuning.Tuned]:
    return list(tuning.tune(Device(), ops, ("fp32",), (1,), most_tiles))


def test_a_tile_is_found_for_every_class() -> None:
    found = tuned("classifier_head", "depthwise_conv", "depthwise_conv_weight_grad")
    assert {row.op for row in found} >= {"classifier_head", "depthwise_conv"}
    for row in found:
        assert row.shape_class in tiles.TABLE[row.op]
        assert set(row.tile.sizes) == set(row.shipped.sizes)
        assert 0 < row.tile_ms <= row.shipped_ms


def test_a_wrong_tile_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "error_over_budget", lambda output, truth: 1.5)
    assert tuned("classifier_head") == []


def test_a_tile_that_does_not_run_gets_no_time() -> None:
    [case] = CASES["classifier_head"]
    rival = tuning.Rival(tuning.Layer("classifier_head", case, "fp32"), Device())
    key = ("classifier_head", "pool")
    shipped = tiles.TABLE["classifier_head"]["pool"][tiles.ANY]
    odd = tiles.Tile(dict.fromkeys(shipped.sizes, 3), 4, 1)  # tl.arange wants powers of two
    assert tuning.time_of(key, [rival], odd) is None
    assert tuning.time_of(key, [rival], shipped) is not None


def test_the_command_stores_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = "fastdw tune --op classifier_head --precision fp32 --batch 1 --tiles 2 --json"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as exit_:
        main()
    told = json.loads(capsys.readouterr().out)
    assert not exit_.value.code
    table = json.loads(Path(told["stored"]).read_text())
    assert {row["shape_class"] for row in told["found"]} == set(table["classifier_head"])
