"""Builds the CUDA code for the host, against the headers and the executor in this folder.

Two shared libraries: the ops, as torch.ops.fastdw_cuda_on_host on CPU tensors, and the planted bugs
that test the executor. CXX, CXXFLAGS and LDFLAGS are honoured; MAX_JOBS limits the compilers that
run at once; FASTDW_SANITIZE=1 makes the instrumented libraries that sanitize.sh tests.
`python tests/cuda_on_host/build.py` builds both and prints where.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent.relative_to(ROOT)
BUILD = ROOT / "build" / "cuda_on_host"

# Calls are left where the source has them: requests of a warp are told apart by their addresses.
FLAGS = (
    "-std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -fno-crossjumping "
    "-fno-thread-jumps -freorder-blocks-algorithm=simple -g1 -Wall -Wextra -Wno-unknown-pragmas "
    "-Wno-uninitialized -Wno-maybe-uninitialized"
).split()
FAST = ["-O2"]
SANITIZE = (
    "-O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
).split()
INCLUDES = [f"-I{HERE}/include", "-I.", "-include", f"{HERE}/include/cuda_keywords.h"]


Job = tuple[Path, list[str]]  # a source, its own flags


def compiler() -> list[str]:
    """The C++ compiler as a command, CXX first."""
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise SystemExit("no C++ compiler found: sudo apt-get install g++ (or name one in CXX)")


def run(command: list[str]) -> None:
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the build failed at: {shlex.join(command)}\n{done.stdout}")
    if done.stdout:
        print(done.stdout, file=sys.stderr, flush=True)


def is_current(target: Path, stamp: str) -> bool:
    """Whether the object was made by this command and is newer than every file it was made from."""
    stamp_file, dependencies = target.with_suffix(".cmd"), target.with_suffix(".d")
    if not all(file.exists() for file in (target, stamp_file, dependencies)):
        return False
    if stamp_file.read_text() != stamp:
        return False
    files = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    made = target.stat().st_mtime_ns
    paths = [ROOT / name for name in files]
    return all(path.exists() and path.stat().st_mtime_ns <= made for path in paths)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keep other processes from making the same file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Build:
    """One way of compiling, with a folder of its own."""

    def __init__(self) -> None:
        sanitize = os.environ.get("FASTDW_SANITIZE") == "1"
        self.folder = BUILD / ("sanitized" if sanitize else "plain")
        self.flags = [*FLAGS, *(SANITIZE if sanitize else FAST)]
        self.link_flags = SANITIZE if sanitize else []
        # The objects stay on this machine: its own instruction set.
        native = [*compiler(), "-march=native", "-E", "-x", "c++", os.devnull]
        if subprocess.run(native, capture_output=True).returncode == 0:
            self.flags.append("-march=native")

    def compile(self, source: Path, flags: list[str]) -> Path:
        target = self.folder / "objects" / source.with_suffix(source.suffix + ".o")
        command = [*compiler(), *self.flags, *INCLUDES, *flags]
        command += shlex.split(os.getenv("CXXFLAGS", ""))
        command += ["-MMD", "-MF", str(target.with_suffix(".d")), "-x", "c++", "-c", str(source)]
        command += ["-o", str(target)]
        with locked(target):
            if not is_current(target, shlex.join(command)):
                print(f"cuda on host: compiling {source}", file=sys.stderr, flush=True)
                run(command)
                target.with_suffix(".cmd").write_text(shlex.join(command))
        return target

    def shared_library(self, name: str, jobs: list[Job], link: list[str]) -> Path:
        """Compile what has changed of (source, flags) and link it, then return where it is."""
        target = self.folder / name
        with ThreadPoolExecutor(int(os.getenv("MAX_JOBS", os.cpu_count() or 1))) as pool:
            objects = list(pool.map(lambda job: self.compile(*job), jobs))
        with locked(target):
            command = [*compiler(), "-shared", *map(str, objects), *self.link_flags]
            command += ["-Wl,-z,defs", "-Wl,--as-needed", *link, "-ldl", "-pthread"]
            command += shlex.split(os.getenv("LDFLAGS", ""))
            stamp = target.with_suffix(".cmd")
            made = target.stat().st_mtime_ns if target.exists() else 0
            changed = any(file.stat().st_mtime_ns > made for file in objects)
            if changed or not stamp.exists() or stamp.read_text() != shlex.join(command):
                # Renamed when complete: a process that has the old library open keeps it.
                unfinished = target.with_suffix(".so.new")
                run([*command, "-o", str(unfinished)])
                os.replace(unfinished, target)
                stamp.write_text(shlex.join(command))
        return target


def sources(pattern: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in ROOT.glob(pattern))


def executor_jobs() -> list[Job]:
    return [(path, []) for path in sources(f"{HERE}/executor/*.cpp")]


def ops_library() -> Path:
    """The library of torch.ops.fastdw_cuda_on_host, built where it is not up to date."""
    import torch

    home = Path(torch.__file__).parent
    torch_flags = [
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-DFASTDW_CUDA_NAMESPACE=fastdw_cuda_on_host",
        "-DFASTDW_CUDA_KEY=CPU",
        "-isystem",
        str(home / "include"),
    ]
    torch_sources = [
        *sources("csrc/cuda/*.cpp"),
        Path("csrc/aten_fallback.cpp"),
        Path("csrc/network_program.cpp"),
        HERE / "schemas.cpp",
    ]
    jobs = executor_jobs()
    jobs += [(path, []) for path in sources("kernels/cuda/*.cu")]
    jobs += [(path, torch_flags) for path in torch_sources]
    link = [f"-L{home / 'lib'}", "-ltorch_cpu"]
    return Build().shared_library("fastdw_cuda_on_host.so", jobs, link)


def planted_bugs_library() -> Path:
    """The library of kernels that test the executor, built where it is not up to date."""
    jobs = [*executor_jobs(), *((path, []) for path in sources(f"{HERE}/*.cu"))]
    return Build().shared_library("planted_bugs.so", jobs, [])


if __name__ == "__main__":
    print(planted_bugs_library())
    print(ops_library())
