"""`fastdw classify PHOTO...`: a photo's likeliest classes, by an optimized network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fastdw.commands.demo import compare_times, times_table
from fastdw.commands.model_argument import DEFAULT_MODEL, Weights, check_finite, trained_model
from fastdw.commands.output import AsJson, InputError, emit, stderr
from fastdw.commands.photos import (
    class_index,
    class_names,
    load_photo,
    preprocess,
    top_classes,
)

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_RESOLUTION = 224

Photos = Annotated[list[Path], typer.Argument(metavar="PHOTO...", show_default=False)]


def classify(
    photos: Photos,
    model: Annotated[
        str,
        typer.Option(
            help="As MODEL of explain, or a trained one: mobilenet-v1-imagenet, "
            "mobilenet-v2-imagenet, mobilenet-v2-dog-breeds."
        ),
    ] = DEFAULT_MODEL,
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    class_name: Annotated[
        list[str] | None, typer.Option("--class", help="Show this class as well. Repeatable.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Class names, one a line; the model's, or ImageNet's.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=32, help="Side of the centre crop; as trained if none.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Timing slots of each side; 0: none.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Classify photos with fastdw.optimize(MODEL), and compare it with stock torch."""
    import torch

    import fastdw
    from fastdw.benchmark.providers.plain_torch import plain
    from fastdw.models.classifiers import CLASSIFIERS

    images = [load_photo(photo) for photo in photos]
    network = trained_model(model, weights)
    known = CLASSIFIERS.get(model)
    side = resolution or (known.resolution if known else DEFAULT_RESOLUTION)
    statistics = (known.mean, known.std) if known else None
    inputs = [preprocess(image, network, side, statistics) for image in images]
    with stderr.status("optimizing"), torch.inference_mode():
        fast = fastdw.optimize(network, inputs[0])
        stock = plain(network).to(memory_format=torch.channels_last)
        outputs, expected = ([model(x) for x in inputs] for model in (fast, stock))
        check_finite(expected, weights or model)
    if not isinstance(outputs[0], torch.Tensor) or outputs[0].dim() != 2:
        raise InputError(f"--model: {model} gives no [batch, classes] logits: not a classifier")
    if known and labels is None:
        names = list(known.labels())
    else:
        names = class_names(outputs[0].shape[1], labels)
    asked = [class_index(name, names) for name in class_name or []]
    found = []
    for photo, output in zip(photos, outputs, strict=True):
        ranked = top_classes(output[0], names, len(names))
        shown = ranked[:top] + [entry for entry in ranked[top:] if entry["index"] in asked]
        found.append({"photo": str(photo), "classes": shown})
    difference = _largest_difference(outputs, expected)
    times = compare_times(stock, fast, inputs[0], rounds) if rounds else []
    table = Table("photo", "class", "probability", title=model)
    table.columns[2].justify = "right"
    for answer in found:
        _add(table, answer)
    payload = {"model": model, "photos": found, "largest_difference": difference, "times": times}
    verdict = f"the logits of stock torch and fastdw differ by {difference:.1e} at most"
    emit(payload, table, verdict, *([times_table(times)] if times else []), as_json=as_json)


def _largest_difference(outputs: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(outputs, expected, strict=True)
    return max((got - wanted).abs().max().item() for got, wanted in pairs)


def _add(table: Table, answer: dict[str, Any]) -> None:
    for line, entry in enumerate(answer["classes"]):
        photo = Path(answer["photo"]).name if line == 0 else ""
        last = entry is answer["classes"][-1]
        table.add_row(photo, entry["name"], f"{entry['probability']:.1%}", end_section=last)
