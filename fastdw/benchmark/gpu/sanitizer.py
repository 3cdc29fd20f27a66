"""compute-sanitizer's memcheck and racecheck over all ops."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

from fastdw.benchmark.cases import OP_CASES
from fastdw.benchmark.gpu.bench import Bench, Item
from fastdw.benchmark.gpu.device import find_tool
from fastdw.benchmark.gpu.records import first_line
from fastdw.benchmark.gpu.truths import backends_on

TOOLS = ("memcheck", "racecheck")
FOUND = 99  # exit code that the tool is told to give when it has found something
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")


def items(bench: Bench) -> Iterator[Item]:
    kind = bench.device.kind
    backends = dict.fromkeys(backend for op in OP_CASES for backend in backends_on(op, kind))
    for tool in TOOLS:
        for backend in backends:
            key = f"{tool} {backend}"
            yield Item(key, partial(check, bench, tool, backend), limit_s=600.0)


def check(bench: Bench, tool: str, backend: str) -> None:
    """Run `all_ops` under the tool."""
    program = find_tool("compute-sanitizer")
    if program is None:
        reason = "compute-sanitizer is neither on PATH nor in CUDA_HOME"
        bench.record("sanitizer", tool=tool, backend=backend, status="skipped", reason=reason)
        return
    begin = time.perf_counter()
    status, errors, found, text = watch(program, tool, backend, bench.seconds_left())
    seconds = time.perf_counter() - begin
    bench.say(text)
    bench.record(
        "sanitizer",
        tool=tool,
        backend=backend,
        status=status,
        errors=errors,
        seconds=seconds,
        reason=found,
    )


def watch(
    program: str, tool: str, backend: str, limit_s: float
) -> tuple[str, int | None, str | None, str]:
    """Run the tool: (status, errors found, reason, all that was printed)."""
    options = ["--tool", tool, "--error-exitcode", str(FOUND)]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]  # torch probes what a driver can do
    script = [sys.executable, "-m", "fastdw.benchmark.gpu.all_ops", "cuda", backend]
    # Without torch's cache every tensor has an allocation of its own, whose ends are watched.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            [program, *options, *script],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as stopped:
        return "skipped", None, f"not done after {limit_s:.0f} s", _text(stopped.stdout)
    text = done.stdout + done.stderr
    found = _SUMMARY.findall(text)
    if not found:
        lines = [line.strip("= ") for line in text.splitlines() if "rror" in line]
        reason = first_line(lines[-1] if lines else f"exit code {done.returncode}, no summary")
        return "failed", None, reason, text
    errors = int(found[-1])
    if errors or done.returncode == FOUND:
        return "wrong", errors, first_error(text), text
    if done.returncode != 0 or "all ops:" not in text:
        return "failed", errors, f"exit code {done.returncode}, the ops did not finish", text
    return "ok", 0, None, text


def first_error(text: str) -> str:
    """The first finding and where: two lines of the report."""
    lines = [line.strip("= ") for line in text.splitlines() if line.startswith("=========")]
    at = next((i for i, line in enumerate(lines) if re.match(r"Invalid|Error:|Race", line)), None)
    return "see the log" if at is None else first_line(" ".join(lines[at : at + 2]))


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
