"""Which backend runs a call: one table of rows, each able to refuse with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("auto", "cpp", "triton", "torch")

DTYPE_NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
}


class BackendRefused(RuntimeError):
    """The backend that was asked for cannot run this call; the message says why."""


@dataclass(frozen=True)
class Call:
    """One call of an op: where it runs, in which dtype, and its arguments in schema order."""

    op: str
    device: str
    dtype: torch.dtype
    arguments: tuple[object, ...]


@dataclass(frozen=True)
class BackendRow:
    """One implementation of one op; the rows of an op stand in the order of preference."""

    op: str
    backend: str
    devices: tuple[str, ...]  # empty: any device
    dtypes: tuple[str, ...]
    run: Callable[..., Any]  # takes the arguments in schema order
    limits: Callable[[Call], str | None] | None = None  # further reasons of this kernel

    def refuse(self, call: Call) -> str | None:
        """Return why this row cannot run ``call``, or None if it can."""
        if self.devices and call.device not in self.devices:
            return f"no kernel for device {call.device!r}, only for {', '.join(self.devices)}"
        dtype = DTYPE_NAMES.get(call.dtype, str(call.dtype))
        if dtype not in self.dtypes:
            return f"no kernel for {dtype}, only for {', '.join(self.dtypes)}"
        return None if self.limits is None else self.limits(call)


ROWS: dict[str, list[BackendRow]] = {}
"""The table: op name -> its rows, best first. ``fastdw.ops`` fills it."""


def check_name(name: str, argument: str) -> str:
    """Return ``name`` if it is one of ``BACKENDS``, else raise ValueError naming ``argument``."""
    if name not in BACKENDS:
        raise ValueError(f"{argument}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_default = os.environ.get("FASTDW_BACKEND") or "auto"  # checked when it is used, not at import
_selected: ContextVar[str] = ContextVar("fastdw_backend", default=_default)
_entered: list[str] = []  # by ``use_backend``, in all threads: see `_traced_backend`
_CONTEXT_VARIABLES_ARE_TRACED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)


def current_backend() -> str:
    """Return the backend that ``backend="auto"`` means now.

    That of the innermost ``use_backend``, else of the environment variable ``FASTDW_BACKEND``
    (read once, at import), else ``"auto"``: the first row of the table that takes the call.

    Raises:
        ValueError: ``FASTDW_BACKEND`` names no backend.
    """
    is_traced = not _CONTEXT_VARIABLES_ARE_TRACED and torch.compiler.is_compiling()
    return check_name(_traced_backend() if is_traced else _selected.get(), "FASTDW_BACKEND")


def _traced_backend() -> str:
    """What torch.compile before torch 2.14 can read and guard on: the last entered, by any thread.

    There, of several threads in `use_backend` at once, compiled calls follow the last.
    """
    return _entered[-1] if _entered else _default


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op called with ``backend="auto"`` on the backend called ``name``.

    Holds for the current thread (or task) only; an explicit ``backend=`` still wins.

    Raises:
        ValueError: ``name`` is not one of ``BACKENDS``.
    """
    token = _selected.set(check_name(name, "name"))
    _entered.append(name)
    try:
        yield
    finally:
        _selected.reset(token)
        del _entered[-1 - _entered[::-1].index(name)]


def dispatch(op: str, backend: str, x: Tensor, arguments: tuple[object, ...]) -> Any:
    """Run ``op`` on the first row that takes the call.

    Raises:
        ValueError: ``backend`` is not one of ``BACKENDS``.
        BackendRefused: no row, or not the one asked for by name, can run the call.
    """
    name = current_backend() if check_name(backend, "backend") == "auto" else backend
    call = Call(op, x.device.type, x.dtype, arguments)
    reasons = []
    for row in ROWS[op]:
        if name not in ("auto", row.backend):
            continue
        reason = row.refuse(call)
        if reason is None:
            return row.run(*arguments)
        reasons.append(f"{row.backend}: {reason}")
    if not reasons:
        reasons.append(f"{name}: has no kernel for this op")
    raise BackendRefused(f"{op}: no backend can run this call ({'; '.join(reasons)})")


def support_table() -> list[dict[str, str]]:
    """Return the table for people: one dict a row (op, backend, devices, dtypes).

    The meta device, on which a row only works out shapes, is left out.
    """
    import fastdw.ops  # noqa: F401  fills ROWS

    return [
        {
            "op": row.op,
            "backend": row.backend,
            "devices": ", ".join(name for name in row.devices if name != "meta") or "any",
            "dtypes": ", ".join(row.dtypes),
        }
        for rows in ROWS.values()
        for row in rows
    ]
