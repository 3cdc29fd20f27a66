"""How much memory a call takes at its highest, whoever allocates it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_libc = ctypes.CDLL(None)


def _resident_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def peak_growth_bytes(call: Callable[[], object]) -> int:
    """Return by how much the resident memory of this process grows, at its highest, in the call."""
    _libc.malloc_trim(0)  # free memory that is still resident would hide an allocation
    _RESET.write_text("5")  # sets the high-water mark back to what is resident now
    before = _resident_bytes("VmRSS")
    call()
    return _resident_bytes("VmHWM") - before
