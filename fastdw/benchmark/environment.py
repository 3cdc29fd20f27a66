"""What a measurement was taken on: processor, caches, threads, versions, commit."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import fastdw

CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe() -> dict[str, Any]:
    """The environment block of doctor, bench and verify; what cannot be told is None."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "caches": caches(),
        "memory_gib": memory_gib(),
        "system": " ".join((platform.system(), *platform.libc_ver())),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fastdw": fastdw.__version__,
        "commit": commit(),
    }


def device_slug() -> str:
    """The processor's name as a folder name: letters, digits and dashes, with the cores."""
    words = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b", " ", cpu_name().lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-") + f"-{usable_cores()}-cores"


def cpu_name() -> str:
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    model = _cpuinfo("model")
    # Virtual machines often hide the product name; family and model still tell the generation.
    hidden = not re.search(r"\d", name)
    return f"{name} family {_cpuinfo('cpu family')} model {model}" if hidden and model else name


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_cores(threads: int) -> None:
    """Bind this process to as many of its cores as it has threads, and torch to so many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def caches() -> dict[str, str]:
    """Level and kind of each cache of the first core, with its size: {"L2 unified": "1024K"}."""
    found = {}
    for folder in sorted(CPU_CACHES.glob("index*")):
        level, kind, size = (
            (folder / name).read_text().strip() for name in ("level", "type", "size")
        )
        found[f"L{level} {kind.lower()}"] = size
    return found


def data_cache_bytes() -> dict[str, int]:
    """{"L1": 49152, ...}: the caches of the first core that hold data; empty if none is told."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = {}
    for name, size in caches().items():
        level, kind = name.split(" ", 1)
        if kind in ("data", "unified"):
            sizes[level] = int(size.rstrip("KMG")) * units.get(size[-1], 1)
    return sizes


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def commit() -> str | None:
    """The checkout's commit, with "+changes" when files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if head and changes else head


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpuinfo(field: str) -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    match = re.search(rf"^{re.escape(field)}\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else None
