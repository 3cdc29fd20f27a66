"""The compiled library: its symbols, instruction sets, threads, forks, the GIL, its last checks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from network_builder import fastdw_ops, small_mobilenet
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fastdw import native

TESTS = Path(__file__).parent
ISA_OBJECTS = TESTS.parent / "build" / "objects" / "kernels" / "cpu" / "isa"


def symbols(path: Path | str, *options: str) -> list[tuple[str, str]]:
    """Return (type, name) of the symbols that nm lists."""
    listing = subprocess.run(
        ["nm", *options, str(path)], check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [(row[-2], row[-1]) for row in rows if len(row) >= 2]


def test_library_needs_no_python() -> None:
    undefined = [name for _, name in symbols(native.library_path(), "-D", "--undefined-only")]
    assert any(name.startswith("aoti_torch_") for name in undefined)
    assert not [name for name in undefined if name.startswith(("Py", "_Py"))]
    # Nothing of torch's C++ interface, which changes from release to release.
    assert not [name for name in undefined if name.startswith(("_ZN2at", "_ZN3c10", "_ZNK3c10"))]


def test_library_exports_its_control_functions_only() -> None:
    exported = {
        name
        for kind, name in symbols(native.library_path(), "-D", "--defined-only")
        if kind in "TDB"
    }
    assert exported == {
        "fastdw_active_isa",
        "fastdw_built_with_torch",
        "fastdw_isa_is_supported",
        "fastdw_isa_names",
        "fastdw_set_isa",
    }


@pytest.mark.parametrize("isa", native.isa_names())
def test_instruction_sets_share_no_symbol(isa: str) -> None:
    """A weak symbol compiled for AVX-512 could be the one that the linker keeps for every CPU."""
    objects = sorted((ISA_OBJECTS / isa).glob("*.o"))
    assert len(objects) >= 6
    for path in objects:
        defined = symbols(path, "--defined-only")
        assert not [row for row in defined if row[0] in "WwVvu"], path.name
        shared = [name for kind, name in defined if kind.isupper()]
        assert shared and all(f"fastdw{len(isa)}{isa}" in name for name in shared), path.name
        # Nor may it call into the standard library's templates, compiled elsewhere for who knows.
        undefined = [name for _, name in symbols(path, "--undefined-only")]
        assert not [name for name in undefined if name.startswith("_ZNSt")], path.name


def test_load_is_idempotent_and_isas_can_be_forced() -> None:
    native.load()
    native.load()
    assert native.loaded
    assert set(native.supported_isas()) <= set(native.isa_names())
    assert "portable" in native.supported_isas()
    before = native.active_isa()
    for isa in native.supported_isas():
        with native.force_isa(isa):
            assert native.active_isa() == isa
        assert native.active_isa() == before
    for unknown in ("sse2", ""):
        with pytest.raises(ValueError, match=f"isa: expected one of .*, got '{unknown}'"):
            native.set_isa(unknown)
    assert native.active_isa() == before


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=TESTS,
    )


def test_environment_variable_chooses_the_isa() -> None:
    code = "from fastdw import native; print(native.active_isa())"
    assert run_python(code, FASTDW_CPU_ISA="portable").stdout.strip() == "portable"
    refused = run_python(code, FASTDW_CPU_ISA="sse9").stderr
    assert "RuntimeError: FASTDW_CPU_ISA: expected one of" in refused
    code = (
        "import torch; from fastdw import native; native.load(); "
        "torch.ops.fastdw.classifier_head(torch.ones(1, 2, 3, 3), torch.ones(4, 2), None)"
    )
    assert "RuntimeError: FASTDW_CPU_ISA: expected" in run_python(code, FASTDW_CPU_ISA="x").stderr


def test_missing_library_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    monkeypatch.setattr(native, "loaded", False)
    with pytest.raises(ImportError, match="pip install --no-build-isolation"):
        native.load()
    (tmp_path / "_C.so").write_bytes(b"not a library")
    with pytest.raises(ImportError, match="does not load with torch"):
        native.load()


def op_calls() -> list[Callable[[], Tensor]]:
    """One call of every op, big enough for several threads."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, image = randn(2, 32, 40, 40), randn(2, 3, 80, 80)
    window = ([1, 1], [1, 1, 1, 1], [1, 1])
    depthwise, pointwise, expand = randn(32, 1, 3, 3), randn(48, 32, 1, 1), randn(64, 32, 1, 1)
    hidden, project, stem = randn(64, 1, 3, 3), randn(32, 64, 1, 1), randn(32, 3, 3, 3)
    classes, net, none = randn(1000, 32), small_mobilenet(), None
    packed, program = net.packed(), net.program()
    return [
        lambda: fastdw_ops.depthwise_conv(x, depthwise, none, none, *window, "relu6"),
        lambda: fastdw_ops.pointwise_conv(x, pointwise, none, none, none, "relu"),
        lambda: fastdw_ops.stem_conv(image, stem, none, none, [2, 2], [], "silu"),
        lambda: fastdw_ops.separable_block(
            x, depthwise, none, none, pointwise, none, none, *window, "relu", "none"
        ),
        lambda: fastdw_ops.inverted_residual(
            *(x, expand, none, none, hidden, none, none, project, none, none),
            *(*window, True, "relu6", "relu6", "none"),
        ),
        lambda: fastdw_ops.classifier_head(x, classes, none),
        lambda: fastdw_ops.planned_network(image, packed, program)[0],
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_same_bits_at_the_same_thread_count(count: int, threads: Callable[[int], None]) -> None:
    calls = op_calls()
    threads(1)
    alone = [call() for call in calls]
    threads(count)
    for call, reference in zip(calls, alone, strict=True):
        first = call()
        torch.testing.assert_close(first, reference, rtol=1e-4, atol=1e-4)
        for _ in range(10):
            assert torch.equal(call(), first)


@pytest.mark.parametrize("count", [1, 2])
def test_eight_python_threads(count: int, threads: Callable[[int], None]) -> None:
    threads(count)
    calls = op_calls()
    wanted = [call() for call in calls]

    def work(worker: int) -> bool:
        torch.set_num_threads(count)  # the setting is each thread's own
        order = [(worker + step) % len(calls) for step in range(3 * len(calls))]
        return all(torch.equal(calls[index](), wanted[index]) for index in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_inside_another_parallel_region(threads: Callable[[int], None], tmp_path: Path) -> None:
    compiler = os.environ.get("CXX", "c++").split()
    home = Path(torch.__file__).parent
    library = tmp_path / "nested_region.so"
    subprocess.run(
        [*compiler, "-O1", "-std=c++17", "-fPIC", "-shared", "-w"]
        + ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(home / "include")]
        + [str(TESTS / "nested_region.cpp"), "-o", str(library)]
        + [f"-L{home / 'lib'}", "-ltorch_cpu"],
        check=True,
    )
    torch.ops.load_library(str(library))
    net = small_mobilenet()
    packed, program = net.packed(), net.program()
    for count in (2, 4):
        threads(count)
        for batch in (1, 5):
            x = torch.randn(batch, 3, 64, 64)
            (truth, *_) = net.expected(x)
            for result in torch.ops.fastdw_nested_region.call(x, packed, program, 6):
                torch.testing.assert_close(result.double(), truth, rtol=2e-4, atol=2e-4)


class _Features(Dataset[list[Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[Tensor]:
        return [call() for call in op_calls()]


def test_forked_data_loader_worker(threads: Callable[[int], None]) -> None:
    """The parent's pool has run, and does not exist in the child."""
    threads(2)
    wanted = [call() for call in op_calls()]
    loader = DataLoader(
        _Features(), num_workers=2, batch_size=None, multiprocessing_context="fork", timeout=60
    )
    seen = 0
    for results in loader:
        seen += 1
        for result, reference in zip(results, wanted, strict=True):
            torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-4)
    assert seen == 4


def test_the_gil_is_released() -> None:
    x, weight = torch.randn(8, 512, 56, 56), torch.randn(512, 512, 1, 1)
    counted, stop = 0, threading.Event()

    def count() -> None:
        nonlocal counted
        while not stop.is_set():
            counted += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    before, begin = counted, time.perf_counter()
    fastdw_ops.pointwise_conv(x, weight, None, None, None, "none")
    during, elapsed_s = counted - before, time.perf_counter() - begin
    stop.set()
    counter.join()
    assert elapsed_s > 0.02, "too short to tell"
    assert during >= max(4, elapsed_s / 0.02), f"{during} counts in {elapsed_s:.3f} s"


AMBIGUOUS = [(2, 1, 5, 7), (1, 1, 4, 4), (2, 8, 1, 1), (3, 1, 1, 1), (1, 8, 1, 6), (2, 8, 5, 1)]


@pytest.mark.parametrize("weight_last", [False, True])
@pytest.mark.parametrize("x_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 8, 5, 7), *AMBIGUOUS], ids=str)
def test_layout_is_that_of_conv2d(shape: tuple[int, ...], x_last: bool, weight_last: bool) -> None:
    formats = (torch.contiguous_format, torch.channels_last)
    x = torch.randn(shape).contiguous(memory_format=formats[x_last])
    channels = shape[1]
    for channels_out, kernel in ((6, 1), (1, 1), (6, 3)):
        weight = torch.randn(channels_out, channels, kernel, kernel)
        weight = weight.contiguous(memory_format=formats[weight_last])
        expected = F.conv2d(x, weight, padding=kernel // 2)
        if kernel == 1:
            y = fastdw_ops.pointwise_conv(x, weight, None, None, None, "none")
        else:
            y = fastdw_ops.stem_conv(x, weight, None, None, [1, 1], [1, 1, 1, 1], "none")
        assert y.stride() == expected.stride()
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    weight = torch.randn(channels, 1, 3, 3).contiguous(memory_format=formats[weight_last])
    y = fastdw_ops.depthwise_conv(x, weight, None, None, [1, 1], [1, 1, 1, 1], [1, 1], "none")
    expected = F.conv2d(x, weight, padding=1, groups=channels)
    assert y.stride() == expected.stride()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


X, DEPTHWISE, POINTWISE = torch.ones(1, 4, 5, 5), torch.ones(4, 1, 3, 3), torch.ones(6, 4, 1, 1)
WINDOW = ([1, 1], [1, 1, 1, 1], [1, 1])


def depthwise_call(**changed: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    arguments: dict[str, Any] = {
        "x": X,
        "weight": DEPTHWISE,
        "scale": None,
        "bias": None,
        "stride": [1, 1],
        "padding": [1, 1, 1, 1],
        "dilation": [1, 1],
        "activation": "none",
        **changed,
    }
    return fastdw_ops.depthwise_conv.default, tuple(arguments.values())


BAD_CALLS = {
    "x: expected \\[batch, channels, height, width\\], got \\[4, 5, 5\\]": depthwise_call(x=X[0]),
    "x: expected dtype Float, Half, BFloat16 or Double, got Int": depthwise_call(x=X.int()),
    "x: expected at least one channel": depthwise_call(x=torch.ones(1, 4, 0, 5)),
    "x: height 1 with padding 0 \\+ 0 is less than the 3": depthwise_call(
        x=torch.ones(1, 4, 1, 5), padding=[0, 0, 0, 0]
    ),
    "\\[4, 2, 3, 3\\]: not a depthwise filter": depthwise_call(weight=torch.ones(4, 2, 3, 3)),
    "weight: expected a multiple of x's 4 channels, got 6": depthwise_call(
        weight=torch.ones(6, 1, 3, 3)
    ),
    "weight: expected the dtype of x, Float, got Double": depthwise_call(weight=DEPTHWISE.double()),
    "scale: expected \\[4\\], got \\[3\\]": depthwise_call(scale=torch.ones(3)),
    "bias: expected \\[4\\], got \\[1, 4\\]": depthwise_call(bias=torch.ones(1, 4)),
    "stride: expected 2 ints of at least 1, got \\[0, 1\\]": depthwise_call(stride=[0, 1]),
    "stride: expected 2 ints": depthwise_call(stride=[1]),
    "padding: expected 4 ints of at least 0, got \\[1, 1\\]": depthwise_call(padding=[1, 1]),
    "padding: expected 4 ints of at least 0, got \\[-1": depthwise_call(padding=[-1, 0, 0, 0]),
    "dilation: expected 2 ints of at least 1": depthwise_call(dilation=[1, 2**62]),
    'activation: expected .*, got "gelu"': depthwise_call(activation="gelu"),
    "residual: expected \\[1, 6, 5, 5\\], got \\[1, 6, 5, 4\\]": (
        fastdw_ops.pointwise_conv.default,
        (X, POINTWISE, None, None, torch.ones(1, 6, 5, 4), "none"),
    ),
    "residual: x \\[1, 4, 5, 5\\] and the result \\[1, 6, 5, 5\\] differ": (
        fastdw_ops.inverted_residual.default,
        (X, None, None, None, DEPTHWISE, None, None, POINTWISE, None, None)
        + (*WINDOW, True, "none", "relu6", "none"),
    ),
    "project_weight: expected \\[6, 4, 1, 1\\], got \\[6, 5, 1, 1\\]": (
        fastdw_ops.inverted_residual.default,
        (X, None, None, None, DEPTHWISE, None, None, torch.ones(6, 5, 1, 1), None, None)
        + (*WINDOW, False, "none", "relu6", "none"),
    ),
    "weight: expected \\[channels_out, 4\\], got \\[7, 5\\]": (
        fastdw_ops.classifier_head.default,
        (X, torch.ones(7, 5), None),
    ),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls_are_refused(message: str) -> None:
    op, arguments = BAD_CALLS[message]
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        op(*arguments)


def test_bad_blobs_are_refused() -> None:
    blob = fastdw_ops.pack_pointwise_conv(POINTWISE, None, None)
    call = fastdw_ops.pointwise_conv_packed.default
    torch.testing.assert_close(call(X, blob, 6, None, "none", False), F.conv2d(X, POINTWISE))
    corrupted = blob.clone()
    corrupted[0] = 0
    other = fastdw_ops.pack_stem_conv(POINTWISE, None, None)
    for bad, channels_out, message in [
        (blob[:40], 6, "a header of 64 bytes, got 40"),
        (blob[:-1], 6, "truncated"),
        (corrupted, 6, "not a fastdw blob"),
        (other, 6, "expected pointwise_conv .*, got stem_conv"),
        (blob, 7, "channels_out 7.*channels_out 6"),
        (blob.float(), 6, "one contiguous row of bytes"),
    ]:
        with pytest.raises(RuntimeError, match=f"packed: .*{message}"):
            call(X, bad, channels_out, None, "none", False)


def test_build_without_compiler_or_torch_says_what_to_install(tmp_path: Path) -> None:
    setup = TESTS.parent / "setup.py"
    command = [str(setup), "-q", "build_ext", "--build-lib", str(tmp_path)]
    environment = {**os.environ, "PATH": str(tmp_path)}
    environment.pop("CXX", None)
    options: dict[str, Any] = {"capture_output": True, "text": True, "cwd": setup.parent}
    without = subprocess.run([sys.executable, *command], env=environment, **options)
    assert without.returncode != 0 and "sudo apt-get install g++" in without.stderr
    (tmp_path / "torch.py").write_text("raise ImportError")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    without = subprocess.run([sys.executable, *command], env=environment, **options)
    assert without.returncode != 0 and "pip install 'torch>=2.10'" in without.stderr
