"""The parent of a run: gives every section its time and a process, and survives what they do."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from fastdw.benchmark import environment
from fastdw.benchmark.gpu import progress, summary
from fastdw.benchmark.gpu.child import RESTART
from fastdw.benchmark.gpu.records import Records, read_environment
from fastdw.benchmark.gpu.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
MOST_RESTARTS = 12
START_LIMIT_S = 90.0  # importing torch and opening the device, on a cold disk
END_S = 8.0  # kept for the summary
OUT_OF_TIME = "out of time"


@dataclass(frozen=True)
class Section:
    """One part of a run.

    Attributes:
        name: as in gpu_sections.csv.
        module: its function `items` takes a Bench and gives the items.
        share: of the time; what a section leaves goes to those after it.
        needs_cuda: skipped on other devices.
    """

    name: str
    module: str
    share: float
    needs_cuda: bool = False


# The most valuable first. The shares are about seconds of nine minutes.
SECTIONS = tuple(
    Section(name, f"fastdw.benchmark.gpu.{name}", share, needs_cuda=name == "sanitizer")
    for name, share in (
        ("triton_cache", 45),
        ("correctness", 135),
        ("networks", 110),
        ("choices", 75),
        ("compiled", 80),
        ("ops", 90),
        ("sanitizer", 40),
        ("training", 25),
    )
)


@dataclass
class Session:
    """A run under way."""

    settings: Settings
    records: Records
    log: TextIO
    end: float

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.log.write(text + "\n")
        self.log.flush()

    def record(self, section: str, status: str, **more: Any) -> None:
        self.records.add("sections", section=section, status=status, **more)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything that was asked for.

    Returns:
        1 if an output of fastdw was wrong or anything failed, else 0.
    """
    asked = _parser().parse_args(arguments)
    chosen = [section for section in SECTIONS if not asked.only or section.name in asked.only]
    return run(asked.device, asked.quick, asked.results, 60 * asked.minutes, chosen)


def run(
    device: str, quick: bool, results: Path, seconds: float, sections: Sequence[Section]
) -> int:
    """Run the sections one after another; see `main`."""
    begin = time.time()
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    with tempfile.TemporaryDirectory() as scratch:
        settings = _place(Settings(device, quick, stamp, scratch), results)
        told = read_environment(settings.path(".json"))
        with settings.path(".log").open("a") as log:
            records = Records(Path(settings.folder), told, settings.run)
            session = Session(settings, records, log, begin + seconds - END_S)
            session.say(summary.headline(told))
            if "failed" in told:
                session.record("environment", "failed", reason=told["failed"])
                return 2
            for index, section in enumerate(sections):
                shares = sum(later.share for later in sections[index:])
                if section.needs_cuda and device != "cuda":
                    session.record(section.name, "skipped", reason="needs CUDA")
                    continue
                limit = (session.end - time.time()) * section.share / shares
                run_section(session, section, limit, Path(scratch))
                summary.write(settings)
            text = summary.write(settings)
            session.say(f"\n{text}\n\n{time.time() - begin:.0f} s; files: {settings.path('.*')}")
            if unchecked := summary.is_unchecked(settings, [s.name for s in sections]):
                session.say("no op of fastdw was checked on this device")
    return 1 if unchecked or summary.failures(settings) else 0


def _place(settings: Settings, results: Path) -> Settings:
    """Ask a child what the device is, and put the run into the folder of that device."""
    told = {**environment.describe(), "device": "unknown", "slug": "unknown-device", "isa": "none"}
    about = settings.path(".json")
    try:
        command = [sys.executable, "-m", "fastdw.benchmark.gpu.about", settings.to_json()]
        done = subprocess.run(
            command, env=_environment(), capture_output=True, text=True, timeout=START_LIMIT_S
        )
        if about.exists():
            told = read_environment(about)
        else:
            told["failed"] = (done.stderr.strip().splitlines() or ["no output"])[-1]
    except subprocess.TimeoutExpired:
        told["failed"] = f"the device did not open within {START_LIMIT_S:.0f} s"
    folder = results / told["slug"]
    folder.mkdir(parents=True, exist_ok=True)
    placed = replace(settings, folder=str(folder))
    placed.path(".json").write_text(json.dumps(told, indent=2, default=str) + "\n")
    return placed


def run_section(session: Session, section: Section, limit_s: float, scratch: Path) -> None:
    """One section, in as many processes as it takes."""
    begin = time.time()
    deadline = begin + limit_s
    events = progress.Follower(scratch / f"{section.name}.events")
    session.say(f"== {section.name}: {limit_s:.0f} s at most")
    problems = []
    for _ in range(MOST_RESTARTS + 1):
        before = events.progress.events
        with _child(session, section, deadline, events.path) as process:
            end = _wait(process, deadline, events)
        state = events.update()
        if end == "done":
            break
        if state.item is not None:
            details = {"item": state.item, "part": state.part, "reason": end}
            session.record(section.name, "skipped" if end == OUT_OF_TIME else "failed", **details)
            progress.tell(events.path, "died", reason=end)
        if end != OUT_OF_TIME:
            problems.append(end)
            session.say(f"   {events.update().blamed}: {end}")
        if events.update().events == before or time.time() > deadline:
            break
    reason = OUT_OF_TIME if end == OUT_OF_TIME else None
    if problems:
        reason = f"{len(problems)} x its process was replaced: {problems[-1]}"
    status = "failed" if problems else "stopped" if reason else "ok"
    taken = time.time() - begin
    session.record(section.name, status, seconds=taken, reason=reason)
    session.say(f"   {status}, {taken:.0f} s")


@contextmanager
def _child(
    session: Session, section: Section, deadline: float, events: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the section, its output in the log; its whole group ends with the context."""
    told = json.dumps([section.module, session.settings.to_json(), deadline, str(events)])
    process = subprocess.Popen(
        [sys.executable, "-m", "fastdw.benchmark.gpu.child", told],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=session.log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # Compilers and the sanitizer are its children; they must not outlive it.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def _wait(process: subprocess.Popen[bytes], deadline: float, events: progress.Follower) -> str:
    """Wait for the end, a hang or the deadline; "done", or why the process is to be replaced."""
    begin = last_sign = time.time()
    seen, limit = events.update().events, START_LIMIT_S
    while process.poll() is None:
        time.sleep(0.05)
        state = events.update()
        if state.events != seen:
            seen, last_sign, limit = state.events, time.time(), state.limit_s
        # An item that is under way may end; nothing new is begun after the deadline.
        if time.time() > deadline + min(10.0, 0.1 * (deadline - begin)):
            return OUT_OF_TIME
        if time.time() - last_sign > limit:
            return f"no sign of life for {limit:.0f} s"
    if process.returncode == RESTART:
        return "the device was lost"
    return f"its process ended: exit code {process.returncode}" if process.returncode else "done"


def _environment() -> dict[str, str]:
    """The children find this checkout, wherever they are started."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench/run_gpu.py",
        description="Check and time fastdw on a GPU; appends to RESULTS/<device>/gpu_*.csv.",
    )
    names = [section.name for section in SECTIONS]
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: only tries the code")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all (9)")
    parser.add_argument("--only", action="append", choices=names, help="a section; repeatable")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "bench" / "results", help="bench/results"
    )
    return parser
