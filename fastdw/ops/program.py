"""The text of a planned network: its steps, how they are written and read, and what they yield.

Line 1: ``fastdw-program version=1 channels=<of x> outputs=<value ids>``; then one step a line,
``<op> <key>=<value> ...``. Values are named by ids; ``x`` is the network's input. ``weights`` is
the offset in bytes of the step's blob in ``packed``. If line 1 ends with ``target=cuda_<dtype>``,
the blobs are laid out for CUDA (``fastdw/plan/packed_layout.py``), else for the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastdw import activation as activations
from fastdw.backends import DTYPE_NAMES
from fastdw.geometry import output_size
from fastdw.ops import checks
from fastdw.ops.program_checks import check_values

VERSION = 1
ALIGNMENT_BYTES = 64
"""Of every weight and bias in a buffer laid out for CUDA."""

CPU = "cpu"
TARGETS = (CPU, "cuda_fp32", "cuda_fp16", "cuda_bf16")

_CHANNELS = ("channels_in", "channels_out")
_WINDOW = ("kernel", "stride", "padding")
_DEPTHWISE = (*_WINDOW, "dilation")

STEP_KEYS: dict[str, tuple[str, ...]] = {
    "stem_conv": ("in", "out", *_CHANNELS, *_WINDOW, "activation", "weights"),
    "depthwise_conv": ("in", "out", *_CHANNELS, *_DEPTHWISE, "activation", "weights"),
    "pointwise_conv": ("in", "out", *_CHANNELS, "residual", "gate", "activation", "weights"),
    "separable_block": (
        *("in", "out", *_CHANNELS, *_DEPTHWISE),
        *("depthwise_activation", "pointwise_activation", "weights"),
    ),
    "inverted_residual": (
        *("in", "out", "channels_in", "channels_hidden", "channels_out", "expand", "residual"),
        *(*_DEPTHWISE, "expand_activation", "depthwise_activation", "project_activation"),
        "weights",
    ),
    "classifier_head": ("in", "out", *_CHANNELS, "activation", "weights"),
    "global_pool": ("in", "out", "channels"),
    "dense_conv": ("in", "out", *_CHANNELS, *_DEPTHWISE, "activation", "weights"),
    "biased_pointwise_conv": ("in", "out", *_CHANNELS, "bias", "activation", "weights"),
    "resize": ("in", "out", "channels", "like", "scale", "mode"),
    "concat": ("in", "out", "channels", "groups", "first"),
    "max_pool": ("in", "out", "channels", *_DEPTHWISE),
}
"""The keys of each step, in the order in which they are written.

``biased_pointwise_conv`` adds the vector ``bias`` of each image before the activation; ``resize``
gives the size of ``like``, or ``scale`` times the input's if that is "-"; ``concat`` joins the
channels of several values, named with commas between them: these are shuffled as
``torch.nn.ChannelShuffle(groups)`` does it, and ``channels`` of them kept from ``first`` on.
"""

CPU_STEPS = ("dense_conv", "biased_pointwise_conv", "resize", "concat", "max_pool")
"""Steps that no GPU runs."""

WEIGHTLESS = ("global_pool", "resize", "concat", "max_pool")

RESIZE_MODES = ("nearest", "bilinear", "bilinear_aligned")

OPTIONAL_KEYS: dict[str, dict[str, str]] = {
    "pointwise_conv": {"gate": "-"},
    "classifier_head": {"activation": "none"},
    "concat": {"groups": "1", "first": "0"},
}
"""Keys that are not written where they have this value."""

Shape = tuple[Any, ...]  # ints, symbolic ones included


@dataclass(frozen=True)
class Step:
    """One line of a program. Which fields count depends on ``op``: see ``STEP_KEYS``."""

    op: str
    input: str
    output: str
    channels_in: int = 0
    channels_hidden: int = 0
    channels_out: int = 0
    channels: int = 0
    groups: int = 1
    first: int = 0
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()  # empty: same
    dilation: tuple[int, ...] = (1, 1)
    expand: bool = False
    bias: str = "-"
    like: str = "-"
    scale: tuple[int, ...] = (1, 1)
    mode: str = "bilinear"
    residual: str = "-"  # pointwise_conv: a value id or "-"; inverted_residual: "0" or "1"
    gate: str = "-"  # pointwise_conv: a value [batch, channels_in] that multiplies the input
    activation: str = "none"  # classifier_head: one of `activation.GATES` too
    expand_activation: str = "none"
    depthwise_activation: str = "none"
    pointwise_activation: str = "none"
    project_activation: str = "none"
    weights: int = 0

    def __str__(self) -> str:
        written = {key: _written(self, key) for key in STEP_KEYS[self.op]}
        optional = OPTIONAL_KEYS.get(self.op, {})
        tokens = [f"{k}={value}" for k, value in written.items() if optional.get(k) != value]
        return " ".join([self.op, *tokens])

    @property
    def reads(self) -> tuple[str, ...]:
        """The values that the step reads, if only their size."""
        residual = self.residual if self.op == "pointwise_conv" else "-"
        added = (residual, self.gate, self.bias, self.like)
        return (*self.input.split(","), *(value for value in added if value != "-"))

    @property
    def is_for_cpu_alone(self) -> bool:
        """Whether the step computes what no kernel on a GPU does."""
        activates = self.op == "classifier_head" and self.activation != "none"
        return self.op in CPU_STEPS or self.gate != "-" or activates

    def output_shape(self, shape: Shape, like: Shape | None = None) -> Shape:
        """Return the output's shape for an input of ``shape``; sizes may be symbolic.

        Args:
            shape: of the input, the first of several.
            like: of the value that a ``resize`` names.
        """
        if self.op == "global_pool":
            return (shape[0], self.channels)
        if self.op == "concat":
            return (shape[0], self.channels, *shape[2:])
        if self.op == "resize":
            if like is not None:
                return (shape[0], self.channels, *like[2:])
            sides = zip(shape[2:] or (1, 1), self.scale, strict=True)
            return (shape[0], self.channels, *(side * times for side, times in sides))
        if self.op in ("pointwise_conv", "biased_pointwise_conv"):
            return (shape[0], self.channels_out, *shape[2:])
        if self.op == "classifier_head":
            return (shape[0], self.channels_out)
        height, width = output_size(
            shape[2:], self.kernel, self.stride, self.padding, self.dilation
        )
        return (shape[0], self.channels_out or self.channels, height, width)

    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of the weight of each of the step's convolutions, or linear layer."""
        last, inner = self.channels_out, self.channels_in
        if self.op in WEIGHTLESS:
            return []
        if self.op in ("stem_conv", "dense_conv"):
            return [(last, inner, *self.kernel)]
        if self.op == "depthwise_conv":
            return [(last, 1, *self.kernel)]
        if self.op in ("pointwise_conv", "biased_pointwise_conv"):
            return [(last, inner, 1, 1)]
        if self.op == "classifier_head":
            return [(last, inner)]
        hidden = self.channels_hidden or inner
        expand = [(hidden, inner, 1, 1)] if self.expand else []
        return [*expand, (hidden, 1, *self.kernel), (last, hidden, 1, 1)]

    def cuda_weights(self, packed: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield weight and bias of each, views of a buffer in the layout for CUDA in ``dtype``."""
        begin = self.weights
        bias_dtype = dtype if self.op == "classifier_head" else torch.float32
        for shape in self.weight_shapes():
            views = []
            for part, kind in ((shape, dtype), (shape[:1], bias_dtype)):
                end = begin + math.prod(part) * kind.itemsize
                views.append(packed[begin:end].view(kind).view(part))
                begin = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            yield views[0], views[1]

    def multiply_adds(self, shape: Shape) -> int:
        """Return the products of the step's convolutions for an input of ``shape``."""
        if self.op in WEIGHTLESS:
            return 0
        if self.op == "classifier_head":
            return shape[0] * self.channels_in * self.channels_out
        output = self.output_shape(shape)
        pixels, taps = output[0] * math.prod(output[2:]), math.prod(self.kernel)
        if self.op in ("stem_conv", "pointwise_conv", "biased_pointwise_conv", "dense_conv"):
            return pixels * self.channels_out * self.channels_in * taps
        if self.op == "depthwise_conv":
            return pixels * self.channels_out * taps
        hidden = self.channels_hidden if self.expand else self.channels_in
        expand = shape[0] * math.prod(shape[2:]) * self.channels_in * hidden if self.expand else 0
        return expand + pixels * hidden * (taps + self.channels_out)


@dataclass(frozen=True)
class Program:
    """A parsed program: the input's channels, the steps, the ids of the outputs, the target."""

    channels: int
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    target: str = CPU

    @property
    def cuda_dtype(self) -> torch.dtype:
        """The dtype of weights and images that are laid out for CUDA.

        Raises:
            KeyError: they are laid out for the CPU.
        """
        dtypes = {f"cuda_{name}": dtype for dtype, name in DTYPE_NAMES.items()}
        return dtypes[self.target]

    @property
    def gpu_refusal(self) -> str | None:
        """Why no GPU runs the program; None: it may."""
        ops = {
            step.op + (" with a gate" if step.gate != "-" else "")
            for step in self.steps
            if step.is_for_cpu_alone
        }
        return f"planned on the CPU alone: {', '.join(sorted(ops))}" if ops else None

    def __str__(self) -> str:
        head = (
            f"fastdw-program version={VERSION} channels={self.channels} "
            f"outputs={','.join(self.outputs)}"
        ) + ("" if self.target == CPU else f" target={self.target}")
        return "\n".join([head, *map(str, self.steps)]) + "\n"

    def value_shapes(self, batch: int, height: int, width: int) -> dict[str, Shape]:
        """Return the shape of every value, ``x`` included."""
        shapes: dict[str, Shape] = {"x": (batch, self.channels, height, width)}
        for step in self.steps:
            first = shapes[step.input.partition(",")[0]]
            shapes[step.output] = step.output_shape(first, shapes.get(step.like))
        return shapes

    def output_shapes(self, batch: int, height: int, width: int) -> list[Shape]:
        """Return the shapes of the outputs; sizes may be symbolic."""
        shapes = self.value_shapes(batch, height, width)
        return [shapes[value] for value in self.outputs]

    def multiply_adds(self, batch: int, height: int, width: int) -> int:
        """Return the products of all convolutions."""
        shapes = self.value_shapes(batch, height, width)
        return sum(step.multiply_adds(shapes[step.input.partition(",")[0]]) for step in self.steps)


@lru_cache(maxsize=64)
def parse_program(text: str) -> Program:
    """Parse the text of a program.

    Raises:
        ValueError: the text is not a program of version 1; the message names the line.
    """
    lines = text.splitlines()
    head = lines[0].split() if lines else []
    if head[:1] != ["fastdw-program"]:
        raise ValueError(f'program: expected "fastdw-program ...", got {text[:40]!r}')
    header = _pairs(head[1:], 1)
    target = header.pop("target", CPU)
    if target not in TARGETS:
        raise ValueError(f"program: line 1: target: expected one of {TARGETS}, got {target!r}")
    if list(header) != ["version", "channels", "outputs"] or header["version"] != str(VERSION):
        raise ValueError(
            f"program: line 1: expected version={VERSION} channels= outputs=, got {lines[0]!r}"
        )
    channels = _number(header["channels"], 1, "channels")
    widths = {"x": channels}
    steps = []
    for number, line in enumerate(lines[1:], start=2):
        step = _parse_step(line, number)
        check_values(step, widths, step.op in WEIGHTLESS, number)
        if target != CPU and step.op in CPU_STEPS:
            raise ValueError(f"program: line {number}: {step.op}: only the CPU runs this step")
        widths[step.output] = step.channels_out or step.channels
        steps.append(step)
    outputs = tuple(header["outputs"].split(","))
    unknown = [value for value in outputs if value not in widths or value == "x"]
    if unknown:
        raise ValueError(f"program: line 1: no step computes the outputs {', '.join(unknown)}")
    return Program(channels, outputs, tuple(steps), target)


def _pairs(tokens: Sequence[str], number: int) -> dict[str, str]:
    pairs = [token.split("=", 1) for token in tokens]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"program: line {number}: expected key=value, got {' '.join(tokens)!r}")
    return {key: value for key, value in pairs}


def _number(value: str, number: int, key: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"program: line {number}: {key}: expected a number, got {value!r}")
    return int(value)


def _parse_step(line: str, number: int) -> Step:
    op, *tokens = line.split(" ")
    keys = STEP_KEYS.get(op)
    if keys is None:
        raise ValueError(
            f"program: line {number}: expected one of {', '.join(STEP_KEYS)}, got {op!r}"
        )
    pairs = _pairs(tokens, number)
    keys = tuple(key for key in keys if key in pairs or key not in OPTIONAL_KEYS.get(op, ()))
    if tuple(pairs) != keys:
        raise ValueError(
            f"program: line {number}: {op}: expected the keys {' '.join(keys)}, "
            f"got {' '.join(pairs)}"
        )
    return Step(op, **{_FIELD.get(key, key): _read(op, key, pairs[key], number) for key in keys})


_FIELD = {"in": "input", "out": "output"}
_PAIRS = ("kernel", "stride", "dilation", "scale")


def _read(op: str, key: str, value: str, number: int) -> Any:
    if key in ("in", "out", "residual", "gate", "bias", "like"):
        return value
    if key == "mode":
        if value not in RESIZE_MODES:
            raise ValueError(
                f"program: line {number}: mode: expected one of {', '.join(RESIZE_MODES)}, "
                f"got {value!r}"
            )
        return value
    if key.endswith("activation"):
        known = activations.ACTIVATIONS + activations.GATES * (op == "classifier_head")
        return activations.check(value, f"program: line {number}: {key}", known)
    if key == "expand":
        return value == "1"
    if key == "padding" and value == "same":
        return ()
    if key in _PAIRS or key == "padding":
        numbers = tuple(_number(item, number, key) for item in value.split(","))
        wanted = 4 if key == "padding" else 2
        if len(numbers) != wanted or (key in _PAIRS and min(numbers) < 1):
            raise ValueError(
                f"program: line {number}: {key}: expected {wanted} numbers, got {value!r}"
            )
        return numbers
    return _number(value, number, key)


def _written(step: Step, key: str) -> str:
    value = getattr(step, _FIELD.get(key, key))
    if key == "padding" and not value:
        return "same"
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def fake(x: Tensor, packed: Tensor, program: str) -> list[Tensor]:
    """Fake of ``fastdw::planned_network``: the outputs' shapes, read from the program's text."""
    checks.check_packed_input(x, packed)
    parsed = parse_program(program)
    if x.shape[1] != parsed.channels:
        raise ValueError(f"x: expected {parsed.channels} channels, got {list(x.shape)}")
    return [
        torch.empty(
            shape,
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format,
        )
        for shape in parsed.output_shapes(x.shape[0], x.shape[2], x.shape[3])
    ]


def flops(x: Any, packed: Any, program: str, **settings: Any) -> int:
    """FLOP formula of ``fastdw::planned_network``."""
    return 2 * parse_program(program).multiply_adds(x[0], x[2], x[3])
