"""The machine code of the CUDA kernels, compiled without a GPU for the oldest target and for H100:
no stack, no spills, the threads that were promised, and the instructions that were meant.

Compiled by the machine's nvcc, else by NVIDIA's wheels; skipped where neither can be had.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_tools"))

import cuda_toolkit  # noqa: E402
import machine_code  # noqa: E402
from machine_code import Kernel  # noqa: E402

pytestmark = pytest.mark.slow

Tools = tuple[cuda_toolkit.Toolkit, str]

SOURCES = cuda_toolkit.kernel_sources(ROOT)
TARGETS = ("8.0", "9.0")
REGISTERS = 65536  # of a multiprocessor

# source, kernels, what must be in their machine code, what must not
INSTRUCTIONS = [
    ("pointwise_conv", r"^pointwise_conv<.*\b(Tf32|__half|__nv_bfloat16)\b", "HMMA LDSM", ""),
    ("pointwise_conv", r"^pointwise_conv<.*\btrue> ?>?$", "LDGSTS STG.128", ""),
    ("pointwise_conv", r"^pointwise_conv<.*float, Exact", "FFMA", "HMMA"),
    ("inverted_residual_fp16", r"^inverted_residual<", "HMMA LDSM LDGSTS LDG.128", ""),
    ("inverted_residual_bf16", r"^inverted_residual<", "HMMA LDSM LDGSTS LDG.128", ""),
    ("inverted_residual_tf32", r"^inverted_residual<", "HMMA LDSM LDGSTS LDG.128", ""),
    ("inverted_residual_fp32", r"^inverted_residual<", "FFMA LDGSTS LDG.128", "HMMA"),
    ("depthwise_conv", r"<float, 4\b|<(__half|__nv_bfloat16), 8\b", "LDG.128", ""),
    ("depthwise_conv_tile", "", "LDGSTS", ""),
    ("classifier_head", r"^(linear<\w+, \w+, [48],|global_pool<.*, [48]>)", "LDG.128", ""),
    ("stem_conv", r"stem_kernel<", "FFMA", ""),
    ("stem_conv", r"stem_mma_kernel<", "HMMA LDSM LDGSTS", ""),
]


@pytest.fixture(scope="session")
def tools() -> Tools:
    try:
        return machine_code.find_tools()
    except cuda_toolkit.ToolkitError as reason:
        pytest.skip(f"no CUDA compiler: {reason}")


@pytest.fixture(params=SOURCES, ids=[source.stem for source in SOURCES])
def source(request: pytest.FixtureRequest) -> Path:
    return request.param


def compiled(tools: Tools, source: Path) -> list[Kernel]:
    return [
        kernel for target in TARGETS for kernel in machine_code.kernels_of(*tools, source, target)
    ]


def text_of(kernel: Kernel) -> str:
    return f"sm_{kernel.target} {kernel.name}"


def test_no_kernel_uses_a_stack_or_spills(tools: Tools, source: Path) -> None:
    kernels = compiled(tools, source)
    assert [text_of(k) for k in kernels if k.stack_bytes or k.spill_bytes] == []
    local = [k for k in kernels if k.instructions["LDL"] or k.instructions["STL"]]
    assert [text_of(k) for k in local] == []


def test_shared_memory_is_read_by_words(tools: Tools, source: Path) -> None:
    """Loads of single bytes once made the block kernel issue 14 % more instructions."""
    kernels = compiled(tools, source)
    assert [text_of(k) for k in kernels if k.instructions["LDS.8"]] == []


def test_kernels_that_may_begin_early_wait(tools: Tools, source: Path) -> None:
    """From 9.0 on: see wait_for_previous_launch() of kernels/cuda/ptx.cuh."""
    for kernel in compiled(tools, source):
        waits = kernel.instructions["ACQBULK"] > 0
        assert waits == (kernel.target == "9.0"), text_of(kernel)


def test_every_kernel_states_its_threads_and_they_fit(tools: Tools, source: Path) -> None:
    for kernel in compiled(tools, source):
        assert kernel.most_threads > 0, f"{text_of(kernel)}: no __launch_bounds__"
        warp_registers = -(-kernel.registers * 32 // 256) * 256
        warps = kernel.most_threads // 32 * max(kernel.least_blocks, 1)
        assert warps * warp_registers <= REGISTERS, text_of(kernel)


@pytest.mark.parametrize("name,pattern,wanted,forbidden", INSTRUCTIONS)
def test_instructions_are_those_that_were_meant(
    tools: Tools, name: str, pattern: str, wanted: str, forbidden: str
) -> None:
    kernels = compiled(tools, ROOT / "kernels" / "cuda" / f"{name}.cu")
    chosen = [kernel for kernel in kernels if re.search(pattern, kernel.name)]
    assert chosen
    for kernel in chosen:
        missing = [word for word in wanted.split() if not kernel.instructions[word]]
        present = [word for word in forbidden.split() if kernel.instructions.get(word)]
        assert (missing, present) == ([], []), text_of(kernel)


BAD_KERNEL = """
__global__ void stacked(const int* at, float* y) {
  float values[64] = {};
  for (int i = 0; i < 64; ++i) values[at[i]] += y[i];
  for (int i = 0; i < 64; ++i) y[i] = values[at[64 + i]];
}
__global__ void __launch_bounds__(1024, 2) spilling(const float* x, float* y) {
  float values[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) values[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) y[i * 1024 + threadIdx.x] = values[i] * values[95 - i];
}
"""


def test_a_stack_and_spills_are_seen(tools: Tools, tmp_path: Path) -> None:
    source = tmp_path / "bad.cu"
    source.write_text(BAD_KERNEL)
    stacked, spilling = sorted(
        machine_code.kernels_of(*tools, source, "8.0", tmp_path),
        key=lambda k: k.name[:2],
        reverse=True,
    )
    assert stacked.name == "stacked" and stacked.stack_bytes >= 256 and stacked.most_threads == 0
    assert spilling.spill_bytes > 0 and spilling.instructions["STL"] > 0
    assert (spilling.most_threads, spilling.least_blocks) == (1024, 2)


def test_machine_code_is_kept_until_a_file_changes(tools: Tools, tmp_path: Path) -> None:
    source, header = tmp_path / "kernel.cu", tmp_path / "factor.h"
    source.write_text('#include "factor.h"\n__global__ void f(float* y) { y[0] *= FACTOR; }\n')
    header.write_text("#define FACTOR 3.f\n")
    first = machine_code.kernels_of(*tools, source, "8.0", tmp_path)
    ptx = tmp_path / "kernel.compute_80.ptx"
    made = ptx.stat().st_mtime_ns
    assert machine_code.kernels_of(*tools, source, "8.0", tmp_path) == first
    assert ptx.stat().st_mtime_ns == made
    header.write_text("#define FACTOR y[1] * y[2] * y[3] * y[4]\n")
    second = machine_code.kernels_of(*tools, source, "8.0", tmp_path)
    assert ptx.stat().st_mtime_ns != made and second[0].registers > first[0].registers
