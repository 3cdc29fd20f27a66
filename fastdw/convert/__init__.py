"""Swap fused classes into models that people have, and plan whole networks.

`fastdw.convert(model)` calls the function of this name: the package itself can be called, because
once a submodule is imported Python puts the package at the place of the function.
"""

import sys
from types import ModuleType

from fastdw.convert.planning import PartlyFusedNetwork, optimize
from fastdw.convert.report import Reason, Report, Row
from fastdw.convert.rewrite import NothingConverted, convert, explain, revert

__all__ = [
    "NothingConverted",
    "PartlyFusedNetwork",
    "Reason",
    "Report",
    "Row",
    "convert",
    "explain",
    "optimize",
    "revert",
]


class _CallablePackage(ModuleType):
    __call__ = staticmethod(convert)


sys.modules[__name__].__class__ = _CallablePackage
