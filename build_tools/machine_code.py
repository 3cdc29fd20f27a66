"""Compiles the CUDA kernels to machine code without a GPU and reads what the compiler made.

A source becomes PTX once and a cubin per target, kept under a folder until the source, a header or
a flag changes. Registers, stack and spills are what ptxas reports; instructions are counted in
what nvdisasm lists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cuda_toolkit
from cuda_toolkit import NVCC_FLAGS, Toolkit, ToolkitError, virtual_target

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda_machine_code"
WHEEL_FOLDER = ROOT / "build" / "cuda_tools"

INSTRUCTIONS = {
    "LDG.128": r"\bLDG\.E\S*\.128",  # global loads of 16 bytes
    "STG.128": r"\bSTG\.E\S*\.128",
    "LDS.8": r"\bLDS\.[US]8",  # shared loads of single bytes: words that lost their alignment
    "ACQBULK": r"\bACQBULK",  # waits for the launch in front
    "LDGSTS": r"\bLDGSTS",  # cp.async
    "LDSM": r"\bLDSM",  # ldmatrix
    "HMMA": r"\bHMMA",  # tensor cores
    "FFMA": r"\bFFMA",
    "LDL": r"\bLDL",  # local memory: spills and stack
    "STL": r"\bSTL",
}


@dataclass(frozen=True)
class Kernel:
    """One kernel in the machine code of one target."""

    source: str  # depthwise_conv
    name: str  # without namespaces and arguments
    symbol: str  # mangled
    target: str  # 8.0
    registers: int
    stack_bytes: int
    spill_bytes: int
    most_threads: int  # of __launch_bounds__
    least_blocks: int
    instructions: dict[str, int]


def find_tools() -> tuple[Toolkit, str]:
    """A toolkit and an nvdisasm: the machine's own, else NVIDIA's wheels, installed under build/.

    Raises:
        ToolkitError: neither can be had; the message says why.
    """
    nvcc = cuda_toolkit.find_nvcc() or cuda_toolkit.install_wheels(WHEEL_FOLDER)
    toolkit = cuda_toolkit.read_toolkit(nvcc)
    folder = Path(shutil.which(nvcc) or nvcc).resolve().parent
    nvdisasm = shutil.which("nvdisasm", path=str(folder)) or shutil.which("nvdisasm")
    return toolkit, nvdisasm or _tritons_nvdisasm() or _wheels_nvdisasm()


def _tritons_nvdisasm() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return shutil.which("nvdisasm", path=str(folder))


def _wheels_nvdisasm() -> str:
    folder = Path(cuda_toolkit.install_wheels(WHEEL_FOLDER)).parent
    return str(folder / "nvdisasm")


def ptxas_of(toolkit: Toolkit) -> str:
    """The ptxas that belongs to this nvcc, which may be a script that calls the real one."""
    settings = subprocess.run(
        [toolkit.nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null", "-o", "/dev/null"],
        capture_output=True,
        text=True,
    ).stderr
    here = re.search(r"^#\$ _HERE_=(.*)$", settings, re.MULTILINE)
    found = shutil.which("ptxas", path=here.group(1).strip()) if here else None
    if found is None:
        raise ToolkitError(f"no ptxas beside {toolkit.nvcc}")
    return found


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """One process at a time compiles a source."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kernels_of(
    toolkit: Toolkit, nvdisasm: str, source: Path, target: str, folder: Path = BUILD
) -> list[Kernel]:
    """Every kernel of a source in the machine code of a target; compiled only after changes."""
    with _alone(folder, source.stem):
        ptx = _compile_ptx(toolkit, source, virtual_target(target), folder)
        digest = hashlib.sha256(ptx.read_bytes() + b"".join(map(str.encode, INSTRUCTIONS)))
        cubin = folder / f"{source.stem}.sm_{target.replace('.', '')}.cubin"
        table = cubin.with_suffix(".json")
        if table.exists():
            known = json.loads(table.read_text())
            if known["digest"] == digest.hexdigest():
                return [Kernel(**row) for row in known["kernels"]]
        kernels = _compile_cubin(toolkit, nvdisasm, ptx, cubin, target)
        rows = [dataclasses.asdict(kernel) for kernel in kernels]
        table.write_text(json.dumps({"digest": digest.hexdigest(), "kernels": rows}, indent=1))
        return kernels


def _compile_ptx(toolkit: Toolkit, source: Path, virtual: str, folder: Path) -> Path:
    ptx = folder / f"{source.stem}.{virtual}.ptx"
    dependencies, stamp_file = ptx.with_suffix(".d"), ptx.with_suffix(".stamp")
    command = [toolkit.nvcc, *NVCC_FLAGS, f"-arch={virtual}", f"-I{ROOT}", "-ptx"]
    command += [str(source), "-o", str(ptx), "-MMD", "-MF", str(dependencies)]
    if ptx.exists() and stamp_file.exists() and dependencies.exists():
        if stamp_file.read_text() == _stamp(toolkit, command, dependencies):
            return ptx
    _run(command)
    stamp_file.write_text(_stamp(toolkit, command, dependencies))
    return ptx


def _stamp(toolkit: Toolkit, command: list[str], dependencies: Path) -> str:
    digest = hashlib.sha256(f"{toolkit.version} {shlex.join(command)}".encode())
    files = dependencies.read_text().replace("\\\n", " ").split(" : ", 1)[1].split()
    for name in sorted(set(files)):
        path = Path(name)
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


_ENTRY = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def _compile_cubin(
    toolkit: Toolkit, nvdisasm: str, ptx: Path, cubin: Path, target: str
) -> list[Kernel]:
    number = target.replace(".", "")
    command = [ptxas_of(toolkit), "-O3", "-v", "-lineinfo", f"-arch=sm_{number}", str(ptx)]
    report = _run([*command, "-o", str(cubin)])
    counts = count_instructions(nvdisasm, cubin)
    bounds = launch_bounds(ptx)
    entries = [entry.groupdict() for entry in _ENTRY.finditer(report)]
    names = demangle([entry["symbol"] for entry in entries])
    return [
        Kernel(
            source=ptx.name.partition(".")[0],
            name=short_name(name),
            symbol=entry["symbol"],
            target=target,
            registers=int(entry["registers"]),
            stack_bytes=int(entry["stack"]),
            spill_bytes=int(entry["stores"]) + int(entry["loads"]),
            most_threads=bounds[entry["symbol"]][0],
            least_blocks=bounds[entry["symbol"]][1],
            instructions=counts[entry["symbol"]],
        )
        for entry, name in zip(entries, names, strict=True)
    ]


def launch_bounds(ptx: Path) -> dict[str, tuple[int, int]]:
    """Of every kernel, its __launch_bounds__: threads a block, blocks a multiprocessor; or 0."""
    bounds = {}
    for entry in re.split(r"^\.visible \.entry |^\.entry ", ptx.read_text(), flags=re.MULTILINE)[
        1:
    ]:
        head = entry.partition("{")[0]
        threads = re.search(r"\.maxntid (\d+)", head)
        blocks = re.search(r"\.minnctapersm (\d+)", head)
        symbol = re.match(r"\w+", entry)
        assert symbol is not None
        bounds[symbol.group()] = (
            int(threads.group(1)) if threads else 0,
            int(blocks.group(1)) if blocks else 0,
        )
    return bounds


def count_instructions(nvdisasm: str, cubin: Path) -> dict[str, dict[str, int]]:
    """Of every kernel of a cubin, how often each of INSTRUCTIONS stands in its code."""
    counts: dict[str, dict[str, int]] = {}
    patterns = {name: re.compile(pattern) for name, pattern in INSTRUCTIONS.items()}
    for section in re.split(
        r"^\s*\.section\s+\.text\.", _listing(nvdisasm, cubin), flags=re.MULTILINE
    )[1:]:
        symbol = re.match(r"\w+", section)
        assert symbol is not None
        counts[symbol.group()] = {
            name: len(pattern.findall(section)) for name, pattern in patterns.items()
        }
    return counts


def _listing(nvdisasm: str, cubin: Path) -> str:
    return _run([nvdisasm, "-c", str(cubin)])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def demangle(symbols: list[str]) -> list[str]:
    """The C++ names of mangled symbols, by c++filt."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def short_name(name: str) -> str:
    """``void fastdw::cuda::(anonymous namespace)::f<float, 2>(P)`` as ``f<float, 2>``."""
    name = re.sub(r"\(anonymous namespace\)::|fastdw::|cuda::|^void ", "", name)
    return re.sub(r"\([^()]*\)$", "", name)
