"""bench/run_gpu.py on the CPU: the whole command, what crashes in it, what it takes for right."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdw.backends import BackendRefused
from fastdw.benchmark.cases import OP_CASES
from fastdw.benchmark.gpu import choices, sanitizer, session, settings, summary
from fastdw.benchmark.gpu import device as devices
from fastdw.benchmark.gpu.bench import Bench, DeviceLost, Item
from fastdw.benchmark.gpu.contenders import Contender, Race, largest_difference, rotate
from fastdw.benchmark.gpu.device import Device
from fastdw.benchmark.gpu.session import Section
from fastdw.benchmark.gpu.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
Row = dict[str, str]


def rows_of(folder: Path, table: str) -> list[Row]:
    with (folder / f"gpu_{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_whole_command_runs_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "run_gpu.py"), "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = tmp_path.iterdir()
    [about] = folder.glob("gpu_*.json")
    told = json.loads(about.read_text())
    assert told["torch"] == torch.__version__ and told["fastdw_libraries"]["loaded"]
    assert about.with_suffix(".log").read_text().count("== ") == len(session.SECTIONS) - 1
    text = Path(str(about).replace(".json", "_summary.txt")).read_text()
    assert text in done.stdout  # last of all
    assert "best other / fastdw" in text and "training: milliseconds" in text

    checked = rows_of(folder, "correctness")
    assert {row["status"] for row in checked} == {"ok"}
    seen = {(row["subject"], row["precision"]) for row in checked}
    assert {(op, name) for op in OP_CASES for name in ("fp16", "fp32", "bf16")} <= seen
    assert {row["backend"] for row in checked} == {"cpp", "fastdw-planned", "fastdw-modules"}
    ours = {"fastdw-planned", "fastdw-modules"}
    folded = {"torch-folded-channels-last", "torch-folded-nchw"}
    cpp = {name for wishes in choices.OF_OP.values() for name in wishes}
    timed = {
        "choices": {
            *("fastdw-planned", *(f"fastdw-planned {wish}" for wish in choices.WISHES)),
            *("fastdw-cpp", *(f"fastdw-cpp {wish}" for wish in cpp)),
        },
        "networks": {*ours, *folded, "torch-eager", "torch-compile"},
        "ops": {"fastdw-cpp", *folded, "torch-modules"},
        "training": {"fastdw-modules", "torch-eager"},
    }
    for table, providers in timed.items():
        rows = rows_of(folder, table)
        assert {row["provider"] for row in rows} == providers
        for row in rows:
            assert row["status"] == "ok" and float(row["median_ms"]) > 0
            assert row["how"] == "call" and row["inputs"] in ("cold", "warm")
            assert float(row["error"]) <= float(row["allowed"]) and row["run"] in about.name
    assert all(float(row["share_of_copy"]) > 0 for row in rows_of(folder, "ops"))
    sections = {row["section"]: row for row in rows_of(folder, "sections")}
    assert list(sections) == [section.name for section in session.SECTIONS]
    sanitized = sections.pop("sanitizer")
    assert (sanitized["status"], sanitized["reason"]) == ("skipped", "needs CUDA")
    assert {row["status"] for row in sections.values()} == {"ok"}


CRASHING = """
import os, sys, time
from pathlib import Path
from fastdw.benchmark.gpu.bench import Item

def items(bench):
    def note(part, reason="", status="ok"):
        bench.record("training", provider=part, how="-", status=status, reason=reason)

    def attempt(part, work):
        bench.attempt(part, work, lambda status, reason: note(part, reason, status))

    def lose():
        bench.device.is_lost = lambda: True
        raise RuntimeError("illegal address")

    def good(name):
        attempt("good", lambda: note(name))

    def dies():
        good("before")
        attempt("dying", lambda: os._exit(3))
        good("beside")

    yield Item("dies", dies)
    yield Item("raises", lambda: attempt("raising", lambda: 1 / 0))
    yield Item("is wrong itself", lambda: {}["key"])
    yield Item("loses", lambda: (attempt("losing", lose), good("beside the lost one")))
    yield Item("hangs", lambda: time.sleep(600), limit_s=0.5)
    yield Item("dies again", dies)
    yield Item("would die a third time", dies)
    yield Item("is last", lambda: good("last"))
"""
FINE = """
from fastdw.benchmark.gpu.bench import Item

def items(bench):
    yield Item("fine", lambda: bench.record("sanitizer", tool="fine", status="ok"))
"""
ENDLESS = """
import time
from fastdw.benchmark.gpu.bench import Item

def items(bench):
    number = 0
    while True:
        number += 1
        yield Item(str(number), lambda: time.sleep(0.05))
"""
BROKEN = "import no_such_module"


def run_sections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, **sources: str
) -> tuple[int, Path]:
    """Run sections of these sources: (exit code, folder of the results)."""
    for name, source in sources.items():
        (tmp_path / f"{name}_section.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sections = [Section(name, f"{name}_section", 1.0) for name in sources]
    results = tmp_path / "results"
    code = session.run("cpu", True, results, seconds, sections)
    [folder] = results.iterdir()
    return code, folder


@pytest.mark.slow
def test_what_crashes_or_hangs_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = {"broken": BROKEN, "crashing": CRASHING, "fine": FINE}
    code, folder = run_sections(tmp_path, monkeypatch, 500, **sources)
    assert code == 1
    rows = [(row["provider"], row["status"], row["reason"]) for row in rows_of(folder, "training")]
    ok, died = (
        [name for name, status, _ in rows if status == "ok"],
        "its process ended: exit code 3",
    )
    assert ok.count("beside") == 3 and ok.count("before") == 5  # twice begun again
    assert ok.count("beside the lost one") == ok.count("last") == 1
    assert [row for row in rows if row[1] != "ok"] == [
        ("dying", "failed", died),
        ("raising", "failed", "ZeroDivisionError: division by zero"),
        ("losing", "failed", "RuntimeError: illegal address"),
        ("dying", "failed", died),
        ("dying", "skipped", "given up: it took 2 processes with it"),
    ]
    told = rows_of(folder, "sections")
    assert [(row["item"], row["part"], row["reason"]) for row in told if row["item"]] == [
        ("dies", "dying", died),
        ("is wrong itself", "", "KeyError: 'key'"),
        ("hangs", "", "no sign of life for 0 s"),
        ("dies again", "dying", died),
    ]
    ends = {row["section"]: row["status"] for row in told if row["seconds"]}
    assert ends == {"broken": "failed", "crashing": "failed", "fine": "ok"}
    assert rows_of(folder, "sanitizer")[0]["tool"] == "fine"
    [log] = folder.glob("*.log")
    assert "no_such_module" in log.read_text() and "ZeroDivisionError" in log.read_text()
    out = capsys.readouterr().out
    assert f"failed: crashing dies dying: {died}" in out
    assert "loses, losing: the device was lost" in out


@pytest.mark.slow
def test_the_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "END_S", 0.0)
    begin = time.monotonic()
    code, folder = run_sections(tmp_path, monkeypatch, 60, endless=ENDLESS, fine=FINE)
    assert code == 0 and time.monotonic() - begin < 90
    reasons = [row["reason"] for row in rows_of(folder, "sections") if row["item"]]
    assert reasons == ["out of time, with all that follows it"]
    assert len(rows_of(folder, "sanitizer")) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert session.main(["--results", str(tmp_path)]) == 2
    assert "no GPU that torch" in capsys.readouterr().out
    [row] = rows_of(tmp_path / "unknown-device", "sections")
    assert row["status"] == "failed" and "no GPU" in row["reason"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A section under way, in this process."""
    asked = Settings("cpu", True, "now", str(tmp_path))
    told = dict.fromkeys(("date", "commit", "cpu", "torch", "device", "isa"), "-")
    begun = Bench(asked, settings.sizes(asked), Device(), told, math.inf, tmp_path / "events")
    begun.begin(Item("item", lambda: None))
    return begun


def test_only_right_contenders_get_a_time(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.arange(6.0).reshape(2, 3, 1, 1)
    batches = rotate(5, 2, 60, bench.device)
    assert not torch.equal(batches.indices[0], batches.indices[0].flip(0))
    calls: list[str] = []

    def build(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
        def run(x: Tensor) -> Tensor:
            calls.append(name)
            return change(x)

        return lambda: run

    def late(x: Tensor) -> Tensor:
        if calls.count("late") > 9:
            raise RuntimeError("only then")
        return x

    def refused(x: Tensor) -> Tensor:
        raise BackendRefused("no kernel")

    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "right": lambda x: x,
        "shifted": lambda x: x + 1e-3,
        "mixed up": lambda x: x.flip(0),
        "nan": lambda x: x / (x != 3),
        "shape": lambda x: x[:1],
        "raises": lambda x: x.no_such_thing,
        "refused": refused,
        "late": late,
    }

    def check(contender: Contender, output: Any, number: int) -> tuple[float, float]:
        return largest_difference(output, images[batches.indices[number]].double()), 1e-4

    contenders = [Contender(name, build(name, change)) for name, change in changes.items()]
    race = Race(bench, "training", {"network": "n"}, check, lambda ms: {"images_per_second": 1.0})
    race.run(contenders, images, batches, ["call"])
    rows = {row["provider"]: row for row in rows_of(tmp_path, "training")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "right": "ok",
        **dict.fromkeys(("shifted", "mixed up", "nan", "shape"), "wrong"),
        **dict.fromkeys(("raises", "late"), "failed"),
        "refused": "skipped",
    }
    times = ("median_ms", "p20_ms", "p80_ms", "images_per_second")
    assert all(rows["right"][name] for name in times)
    for name in changes.keys() - {"right"}:
        assert not any(rows[name][column] for column in times), name
        assert rows[name]["reason"]
    assert "only then" in rows["late"]["reason"] and "no kernel" in rows["refused"]["reason"]


def test_a_lost_device_ends_the_process_after_its_row(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(bench.device, "is_lost", lambda: True, raising=False)
    with pytest.raises(DeviceLost):
        bench.attempt("part", lambda: 1 // 0, lambda *why: told.append(why))
    assert told == [("failed", "ZeroDivisionError: integer division or modulo by zero")]


def test_batches_overflow_the_cache_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(device, "cache_bytes", lambda: 1000, raising=False)
    for batch_bytes, count, state in ((400, 5, "cold"), (3000, 2, "cold"), (10, 32, "warm")):
        batches = rotate(3, 4, batch_bytes, device)
        assert (len(batches.indices), batches.state) == (count, state)
    first, second = rotate(64, 4, 400, device).indices[:2]
    assert not torch.equal(first, second) and first.unique().numel() == 4


REPORTS = {
    "clean": ("ok", 0, "all ops: 87 calls\n========= ERROR SUMMARY: 0 errors\n", 0),
    "errors": (
        "wrong",
        2,
        "========= Invalid __global__ read of size 16 bytes\n"
        "=========     at void fastdw::cuda::pointwise_conv\n"
        "all ops: 87 calls\n========= ERROR SUMMARY: 2 errors\n",
        99,
    ),
    "races": (
        "wrong",
        1,
        "========= Error: Race reported between Write access at a\n"
        "all ops: 87 calls\n"
        "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n",
        99,
    ),
    "errors, exit code lost": ("wrong", 1, "all ops: 87\n========= ERROR SUMMARY: 1 error\n", 0),
    "silently stopped": ("failed", 0, "========= ERROR SUMMARY: 0 errors\n", 0),
    "stopped": ("failed", 0, "RuntimeError\n========= ERROR SUMMARY: 0 errors\n", 1),
    "no gpu": ("failed", None, "========= Error: Target application terminated before\n", 255),
}


@pytest.mark.parametrize("report", REPORTS)
def test_the_sanitizers_report_is_read(report: str, tmp_path: Path) -> None:
    status, errors, text, code = REPORTS[report]
    program = tmp_path / "compute-sanitizer"
    program.write_text(
        f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\ncat <<'END'\n{text}END\nexit {code}\n"
    )
    program.chmod(0o755)
    found = sanitizer.watch(str(program), "memcheck", "cpp", 60)
    assert found[:2] == (status, errors)
    assert (found[2] is None) == (status == "ok") and found[3] == text
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--tool memcheck --error-exitcode 99")
    assert asked.split()[-3:] == ["fastdw.benchmark.gpu.all_ops", "cuda", "cpp"]


def test_tools_and_clocks_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 580.1, P0, 1980 MHz, 2619 MHz'\n")
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"/usr/bin:/bin:{program.parent}")
    assert devices.find_tool("nvidia-smi") == str(program)
    told = devices.nvidia_smi()
    assert told and told["driver_version"] == "580.1" and told["clocks.sm"] == "1980 MHz"
    assert devices.find_tool("no-such-tool") is None


def test_the_summary_compares_the_best_ones(tmp_path: Path) -> None:
    rows = [
        {"provider": name, "status": status, "median_ms": time_ms, "reason": reason}
        for name, status, time_ms, reason in (
            ("fastdw-planned", "ok", "2.0", ""),
            ("fastdw-modules", "wrong", "", "off"),
            ("torch-eager", "ok", "9.0", "host-bound"),
            ("torch-compile", "ok", "5.0", ""),
        )
    ]
    case = {"network": "n", "precision": "fp16", "batch": "1", "how": "graph", "inputs": "warm"}
    told = summary._times("networks", [case | row for row in rows], ("network",))
    assert told[-2].split() == ["n", "graph", "warm", "2", "wrong", "9*", "5", "2.50"]


def test_a_wish_holds_during_a_call_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for before in (None, "separate"):
        if before is not None:
            monkeypatch.setenv("FASTDW_CUDA_BLOCKS", before)
        run = choices.under("blocks=fused", lambda x: seen.append(os.environ["FASTDW_CUDA_BLOCKS"]))
        run(torch.zeros(1))
        assert os.environ.get("FASTDW_CUDA_BLOCKS") == before
    assert seen == ["fused", "fused"]


def test_wishes_are_known_to_the_library() -> None:
    """Every variable and word stands in csrc/cuda/device.cpp, the ordinary one first."""
    text = (ROOT / "csrc" / "cuda" / "device.cpp").read_text()
    for variable, word in choices.WISHES.values():
        [words] = re.findall(rf'chosen\("{variable}", \{{(.*?)\}}', text)
        assert f'"{word}"' in words.split(", ")[1:]
