"""Whole-network benchmarks: checked first, each provider in its own process, appended to a CSV."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastdw.benchmark import report
from fastdw.benchmark.models import (
    ModelCase,
    Result,
    calibrate_batch_norm,
    multiply_adds,
    run_case,
)
from fastdw.benchmark.processes import _environment
from fastdw.benchmark.providers import KEEP_MEMORY, PROVIDERS, default_providers
from fastdw.benchmark.timing import Timing

ENVIRONMENT = {"date": "2026-01-02T03:04:05", "commit": "abc", "cpu": "Test CPU", "torch": "2.x"}


class Tiny(nn.Module):
    """Right in float64, and in fp32 what `kind` says; the timed processes run in fp32."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3))
        if x.dtype == torch.float64 or self.training or self.kind == "right":
            return y
        if self.kind == "raises":
            raise RuntimeError("no fp32 here")
        if self.kind == "dies":
            os._exit(3)
        return {"wrong": y * 1.01, "nan": y * torch.nan, "shape": y[:, 1:]}[self.kind]


def right() -> nn.Module:
    return Tiny("right")


def wrong() -> nn.Module:
    return Tiny("wrong")


def nan() -> nn.Module:
    return Tiny("nan")


def shape() -> nn.Module:
    return Tiny("shape")


def raises() -> nn.Module:
    return Tiny("raises")


def dies() -> nn.Module:
    return Tiny("dies")


def case_of(kind: str) -> ModelCase:
    return ModelCase(f"{__name__}:{kind}", resolution=32, batch=2)


@pytest.mark.slow  # each provider starts a process that imports torch
def test_right_providers_are_timed_and_a_missing_one_is_skipped() -> None:
    eager, other = PROVIDERS["torch-eager"], PROVIDERS["torch-eager-channels-last"]
    missing = replace(PROVIDERS["fastdw"], unavailable=lambda: "not installed")
    steps: list[str] = []
    results = run_case(
        case_of("right"), [eager, missing, other], rounds=3, slot_seconds=0.03, on_step=steps.append
    )
    assert [result.status for result in results] == ["ok", "skipped", "ok"]
    assert [result.provider.name for result in results] == [eager.name, missing.name, other.name]
    assert results[1].reason == "not installed" and results[1].timing is None
    for result in (results[0], results[2]):
        assert result.timing is not None and result.timing.rounds == 3
        assert 0 < result.timing.p20_ms <= result.timing.median_ms <= result.timing.p80_ms
        assert result.error is not None and result.error < 1e-5
        assert result.idle_cpu_share is not None and result.idle_cpu_share < 1
        assert result.share_of_peak is not None and 0 < result.share_of_peak < 1
    assert len(steps) == 3 + 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind,status,reason",
    [
        ("wrong", "wrong", "of the largest output"),
        ("nan", "wrong", "off by nan"),
        ("shape", "wrong", "expected [2, 4], got [2, 3]"),
        ("raises", "failed", "RuntimeError: no fp32 here"),
        ("dies", "failed", "its process died, exit code 3"),
    ],
)
def test_a_wrong_provider_gets_no_time(kind: str, status: str, reason: str) -> None:
    [result] = run_case(case_of(kind), [PROVIDERS["torch-eager"]], rounds=1, slot_seconds=0)
    assert (result.status, result.timing) == (status, None)
    assert result.reason is not None and reason in result.reason
    assert result.to_dict()["median_ms"] is None


def test_calibrated_batch_norm_keeps_the_signal_alive() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=0.3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    calibrate_batch_norm(model, resolution=24)
    assert not model.training and norm.momentum == 0.3
    out = model(torch.randn(2, 3, 24, 24))
    assert 0.5 < out.std() < 2


def test_kept_memory_is_timed_from_batch_8_on() -> None:
    assert {provider.allocator for provider in default_providers(1)} == {"default"}
    kept = [provider for provider in default_providers(8) if provider.allocator == "kept"]
    assert kept and all(provider.environment == KEEP_MEMORY for provider in kept)


def test_a_providers_environment_is_gone_after_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDW_TEST_A", "before")
    with _environment({"FASTDW_TEST_A": "1", "FASTDW_TEST_B": "2"}):
        assert (os.environ["FASTDW_TEST_A"], os.environ["FASTDW_TEST_B"]) == ("1", "2")
    assert os.environ["FASTDW_TEST_A"] == "before" and "FASTDW_TEST_B" not in os.environ


def results_of(times: dict[str, float | None], **case: int) -> list[Result]:
    where = ModelCase("fastdw:mobilenet_v1", **case)
    return [
        Result(where, PROVIDERS[name], "wrong", "off")
        if time_ms is None
        else Result(where, PROVIDERS[name], "ok", None, 1e-7, Timing(time_ms, 1, 9, 20), 0.0)
        for name, time_ms in times.items()
    ]


def test_csv_is_append_only(tmp_path: Path) -> None:
    path = tmp_path / "device" / "models.csv"
    report.append_csv(path, results_of({"fastdw": 5.0}), ENVIRONMENT, "avx512")
    before = path.read_text()
    report.append_csv(path, results_of({"torch-eager": 10.0}), ENVIRONMENT, "avx512")
    assert path.read_text().startswith(before)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["provider"], row["median_ms"]) for row in rows] == [
        ("fastdw", "5"),
        ("torch-eager", "10"),
    ]
    assert rows[0]["images_per_second"] == "200" and rows[0]["isa"] == "avx512"
    path.write_text("other,columns\n1,2\n")
    for lines in (2, 3):
        second = report.append_csv(path, results_of({"fastdw": 5.0}), ENVIRONMENT, "avx512")
        assert second == path.with_name("models-2.csv")
        assert len(second.read_text().splitlines()) == lines
    assert path.read_text() == "other,columns\n1,2\n"


def test_markdown_shows_the_newest_times_and_the_ratio_to_the_best(tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    report.append_csv(path, results_of({"fastdw": 50.0}), ENVIRONMENT, "avx512")
    times = {"fastdw": 5.0, "torch-eager": 20.0, "torch-jit-frozen": 8.0}
    report.append_csv(path, results_of(times), ENVIRONMENT, "avx512")
    spoiled = {"fastdw": None, "torch-eager": 30.0}
    report.append_csv(path, results_of(spoiled, batch=32), ENVIRONMENT, "avx512")
    lines = report.markdown_table(report.read_csv([path])).splitlines()
    assert lines[0].startswith("Test CPU, avx512, torch 2.x, commit abc, 2026-01-02")
    labels = [PROVIDERS[name].label for name in times]
    assert lines[2] == f"| network | threads | batch | {' | '.join(labels)} | best other / fastdw |"
    assert lines[4] == "| `fastdw:mobilenet_v1` 224 | 1 | 1 | 5.00 | 20.00 | 8.00 | 1.60 |"
    assert lines[5] == "| `fastdw:mobilenet_v1` 224 | 1 | 32 | wrong | 30.00 | - | - |"


def test_markdown_names_the_commits_of_all_rows_that_it_shows(tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    for day, commit, batch in (("01", "old", 1), ("01", "old", 32), ("02", "new", 1)):
        environment = {**ENVIRONMENT, "commit": commit, "date": f"2026-01-{day}"}
        report.append_csv(path, results_of({"fastdw": 5.0}, batch=batch), environment, "avx512")
    assert "commit old, new, " in report.markdown_table(report.read_csv([path])).splitlines()[0]


def with_peak(result: Result) -> Result:
    return replace(result, multiply_adds=400_000_000, peak_gflops=200.0)


def test_share_of_the_peak() -> None:
    ours, wrong = map(with_peak, results_of({"fastdw": 5.0, "torch-eager": None}))
    assert (ours.gflops, ours.share_of_peak) == pytest.approx((160.0, 0.8))
    assert (wrong.gflops, wrong.share_of_peak) == (None, None)
    row = replace(ours, peak_memory_bytes=3 * 2**20).to_dict()
    assert (row["share_of_peak"], row["peak_memory_bytes"]) == (pytest.approx(0.8), 3 * 2**20)
    table = report.result_table([replace(ours, peak_memory_bytes=3 * 2**20), wrong])
    assert list(table.columns[4].cells)[0] == "80.0%"
    assert "peak: 200.0 GFLOP/s" in str(table.caption) and "3.00 MiB" in str(table.caption)


def test_markdown_shows_shares_where_they_were_measured(tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    report.append_csv(path, map(with_peak, results_of({"fastdw": 5.0})), ENVIRONMENT, "avx2")
    rows = report.read_csv([path])
    old = [{**row, "threads": "2"} for row in report.read_csv([path])]
    del old[0]["share_of_peak"]  # as in the files of before
    lines = report.markdown_table(rows + old).splitlines()
    assert lines[4].endswith("| 1 | 1 | 5.00 (80%) | - |")
    assert lines[5].endswith("| 2 | 1 | 5.00 | - |")


def test_multiply_adds_of_a_model_that_cannot_be_counted_are_none() -> None:
    assert multiply_adds(right(), case_of("right")) == 2 * 30 * 30 * 4 * 27
    assert multiply_adds(nn.Linear(5, 5), case_of("right")) is None


def test_the_table_shows_wrong_instead_of_a_time() -> None:
    results = results_of({"fastdw": 4.0, "torch-eager": 10.0, "torch-jit-frozen": None})
    noisy = replace(results[1], idle_cpu_share=0.5)
    table = report.result_table([results[0], noisy, results[2]])
    times = list(table.columns[2].cells)
    assert times == ["4.00", "10.00", "[bold red]wrong"]
    assert list(table.columns[4].cells)[:2] == ["", ""]  # no peak was measured
    assert list(table.columns[6].cells)[1] == "2.50 x"
    assert "50% of a core" in str(table.caption) and "wrong: off" in str(table.caption)
