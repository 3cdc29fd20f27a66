"""The CUDA library: finding a compiler, what is built for which GPU, and why it may be missing."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nn_checks
import pytest
import setuptools
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdw
from fastdw import native, ops
from fastdw.backends import ROWS, BackendRefused, Call
from fastdw.nn.fused_module import op_settings, op_tensors, plain_call

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_tools"))

import cuda_toolkit  # noqa: E402
from cuda_toolkit import Toolkit, ToolkitError  # noqa: E402

CUDA_LIBRARY = Path(fastdw.__file__).with_name("_C_cuda.so")


def toolkit(*targets: str) -> Toolkit:
    return Toolkit("nvcc", (13, 0), (), (), targets)


def fake_nvcc(folder: Path, release: str) -> Path:
    """A script that answers what read_toolkit() asks; the folder is a CUDA_HOME."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"""#!/bin/sh
case "$*" in
--version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
--list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_120\\n' ;;
*) printf '#$ INCLUDES="-I/cuda/include" \\n#$ LIBRARIES=  "-L/cuda/lib64"\\n' >&2 ;;
esac
""")
    nvcc.chmod(0o755)
    return nvcc


@pytest.fixture
def setup_script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py defines, without its setup()."""
    monkeypatch.setattr(setuptools, "setup", lambda **settings: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def test_a_target_is_made_from_the_newest_virtual_one_that_it_has() -> None:
    assert cuda_toolkit.target_flags(["8.0", "8.9", "9.0", "12.0"]) == [
        "-gencode=arch=compute_80,code=[sm_80,sm_89,compute_80]",
        "-gencode=arch=compute_90,code=[sm_90,sm_120,compute_90]",
    ]
    assert cuda_toolkit.target_flags(["12.0"]) == [
        "-gencode=arch=compute_90,code=[sm_120,compute_90]"
    ]


def test_targets_are_chosen_by_name_or_by_what_the_compiler_knows() -> None:
    known = toolkit("7.5", "8.0", "8.9", "9.0", "12.1")
    assert cuda_toolkit.choose_targets(known, None) == ["8.0", "8.9", "9.0"]
    assert cuda_toolkit.choose_targets(known, "9.0, 8.0") == ["8.0", "9.0"]
    assert cuda_toolkit.choose_targets(known, "12.1;8.9") == ["8.9", "12.1"]
    for wrong in ("7.5", "10.0", "sm_80", "native"):
        with pytest.raises(ToolkitError, match="FASTDW_CUDA_ARCH: expected some of 8.0, 8.9"):
            cuda_toolkit.choose_targets(known, wrong)


def test_a_toolkit_tells_its_release_folders_and_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = fake_nvcc(tmp_path, "13.1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_toolkit.find_nvcc() == str(nvcc)
    found = cuda_toolkit.read_toolkit(str(nvcc))
    assert found.version == (13, 1) and found.targets == ("7.5", "8.0", "9.0", "12.0")
    assert found.include_flags == ("-I/cuda/include",)
    assert found.library_flags[0] == "-L/cuda/lib64"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))
    assert cuda_toolkit.find_nvcc() is None


def test_the_cuda_library_is_wished_for_or_not(
    setup_script: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    find = setup_script["find_cuda"]
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("FASTDW_CUDA", "")
    assert find() is None
    assert "fastdw: no CUDA kernels: there is no nvcc" in capsys.readouterr().out
    monkeypatch.setenv("FASTDW_CUDA", "1")
    with pytest.raises(SystemExit, match="FASTDW_CUDA=1, but there is no nvcc"):
        find()
    fake_nvcc(tmp_path, "13.2")
    assert find().version == (13, 2)
    monkeypatch.setenv("FASTDW_CUDA", "0")
    assert find() is None
    monkeypatch.setenv("FASTDW_CUDA", "1")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(SystemExit, match="torch is built with CUDA 12.8, .* is of CUDA 13"):
        find()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit, match="comes without CUDA"):
        find()


@pytest.mark.parametrize(
    "library,cuda,reason",
    [
        (None, "13.0", "built without CUDA kernels: with nvcc in PATH or CUDA_HOME set, run"),
        ("no library", "13.0", "_C_cuda.so does not load"),
        ("no library", None, "comes without CUDA"),
    ],
)
def test_a_missing_library_is_a_reason_and_no_error(
    library: str | None, cuda: str | None, reason: str, tmp_path: Path
) -> None:
    package = Path(fastdw.__file__).parent
    ignored = shutil.ignore_patterns("_C_cuda.so", "__pycache__")
    shutil.copytree(package, tmp_path / "fastdw", ignore=ignored)
    if library is not None:
        (tmp_path / "fastdw" / "_C_cuda.so").write_text(library)
    code = f"""
import torch
torch.version.cuda = {cuda!r}
from fastdw import native, ops
print(ops.depthwise_conv(torch.ones(1, 4, 5, 5), torch.ones(4, 1, 3, 3), backend="cpp").shape)
print(native.cuda_reason())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    shape, told = done.stdout.splitlines()
    assert shape == "torch.Size([1, 4, 3, 3])" and reason in told


def test_the_cpp_row_refuses_cuda_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cuda_missing", "not built")
    with FakeTensorMode():
        x, weight = (torch.empty(*s, device="cuda") for s in ((1, 4, 5, 5), (4, 1, 3, 3)))
        call = Call("depthwise_conv", "cuda", torch.float32, (x, weight))
        assert [row.refuse(call) for row in ROWS["depthwise_conv"]] == ["not built", None, None]
        with pytest.raises(BackendRefused, match="cpp: not built"):
            ops.depthwise_conv(x, weight, backend="cpp")
        y = ops.depthwise_conv(x, weight)
        assert y.device.type == "cuda" and y.shape == (1, 4, 3, 3)


def test_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cuda_missing", None)
    assert native.cuda_reason() is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, refused in (((7, 5), True), ((8, 0), False), ((12, 1), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, c=capability: c)
        assert (native.cuda_reason(0) is not None) == refused


def test_compiled_code_takes_the_reason_for_a_constant() -> None:
    compiled = torch.compile(
        lambda x: x + 1 if native.cuda_reason() else x + 2, fullgraph=True, backend="eager"
    )
    assert compiled(torch.zeros(1)).item() == (1 if native.cuda_reason() else 2)


def test_kernels_ask_torch_whether_tf32_is_allowed() -> None:
    switch = torch.backends.cudnn.conv
    before = switch.fp32_precision
    try:
        for precision, allowed in (("ieee", 0), ("tf32", 1)):
            switch.fp32_precision = precision
            assert native._tf32_is_allowed() == allowed
    finally:
        switch.fp32_precision = before


@pytest.mark.parametrize("name", nn_checks.MODULES)
def test_the_call_that_modules_keep_on_cuda_is_right(name: str) -> None:
    """It is the plain op on live weights and folded batch norms; here it runs on the CPU."""
    block, x = nn_checks.module(name), nn_checks.image(name)
    pattern, units = block._fused_pattern, block._fused_units()
    with torch.no_grad():
        call = plain_call(
            pattern,
            op_tensors(pattern, units),
            op_settings(pattern, units, block._fused_residual()),
        )
        torch.testing.assert_close(call(x), block._unfused_forward(x), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="built without CUDA kernels")
def test_the_cuda_library_registers_every_op_and_needs_no_python() -> None:
    assert native.cuda_missing is None and set(native.cuda_targets()) <= {
        *cuda_toolkit.DEFAULT_TARGETS,
        *os.environ.get("FASTDW_CUDA_ARCH", "").split(),
    }
    for op in (*ROWS, "planned_network"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdw::{op}", "CUDA")
    listing = subprocess.run(
        ["nm", "-D", str(CUDA_LIBRARY)], check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split()[-2:] for line in listing.splitlines()]
    undefined = [name for kind, name in rows if kind == "U"]
    assert any(name.startswith("aoti_torch_get_current_cuda_stream") for name in undefined)
    assert not [n for n in undefined if n.startswith(("Py", "_ZN2at", "_ZN3c10", "_ZNK3c10"))]
    assert not [name for name in undefined if name.startswith("cuda")]  # the runtime is inside
    assert {name for kind, name in rows if kind in "TDB"} == {
        "fastdw_cuda_set_tf32_question",
        "fastdw_cuda_targets",
        "fastdw_cuda_version",
    }
