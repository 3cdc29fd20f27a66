"""The peers of the benchmark: the same network in fp32, or the reason why one cannot run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from fastdw import models
from fastdw.benchmark.models import ModelCase, calibrate_batch_norm, run_case
from fastdw.benchmark.providers import PROVIDERS, Contender, default_providers
from fastdw.benchmark.providers.plain_torch import plain, precision

PEERS = ("litert", "openvino", "onnxruntime", "ncnn")
BY_IMAGE = tuple(f"{name}-by-image" for name in PEERS if name != "ncnn")  # ncnn always does so
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "v1 as TensorFlow pads": lambda: models.mobilenet_v1(0.25, num_classes=11, padding="same"),
    "v2": lambda: models.mobilenet_v2(0.35, num_classes=11),
    "v2 with dilation": lambda: models.mobilenet_v2(0.35, num_classes=11, output_stride=8),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = BUILDERS[kind]()
    calibrate_batch_norm(model, resolution=64)
    return model


def built(name: str, model: nn.Module, x: Tensor, threads: int = 1) -> Contender:
    provider = PROVIDERS[name]
    if reason := provider.unavailable():
        pytest.skip(reason)
    with torch.no_grad():
        return provider.build(model, x, threads)


def check(contender: Contender, model: nn.Module, x: Tensor) -> None:
    """The network's output in fp32, twice: the second call finds the first one's memory."""
    with torch.no_grad():
        truth = plain(model)(x)
        for _ in range(2):
            y = contender.call()
            assert y.shape == truth.shape and y.dtype == torch.float32
            # A layer's wrong weight or padding is beyond 1e-2; bf16 is beyond 1e-3.
            assert (y - truth).abs().max() <= 5e-5 * truth.abs().max()
    assert contender.precision == "fp32"


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("kind", ["v1 as TensorFlow pads", "v2 with dilation"])
def test_a_peer_computes_the_network(name: str, kind: str) -> None:
    model, x = network(kind), torch.randn(1, 3, 64, 96)
    check(built(name, model, x), model, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS + BY_IMAGE)
def test_a_peer_computes_a_batch_of_odd_images_and_holds_its_input(name: str) -> None:
    """What the caller drops later changes no later call."""
    model = network("v2")
    x = torch.randn(3, 3, 49, 35).to(memory_format=torch.channels_last)
    contender = built(name, model, x, threads=2)
    check(contender, model, x)
    first = contender.call().clone()
    del x
    _ = [torch.full((3, 3, 49, 35), torch.nan) for _ in range(50)]
    assert torch.equal(contender.call(), first)


@pytest.mark.parametrize("kind", BUILDERS)
def test_frozen_torch_computes_the_network(kind: str) -> None:
    model, x = network(kind), torch.randn(1, 3, 64, 96)
    check(built("torch-jit-frozen", model, x), model, x)


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name.startswith("torch-e")])
def test_torch_runs_torch_ops_only(name: str) -> None:
    """Models of fastdw.models too, whose modules otherwise run fastdw's kernels in eval mode."""
    model, x = network("v2"), torch.randn(1, 3, 32, 32)
    contender = built(name, model, x)
    with torch.no_grad(), profile() as recorded:
        contender.call()
    ops = {event.name for event in recorded.events()}
    assert {"aten::conv2d", "aten::batch_norm", "aten::hardtanh_", "aten::linear"} <= ops
    assert not [op for op in ops if "fastdw" in op]
    check(contender, model, x)


def test_plain_leaves_the_model_as_it_was() -> None:
    model, x = network("v1 as TensorFlow pads"), torch.randn(1, 3, 32, 32)
    plain(model)
    with torch.no_grad(), profile() as recorded:
        model(x)
    assert any(event.name.startswith("fastdw::") for event in recorded.events())


def test_torch_says_when_it_may_use_less_than_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision() == "fp32"
    torch.set_float32_matmul_precision("medium")
    try:
        assert "get_float32_matmul_precision=medium" in precision()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert precision() == "fp32"
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert precision() == "fp32 or lower: ONEDNN_DEFAULT_FPMATH_MODE=BF16"


def image() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.slow  # starts a process that imports torch
def test_the_result_has_the_precision_that_was_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    case = ModelCase(f"{__name__}:image", resolution=32)
    [result] = run_case(case, [PROVIDERS["torch-eager"]], rounds=1, slot_seconds=0)
    assert result.to_dict()["precision"] == "fp32 or lower: ONEDNN_DEFAULT_FPMATH_MODE=BF16"


def test_openvinos_precision_is_that_of_its_layers() -> None:
    openvino = pytest.importorskip("openvino")
    if reason := PROVIDERS["openvino"].unavailable():
        pytest.skip(reason)
    from fastdw.benchmark.model_files import onnx_file
    from fastdw.benchmark.providers.openvino_runtime import precision as of_layers

    path = onnx_file(image().eval(), torch.randn(1, 3, 32, 32))
    core = openvino.Core()
    for hint in ("f32", "bf16"):
        compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": hint})
        kept = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()  # f32 where no bf16
        assert (of_layers(compiled) == "fp32") == (kept == "f32")


def test_ncnn_has_an_option_for_each_lower_precision() -> None:
    ncnn = pytest.importorskip("ncnn")
    from fastdw.benchmark.providers.ncnn_runtime import lower_options

    expected = {"use_fp16_storage", "use_fp16_arithmetic", "use_fp16_packed", "use_bf16_storage"}
    assert expected <= set(lower_options(ncnn.Net().opt))


@pytest.mark.parametrize(
    "name,module",
    [("litert", "ai_edge_litert"), *((name, name) for name in PEERS if name != "litert")],
)
def test_a_missing_runtime_is_a_reason(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None)
    reason = f"{module} is not installed: pip install 'fastdw[bench]'"
    assert PROVIDERS[name].unavailable() == reason


@pytest.mark.parametrize("name,writer", [("litert", "TensorFlow"), ("ncnn", "pnnx")])
def test_a_missing_writer_is_a_reason(
    name: str, writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: object())
    monkeypatch.setenv("FASTDW_BENCH_ENV", str(tmp_path))
    assert PROVIDERS[name].unavailable() == f"{writer} is not installed: run `make bench-env`"
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for folder in ("tensorflow_cpu-2.21.0.dist-info", "pnnx-20261020.dist-info"):
        (packages / folder).mkdir(parents=True)
    assert PROVIDERS[name].unavailable() is None


def test_every_peer_is_timed_at_every_batch() -> None:
    for batch in (1, 2, 8):
        names = {provider.name for provider in default_providers(batch)}
        assert {*PEERS, "fastdw"} <= names
        assert set(BY_IMAGE) & names == (set(BY_IMAGE) if batch > 1 else set())
