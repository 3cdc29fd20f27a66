"""What `convert`, `explain` and `optimize` did with each candidate, and why."""

from __future__ import annotations

import enum
import html
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


class Reason(enum.Enum):
    """Why a candidate was fused or left: `.code` for programs, `.sentence` for people."""

    FUSED = "one fused op in eval mode, as before in training mode"
    ALREADY_FUSED = "is a fastdw module already"
    PLANNED = "a step of the planned network; by itself it would run through torch"
    PARTLY_CONVERTED = "a layer inside it is converted already: revert the model first"
    DENSE_CONVOLUTION = (
        "a dense convolution: fastdw fuses depthwise, 1x1 and stem convolutions; "
        "of dense ones only a planned network has a kernel"
    )
    GROUPED_CONVOLUTION = "a grouped convolution that is not depthwise"
    STRIDED_POINTWISE = "a 1x1 convolution with stride or padding"
    NO_BATCH_NORM = "no batch norm takes the convolution's output"
    USED_TWICE = "the output of a layer inside it, or the layer itself, is used more than once"
    SHARED_MODULE = "the module stands in the model under more than one name"
    NOT_CALLED = "forward does not call it in eval mode"
    HOOKS = "a hook on a layer inside it would no longer see what that layer computes"
    PATCHED_FORWARD = "forward was replaced on the instance"
    PARAMETRIZED = "a parametrization computes one of its tensors"
    PADDING_MODE = "the padding mode is not zeros"
    NOT_SAME = "its forward pads, and not as TensorFlow's SAME with this stride and dilation"
    BATCH_NORM_WITHOUT_AFFINE = "the batch norm has no weight and bias"
    BATCH_NORM_WITHOUT_STATISTICS = "the batch norm keeps no running statistics"
    SYNC_BATCH_NORM = "SyncBatchNorm talks to other processes"
    UNKNOWN_CLASS = "a layer inside it is not exactly of a class that fastdw knows"
    UNKNOWN_ACTIVATION = "fastdw has no kernel for its activation"
    SQUEEZE_EXCITE = "a squeeze-excite stands between the depthwise and the 1x1 convolution"
    ANTI_ALIASING = "an anti-aliasing layer stands inside it"
    SPACE_TO_DEPTH = "a space-to-depth convolution stands at its start"
    NO_PATTERN = "its layers do not make one of the block patterns"
    QUANTIZED = "it is prepared for quantization"
    SCRIPTED = "a ScriptModule cannot change its class"
    COMPILED = "compiled already: convert the model before torch.compile"
    SHARDED = "wrapped by FSDP: convert the model before wrapping it"
    UNINITIALIZED = "its parameters have no shape yet (a lazy module)"
    NOT_TRACED = "torch.fx cannot trace the forward around it, so the order of layers is not proved"
    TRACE_DIFFERS = "on an image forward does not use its layers as the torch.fx trace says"
    EXCLUDED = "left out by include, exclude or filter_fn"
    WRONG = "the fused copy failed its verification against the original"
    LEVEL = 'level="depthwise" fuses depthwise convolutions only'

    @property
    def code(self) -> str:
        return self.name.lower()

    @property
    def sentence(self) -> str:
        return self.value


@dataclass(frozen=True)
class Row:
    """One candidate of the report.

    `parameters` counts the elements of all its parameters; `multiply_adds` those of its
    convolutions for one image of the report's input size, or None where no shape is known.
    """

    name: str
    class_name: str
    pattern: str
    reason: Reason
    backend: str
    parameters: int
    multiply_adds: int | None = None

    @property
    def fused(self) -> bool:
        return self.reason in (Reason.FUSED, Reason.ALREADY_FUSED, Reason.PLANNED)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "class": self.class_name,
            "pattern": self.pattern,
            "action": "fused" if self.fused else "left",
            "backend": self.backend,
            "reason_code": self.reason.code,
            "reason": self.reason.sentence,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
        }


BLOCK_PATTERNS = ("inverted_residual", "separable_block")
DEPTHWISE_PATTERNS = (*BLOCK_PATTERNS, "depthwise_conv", "depthwise_conv_pooled")


@dataclass
class Report:
    """One row per candidate, totals, and for `optimize` what became of the plan.

    Attributes:
        rows: the candidates, in the order of `named_modules`.
        input_size: the (channels, height, width) that `multiply_adds` refers to, or None.
        planned: whether one op runs the whole network (`optimize` only, else None).
        plan_reason: why there is no plan, or an empty string.
        planned_parts: the children that are planned where the whole network cannot be.
        largest_error: `max |optimized - original|` of the verification (`optimize` only).
        tolerance: what `largest_error` had to stay below (`optimize` only).
    """

    rows: list[Row] = field(default_factory=list)
    input_size: tuple[int, int, int] | None = None
    planned: bool | None = None
    plan_reason: str = ""
    planned_parts: list[str] = field(default_factory=list)
    largest_error: float | None = None
    tolerance: float | None = None

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fused(self) -> list[Row]:
        return [row for row in self.rows if row.fused]

    @property
    def left(self) -> list[Row]:
        return [row for row in self.rows if not row.fused]

    @property
    def totals(self) -> dict[str, Any]:
        """Counts over all rows; `depthwise_fused` counts depthwise convs inside blocks too."""
        counts = [row.multiply_adds for row in self.fused]
        known = [count for count in counts if count is not None]
        return {
            "candidates": len(self.rows),
            "fused": len(self.fused),
            "left": len(self.left),
            "blocks_fused": sum(row.pattern in BLOCK_PATTERNS for row in self.fused),
            "depthwise_fused": sum(row.pattern in DEPTHWISE_PATTERNS for row in self.fused),
            "parameters_fused": sum(row.parameters for row in self.fused),
            "multiply_adds_fused": sum(known) if len(known) == len(counts) else None,
            "patterns": dict(Counter(row.pattern for row in self.fused)),
            "reasons_left": dict(Counter(row.reason.code for row in self.left)),
        }

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        result: dict[str, Any] = {
            "rows": [row.to_dict() for row in self.rows],
            "totals": self.totals,
            "input_size": list(self.input_size) if self.input_size else None,
        }
        if self.planned is not None:
            result["plan"] = {
                "planned": self.planned,
                "reason": self.plan_reason,
                "parts": self.planned_parts,
                "largest_error": self.largest_error,
                "tolerance": self.tolerance,
            }
        return result

    def _summary(self) -> list[str]:
        totals = self.totals
        lines = [
            f"{totals['fused']} of {totals['candidates']} candidates fused: "
            f"{totals['blocks_fused']} blocks, {totals['depthwise_fused']} depthwise convolutions"
        ]
        if self.planned is not None:
            lines.append(
                "planned: one op runs the whole network"
                if self.planned
                else f"not planned: {self.plan_reason}"
            )
        if self.planned_parts:
            lines.append(f"planned by themselves: {', '.join(self.planned_parts)}")
        if self.largest_error is not None:
            lines.append(
                f"largest difference from the original: {self.largest_error:.3g} "
                f"(tolerance {self.tolerance:.3g})"
            )
        return lines

    def _cells(self) -> list[tuple[str, ...]]:
        cells: list[tuple[str, ...]] = [
            ("name", "class", "pattern", "action", "backend", "params", "madds", "reason")
        ]
        for row in self.rows:
            cells.append(
                (
                    row.name or "(model)",
                    row.class_name,
                    row.pattern,
                    "fused" if row.fused else "left",
                    row.backend,
                    f"{row.parameters:,}",
                    "-" if row.multiply_adds is None else f"{row.multiply_adds:,}",
                    f"{row.reason.code}: {row.reason.sentence}",
                )
            )
        return cells

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        return "\n".join(lines + self._summary())

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        lines = ["<table><tr>", *(f"<th>{html.escape(cell)}</th>" for cell in head), "</tr>"]
        for row in body:
            lines += ["<tr>", *(f"<td>{html.escape(cell)}</td>" for cell in row), "</tr>"]
        lines += ["</table>", *(f"<p>{html.escape(line)}</p>" for line in self._summary())]
        return "".join(lines)
