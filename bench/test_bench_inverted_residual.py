"""`fastdw.ops.inverted_residual` on the layers of MobileNet V1 and V2; see bench/README.md."""

from typing import Any

import pytest

from fastdw.benchmark.cases import OpCase
from fastdw.benchmark.op_timing import parameters, time_op


@pytest.mark.parametrize("case,backend,device", parameters("inverted_residual"))
def test_bench(benchmark: Any, case: OpCase, backend: str, device: str) -> None:
    time_op(benchmark, case, backend, device)
