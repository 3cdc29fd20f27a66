"""`fastdw summary MODEL`: parameters, mult-adds, activations and bytes, layer by layer."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastdw.commands.model_argument import Model, create_model
from fastdw.commands.output import AsJson, InputError, emit, one_line

if TYPE_CHECKING:
    from fastdw.models.summary import ModelSummary

COLUMNS = ("parameters", "multiply_adds", "activations", "bytes")


def summary(
    model: Model,
    width: Annotated[float | None, typer.Option(help="Width multiplier.")] = None,
    resolution: Annotated[int, typer.Option(help="Height and width of the image.")] = 224,
    compare: Annotated[
        bool, typer.Option("--compare", help="Add what the papers print, with the source.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Count what MODEL costs for one image, per layer and in total."""
    counted = count(model, width, resolution)
    payload: dict[str, Any] = {"model": model, "width": width, **counted.to_dict()}
    tables = [layer_table(f"{model}, {resolution}x{resolution}", counted)]
    if compare:
        published = comparison(model, counted)
        payload["compare"] = published
        tables.append(comparison_table(published))
    emit(payload, *tables, as_json=as_json)


def count(model: str, width: float | None, resolution: int) -> ModelSummary:
    from fastdw.models import summarize

    settings = {}
    if width is not None:
        source = model.partition(":")[0]
        names = {"fastdw": "width", "torchvision": "width_mult"}
        if source not in names:
            raise InputError(f"--width: {source} models take none, their name tells the width")
        if not 0 < width < math.inf:
            raise InputError(f"--width: expected more than 0, got {width:g}")
        settings[names[source]] = width
    network = create_model(model, **settings)
    try:
        return summarize(network, resolution)
    except ValueError as error:
        raise InputError(f"--{one_line(error)}") from None
    except Exception as error:  # any model's forward, on an image that may be too small for it
        raise InputError(
            f"MODEL: {model} does not run on one {resolution}x{resolution} image: {one_line(error)}"
        ) from None


def comparison(model: str, counted: ModelSummary) -> list[dict[str, Any]]:
    """The model, the networks of the papers as they print them, and as counted here."""
    from fastdw.models import published

    rows = [{"name": model, "resolution": counted.resolution[0], "counted": totals(counted)}]
    papers = (
        *(("mobilenet_v1", row) for row in published.WIDTH_MULTIPLIERS),
        *(("mobilenet_v1", row) for row in published.RESOLUTION_MULTIPLIERS),
        *(("mobilenet_v2", row) for row in published.MOBILENET_V2),
        *((None, row) for row in published.OTHERS),
    )
    for network, row in papers:
        found: dict[str, Any] = {
            "name": row.name,
            "width": row.width,
            "resolution": row.resolution,
            "published": {
                "top1": row.top1,
                "multiply_adds": row.multiply_adds_millions * 1e6,
                "parameters": row.parameters_millions * 1e6,
            },
            "source": row.source,
        }
        if network:
            found["counted"] = paper_totals(network, row.width, row.resolution)
        rows.append(found)
    return rows


@cache
def paper_totals(network: str, width: float | None, resolution: int) -> dict[str, int]:
    return totals(count(f"fastdw:{network}", width, resolution))


def totals(counted: ModelSummary) -> dict[str, int]:
    return {"multiply_adds": counted.multiply_adds, "parameters": counted.parameters}


def layer_table(title: str, counted: ModelSummary) -> Table:
    table = Table(title=title, show_footer=True, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", "total", overflow="fold")
    table.add_column("output", no_wrap=True)
    for name in COLUMNS:
        total = f"{getattr(counted, name):,}"
        table.add_column(
            name.replace("multiply_adds", "mult-adds"), total, justify="right", no_wrap=True
        )
    others = dict.fromkeys(COLUMNS, 0)
    for layer in counted.layers:
        numbers = {name: getattr(layer, name) for name in COLUMNS}
        if layer.multiply_adds:
            shape = "x".join(map(str, layer.output_shape))
            table.add_row(layer.name, shape, *(f"{n:,}" for n in numbers.values()))
        else:
            others = {name: others[name] + numbers[name] for name in COLUMNS}
    table.add_row("batch norms and others", "", *(f"{n:,}" for n in others.values()))
    return table


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    sources = list(dict.fromkeys(row["source"] for row in rows if "source" in row))
    table = Table(
        title="beside the papers, in millions",
        caption="\n".join(f"[{number}] {source}" for number, source in enumerate(sources, 1)),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("network")
    for name in ("width", "res.", "top-1", "mult-adds", "counted", "params", "counted"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        printed, counted = row.get("published", {}), row.get("counted", {})
        table.add_row(
            row["name"],
            f"{row['width']:g}" if row.get("width") else "",
            str(row["resolution"]),
            f"{printed['top1']} %" if printed else "",
            *_millions("multiply_adds", printed, counted, decimals=1),
            *_millions("parameters", printed, counted, decimals=2),
            f"[{sources.index(row['source']) + 1}]" if "source" in row else "",
        )
    return table


def _millions(
    name: str, printed: dict[str, float], counted: dict[str, float], decimals: int
) -> tuple[str, str]:
    return (
        f"{printed[name] / 1e6:g}" if printed else "",
        f"{counted[name] / 1e6:.{decimals}f}" if counted else "",
    )
