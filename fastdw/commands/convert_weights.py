"""`fastdw convert-weights IN OUT`: any published format to safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fastdw.commands.model_argument import create_model, weights_file
from fastdw.commands.output import AsJson, InputError, emit, one_line

if TYPE_CHECKING:
    from torch import nn

    from fastdw.models.weights.files import WeightsFile


def convert_weights(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A weights file, or a name that `fastdw fetch` knows.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="The network that the weights are for: fastdw:NAME, or the name of a trained one. "
            "Looked for among these if none is given."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert weights to safetensors in torch's layout, and say what was found in the file.

    Reads torch checkpoints, safetensors, Keras .h5, TensorFlow GraphDef .pb and checkpoints (their
    .index), TensorFlow Lite, TensorFlow.js (the JSON manifest) and .caffemodel.
    """
    from fastdw.models.weights.conversion import converted, save
    from fastdw.models.weights.files import read_file

    path = weights_file(source)
    try:
        found = read_file(path)
        name, network = (model, _network(model)) if model else _fitting(found)
        conversion = converted(found, network)
        save(conversion, out)
    except (ValueError, ImportError, OSError) as error:
        message = one_line(error).removeprefix("path: ").removeprefix("source: ")
        raise InputError(message) from None
    about = {"in": str(path), "out": str(out), "tensors": str(len(conversion.tensors))}
    about |= {**conversion.about(), "network": name or "none of the known ones"}
    table = Table("", "", show_header=False)
    for key, value in about.items():
        table.add_row(key, value)
    payload = {
        **about,
        "tensors": {key: list(tensor.shape) for key, tensor in conversion.tensors.items()},
        "classes": conversion.classes,
        "class_offset": conversion.class_offset,
    }
    emit(payload, table, as_json=as_json)


def _trained() -> dict[str, Callable[[], nn.Module]]:
    """The builders of all trained networks, by name."""
    from fastdw.models.classifiers import CLASSIFIERS
    from fastdw.models.detectors import DETECTORS
    from fastdw.models.segmenters import SEGMENTERS

    tables = (CLASSIFIERS, DETECTORS, SEGMENTERS)
    return {name: entry.build for table in tables for name, entry in table.items()}


def _network(name: str) -> nn.Module:
    builders = _trained()
    return builders[name]() if name in builders else create_model(name)


def _fitting(found: WeightsFile) -> tuple[str | None, nn.Module | None]:
    """The first of the trained networks whose every weight the file has, in the same shape."""
    from fastdw.models.weights.load import check_state, state_for

    for name, build in _trained().items():
        network = build()
        try:
            check_state(network, state_for(network, found))
        except ValueError:
            continue
        return name, network
    return None, None
