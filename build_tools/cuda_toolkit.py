"""Finds NVIDIA's compiler and says how the CUDA kernels are compiled with it.

Used by setup.py and by what compiles the kernels to look at their machine code. No GPU is needed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DEFAULT_TARGETS = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
"""What machine code is made for unless FASTDW_CUDA_ARCH names others."""

VIRTUAL_TARGETS = ("compute_80", "compute_90")
"""The instructions that the kernels use: those of 8.0, from 9.0 on programmatic dependent launch
as well. A target's machine code comes from the newest PTX that it has all instructions of; newer
GPUs can compile it for themselves."""

NVCC_FLAGS = ("-O3", "-std=c++17", "-lineinfo")

# What makes an nvcc where there is no toolkit: pip install --target, some 280 MB unpacked.
WHEELS = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-nvdisasm==13.5.37",
)


class ToolkitError(Exception):
    """No compiler, or not one that can be used here; the message says what mends it."""


@dataclass(frozen=True)
class Toolkit:
    """An nvcc and what it knows about itself."""

    nvcc: str
    version: tuple[int, int]
    include_flags: tuple[str, ...]
    library_flags: tuple[str, ...]
    targets: tuple[str, ...]  # that it can compile for


def find_nvcc() -> str | None:
    """The nvcc of CUDA_HOME if that is set, else the one in PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)


def toolkit_for(torch_cuda: str | None) -> Toolkit:
    """The toolkit of this machine, if a library built with it fits a torch of this CUDA."""
    if torch_cuda is None:
        raise ToolkitError("this torch comes without CUDA")
    nvcc = find_nvcc()
    if nvcc is None:
        raise ToolkitError("there is no nvcc in PATH (or in CUDA_HOME/bin)")
    toolkit = read_toolkit(nvcc)
    if torch_cuda.split(".")[0] != str(toolkit.version[0]):
        raise ToolkitError(
            f"torch is built with CUDA {torch_cuda}, {nvcc} is of CUDA {toolkit.version[0]}"
        )
    return toolkit


def read_toolkit(nvcc: str) -> Toolkit:
    """Ask nvcc for its version, folders and targets."""
    release = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version"))
    if release is None:
        raise ToolkitError(f"{nvcc} --version names no release")
    settings = _output(nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null", "-o", "/dev/null")
    flags = {}
    for name in ("INCLUDES", "SYSTEM_INCLUDES", "LIBRARIES", "TOP"):
        line = re.search(rf"^#\$ {name}= *(.*)$", settings, re.MULTILINE)
        flags[name] = tuple(shlex.split(line.group(1))) if line else ()
    includes = flags["INCLUDES"] + flags["SYSTEM_INCLUDES"]
    libraries = (*flags["LIBRARIES"], *(f"-L{top}/lib" for top in flags["TOP"]))  # of the wheels
    names = re.findall(r"compute_(\d+)(\d)\b", _output(nvcc, "--list-gpu-arch"))
    targets = tuple(f"{major}.{minor}" for major, minor in names)
    version = (int(release.group(1)), int(release.group(2)))
    return Toolkit(nvcc, version, includes, libraries, targets)


def install_wheels(folder: Path) -> str:
    """Install NVIDIA's compiler into ``folder`` unless it is there, and return its nvcc."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process installs, the others wait for it
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            command += ["--disable-pip-version-check", "--target", str(unfinished), *WHEELS]
            _output(*command)
            unfinished.rename(folder)
    found = [*folder.glob("nvidia/*/bin/nvcc")]
    if not found:
        raise ToolkitError(f"the wheels in {folder} hold no nvcc")
    return str(found[0])


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ToolkitError(f"{shlex.join(command)} failed: {done.stderr.strip()[-500:]}")
    return done.stdout + done.stderr


def choose_targets(toolkit: Toolkit, wanted: str | None) -> list[str]:
    """The targets named in ``wanted`` ("8.0 9.0", also by commas), or those of DEFAULT_TARGETS."""
    if not wanted:
        return [target for target in DEFAULT_TARGETS if target in toolkit.targets]
    chosen = sorted(set(re.split(r"[ ,;]+", wanted.strip())), key=_number)
    unknown = [target for target in chosen if target not in toolkit.targets or _number(target) < 80]
    if unknown:
        known = ", ".join(sorted((t for t in toolkit.targets if _number(t) >= 80), key=_number))
        raise ToolkitError(f"FASTDW_CUDA_ARCH: expected some of {known}, got {', '.join(unknown)}")
    return chosen


def _number(target: str) -> int:
    digits = target.replace(".", "")
    return int(digits) if digits.isdecimal() else 0


def target_flags(targets: Iterable[str]) -> list[str]:
    """nvcc's flags for machine code of every target, and the PTX that others compile."""
    flags = []
    for virtual in VIRTUAL_TARGETS:
        codes = [f"sm_{_number(t)}" for t in targets if virtual_target(t) == virtual]
        if codes:
            flags.append(f"-gencode=arch={virtual},code=[{','.join([*codes, virtual])}]")
    return flags


def virtual_target(target: str) -> str:
    """The PTX that machine code of a target is made from."""
    return VIRTUAL_TARGETS[_number(target) >= 90]


def kernel_sources(root: Path) -> list[Path]:
    return sorted(root.glob("kernels/cuda/*.cu"))
