"""Compiles launches of the Triton kernels to machine code without a GPU and reads what came out.

A result is kept under a folder until a kernel source, Triton's version or the launch changes. Not
for a process with TRITON_INTERPRET set: there the kernels are no longer Triton's to compile.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "triton_machine_code"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

SHARED_KIB = {
    "sm_80": 163,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_120": 99,
    "gfx942": 64,
}
"""The targets, and the shared memory that a thread block can have there (CUDA C++ Programming
Guide, table of technical specifications; AMD CDNA 3 instruction set: 64 KiB of LDS)."""

TYPE_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
CUDA_INSTRUCTIONS = {
    "LDG.128": r"\bLDG\.E\S*\.128",  # global loads of 16 bytes
    "LDGSTS": r"\bLDGSTS",  # cp.async
    "LDSM": r"\bLDSM",  # ldmatrix
    "tensor cores": r"\b(?:HMMA|HGMMA|UTCHMMA|UTCQMMA)",
    "FFMA": r"\bFFMA",
    "LDL": r"\bLDL",  # local memory: spills and stack
    "STL": r"\bSTL",
}
HIP_INSTRUCTIONS = {
    "LDG.128": r"\b(?:global|buffer)_load_dwordx4",
    "tensor cores": r"\bv_mfma",
    "FFMA": r"\bv_(?:pk_)?fmac?_f32",
    "LDL": r"\bscratch_load",
    "STL": r"\bscratch_store",
}


@dataclass(frozen=True)
class Compiled:
    """One kernel in the machine code of one target."""

    kernel: str
    target: str
    types: str  # of the pointers: fp16*fp16*fp32
    sizes: dict[str, Any]  # constexprs
    num_warps: int
    num_stages: int
    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    instructions: dict[str, int]
    compile_s: float

    @property
    def fits(self) -> bool:
        return self.shared_bytes <= SHARED_KIB[self.target] * 1024


def compile_launch(launch: Any, target: str, folder: Path = BUILD) -> Compiled:
    """Compile a ``KernelLaunch`` for a target of ``SHARED_KIB``; from the folder if it is there."""
    source, types, sizes = _source(launch)
    settings = (launch.num_warps, launch.num_stages)
    # The hash covers the kernel, what it calls, its types and its constexprs.
    key = [_own_digest(), triton.__version__, source.name, source.hash(), target, settings]
    kept = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.json"
    if kept.exists():
        return Compiled(**json.loads(kept.read_text()))
    compiled = Compiled(
        kernel=source.name,
        target=target,
        types=types,
        sizes=sizes,
        num_warps=settings[0],
        num_stages=settings[1],
        **_compile(source, target, *settings),
    )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(f".{time.monotonic_ns()}")
    unfinished.write_text(json.dumps(dataclasses.asdict(compiled)))
    unfinished.replace(kept)
    return compiled


def identity(launch: Any) -> str:
    """Equal for launches that run the same machine code on a target."""
    source, *_ = _source(launch)
    parts = (source.name, source.signature, source.constants, source.attrs)
    return repr((*parts, launch.num_warps, launch.num_stages))


def _source(launch: Any) -> tuple[ASTSource, str, dict[str, Any]]:
    """What the JIT would compile: it folds None and 1, and knows multiples of 16."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    sizes: dict[str, Any] = {}
    attributes = {}
    types = []
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        name = parameter.name
        if parameter.is_constexpr:
            sizes[name] = value
        is_one = type(value) is int and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or is_one:
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _type_of(value)
        if signature[name].startswith("*"):
            types.append(signature[name][1:])
        if _is_aligned(value) and not parameter.do_not_specialize_on_alignment:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return source, " ".join(types), sizes


def _is_aligned(value: Any) -> bool:
    return not isinstance(value, (int, float)) or (isinstance(value, int) and value % 16 == 0)


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    return "*" + TYPE_NAMES[str(value.dtype).removeprefix("torch.")]


@functools.cache
def _own_digest() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def gpu_target(name: str) -> GPUTarget:
    """``sm_90`` or ``gfx942`` as Triton names it."""
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64)


def _compile(source: ASTSource, target: str, num_warps: int, num_stages: int) -> dict[str, Any]:
    options = {"num_warps": num_warps, "num_stages": num_stages}
    begin = time.perf_counter()
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.always_compile = True
        kernel = triton.compile(source, target=gpu_target(target), options=options)
    seconds = round(time.perf_counter() - begin, 2)
    read = _read_cubin if target.startswith("sm_") else _read_amdgcn
    found = read(kernel.asm["cubin" if target.startswith("sm_") else "amdgcn"])
    return {**found, "shared_bytes": kernel.metadata.shared, "compile_s": seconds}


def _read_cubin(cubin: bytes) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output(TOOLS / "cuobjdump", "-res-usage", file.name)
        listing = _output(TOOLS / "nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {usage[:400]}")
    registers, stack, local = map(int, found.groups())
    counts = count(CUDA_INSTRUCTIONS, listing)
    return {
        "registers": registers,
        "stack_bytes": stack + local,
        "spills": counts["LDL"] + counts["STL"],
        "instructions": counts,
    }


def _read_amdgcn(assembly: str) -> dict[str, Any]:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found.group(1)) if found else 0

    return {
        "registers": number("vgpr_count"),
        "stack_bytes": number("private_segment_fixed_size"),
        "spills": number("vgpr_spill_count") + number("sgpr_spill_count"),
        "instructions": count(HIP_INSTRUCTIONS, assembly),
    }


def count(patterns: Mapping[str, str], listing: str) -> dict[str, int]:
    """How often each instruction stands in a listing."""
    return {name: len(re.findall(pattern, listing)) for name, pattern in patterns.items()}


def _output(*command: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout
