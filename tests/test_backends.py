"""The table of backends: what "auto" takes, what a named backend refuses, how one is chosen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
from shapes import arguments, run, small
from torch import Tensor

import fastdw
from fastdw import backends, ops
from fastdw.backends import ROWS, BackendRefused, current_backend, support_table, use_backend
from fastdw.ops import registration

X, WEIGHT = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backends that run depthwise_conv, in order."""
    seen: list[str] = []

    def recording(row: backends.BackendRow) -> Callable[..., Tensor]:
        def record(*arguments: object) -> Tensor:
            seen.append(row.backend)
            return row.run(*arguments)

        return record

    rows = [replace(row, run=recording(row)) for row in ROWS["depthwise_conv"]]
    monkeypatch.setitem(ROWS, "depthwise_conv", rows)
    return seen


def test_auto_takes_the_first_row_that_accepts(calls: list[str]) -> None:
    ops.depthwise_conv(X, WEIGHT)
    ROWS["depthwise_conv"][0] = replace(ROWS["depthwise_conv"][0], limits=lambda call: "too odd")
    ops.depthwise_conv(X, WEIGHT)
    assert calls == ["cpp", "torch"]


def test_a_named_backend_refuses_with_its_reason(calls: list[str]) -> None:
    ROWS["depthwise_conv"][0] = replace(ROWS["depthwise_conv"][0], limits=lambda call: "too odd")
    with pytest.raises(BackendRefused, match="depthwise_conv: .*cpp: too odd"):
        ops.depthwise_conv(X, WEIGHT, backend="cpp")
    with pytest.raises(BackendRefused, match="triton: no kernel for device .cpu., only for cuda"):
        ops.depthwise_conv(X, WEIGHT, backend="triton")
    assert calls == []


def test_a_row_refuses_devices_and_dtypes_that_it_lacks() -> None:
    row = replace(ROWS["depthwise_conv"][0], devices=("cpu",), dtypes=("fp32",))
    call = backends.Call("depthwise_conv", "cpu", torch.float32, ())
    assert row.refuse(call) is None
    assert row.refuse(replace(call, device="mps")) == "no kernel for device 'mps', only for cpu"
    assert row.refuse(replace(call, dtype=torch.float16)) == "no kernel for fp16, only for fp32"


def test_use_backend_is_what_auto_means_and_nests(calls: list[str]) -> None:
    with use_backend("torch"):
        assert current_backend() == "torch"
        ops.depthwise_conv(X, WEIGHT)
        ops.depthwise_conv(X, WEIGHT, backend="cpp")
        with use_backend("cpp"):
            ops.depthwise_conv(X, WEIGHT)
        ops.depthwise_conv(X, WEIGHT)
    ops.depthwise_conv(X, WEIGHT)
    assert calls == ["torch", "cpp", "cpp", "torch", "cpp"]
    assert fastdw.use_backend is use_backend


def test_use_backend_holds_for_its_thread_only() -> None:
    seen: list[str] = []
    with use_backend("torch"):
        thread = Thread(target=lambda: seen.append(current_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_use_backend_is_undone_by_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), use_backend("torch"):
        raise ZeroDivisionError
    assert current_backend() == "auto"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="name: expected one of auto, cpp, triton, torch, got 'c'"):
        use_backend("c").__enter__()
    with pytest.raises(ValueError, match="backend: expected one of"):
        ops.depthwise_conv(X, WEIGHT, backend="cuda")


def in_subprocess(
    code: str, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_environment_variable_sets_the_default() -> None:
    code = "from fastdw.backends import current_backend; print(current_backend())"
    assert in_subprocess(code, FASTDW_BACKEND="torch").stdout == "torch\n"
    bad = in_subprocess(code, FASTDW_BACKEND="fast")
    assert bad.returncode != 0
    assert "FASTDW_BACKEND: expected one of auto, cpp, triton, torch, got 'fast'" in bad.stderr


def test_without_the_library_torch_works_and_cpp_says_how_to_mend_it(tmp_path: Path) -> None:
    """A source tree that was never built."""
    package = Path(fastdw.__file__).parent
    shutil.copytree(package, tmp_path / "fastdw", ignore=shutil.ignore_patterns("*.so"))
    code = """
import torch, fastdw
from fastdw import ops
x, weight = torch.ones(1, 4, 5, 5), torch.ones(4, 1, 3, 3)
print(ops.depthwise_conv(x, weight, backend="torch").shape)
for backend in ("cpp", "auto"):
    try:
        ops.depthwise_conv(x, weight, backend=backend)
    except ImportError as error:
        print("run `python -m pip install" in str(error))
"""
    done = in_subprocess(code, folder=tmp_path)
    assert done.stdout == "torch.Size([1, 4, 3, 3])\nTrue\nTrue\n", done.stderr


@pytest.mark.parametrize("op", registration.OPS)
def test_every_row_computes_the_same(op: str) -> None:
    case = small(op)
    args, kwargs = arguments(case)
    rows = [row for row in ROWS[op] if not row.devices or "cpu" in row.devices]
    results = [run(case, args, kwargs, row.backend) for row in rows]
    assert len(results) == 2
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)


def test_support_table_has_a_line_for_every_row() -> None:
    table = support_table()
    assert [(line["op"], line["backend"]) for line in table] == [
        (row.op, row.backend) for rows in ROWS.values() for row in rows
    ]
    assert table[0] == {
        "op": table[0]["op"],
        "backend": "cpp",
        "devices": "cpu, cuda",
        "dtypes": "fp32, fp16, bf16, fp64",
    }


@pytest.mark.parametrize("traced", sorted({backends._CONTEXT_VARIABLES_ARE_TRACED, False}))
def test_compiled_code_follows_use_backend(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not traced: as before torch 2.14."""
    monkeypatch.setattr(backends, "_CONTEXT_VARIABLES_ARE_TRACED", traced)
    graphs: list[str] = []

    def backend(module: torch.fx.GraphModule, example: object) -> Callable[..., object]:
        graphs.append(str(module.graph))
        return module.forward

    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: ops.depthwise_conv(x, WEIGHT), fullgraph=True, backend=backend
    )
    compiled(X)
    with use_backend("torch"):
        compiled(X)
        with use_backend("cpp"):
            compiled(X)
        compiled(X)
    compiled(X)
    assert ["fastdw" in graph for graph in graphs] == [True, False, True]
    assert backends._entered == []
