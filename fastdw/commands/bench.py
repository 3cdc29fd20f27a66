"""`fastdw bench`: fastdw's planned networks against torch and other runtimes, side by side."""

from __future__ import annotations

import os
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TaskID

from fastdw.commands.model_argument import DEFAULT_MODEL, create_model
from fastdw.commands.output import AsJson, InputError, emit, one_line, progress, stderr

if TYPE_CHECKING:
    from fastdw.benchmark.layers import LayerReport
    from fastdw.benchmark.models import ModelCase, Result
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
    layers: Annotated[
        bool, typer.Option("--layers", help="Time every step of the plan too, beside torch's.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the plan and its blocking; time nothing.")
    ] = False,
    blocking: Annotated[
        str | None,
        typer.Option(
            metavar="STEP:ROWSxBLOCKS,...",
            help="Cut these blocks otherwise than --explain says: rows of a band, and hidden "
            "blocks of 16 channels at a time. Sets FASTDW_BLOCKING.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained report, steps included.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder to append to: RESULTS/<device>/models.csv.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: ops and networks on the GPU, against torch's.")
    ] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Time fastdw against other runtimes: interleaved rounds, each in a process of its own.

    Every output is checked against the float64 network first; a wrong one gets no time. Beside each
    time stands its share of the peak: what the threads can do in multiply-adds, measured in the
    same rounds. Exit code 1 if fastdw's own output is wrong or fails.
    """
    from fastdw.benchmark import environment

    if device != "cpu":
        return _bench_gpu(device, results)
    chosen = _providers(provider)
    cases = _cases(models or [DEFAULT_MODEL], resolution, batch or [1], threads or [1, 0])
    if blocking is not None:
        os.environ["FASTDW_BLOCKING"] = blocking
    if explain:
        return _explain(cases, as_json)
    if blocking is not None:
        _plans(cases)  # a bad one is told before anything is timed
    if html is not None:
        _check_html(html)
    about = environment.describe()
    done: list[Result] = []
    reports: list[LayerReport] = []
    for case in cases:
        timed = _time(case, chosen, rounds, slot_ms / 1e3)
        done += timed
        _show(timed, about, results, as_json)
        if layers or html is not None:
            reports += _time_steps(case, rounds, slot_ms / 1e3, about, results, as_json)
    if html is not None:
        _write_html(html, done, reports, about)
    if as_json:
        payload = {"environment": about, "isa": isa(), "results": [r.to_dict() for r in done]}
        if layers or html is not None:
            payload["layers"] = [report.to_dict() for report in reports]
        emit(payload, as_json=True)
    if any(r.status in ("wrong", "failed") for r in done if r.provider.name == "fastdw"):
        raise typer.Exit(1)


GPU_SECTIONS = ("networks", "compiled", "ops")
GPU_SECONDS = 360.0


def _bench_gpu(device: str, results: Path | None) -> None:
    """The timing sections of bench/run_gpu.py: cpp, triton, eager and torch.compile by turns."""
    from fastdw.benchmark.gpu import session
    from fastdw.benchmark.gpu.device import open_device

    if device != "cuda":
        raise InputError(f"--device: expected cpu or cuda, got {device!r}")
    try:
        open_device(device)
    except RuntimeError as error:
        raise InputError(f"--device cuda: {one_line(error)}") from None
    sections = [section for section in session.SECTIONS if section.name in GPU_SECTIONS]
    with TemporaryDirectory() as scratch:
        code = session.run(device, False, results or Path(scratch), GPU_SECONDS, sections)
    if code:
        raise typer.Exit(code)


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


def _cases(
    names: list[str], resolution: int, batches: list[int], threads: list[int]
) -> list[ModelCase]:
    from fastdw.benchmark import environment
    from fastdw.benchmark.models import ModelCase

    for name in names:
        create_model(name)  # a bad name is told before anything is timed
    cores = environment.usable_cores()
    counts = dict.fromkeys(count or cores for count in threads)
    return [
        ModelCase(name, resolution, size, count)
        for name, size, count in product(names, batches, counts)
    ]


def _time(
    case: ModelCase, chosen: list[Provider], rounds: int, slot_seconds: float
) -> list[Result]:
    from fastdw.benchmark.models import run_case
    from fastdw.benchmark.providers import default_providers

    contenders = chosen or default_providers(case.batch)
    with progress() as bar:
        task = bar.add_task(case.model, total=len(contenders) + rounds)
        step = partial(_advance, bar, task)
        return run_case(case, contenders, rounds=rounds, slot_seconds=slot_seconds, on_step=step)


def _show(timed: list[Result], about: dict[str, Any], results: Path | None, as_json: bool) -> None:
    from fastdw.benchmark import report

    if not as_json:
        emit(None, report.result_table(timed), as_json=False)
    if results is not None:
        rows = [result.to_dict() for result in timed]
        _append(results, "models.csv", report.COLUMNS, rows, about)


def _time_steps(
    case: ModelCase,
    rounds: int,
    slot_seconds: float,
    about: dict[str, Any],
    results: Path | None,
    as_json: bool,
) -> list[LayerReport]:
    """The report of one case, or none, with the reason on stderr."""
    from fastdw.benchmark import layers
    from fastdw.plan.record import NotPlannable

    try:
        with progress() as bar:
            bar.add_task(f"{case.model}: steps", total=None)
            report = layers.time_layers(case, rounds, slot_seconds)
    except (NotPlannable, ArithmeticError, ImportError) as error:
        stderr.print(f"{case.model}: no times of steps: {one_line(error)}")
        return []
    if not as_json:
        emit(None, layers.layer_table(report), as_json=False)
    if results is not None:
        rows = list(layers.layer_rows(report))
        _append(results, "layers.csv", layers.LAYER_COLUMNS, rows, about)
    return [report]


def _plans(cases: list[ModelCase]) -> list[dict[str, Any]]:
    """What the native library tells about the plan of each case."""
    from fastdw.benchmark.explanation import explain_model
    from fastdw.plan.record import NotPlannable

    plans = []
    for case in cases:
        model = create_model(case.model)
        try:
            plans.append(explain_model(model, case.batch, case.resolution, case.threads))
        except (NotPlannable, ImportError) as error:
            raise InputError(f"--explain: {case.model}: {one_line(error)}") from None
        except RuntimeError as error:  # of FASTDW_BLOCKING, which the message names
            raise InputError(f"{case.model}: {one_line(error)}") from None
    return plans


def _explain(cases: list[ModelCase], as_json: bool) -> None:
    from fastdw.benchmark.explanation import step_table

    told, tables = [], []
    for case, plan in zip(cases, _plans(cases), strict=True):
        where = {"resolution": case.resolution, "batch": case.batch, "threads": case.threads}
        told.append({"model": case.model, **where, **plan})
        title = ", ".join((case.model, *(f"{name} {size}" for name, size in where.items())))
        tables.append(step_table(title, plan))
    emit({"plans": told}, *tables, as_json=as_json)


def _advance(bar: Progress, task: TaskID, step: str) -> None:
    bar.update(task, description=step, advance=1)


def _append(
    results: Path,
    name: str,
    columns: tuple[str, ...],
    rows: list[dict[str, Any]],
    about: dict[str, Any],
) -> None:
    from fastdw.benchmark.environment import device_slug
    from fastdw.benchmark.report import append_rows

    try:
        path = append_rows(results / device_slug() / name, columns, rows, about, isa())
    except (OSError, ValueError) as error:
        raise InputError(f"--results: {one_line(error)}") from None
    stderr.print(f"appended to {path}")


def _check_html(path: Path) -> None:
    """Tell what is in the way of the report before hours are spent on it."""
    try:
        import fastdw.benchmark.html_report  # noqa: F401
    except ImportError as error:
        raise InputError(f"--html: {one_line(error)}: pip install 'fastdw[bench]'") from None
    if not path.parent.is_dir():
        raise InputError(f"--html: {path.parent} is no folder")


def _write_html(
    path: Path, done: list[Result], reports: list[LayerReport], about: dict[str, Any]
) -> None:
    from fastdw.benchmark.html_report import html_report

    try:
        path.write_text(html_report(done, reports, about, isa()))
    except OSError as error:
        raise InputError(f"--html: {one_line(error)}") from None
    stderr.print(f"wrote {path}")


def _providers(names: list[str] | None) -> list[Provider]:
    from fastdw.benchmark.providers import PROVIDERS

    for name in names or []:
        if name not in PROVIDERS:
            known = ", ".join(PROVIDERS)
            raise InputError(f"--provider: expected one of {known}, got {name!r}")
    return [PROVIDERS[name] for name in names or []]
