"""The `fastdw` command: what it prints, as tables and as JSON, and its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fastdw
import fastdw.models
import fastdw.models.weights
from fastdw import native
from fastdw.benchmark.cases import OP_CASES
from fastdw.benchmark.models import calibrate_batch_norm
from fastdw.commands.photos import load_photo, preprocess, shipped_photos
from fastdw.convert import Report

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a MobileNet V2 that was never trained, but whose signal is alive."""
    torch.manual_seed(0)
    model = fastdw.models.create("torchvision:mobilenet_v2")
    calibrate_batch_norm(model, 96)
    path = tmp_path_factory.mktemp("weights") / "v2.pt"
    torch.save(model.state_dict(), path)
    return path


def of_json(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def test_doctor_tells_versions_isa_and_backends(run: Run) -> None:
    found = of_json(run("doctor", "--json"))
    assert found["environment"]["torch"] == torch.__version__
    assert found["environment"]["fastdw"] == fastdw.__version__
    assert found["backends"]["cpp"]["isa"] == native.active_isa()
    assert found["backends"]["cpp"]["supported_isas"] == native.supported_isas()
    cuda = found["backends"]["cpp on cuda"]
    assert cuda["loaded"] == (native.cuda_reason() is None)
    assert cuda["targets"] if cuda["loaded"] else cuda["reason"]
    assert not found["backends"]["triton"]["loaded"] and found["backends"]["triton"]["reason"]
    code, out, _ = run("doctor")
    assert code == 0 and native.active_isa() in out and "pointwise_conv" in out


def test_doctor_without_a_library_says_how_to_build_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ImportError("fastdw: not built: run `build it`")

    monkeypatch.setattr(native, "load", missing)
    code, out, _ = run("doctor", "--json")
    assert code == 1
    cpp = json.loads(out)["backends"]["cpp"]
    assert cpp == {"loaded": False, "reason": "fastdw: not built: run `build it`"}


def test_explain_counts_what_would_be_fused(run: Run) -> None:
    found = of_json(run("explain", "torchvision:mobilenet_v2", "--json"))
    assert found["totals"]["depthwise_fused"] == 17
    code, out, _ = run("explain", "torchvision:mobilenet_v2")
    assert code == 0 and "inverted_residual" in out and "17" in out


@pytest.mark.parametrize(
    "model,options,parameters,multiply_adds",
    [
        ("fastdw:mobilenet_v1", (), 4_231_976, 568.7),
        ("fastdw:mobilenet_v2", (), 3_504_872, 300.8),
        ("torchvision:mobilenet_v2", (), 3_504_872, 300.8),
        ("fastdw:mobilenet_v1", ("--width", 0.5), 1_331_592, 149.5),
        ("fastdw:mobilenet_v1", ("--resolution", 160), 4_231_976, 290.7),
        ("torchvision:mobilenet_v2", ("--width", 1.4), 6_108_776, 582.2),
    ],
)
def test_summary_gives_the_papers_numbers(
    run: Run, model: str, options: tuple[object, ...], parameters: int, multiply_adds: float
) -> None:
    found = of_json(run("summary", model, *options, "--json"))
    assert found["totals"]["parameters"] == parameters
    assert round(found["totals"]["multiply_adds"] / 1e6, 1) == multiply_adds
    assert sum(layer["parameters"] for layer in found["layers"]) == parameters


def test_summary_compares_with_the_papers(run: Run) -> None:
    rows = of_json(run("summary", "fastdw:mobilenet_v1", "--compare", "--json"))["compare"]
    printed = {row["name"]: row for row in rows if row["name"] in ("GoogLeNet", "VGG16")}
    assert printed["GoogLeNet"]["published"]["multiply_adds"] == 1550e6
    assert printed["VGG16"]["published"]["parameters"] == 138e6
    assert all("table 8" in row["source"] for row in printed.values())
    for row in rows:
        if row["name"] == "MobileNet V1":  # the papers' tables of both multipliers
            counted, published = row["counted"], row["published"]
            assert counted["multiply_adds"] == pytest.approx(published["multiply_adds"], abs=1e6)
            assert counted["parameters"] == pytest.approx(published["parameters"], abs=0.05e6)
    code, out, _ = run("summary", "fastdw:mobilenet_v1", "--compare")
    assert code == 0 and "4,231,976" in out and "GoogLeNet" in out and "15300" in out


def test_classify_ranks_classes_as_stock_torch_does(run: Run, weights: Path) -> None:
    photo = next(path for path in shipped_photos() if path.name == "coffee.png")
    command = ("classify", photo, "--weights", weights, "--json")
    [answer] = of_json(run(*command, "--top", 3, "--class", "Tabby"))["photos"]
    model = fastdw.models.create("torchvision:mobilenet_v2").eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    with torch.inference_mode():
        logits = model(preprocess(load_photo(photo)))[0]
    *top, tabby = answer["classes"]
    assert [entry["index"] for entry in top] == logits.topk(3).indices.tolist()
    assert tabby["name"] == "tabby" and tabby["index"] == 281
    probability = logits.double().softmax(0)[281].item()
    assert tabby["probability"] == pytest.approx(probability, rel=1e-3)
    code, out, _ = run("classify", photo, photo, "--weights", weights)
    assert code == 0 and out.count("coffee.png") == 2 and top[0]["name"] in out


def test_preprocessing_is_torchvisions() -> None:
    from torchvision.models import MobileNet_V2_Weights

    transform = MobileNet_V2_Weights.IMAGENET1K_V1.transforms(resize_size=256)
    for photo in shipped_photos():
        image = load_photo(photo)
        torch.testing.assert_close(preprocess(image), transform(image)[None], msg=str(photo))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "I;16B"])
def test_photos_of_every_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    greys = np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 8, 1)
    if mode.startswith("I;16"):
        depth = np.dtype(">u2" if mode.endswith("B") else "<u2")
        greys[0, 0] = 128
        Image.fromarray((greys.astype(np.uint16) * 257).astype(depth)).save(tmp_path / "x.tiff")
    else:
        Image.fromarray(greys).convert(mode).save(tmp_path / "x.tiff")
    found = load_photo(tmp_path / "x.tiff")
    assert found.mode == "RGB"
    assert np.array_equal(np.array(found), np.repeat(greys[..., None], 3, 2))


def demo_of(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setattr(fastdw.models.weights, "fetch", lambda name: weights)
    monkeypatch.setattr("fastdw.commands.demo.SLOT_SECONDS", 0)


def test_demo_shows_the_same_answers_side_by_side(
    run: Run, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    demo_of(monkeypatch, weights)
    own = shipped_photos()[0]
    found = of_json(run("demo", own, "--rounds", 1, "--json"))
    assert found["same"] and found["planned"] and len(found["photos"]) == 9
    assert found["photos"][-1]["photo"] == str(own)
    for photo in found["photos"]:
        assert photo["largest_difference"] <= 1e-4 * photo["largest_logit"]
    assert found["times"][0]["threads"] == 1
    for row in found["times"]:
        assert row["ratio"] == pytest.approx(row["torch"]["median_ms"] / row["fastdw"]["median_ms"])


def test_demo_fails_loudly_when_the_answers_differ(
    run: Run, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    class Off(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.report = model, Report(planned=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) * 1.01  # the same order, other logits

    demo_of(monkeypatch, weights)
    monkeypatch.setattr(fastdw, "optimize", lambda model, *_, **__: Off(model))
    code, out, err = run("demo", "--rounds", 1)
    assert code == 1
    assert "DIFFERENT" in out and "the answers differ: chelsea.png" in err


def test_fetch_prints_the_path(run: Run, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setattr(fastdw.models.weights, "fetch", lambda name: weights)
    assert of_json(run("fetch", "mobilenet-v2-imagenet", "--json"))["path"] == str(weights)
    assert run("fetch", "mobilenet-v2-imagenet")[1].strip() == str(weights)


def test_bench_prints_json_and_appends(run: Run, tmp_path: Path) -> None:
    options = ("--resolution", 32, "--rounds", 1, "--slot-ms", 0, "--threads", 1)
    command = ("bench", "fastdw:mobilenet_v2", *options, "--provider", "fastdw", "--json")
    found = of_json(run(*command, "--results", tmp_path))
    [row] = found["results"]
    assert (row["provider"], row["status"], row["threads"]) == ("fastdw", "ok", 1)
    assert row["median_ms"] > 0 and row["error"] < 1e-4
    assert found["isa"] == native.active_isa() and found["environment"]["cpu"]
    [file] = tmp_path.glob("*/models.csv")
    assert len(file.read_text().splitlines()) == 2


def test_verify_passes_here_and_fails_on_a_wrong_kernel(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {"classifier_head": OP_CASES["classifier_head"]}
    monkeypatch.setattr("fastdw.benchmark.verify.OP_CASES", only)
    found = of_json(run("verify", "--json"))
    assert found["wrong"] == 0
    assert {v["isa"] for v in found["verdicts"] if v["backend"] == "cpp"} == set(
        native.supported_isas()
    )
    right = fastdw.ops.classifier_head
    monkeypatch.setattr(fastdw.ops, "classifier_head", lambda *a, **k: right(*a, **k) * 1.01)
    code, out, _ = run("verify")
    assert code == 1 and "over" in out
