"""The repair of bf16 in Triton's interpreter: right, and still needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_interpreter import bf16_repair

SIDE = 16


@triton.jit
def _product(a_ptr, b_ptr, sums_ptr, rounded_ptr, SIDE: tl.constexpr):
    row = tl.arange(0, SIDE)[:, None]
    column = tl.arange(0, SIDE)[None, :]
    offset = row * SIDE + column
    sums = tl.dot(tl.load(a_ptr + offset), tl.load(b_ptr + offset))
    tl.store(sums_ptr + offset, sums)
    tl.store(rounded_ptr + offset, sums.to(rounded_ptr.dtype.element_ty))


@triton.jit
def _cast(x_ptr, y_ptr, SIZE: tl.constexpr):
    offset = tl.arange(0, SIZE)
    tl.store(y_ptr + offset, tl.load(x_ptr + offset).to(y_ptr.dtype.element_ty))


def product() -> tuple[Tensor, Tensor, Tensor]:
    """Return (a @ b in fp32 as torch has it, as the interpreter has it, that rounded to bf16)."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=generator).bfloat16() for _ in range(2))
    sums, rounded = torch.empty(SIDE, SIDE), torch.empty(SIDE, SIDE, dtype=torch.bfloat16)
    _product[(1,)](a, b, sums, rounded, SIDE)
    return a.float() @ b.float(), sums, rounded


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in another dtype, by the interpreter; its size is a power of two."""
    y = torch.empty(x.shape, dtype=dtype)
    _cast[(1,)](x, y, x.numel())
    return y


@contextmanager
def without_repair() -> Iterator[None]:
    """Triton's interpreter as it is shipped."""
    bf16_repair.uninstall()
    try:
        yield
    finally:
        bf16_repair.install()


def test_dot_of_bf16() -> None:
    truth, sums, rounded = product()
    torch.testing.assert_close(sums, truth)
    assert torch.equal(rounded, sums.bfloat16())


def test_rounding_to_bf16() -> None:
    bits = torch.randint(-(2**31), 2**31, (8192,), generator=torch.Generator().manual_seed(0))
    halfway = (torch.arange(8192) << 19) + 0x8000  # ties, of both parities and all exponents
    values = torch.cat([bits, halfway]).to(torch.int32).view(torch.float32)
    rounded, truth = cast(values, torch.bfloat16), values.bfloat16()
    assert torch.equal(rounded.isnan(), truth.isnan())
    assert torch.equal(rounded[~truth.isnan()], truth[~truth.isnan()])


def test_widening_of_bf16() -> None:
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    wide = cast(values, torch.float32)
    assert np.array_equal(wide.numpy(), values.float().numpy(), equal_nan=True)


def test_other_casts_are_the_interpreters_own() -> None:
    values = torch.randn(256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cast(values, torch.float16), values.half())
    assert torch.equal(cast(values, torch.int32), values.int())


def test_a_second_install_changes_nothing() -> None:
    bf16_repair.install()
    truth, sums, _ = product()
    torch.testing.assert_close(sums, truth)


def test_the_repair_is_still_needed() -> None:
    with without_repair():
        truth, sums, _ = product()
        values = torch.tensor([1 + 2**-8 + 2**-9, 1.0])
        rounded = cast(values, torch.bfloat16)
    if torch.allclose(sums, truth) and torch.equal(rounded, values.bfloat16()):
        pytest.fail(
            f"Triton {triton.__version__} has mended bf16 in its interpreter: once the oldest "
            "Triton that is supported has it too, remove bf16_repair.py, its install() in "
            "conftest.py, and this file"
        )
