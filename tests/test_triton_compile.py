"""The Triton kernels in machine code for A100 and H100, compiled without a GPU: no stack, no
spills, within the shared memory, on tensor cores.

One layer per op, dtype and target, and what other kernels there are; `make gpu-report` compiles
every tile for six targets.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import replace
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
sys.path[:0] = [str(ROOT / "build_tools"), str(ROOT / "bench")]

if triton_backend.missing() is not None:
    pytest.skip(str(triton_backend.missing()), allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
import triton_machine_code as machine_code  # noqa: E402
import triton_resources  # noqa: E402

from fastdw.triton_kernels import block_plan, tiles  # noqa: E402

pytestmark = pytest.mark.slow

TARGETS = (Target("sm_80", 108), Target("sm_90", 132))
WITH_PRODUCTS = ("pointwise_conv", "separable_block", "inverted_residual", "stem_conv")


ELSEWHERE = (  # kernels that those layers at batch 32 do not run
    "finish_partial_sums_kernel",
    "_depthwise_conv_by_taps",
    "_input_grad_by_taps",
    "_weight_grad_by_taps",
    "_linear_of_image",
    "_add_sums",
)


@pytest.fixture(autouse=True)
def fused_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks in one kernel; apart, they run the kernels of the other ops."""
    monkeypatch.setenv(block_plan.VARIABLE, "fused")


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


@functools.cache
def first_launches(precision: str, target: Target) -> dict[str, KernelLaunch]:
    """Of every kernel, in the networks and beyond."""
    found: dict[str, KernelLaunch] = {}
    with products_in(precision):
        for launch in triton_launches.network_launches(DTYPES[precision], target):
            found.setdefault(launch.launch.kernel.__name__, launch.launch)
    return found


def compile_within_limits(launch: KernelLaunch, target: Target) -> machine_code.Compiled:
    compiled = machine_code.compile_launch(launch, target.arch)
    assert (compiled.stack_bytes, compiled.spills) == (0, 0), compiled
    assert compiled.fits, compiled
    return compiled


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize("op", OPS)
def test_machine_code(op: str, target: Target, precision: str) -> None:
    on_tensor_cores = 0
    for launch in layer_launches(op, DTYPES[precision], target):
        on_tensor_cores += compile_within_limits(launch, target).instructions["tensor cores"]
    assert bool(on_tensor_cores) == (op in WITH_PRODUCTS and precision != "fp32")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.arch)
@pytest.mark.parametrize("kernel", ELSEWHERE)
def test_machine_code_of_other_kernels(kernel: str, target: Target, precision: str) -> None:
    compile_within_limits(first_launches(precision, target)[kernel], target)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.arch)
def test_machine_code_of_sums(target: Target, precision: str) -> None:
    for launch in triton_launches.pooled_launches(DTYPES[precision], target):
        compile_within_limits(launch.launch, target)


def test_no_kernel_is_left_out() -> None:
    of_layers = {
        launch.kernel.__name__
        for op in OPS
        for launch in layer_launches(op, torch.float16, TARGETS[0])
    }
    assert of_layers | {*ELSEWHERE} == set(first_launches("fp16", TARGETS[0]))
    launched = (ROOT / "kernels" / "triton").glob("*.py")
    sources = [path.read_text() for path in launched]
    marked = sum(source.count("do_not_specialize_on_alignment=COUNTS)") for source in sources)
    assert len(first_launches("fp16", TARGETS[0])) == marked + 1  # the stem's has one variant


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_report_compiles_every_tile(target: str) -> None:
    reported = {
        row
        for _, _, launch in triton_resources.jobs([target], [1, 32], every_layer=False)
        for row in launch.rows
    }
    assert reported == {(op, name) for op, rows in tiles.TABLE.items() for name in rows}


def test_sizes_that_divide_by_16_are_not_compiled_apart() -> None:
    """Unless they are 1, or what rows are aligned to."""
    launch = first_launches("fp16", TARGETS[0])["_depthwise_conv"]

    def code(**sizes: int) -> str:
        return machine_code.identity(replace(launch, arguments={**launch.arguments, **sizes}))

    assert code(height=112) == code(height=113) == code(height=14, channel_vectors=16)
    assert code(height=112) != code(height=1)
    assert code(VECTOR=8) != code(VECTOR=4)


def test_too_much_shared_memory_is_seen() -> None:
    compiled = machine_code.compile_launch(
        first_launches("fp16", TARGETS[0])["_stem_conv"], "sm_80"
    )
    assert compiled.fits
    assert not replace(compiled, shared_bytes=163 * 1024 + 1).fits
    assert not replace(compiled, shared_bytes=100 * 1024, target="sm_89").fits


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
