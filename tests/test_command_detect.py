"""`fastdw detect`, and `classify` by the name of a trained classifier."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import fastdw
from fastdw.benchmark.models import calibrate_batch_norm
from fastdw.commands.detect import detector_input, drawn, in_pixels
from fastdw.commands.photos import load_photo, shipped_photos
from fastdw.models import weights
from fastdw.models.boxes import Detections
from fastdw.models.detectors import DETECTORS

Run = Callable[..., tuple[int, str, str]]
FACE, OPEN_IMAGES = DETECTORS["ssd-mobilenet-v1-face"], DETECTORS["ssd-mobilenet-v2-openimages"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdw.commands.demo.SLOT_SECONDS", 0)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a detector that was never trained, but whose signal is alive."""
    torch.manual_seed(0)
    model = OPEN_IMAGES.build()
    calibrate_batch_norm(model, 300)
    path = tmp_path_factory.mktemp("weights") / "ssd.pt"
    torch.save(model.state_dict(), path)
    return path


def photo(name: str) -> Path:
    return next(path for path in shipped_photos() if path.name == name)


def fetched(name: str) -> Path:
    try:
        return weights.fetch(name)
    except weights.FetchError as error:
        pytest.skip(f"the weights cannot be had: {error}")


def of_json(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(
    ("model", "name", "label", "score", "box"),
    [
        ("ssd-mobilenet-v1-face", "astronaut.png", "face", 0.965, (181, 73, 264, 175)),
        ("ssd-mobilenet-v2-openimages", "chelsea.png", "Cat", 0.847, (3, 1, 424, 300)),
    ],
)
def test_detects_what_is_there(
    run: Run, tmp_path: Path, model: str, name: str, label: str, score: float, box: Any
) -> None:
    fetched(model)
    out = tmp_path / "drawn.png"
    command = ("detect", photo(name), "--model", model, "--out", out, "--rounds", 1, "--json")
    found = of_json(run(*command))
    (one,) = found["detections"]
    assert (one["label"], one["score"]) == (label, pytest.approx(score, abs=2e-3))
    assert one["box"] == pytest.approx(box, abs=1.5)
    assert found["same"] and found["fused"] > 20
    assert found["largest_difference"]["scores"] <= 1e-5
    assert found["times"][0]["threads"] == 1 and found["times"][0]["torch"]["median_ms"] > 0
    picture, original = load_photo(out), load_photo(photo(name))
    assert picture.size == original.size and picture.tobytes() != original.tobytes()


def test_a_file_of_weights_and_a_table(
    run: Run, tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("detect", photo("coffee.png"), "--weights", untrained, "--rounds", 1)
    code, out, err = run(*command, "--threshold", 0)
    assert code == 0, err
    assert any(label in out for label in OPEN_IMAGES.labels[1:])
    assert "the same" in out and "ratio" in out
    assert (tmp_path / "coffee-detected.png").is_file()
    code, out, err = run(*command, "--threshold", 1)
    assert code == 0 and "nothing found" in out


@pytest.mark.parametrize("as_json", [True, False])
def test_weights_that_make_nan_are_one_sentence(
    run: Run, tmp_path: Path, untrained: Path, as_json: bool
) -> None:
    state = torch.load(untrained, weights_only=True)
    state["box_heads.0.bias"] *= math.nan
    torch.save(state, tmp_path / "nan.pt")
    options = ("--weights", tmp_path / "nan.pt", "--rounds", 0, *["--json"][: int(as_json)])
    code, out, err = run("detect", photo("coffee.png"), *options)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "nan.pt stock torch itself answers NaN or inf" in err


def test_nan_of_ours_alone_is_another_answer(
    run: Run, tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fastdw.optimize

    def wrong(model: nn.Module, x: torch.Tensor, **settings: Any) -> nn.Module:
        state = torch.load(untrained, weights_only=True)
        state["box_heads.0.bias"] *= math.nan
        damaged = OPEN_IMAGES.build().eval()
        damaged.load_state_dict(state)
        return right(damaged, x, **settings)

    monkeypatch.setattr(fastdw, "optimize", wrong)
    command = ("detect", photo("coffee.png"), "--weights", untrained, "--rounds", 0, "--json")
    code, out, _ = run(*command, "--threshold", 0, "--out", tmp_path / "x.png")
    found = json.loads(out)
    assert code == 1 and not found["same"] and found["largest_difference"]["boxes"] is None
    assert all(math.isfinite(side) for one in found["detections"] for side in one["box"])


def test_other_answers_fail_loudly(
    run: Run, tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off(nn.Module):
        def __init__(self, model: nn.Module, x: torch.Tensor) -> None:
            super().__init__()
            self.model = model
            self.report = right(model, x).report

        def forward(self, x: torch.Tensor) -> Any:
            boxes, classes = self.model(x)
            return boxes, tuple(y + 0.01 for y in classes)

    right = fastdw.optimize
    monkeypatch.setattr(fastdw, "optimize", lambda model, x, **_: Off(model, x))
    command = ("detect", photo("coffee.png"), "--weights", untrained, "--rounds", 0)
    code, out, err = run(*command, "--out", tmp_path / "x.png")
    assert code == 1 and "DIFFERENT" in out and "the answers differ" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "ssd-mobilenet-v1-fase"), "did you mean ssd-mobilenet-v1-face"),
        (("--model", "ssd-mobilenet-v1-voc"), "--weights: needed for ssd-mobilenet-v1-voc"),
        (("--weights", "nowhere.pt"), "nowhere.pt is no file, and no name that is known"),
        (("--weights", __file__), "is damaged or truncated|is no weights file"),
    ],
)
def test_bad_input_in_one_sentence(run: Run, arguments: tuple[str, ...], message: str) -> None:
    import re

    code, out, err = run("detect", photo("coffee.png"), *arguments)
    assert (code, out) == (2, "") and re.search(message, " ".join(err.split()))
    assert "Traceback" not in err


def test_weights_of_another_network_and_a_picture_that_cannot_be_written(
    run: Run, untrained: Path
) -> None:
    command = ("detect", photo("coffee.png"), "--rounds", 0, "--weights", untrained)
    code, _, err = run(*command, "--model", "ssd-mobilenet-v1-face")
    assert code == 2 and "--weights: " in err
    code, _, err = run(*command, "--out", "nowhere/x.png")
    assert code == 2 and "--out: nowhere/x.png cannot be written" in " ".join(err.split())


def test_a_letterboxed_photo_keeps_its_shape_and_its_boxes_their_place() -> None:
    wide = Image.new("RGB", (200, 100), (255, 255, 255))
    x = detector_input(wide, FACE, 64)
    assert x.shape == (1, 3, 64, 64)
    assert (x[0, :, :32] == 1).all() and (x[0, :, 32:] == -1).all()
    assert (detector_input(wide, OPEN_IMAGES, 64) == 1).all()
    share = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    found = Detections(share, torch.tensor([1]), torch.tensor([0.5]))
    assert in_pixels(found, wide, FACE)[0]["box"] == [50, 50, 150, 100]
    assert in_pixels(found, wide, OPEN_IMAGES)[0]["box"] == [50, 25, 150, 75]
    unused = Detections(share, torch.tensor([2]), torch.tensor([0.5]))
    assert in_pixels(unused, wide, FACE) == []


def test_a_box_is_drawn_where_it_is() -> None:
    black = Image.new("RGB", (200, 100))
    picture = drawn(black, [{"label": "cat", "score": 0.5, "box": [40, 30, 120, 90]}])
    outline = picture.getpixel((80, 90))
    assert outline != (0, 0, 0) and outline == picture.getpixel((40, 60))
    assert picture.getpixel((80, 60)) == picture.getpixel((150, 95)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("model", "name", "probability"),
    [
        ("mobilenet-v1-imagenet", "espresso", 0.991),
        ("mobilenet-v2-imagenet", "espresso", 0.992),
        ("mobilenet-v2-dog-breeds", "Chihuahua", 0.304),
    ],
)
def test_classify_by_the_name_of_a_trained_classifier(
    run: Run, model: str, name: str, probability: float
) -> None:
    fetched(model)
    command = ("classify", photo("coffee.png"), "--model", model, "--rounds", 1, "--json")
    found = of_json(run(*command))
    best = found["photos"][0]["classes"][0]
    assert (best["name"], best["probability"]) == (name, pytest.approx(probability, abs=2e-3))
    assert found["largest_difference"] <= 1e-4
    assert found["times"][0]["ratio"] > 0
