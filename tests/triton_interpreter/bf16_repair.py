"""Make bf16 right in Triton's interpreter; as shipped it is not (seen in Triton 3.6 to 3.9).

It keeps bf16 as uint16 bit patterns: ``tl.dot`` multiplies these as integers, and fp32 to bf16 cuts
bits off instead of rounding to nearest even. ``test_interpreter.py`` says when this can go.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

ORIGINALS = {
    name: getattr(interpreter.InterpreterBuilder, name)
    for name in ("create_dot", "cast_impl", "create_fp_to_fp")
}
"""The interpreter's own methods, before any repair."""


def widened(bits: np.ndarray) -> np.ndarray:
    """Return the fp32 values of bf16 bit patterns."""
    return np.left_shift(bits.astype(np.uint32), np.uint32(16)).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """Return the bf16 bit patterns nearest to fp32 values, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16).reshape(values.shape)


def _create_dot(self: Any, a: Any, b: Any, *rest: Any, **options: Any) -> Any:
    a, b = (
        interpreter.TensorHandle(widened(operand.data), tl.float32)
        if operand.dtype.scalar == tl.bfloat16
        else operand
        for operand in (a, b)
    )
    return ORIGINALS["create_dot"](self, a, b, *rest, **options)


def _rounding_cast(name: str) -> Any:
    def cast(self: Any, source: Any, target: Any, *rest: Any, **options: Any) -> Any:
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(rounded(source.data), tl.bfloat16)
        if kinds == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(widened(source.data), tl.float32)
        return ORIGINALS[name](self, source, target, *rest, **options)

    return cast


def install() -> None:
    """Repair the interpreter in this process; a second call changes nothing."""
    builder = interpreter.InterpreterBuilder
    for name, method in ORIGINALS.items():
        wanted = {"create_dot": ["self", "a", "b"]}.get(name, ["self", "src", "dst_type"])
        found = list(inspect.signature(method).parameters)[: len(wanted)]
        if found != wanted:
            raise RuntimeError(f"Triton's InterpreterBuilder.{name} takes {found}, not {wanted}")
    builder.create_dot = _create_dot
    builder.cast_impl = _rounding_cast("cast_impl")
    builder.create_fp_to_fp = _rounding_cast("create_fp_to_fp")


def uninstall() -> None:
    """Give the interpreter its own methods back."""
    for name, method in ORIGINALS.items():
        setattr(interpreter.InterpreterBuilder, name, method)
