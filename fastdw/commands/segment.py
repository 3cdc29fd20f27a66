"""`fastdw segment PHOTO`: a class for each pixel, by stock torch and by an optimized network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fastdw.commands.demo import TOLERANCE, compare_times, times_table
from fastdw.commands.model_argument import check_finite, loaded, named
from fastdw.commands.output import AsJson, InputError, emit, stderr
from fastdw.commands.photos import load_photo, save_picture, write_label

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from torch import nn

    from fastdw.models.segmenters import Segmenter

DEFAULT_SEGMENTER = "deeplab-v3-mobilenet-v2"
OPACITY = 0.5
PALETTE_BITS = 8


def segment(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", show_default=False)],
    model: Annotated[str, typer.Option(help="The name of a network.")] = DEFAULT_SEGMENTER,
    weights: Annotated[
        str | None,
        typer.Option(help="A file with its weights, or a name that `fastdw fetch` knows."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to draw the classes over the photo; PHOTO-segmented.png if none."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A PNG for the class numbers, at the photo's size.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=33, help="Longer side in the network; as trained if none.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Timing slots of each side.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Segment a photo: stock torch against fastdw.optimize.

    Draws the classes over the photo, and shows the share of each, the largest difference of the
    logits and both times. Exit code 1 if the answers differ.
    """
    import torch
    from PIL import Image

    import fastdw

    out = out or Path(f"{photo.stem}-segmented.png")
    _check_mask(mask, (photo, out))
    image = load_photo(photo)
    segmenter, network = trained_segmenter(model, weights)
    x, shown = letterbox(image, segmenter, size)
    with torch.inference_mode(), stderr.status("optimizing"):
        # Compared below: optimize is not to fall back to torch where it differs.
        fast: Any = fastdw.optimize(network, x, tolerance=math.inf)
        stock = _stock(network)
        expected, got = stock(x), fast(x)
        check_finite(expected, weights or model)
    numbers = at_size_of(image, got[0, :, : shown[1], : shown[0]].argmax(0))
    save_picture(overlaid(image, numbers, segmenter.classes), out, "--out")
    if mask is not None:
        save_picture(Image.fromarray(numbers), mask, "--mask")
    answer = {
        "model": model,
        "photo": str(photo),
        "out": str(out),
        "mask": None if mask is None else str(mask),
        "classes": shares(numbers, segmenter.classes),
        **_compared(expected, got),
        "fused": fast.report.totals["fused"],
        "planned_parts": fast.report.planned_parts,
        "times": compare_times(stock, fast, x, rounds) if rounds else [],
    }
    times = [times_table(answer["times"])] if rounds else []
    emit(answer, _table(answer), _verdict(answer), *times, as_json=as_json)
    stderr.print(f"drawn into {out}" + ("" if mask is None else f", class numbers in {mask}"))
    if not answer["same"]:
        stderr.print("[bold red]the answers differ")
        raise typer.Exit(1)


def trained_segmenter(name: str, weights: str | None) -> tuple[Segmenter, nn.Module]:
    """The network of that name with its weights, in eval mode.

    Raises:
        InputError: no network of that name, or its weights are damaged or those of another.
    """
    from fastdw.models.segmenters import SEGMENTERS

    segmenter = named(name, SEGMENTERS, "network")
    return segmenter, loaded(segmenter.build, weights or name)


def letterbox(
    image: Image.Image, segmenter: Segmenter, size: int | None = None
) -> tuple[torch.Tensor, tuple[int, int]]:
    """The photo, its longer side resized to the network's, on a square of zeros; at its top left.

    Returns:
        fp32 [1, 3, size, size], channels_last, and the (width, height) that the photo takes of it.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F
    from PIL import Image

    size = size or segmenter.size
    scale = size / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized, dtype=np.float32))
    x = ((pixels - segmenter.offset) / segmenter.scale).permute(2, 0, 1).unsqueeze(0)
    return F.pad(x, (0, size - width, 0, size - height)), (width, height)


def shares(numbers: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The classes that appear, the largest first, with their share of the pixels."""
    import numpy as np

    counts = np.bincount(numbers.ravel(), minlength=len(classes))
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    return [
        {"label": classes[index], "index": index, "share": float(counts[index] / numbers.size)}
        for index in order
    ]


def _check_mask(mask: Path | None, others: Sequence[Path]) -> None:
    if mask is None:
        return
    if mask.suffix.lower() != ".png":
        raise InputError(f"--mask: {mask}: expected a .png, other formats may change the numbers")
    if mask.resolve() in [other.resolve() for other in others]:
        raise InputError(f"--mask: {mask} is the photo itself, or the name of the picture of it")


def _stock(network: nn.Module) -> nn.Module:
    import torch

    from fastdw.benchmark.providers.plain_torch import plain

    return plain(network).to(memory_format=torch.channels_last)


def _compared(expected: torch.Tensor, got: torch.Tensor) -> dict[str, Any]:
    """How far the logits differ; the same: within TOLERANCE of the largest."""
    difference = (expected - got).abs().max().item()
    largest = expected.abs().max().item()
    return {
        "largest_difference": difference,
        "largest_logit": largest,
        "same": difference <= TOLERANCE * largest,
    }


def at_size_of(image: Image.Image, numbers: torch.Tensor) -> np.ndarray:
    """The class numbers at the photo's size: those of the nearest pixel."""
    import numpy as np
    from PIL import Image

    small = Image.fromarray(numbers.to("cpu").byte().numpy())
    return np.array(small.resize(image.size, Image.Resampling.NEAREST))


def class_colour(index: int) -> tuple[int, int, int]:
    """The colour of a class in PASCAL VOC's pictures: its bits, dealt out to the channels."""
    channels = [0, 0, 0]
    for place in range(PALETTE_BITS):
        for channel in range(3):
            bit = (index >> (3 * place + channel)) & 1
            channels[channel] |= bit << (PALETTE_BITS - 1 - place)
    return channels[0], channels[1], channels[2]


def overlaid(image: Image.Image, numbers: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """The photo, each class but the background (the first) tinted, with a legend."""
    import numpy as np
    from PIL import Image, ImageDraw

    colours = np.array([class_colour(index) for index in range(len(classes))], dtype=np.uint8)
    tinted = Image.blend(image, Image.fromarray(colours[numbers]), OPACITY)
    drawn = Image.composite(tinted, image, Image.fromarray(np.uint8(numbers > 0) * 255))
    pen = ImageDraw.Draw(drawn)
    line = max(12, min(image.size) // 24)
    found = [entry for entry in shares(numbers, classes) if entry["index"]]
    for row, entry in enumerate(found):
        corner = (line // 2, line // 2 + row * line * 3 // 2)
        text = f"{entry['label']} {entry['share']:.1%}"
        write_label(pen, corner, text, line, class_colour(entry["index"]), margin=line // 6)
    return drawn


def _table(answer: dict[str, Any]) -> Table:
    table = Table(title=Path(answer["photo"]).name)
    table.add_column("class", min_width=20)
    table.add_column("share", justify="right", min_width=7)
    for entry in answer["classes"]:
        table.add_row(entry["label"], f"{entry['share']:.1%}")
    return table


def _verdict(answer: dict[str, Any]) -> str:
    same = "the same" if answer["same"] else "DIFFERENT"
    return (
        f"{answer['model']}: the answers of stock torch and fastdw are {same}, logits differ by "
        f"{answer['largest_difference']:.1e} at most, the largest is {answer['largest_logit']:.1f}"
    )
