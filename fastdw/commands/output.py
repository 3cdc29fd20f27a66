"""What commands print: tables or JSON on stdout, all else on stderr; bad input in one sentence."""

from __future__ import annotations

import json
import math
import sys
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Where stdout is a file or a pipe there is no width to keep to.
stdout = Console(width=None if sys.stdout.isatty() else 150)
stderr = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


class InputError(Exception):
    """Bad input from the user: printed as one sentence, exit code 2, no traceback."""


def emit(payload: Any, *tables: RenderableType, as_json: bool) -> None:
    """Print `payload` as JSON, or the tables that show the same to a person.

    JSON has no NaN and no infinity: they become null.
    """
    if as_json:
        print(json.dumps(_finite(payload), indent=2, allow_nan=False, default=str))
        return
    for table in tables:
        stdout.print(table)


def _finite(payload: Any) -> Any:
    if isinstance(payload, dict):
        return {key: _finite(value) for key, value in payload.items()}
    if isinstance(payload, (list, tuple)):
        return [_finite(value) for value in payload]
    return None if isinstance(payload, float) and not math.isfinite(payload) else payload


def progress() -> Progress:
    """A progress bar on stderr; silent where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )


def one_line(error: BaseException | str) -> str:
    """The first line of a message, or an exception's type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
