"""One self-contained HTML file: environment, tables, bar charts and rooflines."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from fastdw.benchmark import plots
from fastdw.benchmark.layers import LayerReport, totals_of
from fastdw.benchmark.models import ModelCase, Result
from fastdw.benchmark.report import notes

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def html_report(
    results: Sequence[Result],
    layers: Sequence[LayerReport],
    environment: Mapping[str, Any],
    isa: str,
) -> str:
    """The report of one run.

    Args:
        results: of all cases, those of a case together.
        layers: of those cases whose steps were timed.
        environment: of `environment.describe`.
        isa: what fastdw's kernels ran on.
    """
    reports = {report.case: report for report in layers}
    cases: dict[ModelCase, list[Result]] = {}
    for result in results:
        cases.setdefault(result.case, []).append(result)
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(TEMPLATE.read_text())
    return template.render(
        environment={**environment, "isa": isa},
        labels={result.provider.name: result.provider.label for result in results},
        cases=[_case(case, own, reports.get(case)) for case, own in cases.items()],
    )


def _case(case: ModelCase, results: list[Result], report: LayerReport | None) -> dict[str, Any]:
    rows = [result.to_dict() for result in results]
    labels = {result.provider.name: result.provider.label for result in results}
    shown: dict[str, Any] = {
        "title": f"{case.model}, {case.resolution}x{case.resolution}, batch {case.batch}, "
        f"{case.threads} thread{'s' * (case.threads != 1)}",
        "rows": rows,
        "ours_ms": next((r["median_ms"] for r in rows if r["provider"] == "fastdw"), None),
        "notes": notes(results),
        "bars": _picture(plots.svg_text(plots.provider_bars(rows, labels))),
        "layers": [],
    }
    if report is not None:
        shown["layers"] = [*report.layers, totals_of(report.layers)]
        shown["roofline"] = _picture(plots.svg_text(plots.roofline(report)))
        shown["layer_bars"] = _picture(plots.svg_text(plots.layer_bars(report.layers)))
    return shown


def _picture(svg: str) -> str:
    """The SVG as an address that holds it: no id of one picture meets those of another."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
