"""The steps of a plan while it is built: from units, folded into each other, merged into blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastdw.activation import GATES
from fastdw.geometry import keeps_size
from fastdw.nn.fused_module import ConvUnit, LinearUnit
from fastdw.nn.units import Unit
from fastdw.ops.program import Step

LAST_ACTIVATION = {
    "stem_conv": "activation",
    "depthwise_conv": "activation",
    "pointwise_conv": "activation",
    "biased_pointwise_conv": "activation",
    "dense_conv": "activation",
    "separable_block": "pointwise_activation",
    "inverted_residual": "project_activation",
    "classifier_head": "activation",
}
"""Which field of a step says what is applied last."""


@dataclass(frozen=True)
class PlanStep:
    """A step and the layers that it computes."""

    step: Step
    units: tuple[Unit, ...]

    @classmethod
    def pool(cls, source: str, value: str, channels: int) -> PlanStep:
        """A global average pool that is an output of the network."""
        return cls(Step("global_pool", source, value, channels=channels), ())

    @property
    def adds(self) -> bool:
        """Whether the step adds a value to its result."""
        return self.step.residual not in ("-", "0")

    @property
    def channels_out(self) -> int:
        return self.step.channels_out


def step_of(
    pattern: str, units: tuple[Unit, ...], source: str, value: str, residual: bool
) -> PlanStep:
    """Write one fused op as a step."""
    first = units[0]
    if isinstance(first, LinearUnit):
        channels_out, channels_in = first.linear.weight.shape
        step = Step(pattern, source, value, channels_in=channels_in, channels_out=channels_out)
        return PlanStep(step, units)
    convs = [unit for unit in units if isinstance(unit, ConvUnit)]
    if pattern == "classifier_head":
        conv = convs[0].conv
        step = Step(pattern, source, value, conv.in_channels, channels_out=conv.out_channels)
        return PlanStep(replace(step, activation=convs[0].activation), units)
    window = convs[max(len(convs) - 2, 0)]
    step = Step(
        pattern,
        source,
        value,
        channels_in=convs[0].conv.in_channels,
        channels_out=convs[-1].conv.out_channels,
        kernel=tuple(window.kernel_size),
        stride=tuple(window.stride),
        padding=tuple(window.padding4),
        dilation=tuple(window.dilation),
    )
    if pattern == "separable_block":
        step = replace(
            step,
            depthwise_activation=convs[0].activation,
            pointwise_activation=convs[1].activation,
        )
    elif pattern == "inverted_residual":
        step = replace(
            step,
            channels_hidden=convs[-1].conv.in_channels,
            expand=len(convs) == 3,
            residual=str(int(residual)),
            expand_activation=convs[0].activation if len(convs) == 3 else "none",
            depthwise_activation=convs[-2].activation,
            project_activation=convs[-1].activation,
        )
    else:
        step = replace(step, activation=convs[0].activation)
    return PlanStep(step, units)


def activate(planned: PlanStep, activation: str) -> PlanStep | None:
    """Apply `activation` after the step, or return None if it applies or adds something already."""
    name = LAST_ACTIVATION.get(planned.step.op)
    if name is None or planned.adds or getattr(planned.step, name) != "none":
        return None
    if activation in GATES and planned.step.op != "classifier_head":
        return None
    fields: dict[str, Any] = {name: activation}
    return replace(planned, step=replace(planned.step, **fields))


def add_into(planned: PlanStep, value: str) -> PlanStep | None:
    """Add `value` to the step's result, or return None if the step cannot."""
    step = planned.step
    if planned.adds:
        return None
    if step.op == "pointwise_conv":
        return replace(planned, step=replace(step, residual=value))
    if step.op == "inverted_residual" and value == step.input and _keeps_shape(step):
        return replace(planned, step=replace(step, residual="1"))
    return None


def merge_blocks(steps: Sequence[PlanStep], outputs: Sequence[str]) -> list[PlanStep]:
    """Join depthwise and 1x1 steps that only feed each other into blocks."""
    readers = Counter(outputs)
    for planned in steps:
        readers.update(planned.step.reads)
    merged: list[PlanStep] = []
    for planned in steps:
        taken, block = _block(merged, planned, readers)
        del merged[len(merged) - taken :]
        merged.append(block)
    return merged


def _block(
    before: Sequence[PlanStep], project: PlanStep, readers: Counter[str]
) -> tuple[int, PlanStep]:
    """How many steps before `project` join it, and the block; (0, project) if none does."""
    depthwise = _feeding(before, project, "depthwise_conv", readers)
    if project.step.op != "pointwise_conv" or depthwise is None or project.step.gate != "-":
        return 0, project
    if depthwise.step.channels_in != depthwise.step.channels_out:
        return 0, project
    expand = _feeding(before[:-1], depthwise, "pointwise_conv", readers)
    if expand is not None and expand.step.gate == "-" and _is_bottleneck(expand.step, project.step):
        block = _joined(expand, depthwise, project)
        if block is not None:
            return 2, block
    block = _joined(None, depthwise, project)
    return (0, project) if block is None else (1, block)


def _feeding(
    before: Sequence[PlanStep], planned: PlanStep, op: str, readers: Counter[str]
) -> PlanStep | None:
    """The last step of `before` if it is an `op` and feeds `planned` and nothing else."""
    if not before:
        return None
    last = before[-1]
    feeds = last.step.output == planned.step.input and readers[last.step.output] == 1
    return last if feeds and last.step.op == op and not last.adds else None


def _is_bottleneck(expand: Step, project: Step) -> bool:
    return expand.channels_in < expand.channels_out and project.channels_out < project.channels_in


def _joined(expand: PlanStep | None, depthwise: PlanStep, project: PlanStep) -> PlanStep | None:
    """One block of two or three steps, or None if what is added is not the block's input."""
    first = depthwise if expand is None else expand
    block = replace(
        depthwise.step,
        input=first.step.input,
        output=project.step.output,
        channels_in=first.step.channels_in,
        channels_out=project.step.channels_out,
        activation="none",
        depthwise_activation=depthwise.step.activation,
    )
    units = (() if expand is None else expand.units) + depthwise.units + project.units
    if expand is None and not project.adds and project.step.activation != "none":
        activation = project.step.activation
        step = replace(block, op="separable_block", pointwise_activation=activation)
        return PlanStep(step, units)
    if project.adds and (project.step.residual != block.input or not _keeps_shape(block)):
        return None
    step = replace(
        block,
        op="inverted_residual",
        channels_hidden=depthwise.step.channels_in,
        expand=expand is not None,
        expand_activation="none" if expand is None else expand.step.activation,
        project_activation=project.step.activation,
        residual=str(int(project.adds)),
    )
    return PlanStep(step, units)


def _keeps_shape(step: Step) -> bool:
    same_size = keeps_size(step.kernel, step.stride, step.padding, step.dilation)
    return same_size and step.channels_in == step.channels_out
