"""The Triton kernels in machine code for A100 and H100, compiled without a GPU: no stack, no
spills, within the shared memory, on tensor cores.

One layer per op, dtype and target; `make gpu-report` compiles every variant for every target.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdw.benchmark import triton_launches
from fastdw.benchmark.gpu.settings import DTYPES, products_in
from fastdw.benchmark.network_cases import network_cases
from fastdw.ops import triton_backend
from fastdw.ops.registration import OPS
from fastdw.triton_kernels.launch import KernelLaunch, Target

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_tools"))

if triton_backend.missing() is not None:
    pytest.skip(str(triton_backend.missing()), allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
import triton_machine_code as machine_code  # noqa: E402

pytestmark = pytest.mark.slow

TARGETS = (Target("sm_80", 108), Target("sm_90", 132))
WITH_PRODUCTS = ("pointwise_conv", "separable_block", "inverted_residual", "stem_conv")


@pytest.fixture(params=DTYPES)
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    with products_in(request.param):
        yield request.param


def layer_launches(op: str, dtype: torch.dtype, target: Target) -> list[KernelLaunch]:
    """Of the layer in the middle of the op's layers at batch 32, and its gradients."""
    cases = network_cases(op, 32)
    case = cases[len(cases) // 2]
    launches = triton_launches.launches(case, dtype, target)
    if op == "depthwise_conv":
        for planned in triton_launches.gradient_launches(case, dtype, target).values():
            launches += planned
    return launches


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize("op", OPS)
def test_machine_code(op: str, target: Target, precision: str) -> None:
    on_tensor_cores = 0
    for launch in layer_launches(op, DTYPES[precision], target):
        compiled = machine_code.compile_launch(launch, target.arch)
        assert (compiled.stack_bytes, compiled.spills) == (0, 0), compiled
        assert compiled.fits, compiled
        on_tensor_cores += compiled.instructions["tensor cores"]
    assert bool(on_tensor_cores) == (op in WITH_PRODUCTS and precision != "fp32")


@triton.jit
def stacked_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    shared = tl.dot(x[:, None] * x[None, :], x[None, :] + x[:, None])
    y = tl.dot(shared, shared * x[None, :]) + shared
    tl.store(y_ptr + at[:, None] * BLOCK + at[None, :], y + tl.trans(shared))


def compiled_product(size: int, folder: Path) -> Any:
    x = torch.empty(size, device="meta")
    arguments = {"x_ptr": x, "y_ptr": x, "BLOCK": size}
    launch = KernelLaunch(stacked_kernel, (1,), arguments, num_warps=4, num_stages=1)
    return machine_code.compile_launch(launch, "sm_80", folder)


def test_spills_are_seen(tmp_path: Path) -> None:
    small, large = (compiled_product(size, tmp_path) for size in (16, 128))
    assert small.spills == 0 and small.registers < 255
    assert large.spills > 0 and large.stack_bytes > 0


def test_machine_code_is_kept(tmp_path: Path) -> None:
    first = compiled_product(16, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert compiled_product(16, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
