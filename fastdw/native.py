"""The compiled library: loading it, and choosing the instruction set of its CPU kernels.

``fastdw/_C.so`` registers ``torch.ops.fastdw.*`` when it is loaded. It holds no Python symbol; what
is not an op (the instruction set) is called through ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = [
    "active_isa",
    "built_with_torch",
    "force_isa",
    "isa_names",
    "library_path",
    "load",
    "loaded",
    "set_isa",
    "supported_isas",
]

#: Whether load() has succeeded in this process.
loaded: bool = False

_lock = threading.Lock()
_BUILD_COMMAND = "python -m pip install --no-build-isolation -e ."


def library_path() -> str:
    """Path of the shared library, for a C++ program that loads the ops itself.

    Returns:
        The absolute path of ``_C.so``.

    Raises:
        ImportError: the library was not built; the message holds the command that builds it.
    """
    path = Path(__file__).with_name("_C.so")
    if not path.exists():
        raise ImportError(
            f"fastdw: {path} is missing, so fastdw was imported from a source tree that is not "
            f"built: run `{_BUILD_COMMAND}` there."
        )
    return str(path)


def load() -> None:
    """Load the library and so register ``torch.ops.fastdw.*``; calling it again does nothing.

    Raises:
        ImportError: the library is missing or this torch cannot load it; the message holds the
            command that mends it.
    """
    global loaded
    with _lock:
        if loaded:
            return
        path = library_path()
        try:
            torch.ops.load_library(path)
        except (OSError, RuntimeError) as error:
            raise ImportError(
                f"fastdw: {path} does not load with torch {torch.__version__} ({error}): "
                f"fastdw needs torch 2.10 or newer; build it anew with `{_BUILD_COMMAND}`."
            ) from error
        loaded = True


@functools.cache
def _library() -> ctypes.CDLL:
    load()
    library = ctypes.CDLL(library_path())
    for name in ("fastdw_active_isa", "fastdw_isa_names", "fastdw_built_with_torch"):
        getattr(library, name).restype = ctypes.c_char_p
    for name in ("fastdw_isa_is_supported", "fastdw_set_isa"):
        getattr(library, name).argtypes = [ctypes.c_char_p]
    return library


def _text(function_name: str) -> str:
    value: bytes | None = getattr(_library(), function_name)()
    return (value or b"").decode()


def built_with_torch() -> str:
    """The version of the torch whose headers the library was compiled with."""
    return _text("fastdw_built_with_torch")


def isa_names() -> list[str]:
    """Every instruction set that the library knows, best first: avx512, avx2, portable."""
    return _text("fastdw_isa_names").split(",")


def supported_isas() -> list[str]:
    """The instruction sets that this CPU can run, best first."""
    library = _library()
    return [name for name in isa_names() if library.fastdw_isa_is_supported(name.encode())]


def active_isa() -> str:
    """The instruction set in use: the best one, or what FASTDW_CPU_ISA or set_isa() chose.

    Raises:
        RuntimeError: FASTDW_CPU_ISA names none that this CPU can run.
    """
    name = _text("fastdw_active_isa")
    if name == "none":
        raise RuntimeError(
            f"FASTDW_CPU_ISA: expected one of {', '.join(supported_isas())} on this machine"
        )
    return name


def set_isa(name: str) -> None:
    """Switch the whole process to another instruction set, for tests and ``fastdw verify``.

    Args:
        name: avx512, avx2 or portable.

    Raises:
        ValueError: unknown, or not supported by this CPU.
    """
    if _library().fastdw_set_isa(name.encode()) != 0:
        known = f"one of {', '.join(supported_isas())} on this machine"
        raise ValueError(f"isa: expected {known}, got {name!r}")


@contextlib.contextmanager
def force_isa(name: str) -> Iterator[None]:
    """Run a block under one instruction set; process-wide, the former one comes back afterwards.

    Args:
        name: avx512, avx2 or portable.

    Raises:
        ValueError: unknown, or not supported by this CPU.
    """
    former = active_isa()
    set_isa(name)
    try:
        yield
    finally:
        set_isa(former)
