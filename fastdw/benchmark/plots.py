"""The pictures of a benchmark: providers as bars, the steps of a network under the roofline."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from fastdw.benchmark.layers import LayerReport, LayerTime
from fastdw.benchmark.peak import Bandwidth

OURS, OTHERS, KEPT, LINE = "#0b6e99", "#a9b4bd", "#d3dadf", "#444444"
# One colour a kind of step, in the order of a network.
KIND_COLOURS = {
    "stem_conv": "#e08214",
    "depthwise_conv": "#c51b7d",
    "separable_block": "#0b6e99",
    "inverted_residual": "#0b6e99",
    "pointwise_conv": "#4d9221",
    "global_pool": "#888888",
    "classifier_head": "#762a83",
}


def provider_bars(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Figure:
    """Milliseconds of every provider that has a time in one case, with the spread.

    Args:
        rows: of `Result.to_dict`, or lines of a models.csv.
        labels: provider -> what stands beside its bar.
    """
    timed = [row for row in rows if row["status"] == "ok"]
    figure = Figure(figsize=(8, 0.7 + 0.34 * max(len(timed), 1)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(timed):
        median, low, high = (float(row[name]) for name in ("median_ms", "p20_ms", "p80_ms"))
        spread = [[max(median - low, 0.0)], [max(high - median, 0.0)]]
        axes.barh(place, median, 0.7, color=_bar_colour(row), xerr=spread, ecolor=LINE)
        share = row.get("share_of_peak")
        text = f"  {median:.3g} ms" + (f", {float(share):.0%} of peak" if share else "")
        axes.text(max(median, high), place, text, va="center", fontsize=8)
    axes.set_yticks(range(len(timed)), [labels.get(r["provider"], r["provider"]) for r in timed])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max((float(row["p80_ms"]) for row in timed), default=1.0))
    axes.set_xlabel("milliseconds a batch, median with p20 and p80; less is better")
    _plain(axes)
    return figure


def _bar_colour(row: Mapping[str, Any]) -> str:
    if row["provider"] == "fastdw":
        return OURS
    return KEPT if row["allocator"] == "kept" else OTHERS


def roofline(report: LayerReport) -> Figure:
    """GFLOP/s of every step over its arithmetic per byte, under what the machine can do."""
    return roofline_of(report.layers, report.peak_gflops, report.bandwidths)


def roofline_of(
    layers: Sequence[LayerTime], peak_gflops: float, bandwidths: Sequence[Bandwidth]
) -> Figure:
    """`roofline` of steps that come from a file; without bandwidths the peak alone is the roof.

    A step that only adds (a global pool) has no place.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    counted = [layer for layer in layers if layer.multiply_adds]
    intensities = [layer.flops_per_byte for layer in counted]
    left = min([0.25, *(value / 2 for value in intensities)])
    right = max([100.0, *(2 * value for value in intensities)])
    lowest = min([layer.gflops / 2 for layer in counted] or [peak_gflops / 100])
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(lowest, 1.8 * peak_gflops))
    _roof(axes, peak_gflops, bandwidths)
    longest = max((layer.time_ms for layer in counted), default=1.0)
    for kind in dict.fromkeys(layer.kind for layer in counted):
        own = [layer for layer in counted if layer.kind == kind]
        axes.scatter(
            [layer.flops_per_byte for layer in own],
            [layer.gflops for layer in own],
            [10 + 200 * layer.time_ms / longest for layer in own],
            color=KIND_COLOURS.get(kind, OTHERS),
            alpha=0.6,
            label=kind,
        )
    for numbers, at in _clusters(counted):
        axes.annotate(
            numbers, at, (0, 9), textcoords="offset points", fontsize=7, ha="center", va="bottom"
        )
    axes.set_xlabel("FLOP per byte of input, output and weights, each moved once")
    axes.set_ylabel("GFLOP/s")
    if counted:
        legend = axes.legend(fontsize=8, loc="lower right", title="area: time", frameon=False)
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([40])
    _plain(axes)
    return figure


def _roof(axes: Axes, peak_gflops: float, bandwidths: Sequence[Bandwidth]) -> None:
    (left, right), (lowest, _) = axes.get_xlim(), axes.get_ylim()
    for number, bandwidth in enumerate(bandwidths):
        rate = bandwidth.gigabytes_per_second
        first, ridge = max(left, lowest / rate), min(peak_gflops / rate, right)
        if first >= ridge:  # beyond the picture: no step is so near to it
            continue
        axes.plot([first, ridge], [rate * first, rate * ridge], color=LINE, linewidth=0.8)
        middle = first * (ridge / first) ** (0.8 - 0.2 * (number % 4))  # one beside another
        label = f"{bandwidth.level} {rate:.0f} GB/s"
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(middle, rate * middle, label, fontsize=8, ha="center", va="center", bbox=white)
    axes.axhline(peak_gflops, color=LINE)
    axes.text(right, peak_gflops, f"{peak_gflops:.0f} GFLOP/s", ha="right", va="bottom")


def _clusters(layers: Sequence[LayerTime]) -> list[tuple[str, tuple[float, float]]]:
    """The numbers of steps that lie close together as one label, and where it goes."""
    found: dict[tuple[int, int], list[LayerTime]] = {}
    for layer in layers:
        key = round(8 * math.log10(layer.flops_per_byte)), round(12 * math.log10(layer.gflops))
        found.setdefault(key, []).append(layer)
    return [
        (
            " ".join(str(layer.index) for layer in own),
            (own[0].flops_per_byte, max(layer.gflops for layer in own)),
        )
        for own in found.values()
    ]


def layer_bars(layers: Sequence[LayerTime]) -> Figure:
    """Milliseconds of every step: fastdw's beside torch's."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(layers))
    ours, theirs = ([getattr(x, name) for x in layers] for name in ("time_ms", "torch_ms"))
    axes.bar([p - 0.2 for p in places], ours, 0.4, color=OURS, label="fastdw")
    axes.bar([p + 0.2 for p in places], theirs, 0.4, color=OTHERS, label="torch eager")
    axes.set_xticks(places, [str(layer.index) for layer in layers], fontsize=7)
    axes.set(xlabel="step", ylabel="milliseconds")
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def svg_text(figure: Figure) -> str:
    """The figure as an SVG document."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()
