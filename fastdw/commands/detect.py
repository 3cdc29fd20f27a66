"""`fastdw detect PHOTO`: boxes and labels, by stock torch and by an optimized network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fastdw.commands.demo import compare_times, times_table
from fastdw.commands.model_argument import check_finite, loaded, named
from fastdw.commands.output import AsJson, InputError, emit, stderr
from fastdw.commands.photos import load_photo, save_picture, write_label

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from fastdw.models.boxes import Detections
    from fastdw.models.detectors import Detector
    from fastdw.models.ssd import SSD

DEFAULT_DETECTOR = "ssd-mobilenet-v2-openimages"
FACES, VOC = "ssd-mobilenet-v1-face", "ssd-mobilenet-v1-voc"
# Of scores, and of boxes as shares of the photo's sides. Both sides compute in fp32.
TOLERANCE = 1e-4
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000")


def detect(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", show_default=False)],
    model: Annotated[
        str, typer.Option(help=f"{DEFAULT_DETECTOR}, {FACES} or {VOC} (the last needs --weights).")
    ] = DEFAULT_DETECTOR,
    weights: Annotated[
        str | None,
        typer.Option(help="A file with its weights, or a name that `fastdw fetch` knows."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to draw the boxes over the photo; PHOTO-detected.png if none."),
    ] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="The lowest score to show.")] = 0.5,
    rounds: Annotated[int, typer.Option(min=0, help="Timing slots of each side; 0: none.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Detect objects in a photo: stock torch against fastdw.optimize.

    Draws the boxes over the photo, and shows labels, scores, the largest difference of both answers
    and both times. Exit code 1 if the answers differ.
    """
    import torch

    import fastdw
    from fastdw.benchmark.providers.plain_torch import plain

    image = load_photo(photo)
    detector, network = trained_detector(model, weights)
    x = detector_input(image, detector, network.form.size)
    with torch.inference_mode(), stderr.status("optimizing"):
        # Compared below: optimize is not to fall back to torch where it differs.
        fast: Any = fastdw.optimize(network, x, tolerance=math.inf)
        stock = plain(network).to(memory_format=torch.channels_last)
        expected, got = stock(x), fast(x)
        check_finite(expected, weights or model)
        found = in_pixels(network.detections(got, threshold)[0], image, detector)
        differences = compared(network, expected, got)
    out = out or Path(f"{photo.stem}-detected.png")
    save_picture(drawn(image, found), out, "--out")
    answer = {
        "model": model,
        "photo": str(photo),
        "out": str(out),
        "detections": found,
        **differences,
        "fused": fast.report.totals["fused"],
        "planned": fast.report.planned,
        "times": compare_times(stock, fast, x, rounds) if rounds else [],
    }
    times = [times_table(answer["times"])] if rounds else []
    emit(answer, _table(answer), _verdict(answer), *times, as_json=as_json)
    stderr.print(f"drawn into {out}")
    if not answer["same"]:
        stderr.print("[bold red]the answers differ")
        raise typer.Exit(1)


def trained_detector(name: str, weights: str | None) -> tuple[Detector, SSD]:
    """The detector of that name with its weights, in eval mode.

    Raises:
        InputError: no detector of that name, or its weights are damaged or those of another.
    """
    from fastdw.models.detectors import DETECTORS

    detector = named(name, DETECTORS, "detector")
    if weights is None and not detector.published:
        raise InputError(f"--weights: needed for {name}: no registry's package has any")
    return detector, loaded(detector.build, weights or name)


def detector_input(image: Image.Image, detector: Detector, size: int) -> torch.Tensor:
    """The photo as the detector takes it: stretched to a square, or at the top left of a black one.

    Returns:
        fp32 [1, 3, size, size], channels_last.
    """
    import numpy as np
    import torch
    from PIL import Image as Pillow

    width, height = image.size
    if detector.letterbox:
        longer = max(image.size)
        width, height = (max(1, round(length * size / longer)) for length in image.size)
    else:
        width = height = size
    square = Pillow.new("RGB", (size, size))
    square.paste(image.resize((width, height), Pillow.Resampling.BILINEAR))
    pixels = torch.from_numpy(np.array(square, dtype=np.float32))
    return ((pixels - detector.offset) / detector.scale).permute(2, 0, 1).unsqueeze(0)


def in_pixels(found: Detections, image: Image.Image, detector: Detector) -> list[dict[str, Any]]:
    """Label, score and box (left, top, right, bottom) of each detection, in pixels of the photo."""
    width, height = image.size
    longer = max(image.size)
    across, down = (longer, longer) if detector.letterbox else (width, height)
    rows = []
    for box, label, score in zip(
        found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
    ):
        if not detector.labels[label]:
            continue
        left, right = (min(share * across, width) for share in box[::2])
        top, bottom = (min(share * down, height) for share in box[1::2])
        sides = [left, top, right, bottom]
        if all(map(math.isfinite, sides)):  # else the answers differ, which is said
            rows.append({"label": detector.labels[label], "score": score, "box": sides})
    return rows


def compared(network: SSD, expected: Any, got: Any) -> dict[str, Any]:
    """How far scores and boxes (shares of the photo's sides) of all anchors differ."""
    wanted_boxes, wanted_scores = network.boxes_and_scores(expected)
    boxes, scores = network.boxes_and_scores(got)
    of_boxes = (boxes - wanted_boxes).abs().max().item()
    of_scores = (scores - wanted_scores).abs().max().item()
    largest = max(1.0, wanted_boxes.abs().max().item())  # few boxes reach beyond the photo
    return {
        "largest_difference": {"boxes": of_boxes, "scores": of_scores},
        "same": of_boxes <= TOLERANCE * largest and of_scores <= TOLERANCE,
    }


def drawn(image: Image.Image, found: Sequence[dict[str, Any]]) -> Image.Image:
    """The photo with each box and its label, a colour for each label."""
    from PIL import ImageDraw

    picture = image.copy()
    pen = ImageDraw.Draw(picture)
    text_size = max(12, min(image.size) // 24)
    width = max(2, text_size // 8)
    labels = sorted({entry["label"] for entry in found})
    for entry in reversed(found):  # the best on top
        colour = COLOURS[labels.index(entry["label"]) % len(COLOURS)]
        left, top, right, bottom = entry["box"]
        pen.rectangle((left, top, right, bottom), outline=colour, width=width)
        text = f"{entry['label']} {entry['score']:.2f}"
        corner = (left + width, max(0.0, top - 1.4 * text_size))
        write_label(pen, corner, text, text_size, colour, margin=width)
    return picture


def _table(answer: dict[str, Any]) -> Table:
    table = Table(title=Path(answer["photo"]).name)
    table.add_column("label", min_width=12)
    table.add_column("score", justify="right")
    table.add_column("left, top, right, bottom", justify="right")
    for entry in answer["detections"]:
        box = ", ".join(f"{side:.0f}" for side in entry["box"])
        table.add_row(entry["label"], f"{entry['score']:.3f}", box)
    if not answer["detections"]:
        table.add_row("nothing found", "", "")
    return table


def _verdict(answer: dict[str, Any]) -> str:
    same = "the same" if answer["same"] else "DIFFERENT"
    largest = answer["largest_difference"]
    return (
        f"{answer['model']}: the answers of stock torch and fastdw are {same}, scores differ by "
        f"{largest['scores']:.1e} at most, boxes by {largest['boxes']:.1e} of the photo"
    )
