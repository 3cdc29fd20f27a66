"""Tensors flush against inaccessible pages: a kernel that reads or writes beyond one is killed."""

from __future__ import annotations

import ctypes
import mmap
from types import TracebackType

import torch
from torch import Tensor

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

_NO_ACCESS = 0


class Arena:
    """Owns guarded mappings; tensors in them must not outlive it."""

    def __init__(self) -> None:
        self._mappings: list[tuple[int, int]] = []

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for address, size in self._mappings:
            _libc.munmap(address, size)

    def _map(self, size_bytes: int) -> tuple[int, int]:
        """Map whole pages for ``size_bytes`` between two inaccessible ones: (address, bytes)."""
        page = mmap.PAGESIZE
        inner = (size_bytes + page - 1) // page * page
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        base = _libc.mmap(None, inner + 2 * page, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if base in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap")
        self._mappings.append((base, inner + 2 * page))
        for guard in (base, base + page + inner):
            if _libc.mprotect(guard, page, _NO_ACCESS) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        return base + page, inner

    def copy(self, tensor: Tensor, at_end: bool) -> Tensor:
        """Return a copy with the same strides that begins, or ends, at an inaccessible page."""
        size_bytes = tensor.element_size() * (
            sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        )
        address, inner = self._map(size_bytes)
        start = address + inner - size_bytes if at_end else address
        buffer = (ctypes.c_char * size_bytes).from_address(start)
        flat = torch.frombuffer(buffer, dtype=tensor.dtype)
        return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)
