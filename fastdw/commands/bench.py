"""`fastdw bench`: fastdw's planned networks against torch, side by side."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TaskID

from fastdw.commands.model_argument import DEFAULT_MODEL, create_model
from fastdw.commands.output import AsJson, InputError, emit, one_line, progress, stderr

if TYPE_CHECKING:
    from fastdw.benchmark.models import Result
    from fastdw.benchmark.providers import Provider

Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help=f"Networks to time; {DEFAULT_MODEL} if none."),
]


def bench(
    models: Models = None,
    resolution: Annotated[int, typer.Option(min=32, help="Height and width.")] = 224,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable; 1 if none.")] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=0, help="Repeatable; 0: all cores. 1 and 0 if none.")
    ] = None,
    provider: Annotated[
        list[str] | None, typer.Option(help="Repeatable; all that fit the batch if none.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Slots of each provider.")] = 20,
    slot_ms: Annotated[float, typer.Option(min=0, help="Length of a slot.")] = 100,
    results: Annotated[
        Path | None, typer.Option(help="Folder to append to: RESULTS/<device>/models.csv.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time fastdw against torch: interleaved rounds, each provider in a process of its own.

    Every output is checked against the float64 network first; a wrong one gets no time. Exit code 1
    if fastdw's own is wrong or fails.
    """
    from fastdw.benchmark import environment, report
    from fastdw.benchmark.models import ModelCase, run_case
    from fastdw.benchmark.providers import default_providers

    chosen = _providers(provider)
    about = environment.describe()
    names, batches = models or [DEFAULT_MODEL], batch or [1]
    for name in names:
        create_model(name)  # a bad name is told before anything is timed
    cores = environment.usable_cores()
    thread_counts = dict.fromkeys(count or cores for count in threads or [1, 0])
    cases = [
        ModelCase(name, resolution, size, count)
        for name, size, count in product(names, batches, thread_counts)
    ]
    done = []
    for case in cases:
        contenders = chosen or default_providers(case.batch)
        with progress() as bar:
            task = bar.add_task(case.model, total=len(contenders) + rounds)
            timed = run_case(
                case,
                contenders,
                rounds=rounds,
                slot_seconds=slot_ms / 1e3,
                on_step=partial(_advance, bar, task),
            )
        done += timed
        if not as_json:
            emit(None, report.result_table(timed), as_json=False)
        if results is not None:
            _append(results / environment.device_slug() / "models.csv", timed, about)
    if as_json:
        rows = [result.to_dict() for result in done]
        emit({"environment": about, "isa": isa(), "results": rows}, as_json=True)
    if any(r.status in ("wrong", "failed") for r in done if r.provider.name == "fastdw"):
        raise typer.Exit(1)


def isa() -> str:
    """The instruction set of fastdw's kernels, or "none" where they are not built."""
    from fastdw import native

    try:
        native.load()
        return native.active_isa()
    except ImportError:
        return "none"
    except RuntimeError as error:
        raise InputError(one_line(error)) from None


def _advance(bar: Progress, task: TaskID, step: str) -> None:
    bar.update(task, description=step, advance=1)


def _append(path: Path, timed: list[Result], about: dict[str, Any]) -> None:
    from fastdw.benchmark.report import append_csv

    try:
        append_csv(path, timed, about, isa())
    except (OSError, ValueError) as error:
        raise InputError(f"--results: {one_line(error)}") from None
    stderr.print(f"appended to {path}")


def _providers(names: list[str] | None) -> list[Provider]:
    from fastdw.benchmark.providers import PROVIDERS

    for name in names or []:
        if name not in PROVIDERS:
            known = ", ".join(PROVIDERS)
            raise InputError(f"--provider: expected one of {known}, got {name!r}")
    return [PROVIDERS[name] for name in names or []]
