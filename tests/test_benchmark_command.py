"""`fastdw bench` beyond the times: the plan, the steps, the report, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdw.benchmark import layers, models
from fastdw.benchmark.layers import LayerReport, LayerTime
from fastdw.benchmark.models import ModelCase, Result
from fastdw.benchmark.providers import PROVIDERS
from fastdw.benchmark.timing import Timing
from fastdw.cli import main
from fastdw.plan.record import NotPlannable

Run = Callable[..., tuple[int, str, str]]
V2 = "fastdw:mobilenet_v2"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: (exit code, stdout, stderr)."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastdw", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return command


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[ModelCase]:
    """Nothing is timed: every case takes 5 ms, every step 1 ms. The list tells the cases asked."""
    asked: list[ModelCase] = []

    def run_case(case: ModelCase, providers: Any, **settings: Any) -> list[Result]:
        timing = Timing(5.0, 4.0, 6.0, 3)
        ok = ("ok", None, 1e-7, timing, 0.0, 300_000_000, 200.0)
        return [Result(case, PROVIDERS["fastdw"], *ok)]

    def time_layers(case: ModelCase, rounds: int, slot_seconds: float) -> LayerReport:
        asked.append(case)
        step = LayerTime(0, "stem_conv", "a -> b", 50_000_000, 1_000_000, 1.0, 4.0, 200.0)
        return LayerReport(case, (step,), 200.0, ())

    monkeypatch.setattr(models, "run_case", run_case)
    monkeypatch.setattr(layers, "time_layers", time_layers)
    return asked


def test_explain_times_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "run_case", None)
    options = (V2, "--explain", "--resolution", 96, "--threads", 1, "--batch", 1, "--batch", 3)
    code, out, err = run(*options, "--json")
    assert code == 0, err
    one, three = json.loads(out)["plans"]
    assert (one["batch"], three["batch"], one["model"]) == (1, 3, V2)
    assert len(one["steps"]) == 20 and one["steps"][2]["blocking"]
    assert 3 * one["memory"]["output_bytes"] == three["memory"]["output_bytes"]
    code, out, _ = run(*options)
    assert code == 0 and out.count("global_pool") == 2 and "48x48x16 x6 -> 24x24x24 3x3/2" in out


def test_another_blocking(
    run: Run, measured: list[ModelCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Explained as it was chosen; nonsense is told before anything is timed."""
    monkeypatch.setenv("FASTDW_BLOCKING", "")  # so that it is put back
    size = (V2, "--threads", 1, "--resolution", 99)
    code, out, err = run(*size, "--explain", "--json", "--blocking", "5:6x3,0:2x1")
    assert code == 0, err
    steps = json.loads(out)["plans"][0]["steps"]
    chosen = [steps[step]["blocking"] for step in (5, 0)]
    assert [(one["band_rows"], one["chunk_channels"]) for one in chosen] == [(6, 48), (2, 16)]
    code, out, err = run(V2, "--threads", 1, "--resolution", 98, "--layers", "--blocking", "5:6")
    assert (code, out, measured) == (2, "", []) and len(err.splitlines()) == 1
    assert 'FASTDW_BLOCKING: expected STEP:ROWSxBLOCKS as in "13:7x4", got "5:6"' in err


def test_what_cannot_be_planned_is_not_explained(run: Run) -> None:
    code, out, err = run("torchvision:resnet18", "--explain", "--threads", 1)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "--explain: torchvision:resnet18: " in err


def test_steps_are_shown_and_appended(run: Run, measured: list[ModelCase], tmp_path: Path) -> None:
    code, out, err = run(V2, "--layers", "--threads", 1, "--results", tmp_path)
    assert code == 0, err
    assert measured == [ModelCase(V2)]
    assert "60.0%" in out and "50.0%" in out and "4.00 x" in out and "stem_conv" in out
    [path] = tmp_path.glob("*/layers.csv")
    assert list(layers.read_layers(path)) == [ModelCase(V2)]
    assert len(list(tmp_path.glob("*/models.csv"))) == 1
    code, out, _ = run(V2, "--layers", "--threads", 1, "--json")
    told = json.loads(out)
    assert told["layers"][0]["layers"][0]["share_of_peak"] == pytest.approx(0.5)
    assert told["results"][0]["share_of_peak"] == pytest.approx(0.6)


def test_a_network_without_a_plan_keeps_its_times(
    run: Run, measured: list[ModelCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(case: ModelCase, rounds: int, slot_seconds: float) -> LayerReport:
        raise NotPlannable("a layer has no step")

    monkeypatch.setattr(layers, "time_layers", refuse)
    code, out, err = run(V2, "--layers", "--threads", 1)
    assert code == 0 and "5.00" in out and "no times of steps: a layer has no step" in err


def test_the_report_is_written(run: Run, measured: list[ModelCase], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    code, _, err = run(V2, "--threads", 1, "--batch", 8, "--html", page)
    assert code == 0, err
    assert measured == [ModelCase(V2, batch=8)]  # with the steps
    text = page.read_text()
    assert "60.0 %" in text and "Step by step" in text and "stem_conv" in text


def test_a_bad_place_for_the_report_is_told_first(
    run: Run, measured: list[ModelCase], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    code, out, err = run(V2, "--threads", 1, "--html", tmp_path / "no" / "report.html")
    assert (code, out, measured) == (2, "", []) and "--html: " in err


def test_without_matplotlib_the_report_says_what_to_install(
    run: Run, measured: list[ModelCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("html_report", "plots"):
        monkeypatch.delitem(sys.modules, f"fastdw.benchmark.{name}", raising=False)
        monkeypatch.delattr(f"fastdw.benchmark.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    code, _, err = run(V2, "--threads", 1, "--html", "report.html")
    assert code == 2 and "pip install 'fastdw[bench]'" in err
