"""`fastdw demo`: the same photos through stock torch and through fastdw, side by side."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fastdw.commands.model_argument import DEFAULT_MODEL, DEFAULT_WEIGHTS, trained_model
from fastdw.commands.output import AsJson, InputError, emit, one_line, progress, stderr
from fastdw.commands.photos import (
    class_names,
    load_photo,
    preprocess,
    shipped_photos,
    top_classes,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

# Both compute in fp32; the sums of fifty layers in another order differ by a few 1e-6 of the
# largest logit.
TOLERANCE = 1e-4
SLOT_SECONDS = 0.1


def demo(
    photos: Annotated[list[Path] | None, typer.Argument(metavar="[PHOTO]...")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timing slots of each side.")] = 15,
    as_json: AsJson = False,
) -> None:
    """Classify photos with a trained MobileNet V2: stock torch against fastdw.

    Shows both answers, the largest difference of the logits, and the time of each (batch 1, medians
    of interleaved rounds). Exit code 1 if the answers differ.
    """
    import torch

    import fastdw

    paths = [*shipped_photos(), *(photos or [])]
    if not paths:
        raise InputError("no photos: name some, or pip install scikit-image scikit-learn")
    images = [load_photo(path) for path in paths]
    stderr.print(f"trained weights: {DEFAULT_WEIGHTS}")
    stock = trained_model(DEFAULT_MODEL, DEFAULT_WEIGHTS)
    inputs = [preprocess(image) for image in images]
    with torch.inference_mode(), stderr.status("optimizing"):
        # Compared below: optimize is not to fall back to torch where it differs.
        fast = fastdw.optimize(stock, inputs[0], tolerance=math.inf)
        report: Any = fast.report
        if not report.planned and not report.fused:
            raise InputError(f"nothing could be fused: {one_line(report.plan_reason)}")
        stock = copy.deepcopy(stock).to(memory_format=torch.channels_last)
    answers = [compare(stock, fast, path, x) for path, x in zip(paths, inputs, strict=True)]
    times = compare_times(stock, fast, inputs[0], rounds)
    same = all(answer["same"] for answer in answers)
    plan = {"planned": report.planned, "reason": report.plan_reason}
    payload = {"model": DEFAULT_MODEL, **plan, "same": same, "photos": answers, "times": times}
    emit(payload, answers_table(answers), times_table(times), as_json=as_json)
    if not plan["planned"]:
        stderr.print(f"not planned: {plan['reason']}")
    if not same:
        wrong = ", ".join(Path(answer["photo"]).name for answer in answers if not answer["same"])
        stderr.print(f"[bold red]the answers differ: {wrong}")
        raise typer.Exit(1)


def compare(stock: nn.Module, fast: nn.Module, path: Path, x: torch.Tensor) -> dict[str, Any]:
    """Both networks' answer to one photo. The same: equal top-5, and logits within TOLERANCE."""
    import torch

    with torch.inference_mode():
        expected, got = stock(x)[0], fast(x)[0]
    names = class_names(len(expected))
    sides = {"torch": top_classes(expected, names), "fastdw": top_classes(got, names)}
    order = {side: [entry["index"] for entry in top] for side, top in sides.items()}
    difference = (expected - got).abs().max().item()
    limit = TOLERANCE * expected.abs().max().item()
    return {
        "photo": str(path),
        **sides,
        "largest_difference": difference,
        "largest_logit": expected.abs().max().item(),
        "same": order["torch"] == order["fastdw"] and difference <= limit,
    }


def compare_times(
    stock: nn.Module, fast: nn.Module, x: torch.Tensor, rounds: int
) -> list[dict[str, Any]]:
    """Interleaved medians on one thread and on all cores, of both at batch 1."""
    import torch

    from fastdw.benchmark.environment import usable_cores
    from fastdw.benchmark.timing import calls_per_slot, interleave, time_slot

    before, times = torch.get_num_threads(), []
    calls = {"torch": partial(stock, x), "fastdw": partial(fast, x)}
    counts = sorted({1, usable_cores()})
    with progress() as bar, torch.inference_mode():
        task = bar.add_task("timing", total=rounds * len(counts))
        for threads in counts:
            torch.set_num_threads(threads)
            slots = {
                name: partial(time_slot, call, calls_per_slot(call, SLOT_SECONDS))
                for name, call in calls.items()
            }
            timings = interleave(slots, rounds, lambda: bar.advance(task))
            ratio = timings["torch"].median_ms / timings["fastdw"].median_ms
            sides = {name: timing.to_dict() for name, timing in timings.items()}
            times.append({"threads": threads, **sides, "ratio": ratio})
    torch.set_num_threads(before)
    return times


def answers_table(answers: list[dict[str, Any]]) -> Table:
    table = Table(title="MobileNet V2, trained on ImageNet", show_lines=True)
    table.add_column("photo", overflow="fold")
    table.add_column("likeliest classes")
    table.add_column("stock\ntorch", justify="right", no_wrap=True)
    table.add_column("fastdw", justify="right", no_wrap=True)
    table.add_column("logits\ndiffer by", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for answer in answers:
        table.add_row(
            Path(answer["photo"]).name,
            _lines([_names(*pair) for pair in zip(answer["torch"], answer["fastdw"], strict=True)]),
            *(_lines([f"{e['probability']:.1%}" for e in answer[s]]) for s in ("torch", "fastdw")),
            f"{answer['largest_difference']:.1e}",
            "[green]same" if answer["same"] else "[bold red]DIFFERENT",
        )
    return table


def _names(torch_entry: dict[str, Any], fastdw_entry: dict[str, Any]) -> str:
    """The class at one rank: one name where both agree."""
    names = dict.fromkeys((torch_entry["name"], fastdw_entry["name"]))
    return " | ".join(names)


def _lines(entries: list[str]) -> str:
    best, *rest = entries
    return "\n".join([f"[bold]{best}[/bold]", *rest])


def times_table(times: list[dict[str, Any]]) -> Table:
    table = Table(
        title="milliseconds a photo", caption="medians of interleaved rounds, p20 - p80 in brackets"
    )
    for name in ("threads", "stock torch, eager channels_last", "fastdw.optimize", "ratio"):
        table.add_column(name, justify="right")
    for row in times:
        table.add_row(
            str(row["threads"]),
            *(
                f"{side['median_ms']:.2f}  ({side['p20_ms']:.2f} - {side['p80_ms']:.2f})"
                for side in (row["torch"], row["fastdw"])
            ),
            f"[bold]{row['ratio']:.2f} x",
        )
    return table
