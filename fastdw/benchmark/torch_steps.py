"""The steps of a planned network, run by torch's own layers: what each step is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdw import activation as activations
from fastdw.geometry import resolve_padding
from fastdw.nn.units import ConvUnit, Unit
from fastdw.ops.program import Step
from fastdw.plan.joins import SlicedUnit
from fastdw.plan.record import Recording

# In place, as the networks write them: no fresh memory for the result.
_IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
}
JOINS = ("concat", "resize", "max_pool")
StepKey = tuple[int, str]  # which step of the program, and "global_pool" or its op


def convolve(unit: ConvUnit, x: Tensor) -> Tensor:
    """Convolution, batch norm and activation as three layers."""
    conv = unit.conv
    if isinstance(unit, SlicedUnit):
        return _activated(_slice_of_conv(unit, x), unit.activation)
    bn: Any = unit.bn
    left, right, top, bottom = resolve_padding(
        unit.raw_padding, unit.kernel_size, unit.stride, unit.dilation, x.shape[2:]
    )
    padding = (top, left)
    if (left, top) != (right, bottom):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    y = F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
    if bn is not None:
        y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
    return _activated(y, unit.activation)


def _slice_of_conv(unit: SlicedUnit, x: Tensor) -> Tensor:
    scale, bias = unit.scale_bias()
    y = F.conv2d(x, unit.weight)
    for values, into in ((scale, y.mul_), (bias, y.add_)):
        if values is not None:
            into(values.to(y.dtype)[:, None, None])
    return y


def _activated(y: Tensor, activation: str) -> Tensor:
    function = _IN_PLACE.get(activation)
    return y if function is None else function(y, inplace=True)


def _join(step: Step, values: dict[str, Tensor]) -> Tensor:
    """A concatenation, a max pool, or a resize; of a vector it makes a constant map."""
    parts = [values[name] for name in step.input.split(",")]
    if step.op == "concat":
        joined = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        shuffled = F.channel_shuffle(joined, step.groups) if step.groups > 1 else joined
        return shuffled[:, step.first : step.first + step.channels]
    if step.op == "max_pool":
        return _max_pool(step, parts[0])
    x = parts[0] if parts[0].dim() == 4 else parts[0][:, :, None, None]
    mode, aligned = step.mode.partition("_")[::2]
    corners = bool(aligned) if mode == "bilinear" else None
    if step.like != "-":
        return F.interpolate(x, values[step.like].shape[2:], mode=mode, align_corners=corners)
    factors = tuple(float(factor) for factor in step.scale)
    return F.interpolate(x, scale_factor=factors, mode=mode, align_corners=corners)


def _max_pool(step: Step, x: Tensor) -> Tensor:
    sides = resolve_padding(step.padding, step.kernel, step.stride, step.dilation, x.shape[2:])
    x = F.pad(x, sides, value=float("-inf")) if any(sides) else x
    return F.max_pool2d(x, step.kernel, step.stride, dilation=step.dilation)


class TorchSteps:
    """Runs a recording step by step, eagerly, in the memory format of its weights.

    A value is given back after its last reader, as in a module's forward.
    """

    def __init__(self, recording: Recording) -> None:
        program = recording.program
        self._outputs = program.outputs
        self._steps = list(zip(program.steps, recording.units, strict=True))
        last_reader: dict[str, int] = {}
        for index, step in enumerate(program.steps):
            last_reader |= dict.fromkeys(step.reads, index)
        self._dead_after: list[list[str]] = [[] for _ in program.steps]
        for value, index in last_reader.items():
            if value not in program.outputs:
                self._dead_after[index].append(value)

    def run(self, x: Tensor) -> tuple[list[Tensor], dict[StepKey, float]]:
        """The outputs, and the seconds of each step."""
        values = {"x": x}
        seconds: dict[StepKey, float] = {}
        for index, (step, units) in enumerate(self._steps):
            begin = time.perf_counter()
            y = _join(step, values) if step.op in JOINS else values[step.input]
            if step.op == "global_pool" or (step.op == "classifier_head" and y.dim() == 4):
                y = F.adaptive_avg_pool2d(y, 1).flatten(1)
                pooled = time.perf_counter()
                seconds[index, "global_pool"], begin = pooled - begin, pooled
            if step.op != "global_pool":
                y = self._layers(step, units, y, values)
            values[step.output] = y
            del y
            for value in self._dead_after[index]:
                del values[value]
            if step.op != "global_pool":
                seconds[index, step.op] = time.perf_counter() - begin
        return [values[name] for name in self._outputs], seconds

    def _layers(
        self, step: Step, units: tuple[Unit, ...], y: Tensor, values: dict[str, Tensor]
    ) -> Tensor:
        if step.op == "classifier_head":
            return _linear(step, units[0], y)
        if step.gate != "-":
            y = y * values[step.gate][:, :, None, None]
        for unit in _with_activations(step, units):
            assert isinstance(unit, ConvUnit)
            if step.bias != "-":
                y = convolve(replace(unit, activation="none"), y)
                y = _activated(y.add_(values[step.bias][:, :, None, None]), unit.activation)
            else:
                y = convolve(unit, y)
        if step.op == "inverted_residual" and step.residual == "1":
            y += values[step.input]
        elif step.op == "pointwise_conv" and step.residual != "-":
            y += values[step.residual]
        return y


def _linear(step: Step, unit: Unit, y: Tensor) -> Tensor:
    """A linear layer, or a 1x1 convolution on a single pixel, and what follows it."""
    if isinstance(unit, ConvUnit):
        y = convolve(replace(unit, activation="none"), y[:, :, None, None]).flatten(1)
    else:
        y = F.linear(y, unit.linear.weight, unit.linear.bias)
    return activations.apply_linear(step.activation, y)


def _with_activations(step: Step, units: tuple[Unit, ...]) -> list[Unit]:
    """The units with the step's activations: it may have taken one from a layer behind a unit."""
    names = {
        "separable_block": ("depthwise_activation", "pointwise_activation"),
        "inverted_residual": (
            *(("expand_activation",) if step.expand else ()),
            *("depthwise_activation", "project_activation"),
        ),
    }.get(step.op, ("activation",))
    return [
        replace(unit, activation=getattr(step, name)) if isinstance(unit, ConvUnit) else unit
        for unit, name in zip(units, names, strict=bool(units))
    ]


def relative_error(outputs: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference over the largest expected value, of the worst output."""
    errors = [
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(outputs, expected, strict=True)
    ]
    return max(errors) if not any(torch.tensor(errors).isnan()) else float("nan")
