"""`fastdw fetch NAME`: trained weights out of a registry's package."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdw.commands.model_argument import DEFAULT_WEIGHTS, fetch_weights
from fastdw.commands.output import AsJson, emit


def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"For example {DEFAULT_WEIGHTS}.")],
    as_json: AsJson = False,
) -> None:
    """Download trained weights, check their sha256, and print where they are."""
    path = fetch_weights(name)
    emit({"name": name, "path": str(path)}, str(path), as_json=as_json)
