"""`fastdw classify PHOTO...`: a photo's likeliest classes, by an optimized network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fastdw.commands.model_argument import DEFAULT_MODEL, Weights, trained_model
from fastdw.commands.output import AsJson, InputError, emit, stderr
from fastdw.commands.photos import (
    class_index,
    class_names,
    load_photo,
    preprocess,
    top_classes,
)

Photos = Annotated[list[Path], typer.Argument(metavar="PHOTO...", show_default=False)]


def classify(
    photos: Photos,
    model: Annotated[str, typer.Option(help="As MODEL of explain.")] = DEFAULT_MODEL,
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    class_name: Annotated[
        list[str] | None, typer.Option("--class", help="Show this class as well. Repeatable.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Class names, one a line; ImageNet's if none.")
    ] = None,
    resolution: Annotated[int, typer.Option(min=32, help="Side of the centre crop.")] = 224,
    as_json: AsJson = False,
) -> None:
    """Classify photos with fastdw.optimize(MODEL)."""
    import torch

    import fastdw

    images = [load_photo(photo) for photo in photos]
    network = trained_model(model, weights)
    inputs = [preprocess(image, network, resolution) for image in images]
    with stderr.status("optimizing"), torch.inference_mode():
        fast = fastdw.optimize(network, inputs[0])
        outputs = [fast(x) for x in inputs]
    if not isinstance(outputs[0], torch.Tensor) or outputs[0].dim() != 2:
        raise InputError(f"--model: {model} gives no [batch, classes] logits: not a classifier")
    names = class_names(outputs[0].shape[1], labels)
    asked = [class_index(name, names) for name in class_name or []]
    found = []
    for photo, output in zip(photos, outputs, strict=True):
        logits = output[0]
        ranked = top_classes(logits, names, len(names))
        shown = ranked[:top] + [entry for entry in ranked[top:] if entry["index"] in asked]
        found.append({"photo": str(photo), "classes": shown})
    table = Table("photo", "class", "probability", title=model)
    table.columns[2].justify = "right"
    for answer in found:
        _add(table, answer)
    emit({"model": model, "photos": found}, table, as_json=as_json)


def _add(table: Table, answer: dict[str, Any]) -> None:
    for line, entry in enumerate(answer["classes"]):
        photo = Path(answer["photo"]).name if line == 0 else ""
        last = entry is answer["classes"][-1]
        table.add_row(photo, entry["name"], f"{entry['probability']:.1%}", end_section=last)
