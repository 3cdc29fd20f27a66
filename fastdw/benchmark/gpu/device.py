"""The device under test: what it is, whether it still answers, its memory and its L2."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastdw import native
from fastdw.benchmark import environment

ASSUMED_L2_BYTES = 64 * 2**20  # where nothing tells


class Device:
    """The processor itself; `CudaDevice` is the other one."""

    kind = "cpu"
    # How a call can be timed: see `launches`.
    latency_ways: tuple[str, ...] = ("call",)
    throughput_ways: tuple[str, ...] = ("call",)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.kind)

    def name(self) -> str:
        return environment.cpu_name()

    def slug(self) -> str:
        """Its name as a folder name."""
        return environment.device_slug()

    def isa(self) -> str:
        try:
            native.load()
            return native.active_isa()
        except (ImportError, RuntimeError):
            return "none"

    def synchronize(self) -> None:
        """Wait until all work is done; raises what asynchronous work raised."""

    def is_lost(self) -> bool:
        """Whether an error has made this process unable to use the device."""
        return False

    def cache_bytes(self) -> int:
        """Of the last cache before memory."""
        return max(environment.data_cache_bytes().values(), default=ASSUMED_L2_BYTES)

    def free_bytes(self) -> int:
        return int((environment.memory_gib() or 1.0) * 2**30) // 4

    def release_memory(self) -> None:
        """Give cached memory back."""

    def describe(self) -> dict[str, Any]:
        return {"last_level_cache_bytes": self.cache_bytes()}


class CudaDevice(Device):
    kind = "cuda"
    latency_ways = ("graph", "flushed", "queue", "call")
    throughput_ways = ("graph", "queue")

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError(f"no GPU that torch {torch.__version__} can use")
        torch.cuda.init()
        torch.backends.cudnn.benchmark = True

    def name(self) -> str:
        return torch.cuda.get_device_name()

    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name().lower()).strip("-")

    def isa(self) -> str:
        return "sm_{}{}".format(*torch.cuda.get_device_capability())

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def is_lost(self) -> bool:
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device="cuda").item()
        except RuntimeError as error:
            return "out of memory" not in str(error)
        return False

    def cache_bytes(self) -> int:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return int(getattr(properties, "L2_cache_size", 0)) or ASSUMED_L2_BYTES

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]

    def release_memory(self) -> None:
        torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        public = [name for name in dir(properties) if not name.startswith("_")]
        values = {name: getattr(properties, name) for name in public}
        return {
            "properties": {k: v for k, v in values.items() if isinstance(v, (int, str, float))},
            "devices": torch.cuda.device_count(),
            "last_level_cache_bytes": self.cache_bytes(),
            "free_bytes": self.free_bytes(),
        }


def open_device(kind: str) -> Device:
    return CudaDevice() if kind == "cuda" else Device()


def describe(device: Device) -> dict[str, Any]:
    """The environment block of a run; what cannot be told says why."""
    told: dict[str, Any] = {
        **environment.describe(),
        "device": device.name(),
        "slug": device.slug(),
        "isa": device.isa(),
    }
    more: dict[str, Callable[[], Any]] = {
        "device_details": device.describe,
        "fastdw_libraries": libraries,
        "versions": versions,
        "nvidia_smi": nvidia_smi,
        "nvcc": lambda: _output("nvcc", "--version"),
        "variables": lambda: {
            name: value
            for name, value in os.environ.items()
            if re.match(r"(CUDA|NVIDIA|TORCH|PYTORCH|TRITON|FASTDW|OMP)_", name)
        },
    }
    for name, ask in more.items():
        try:
            told[name] = ask()
        except Exception as error:  # whatever a driver or another version raises
            told[name] = f"not told: {type(error).__name__}: {error}"
    return told


def libraries() -> dict[str, Any]:
    """Which libraries of fastdw are loaded, why not, and the rows of the ops."""
    from fastdw.backends import support_table

    rows = [f"{row['op']} {row['backend']}: {row['devices']}" for row in support_table()]
    return {"loaded": native.loaded, "cuda_reason": cuda_reason(), "rows": rows}


def cuda_reason() -> str | None:
    """None where fastdw's CUDA library is loaded, else why not."""
    ask = getattr(native, "cuda_reason", None)
    return "this version of fastdw has no CUDA library" if ask is None else ask()


def versions() -> dict[str, Any]:
    import importlib.metadata

    told: dict[str, Any] = {
        "cuda_of_torch": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver_supports_cuda": _driver_version(),
        "python": sys.version,
    }
    for package in ("triton", "torchvision", "timm"):
        try:
            told[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            told[package] = None
    return told


def nvidia_smi() -> dict[str, str] | None:
    """Driver, clocks, power and temperature as they are now."""
    fields = (
        "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
        "power.draw,power.limit,temperature.gpu,mig.mode.current,compute_mode"
    )
    text = _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    if text is None:
        return None
    values = [value.strip() for value in text.splitlines()[0].split(",")]
    return dict(zip(fields.split(","), values, strict=False))


def find_tool(name: str) -> str | None:
    """A tool of the CUDA toolkit: on PATH, in CUDA_HOME, or where toolkits are installed."""
    roots = [os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH")]
    compiler = shutil.which("nvcc")
    if compiler:
        roots.append(str(Path(compiler).resolve().parents[1]))
    roots.append("/usr/local/cuda")
    folders = [Path(root) / sub for root in roots if root for sub in ("bin", name)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None


def _driver_version() -> str | None:
    """The newest CUDA that the driver runs: "13.0"."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
