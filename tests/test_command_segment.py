"""`fastdw segment`: the mask, the shares, the picture, and bad input in one sentence."""

from __future__ import annotations

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
from fastdw.benchmark.models import calibrate_batch_norm
from fastdw.commands.photos import shipped_photos
from fastdw.commands.segment import at_size_of, class_colour, letterbox, shares
from fastdw.models.deeplab import VOC_CLASSES, deeplab_v3
from fastdw.models.segmenters import SEGMENTERS

Run = Callable[..., tuple[int, str, str]]

CORAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "coral"
TRAINED = CORAL / "deeplabv3_mnv2_pascal_quant.tflite"
BIRD, BACKGROUND = VOC_CLASSES.index("bird"), 0
SMALL = ("--size", 65, "--rounds", 0)

needs_coral = pytest.mark.skipif(not CORAL.is_dir(), reason="no ../shared/data/coral beside us")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that were never trained, but tell pixels apart."""
    torch.manual_seed(0)
    model = deeplab_v3()
    model.aspp.project.conv.weight.data[:, :256] = 0  # what is the same for all pixels
    calibrate_batch_norm(model, 96)
    path = tmp_path_factory.mktemp("weights") / "deeplab.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def chelsea(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo that is wider than high, 451x300; pictures without a name go to a scratch folder."""
    monkeypatch.chdir(tmp_path)
    return next(path for path in shipped_photos() if path.name == "chelsea.png")


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened)


def of_json(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


@needs_coral
def test_the_bird_is_found(run: Run, tmp_path: Path) -> None:
    photo, mask, out = CORAL / "bird_segmentation.bmp", tmp_path / "mask.png", tmp_path / "out.png"
    options = ("--weights", TRAINED, "--mask", mask, "--out", out, "--rounds", 1, "--json")
    found = of_json(run("segment", photo, *options))
    assert [entry["label"] for entry in found["classes"]] == ["background", "bird"]
    assert found["same"] and found["largest_difference"] <= 1e-4 * found["largest_logit"]
    times = found["times"][0]
    assert times["ratio"] == pytest.approx(
        times["torch"]["median_ms"] / times["fastdw"]["median_ms"]
    )
    numbers, truth = pixels_of(mask), pixels_of(CORAL / "bird_segmentation_mask.bmp")
    ours, theirs, judged = numbers == BIRD, truth == BIRD, truth != 255
    assert (ours & theirs & judged).sum() / ((ours | theirs) & judged).sum() >= 0.90
    assert found["classes"][1]["share"] == pytest.approx(ours.mean())
    picture, original = pixels_of(out), pixels_of(photo)
    below_the_legend = slice(100, None)
    differs = (picture != original).any(-1)[below_the_legend]
    assert (differs == ours[below_the_legend]).mean() > 0.99


@needs_coral
def test_a_photo_of_another_shape(run: Run, chelsea: Path) -> None:
    options = ("--weights", TRAINED, "--mask", "mask.png", "--rounds", 0, "--json")
    found = of_json(run("segment", chelsea, *options))
    best = found["classes"][0]
    assert best["label"] == "cat" and best["share"] > 0.7
    numbers = pixels_of(Path("mask.png"))
    assert numbers.shape == (300, 451) and numbers.dtype == np.uint8
    assert (numbers[100:200, 150:300] == VOC_CLASSES.index("cat")).all()


def test_shares_and_mask_belong_together(run: Run, chelsea: Path, weights: Path) -> None:
    options = ("--weights", weights, "--mask", "mask.png", *SMALL, "--json")
    found = of_json(run("segment", chelsea, *options))
    numbers = pixels_of(Path("mask.png"))
    assert numbers.shape == (300, 451)
    assert found["out"] == "chelsea-segmented.png"
    assert pixels_of(Path(found["out"])).shape == (300, 451, 3)
    counted = {VOC_CLASSES[index]: (numbers == index).mean() for index in np.unique(numbers)}
    assert len(counted) > 1
    assert {entry["label"]: entry["share"] for entry in found["classes"]} == pytest.approx(counted)
    ordered = [entry["share"] for entry in found["classes"]]
    assert ordered == sorted(ordered, reverse=True) and sum(ordered) == pytest.approx(1)
    code, out, err = run("segment", chelsea, "--weights", weights, *SMALL)
    assert code == 0 and found["classes"][0]["label"] in out and "are the same" in out
    assert "drawn into chelsea-segmented.png" in err


def test_it_fails_loudly_when_the_answers_differ(
    run: Run, chelsea: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.report = model, fastdw.explain(model)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) * 1.01  # the same classes, other logits

    monkeypatch.setattr(fastdw, "optimize", lambda model, *_, **__: Off(model))
    code, out, err = run("segment", chelsea, "--weights", weights, *SMALL)
    assert code == 1 and "are DIFFERENT" in out and "the answers differ" in err


@pytest.mark.parametrize("turned", [False, True])
def test_letterbox(turned: bool) -> None:
    segmenter = SEGMENTERS["deeplab-v3-mobilenet-v2"]
    image = Image.new("RGB", (100, 300) if turned else (300, 100), (255, 128, 0))
    x, (width, height) = letterbox(image, segmenter)
    assert x.shape == (1, 3, 513, 513)
    assert (width, height) == ((171, 513) if turned else (513, 171))
    photo = torch.zeros(513, 513)
    photo[:height, :width] = 1
    for channel, value in enumerate((127 / 128, 0, -1)):
        assert torch.equal(x[0, channel], photo * value)


def test_class_numbers_are_not_mixed_where_the_mask_grows() -> None:
    numbers = torch.tensor([[0, 20], [20, 0]])
    grown = at_size_of(Image.new("RGB", (7, 5)), numbers)
    assert grown.shape == (5, 7) and set(np.unique(grown)) == {0, 20}
    assert grown[0, 0] == grown[-1, -1] == 0 and grown[0, -1] == grown[-1, 0] == 20


def test_shares_leave_out_what_is_not_there() -> None:
    numbers = np.array([[2, 2, 0], [2, 1, 0]], dtype=np.uint8)
    found = shares(numbers, ("background", "a", "b", "c"))
    assert [(entry["label"], entry["index"]) for entry in found] == [
        ("b", 2),
        ("background", 0),
        ("a", 1),
    ]
    assert [entry["share"] for entry in found] == pytest.approx([1 / 2, 1 / 3, 1 / 6])


@pytest.mark.parametrize(
    ("label", "colour"),
    [
        ("background", (0, 0, 0)),
        ("aeroplane", (128, 0, 0)),
        ("bird", (128, 128, 0)),
        ("person", (192, 128, 128)),
        ("tvmonitor", (0, 64, 128)),
    ],
)
def test_colours_are_those_of_pascal_voc(label: str, colour: tuple[int, int, int]) -> None:
    assert class_colour(VOC_CLASSES.index(label)) == colour


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("{photo} --model deeplab", "--model: no network called 'deeplab': did you mean deeplab-"),
        ("{photo} --weights {folder}/none.pt", "--weights: {folder}/none.pt is no file"),
        ("{photo} --weights {folder}/other.pt", "--weights: "),
        ("{photo} --weights {folder}/text.tflite", "--weights: "),
        ("{folder}/none.jpg", "none.jpg: no such photo"),
        ("{photo} --weights {weights} --size 65 --out {folder}/a/b.png", "--out: {folder}/a/b.png"),
        (
            "{photo} --weights {weights} --size 65 --mask {folder}/a/b.png",
            "--mask: {folder}/a/b.pn",
        ),
        ("{photo} --mask {folder}/b.jpg", "--mask: {folder}/b.jpg: expected a .png"),
        ("{photo} --mask {folder}/b.png --out {folder}/b.png", "--mask: {folder}/b.png is the ph"),
        ("{photo} --mask {photo}", "--mask: {photo} is the photo itself"),
        ("{photo} --size 65 --weights {folder}/nan.pt", "stock torch itself answers NaN or inf"),
    ],
)
def test_bad_input(
    run: Run, chelsea: Path, weights: Path, tmp_path: Path, command: str, expected: str
) -> None:
    torch.save({"stem.conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "text.tflite").write_text("no model")
    state = torch.load(weights, weights_only=True)
    state["classifier.bias"] *= torch.nan
    torch.save(state, tmp_path / "nan.pt")
    places = {"photo": chelsea, "folder": tmp_path, "weights": weights}
    code, out, err = run("segment", *command.format(**places).split())
    assert code == 2 and out == ""
    assert expected.format(**places) in err and len(err.strip().splitlines()) == 1
