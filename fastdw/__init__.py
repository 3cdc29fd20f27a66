"""fastdw: fused depthwise-separable and inverted-residual kernels for MobileNet-style networks.

Importing it registers the ops, so that `torch.export.load` and `torch.jit.load` find them; the
other parts come with their first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fastdw import ops

if TYPE_CHECKING:
    from fastdw import convert, models, nn
    from fastdw.backends import use_backend
    from fastdw.convert import explain, optimize, revert
    from fastdw.native import library_path

_SOURCES = {
    "explain": "fastdw.convert",
    "optimize": "fastdw.convert",
    "revert": "fastdw.convert",
    "library_path": "fastdw.native",
    "use_backend": "fastdw.backends",
}
_SUBPACKAGES = ("convert", "models", "nn")  # the package `fastdw.convert` can be called

__all__ = [
    "__version__",
    "convert",
    "explain",
    "library_path",
    "models",
    "nn",
    "ops",
    "optimize",
    "revert",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("fastdw")
        except PackageNotFoundError:
            return "0.0.0"  # a source tree that was never installed
    if name in _SUBPACKAGES:
        return import_module(f"fastdw.{name}")
    if name not in _SOURCES:
        raise AttributeError(f"module 'fastdw' has no attribute {name!r}")
    return getattr(import_module(_SOURCES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
