"""The compiled libraries: loading them, and choosing the instruction set of the CPU kernels.

``fastdw/_C.so`` registers ``torch.ops.fastdw.*`` when it is loaded, ``fastdw/_C_cuda.so`` the CUDA
kernels of these ops. They hold no Python symbol; what is not an op (the instruction set) is called
through ctypes.
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
    "cuda_reason",
    "cuda_targets",
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

#: Why the CUDA kernels cannot be called in this process, or None.
cuda_missing: str | None = "fastdw: the library is not loaded"

_lock = threading.Lock()
_BUILD_COMMAND = "python -m pip install --no-build-isolation -e ."
_BUILD_CUDA = f"with nvcc in PATH or CUDA_HOME set, run `FASTDW_CUDA=1 {_BUILD_COMMAND}`"


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

    The CUDA kernels come too where they are built; if not, ``cuda_missing`` says why.

    Raises:
        ImportError: the library is missing or this torch cannot load it; the message holds the
            command that mends it.
    """
    global loaded, cuda_missing
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
        cuda_missing = _load_cuda()


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} comes without CUDA"
    path = Path(__file__).with_name("_C_cuda.so")
    if not path.exists():
        return f"fastdw was built without CUDA kernels: {_BUILD_CUDA}"
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"{path.name} does not load ({error}): {_BUILD_CUDA}"
    library = _cuda_library()
    built = library.fastdw_cuda_version() // 1000
    if torch.version.cuda.split(".")[0] != str(built):
        return (
            f"the CUDA kernels are built with CUDA {built}, torch with {torch.version.cuda}: "
            f"{_BUILD_CUDA}"
        )
    library.fastdw_cuda_set_tf32_question(_tf32_is_allowed)
    return None


@functools.cache
def _cuda_library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(Path(__file__).with_name("_C_cuda.so")))
    library.fastdw_cuda_targets.restype = ctypes.c_char_p
    return library


@ctypes.CFUNCTYPE(ctypes.c_int)
def _tf32_is_allowed() -> int:
    """What ``torch.backends`` says of fp32 convolutions; the kernels ask at every call."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def cuda_targets() -> list[str]:
    """The GPU architectures with machine code in the CUDA library, ascending: 8.0, 8.6, ...

    Other GPUs from 8.0 on compile its PTX when they first run it. Empty without the library.
    """
    if cuda_missing is not None:
        return []
    names: bytes = _cuda_library().fastdw_cuda_targets()
    return names.decode().split()


@torch.compiler.assume_constant_result
def cuda_reason(device_index: int | None = None) -> str | None:
    """Why the CUDA kernels cannot run on this GPU (None: the current one), or None if they can."""
    if cuda_missing is not None or not torch.cuda.is_available():
        return cuda_missing
    return _refusal_of(*torch.cuda.get_device_capability(device_index))


@functools.cache
def _refusal_of(major: int, minor: int) -> str | None:
    if major >= 8:
        return None
    return f"the CUDA kernels need compute capability 8.0 or newer, this GPU has {major}.{minor}"


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
