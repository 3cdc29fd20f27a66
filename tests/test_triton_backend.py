"""The Triton backend where it cannot run: who refuses, and with what reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shapes import arguments, run, small
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdw
from fastdw import native
from fastdw.backends import ROWS, BackendRefused, Call
from fastdw.ops import triton_backend
from fastdw.ops.registration import OPS

X, WEIGHT = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3)


def row(op: str):
    return next(row for row in ROWS[op] if row.backend == "triton")


@pytest.mark.parametrize("op", OPS)
def test_cpu_tensors_are_refused(op: str) -> None:
    args, kwargs = arguments(small(op))
    with pytest.raises(BackendRefused, match="triton: no kernel for device 'cpu', only for cuda"):
        run(small(op), args, kwargs, "triton")


def test_the_op_itself_refuses_cpu_tensors() -> None:
    with pytest.raises(RuntimeError, match="fastdw_triton::depthwise_conv: no kernel for device"):
        torch.ops.fastdw_triton.depthwise_conv(
            X, WEIGHT, None, None, [1, 1], [1] * 4, [1, 1], "none"
        )


def test_fp64_is_computed_by_torch() -> None:
    """Behind the registered op, so that gradcheck sees its gradient."""
    call = (X.double(), WEIGHT.double(), None, None, [1, 1], [1] * 4, [1, 1], "relu")
    y = torch.ops.fastdw_triton.depthwise_conv(*call)
    torch.testing.assert_close(y, fastdw.ops.depthwise_conv(
        call[0], call[1], padding=1, activation="relu", backend="torch"
    ))  # fmt: skip


def test_which_gpus_are_refused() -> None:
    assert triton_backend._refusal_of(8, 0) is None
    assert "need compute capability 8.0 or newer, this GPU has 7.5" in str(
        triton_backend._refusal_of(7, 5)
    )


@pytest.mark.parametrize(
    ("found", "version", "reason"),
    [
        (False, "", "Triton is not installed"),
        (True, "3.5.1", "Triton 3.5.1 is too old"),
        (True, "3.6.0", None),
    ],
)
def test_why_triton_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, found: bool, version: str, reason: str | None
) -> None:
    monkeypatch.setattr(triton_backend.importlib.util, "find_spec", lambda name: found or None)
    monkeypatch.setattr(triton_backend.importlib.metadata, "version", lambda name: version)
    told = triton_backend.missing.__wrapped__()
    assert told == reason if reason is None else str(told).startswith(reason)


def test_triton_takes_cuda_tensors_where_the_cuda_library_is_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "cuda_missing", "not built")
    with FakeTensorMode():
        x, weight = (torch.empty(t.shape, device="cuda") for t in (X, WEIGHT))
        call = Call("depthwise_conv", "cuda", torch.float32, (x, weight))
        taking = [row.backend for row in ROWS["depthwise_conv"] if row.refuse(call) is None]
        assert taking == ["triton", "torch"]
        y = fastdw.ops.depthwise_conv(x, weight, stride=2, padding=1)
        assert (y.shape, y.device.type) == ((1, 4, 3, 3), "cuda")


def test_rocm_gpus_run_triton_kernels_with_their_own_tiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiles = pytest.importorskip("fastdw.triton_kernels.tiles")
    properties = SimpleNamespace(
        gcnArchName="gfx942:sramecc+:xnack-", name="AMD MI300X", multi_processor_count=304
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tiles, "tuned", {})
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (0, 0))  # AMD's own
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(native, "cuda_missing", native._load_cuda())
    assert "comes without CUDA" in str(native.cuda_reason(0))
    with FakeTensorMode():
        call = Call("depthwise_conv", "cuda", torch.float16, (torch.empty(1, device="cuda"),))
        taking = [row.backend for row in ROWS["depthwise_conv"] if row.refuse(call) is None]
    assert taking == ["triton", "torch"]
    target = triton_backend._target.__wrapped__("cuda", 0)
    assert target == ("gfx942", 304)
    rows = tiles.TABLE["depthwise_conv"]["3 many"]
    assert rows["gfx942"] != rows[tiles.ANY]
    assert tiles.choose("depthwise_conv", "3 many", target.arch) is rows["gfx942"]


def test_the_library_without_python_refuses_with_the_reason() -> None:
    """As in a C++ program that loads a model which AOTInductor compiled."""
    code = f"""
import torch
torch.ops.load_library({native.library_path()!r})
for name in dir(torch.ops.fastdw_triton):
    assert not name.startswith("depthwise"), name
x = torch.randn(1, 2, 3, 3)
try:
    torch.ops.fastdw_triton.classifier_head(x, torch.randn(4, 2), None)
except RuntimeError as error:
    assert "Triton's kernels are launched by Python" in str(error), error
else:
    raise SystemExit("not refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_twins_have_the_schemas_of_the_ops() -> None:
    for op in (*OPS, "planned_network"):
        schemas = [
            str(getattr(namespace, op).default._schema).partition("::")[2]
            for namespace in (torch.ops.fastdw, torch.ops.fastdw_triton)
        ]
        assert schemas[0] == schemas[1]
