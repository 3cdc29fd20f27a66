"""The HTML report and its pictures: all in one file, right numbers, nothing from outside."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fastdw.benchmark.layers import LayerReport, LayerTime
from fastdw.benchmark.models import ModelCase, Result
from fastdw.benchmark.peak import Bandwidth
from fastdw.benchmark.providers import PROVIDERS
from fastdw.benchmark.timing import Timing

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from fastdw.benchmark import plots  # noqa: E402
from fastdw.benchmark.html_report import html_report  # noqa: E402

CASE = ModelCase("fastdw:mobilenet_v2", batch=8)
ENVIRONMENT = {"date": "2026-01-02T03:04:05", "cpu": "Test <CPU>", "caches": {"L1 data": "48K"}}


def results() -> list[Result]:
    def timed(name: str, time_ms: float) -> Result:
        timing = Timing(time_ms, 0.9 * time_ms, 1.2 * time_ms, 20)
        rates = {"multiply_adds": 300_000_000, "peak_gflops": 200.0}
        return Result(CASE, PROVIDERS[name], "ok", None, 1e-7, timing, 0.0, **rates)

    wrong = Result(CASE, PROVIDERS["torch-jit-frozen"], "wrong", "off by <much>")
    ours = replace(timed("fastdw", 4.0), peak_memory_bytes=3 * 2**20)
    return [ours, timed("torch-eager", 10.0), timed("torch-eager-kept", 8.0), wrong]


def layer_report() -> LayerReport:
    kinds = ("stem_conv", "inverted_residual", "global_pool", "classifier_head")
    macs = (10_000_000, 25_000_000, 0, 1_280_000)
    steps = [
        LayerTime(index, kind, "a -> b", count, 400_000, 0.2 + index, 1.5, 200.0)
        for index, (kind, count) in enumerate(zip(kinds, macs, strict=True))
    ]
    limits = [("L1", 300.0), ("L2", 100.0), ("memory", 9.0)]
    bandwidths = tuple(Bandwidth(level, 1024, rate) for level, rate in limits)
    return LayerReport(CASE, tuple(steps), 200.0, bandwidths)


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not the last opened one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_file_with_all_tables_and_pictures() -> None:
    page = html_report(results(), [layer_report()], ENVIRONMENT, "avx512")
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.addresses) == 3
    assert "url(" not in page and "@import" not in page and "<script" not in page
    for address in parser.addresses:
        assert address.startswith("data:image/svg+xml;base64,")
        svg = base64.b64decode(address.split(",", 1)[1]).decode()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    for shown in ("4.00", "3.60 - 4.80", "75.0 %", "2.50 x", "2000.0", "3.00 MiB", "L1 data 48K"):
        assert shown in page, shown
    assert "Test &lt;CPU&gt;" in page and "off by &lt;much&gt;" in page
    assert re.search(r'class="bad">wrong', page)
    assert "classifier_head" in page and page.count("<h2>") == 1


def test_without_steps_and_without_a_time_of_ours() -> None:
    failed = Result(CASE, PROVIDERS["fastdw"], "failed", "no library")
    page = html_report([failed, results()[1]], [], ENVIRONMENT, "none")
    assert "Step by step" not in page and "no library" in page
    nothing = html_report([failed], [], ENVIRONMENT, "none")
    assert "failed" in nothing


def texts(svg: str) -> str:
    """What the picture says: text is drawn as paths, its words stand in comments."""
    return " ".join(re.findall(r"<!--(.*?)-->", svg, re.DOTALL))


def test_bars_show_times_and_shares() -> None:
    rows = [result.to_dict() for result in results()]
    labels = {"fastdw": "ours", "torch-eager": "theirs"}
    shown = texts(plots.svg_text(plots.provider_bars(rows, labels)))
    assert "ours" in shown and "theirs" in shown and "4 ms, 75% of peak" in shown
    assert "torch-jit-frozen" not in shown  # it has no time
    as_read = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    assert "4 ms, 75% of peak" in texts(plots.svg_text(plots.provider_bars(as_read, labels)))
    plots.svg_text(plots.provider_bars([], {}))


def test_roofline_shows_the_roof_and_the_steps() -> None:
    shown = texts(plots.svg_text(plots.roofline(layer_report())))
    for word in ("200 GFLOP/s", "memory 9 GB/s", "stem_conv", "classifier_head"):
        assert word in shown
    assert "global_pool" not in shown  # it multiplies nothing
    plots.svg_text(plots.roofline_of([], 200.0, ()))


def test_steps_side_by_side() -> None:
    assert "torch eager" in texts(plots.svg_text(plots.layer_bars(layer_report().layers)))
