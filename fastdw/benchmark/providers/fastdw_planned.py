"""fastdw itself: the network as `fastdw.optimize` plans it."""

from __future__ import annotations

import math
import sys
from typing import Any

from torch import Tensor, nn

from fastdw.benchmark.providers.provider import Contender, Provider


def build(model: nn.Module, x: Tensor, threads: int) -> Contender:
    import fastdw

    # The benchmark compares by itself: optimize is not to fall back to torch where it differs.
    fast = fastdw.optimize(model, x[:1], tolerance=math.inf)
    report: Any = fast.report
    if not report.planned and not report.fused:
        raise RuntimeError(f"fastdw.optimize fuses nothing: {report.plan_reason}")
    if not report.planned:
        print(f"fastdw.optimize: not planned: {report.plan_reason}", file=sys.stderr)
    return Contender(lambda: fast(x))


FASTDW = Provider("fastdw", "fastdw.optimize", build)
