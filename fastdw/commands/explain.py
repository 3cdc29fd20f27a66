"""`fastdw explain MODEL`: what convert would fuse, what it would leave, and why."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from fastdw.commands.model_argument import Model, create_model
from fastdw.commands.output import AsJson, emit


def explain(model: Model, as_json: AsJson = False) -> None:
    """Show what would be fused in MODEL, and why the rest would be left. Changes nothing."""
    import fastdw

    report = fastdw.explain(create_model(model)).to_dict()
    emit({"model": model, **report}, table(model, report), as_json=as_json)


def table(model: str, report: dict[str, Any]) -> Table:
    totals = report["totals"]
    shown = Table(
        title=model,
        caption=f"{totals['fused']} of {totals['candidates']} candidates would be fused: "
        f"{totals['blocks_fused']} blocks, "
        f"{totals['depthwise_fused']} depthwise convolutions (those in blocks counted)",
    )
    shown.add_column("name", overflow="fold", min_width=12)
    for name in ("class", "pattern", "action"):
        shown.add_column(name, overflow="fold")
    shown.add_column("parameters", justify="right", no_wrap=True)
    shown.add_column("reason")
    for row in report["rows"]:
        color = "green" if row["action"] == "fused" else "yellow"
        shown.add_row(
            row["name"] or "(model)",
            row["class"],
            row["pattern"],
            f"[{color}]{row['action']}",
            f"{row['parameters']:,}",
            "" if row["action"] == "fused" else row["reason"],
        )
    return shown
