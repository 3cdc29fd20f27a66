"""The calls that are checked and timed, per op: shapes as data, tensors made on demand.

A new op adds its rows to OP_CASES and, if its arguments have a new form, a branch to `OpCase.call`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
Conv = tuple[Tensor, Tensor | None, Tensor | None, str]  # weight, scale, bias, activation
SINGLE_CONVS = ("depthwise_conv", "pointwise_conv", "stem_conv")


@dataclass(frozen=True)
class OpTensors:
    """The operands of one call."""

    x: Tensor
    convs: tuple[Conv | None, ...]
    residual: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor], activation: str | None = None) -> OpTensors:
        """The same operands, each tensor changed, and the activations too if one is given."""

        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        convs = tuple(
            conv and (change(conv[0]), changed(conv[1]), changed(conv[2]), activation or conv[3])
            for conv in self.convs
        )
        return OpTensors(change(self.x), convs, changed(self.residual))


@dataclass(frozen=True)
class OpCase:
    """One call of an op.

    Attributes:
        op: its name in `fastdw.ops`.
        label: what the case is about, for tables.
        x: shape of the input.
        convs: a weight shape and an activation for each convolution, in order; None: left out.
        options: the other keyword arguments.
        residual: whether a residual tensor is passed (pointwise_conv only).
    """

    op: str
    label: str
    x: Shape
    convs: tuple[tuple[Shape, str] | None, ...]
    options: dict[str, Any] = field(default_factory=dict)
    residual: bool = False

    def tensors(self, dtype: torch.dtype) -> OpTensors:
        """Seeded operands in `dtype`, scale and bias in fp32 (fp64 with fp64).

        Weights shrink with the length of their sum, so that values meet both ends of a clamp.
        """
        generator = torch.Generator().manual_seed(0)
        parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def conv(shape: Shape, activation: str) -> Conv:
            weight = normal(*shape) / prod(shape[1:]) ** 0.5
            scale, bias = 1 + normal(shape[0]) / 4, normal(shape[0])
            return weight.to(dtype), scale.to(parameter_dtype), bias.to(parameter_dtype), activation

        x = (2 * normal(*self.x)).to(dtype).contiguous(memory_format=torch.channels_last)
        convs = tuple(spec and conv(*spec) for spec in self.convs)
        residual = None
        if self.residual and convs[-1]:
            residual = normal(self.x[0], convs[-1][0].shape[0], *self.x[2:]).to(dtype)
        return OpTensors(x, convs, residual)

    def call(self, op: Callable[..., Tensor], tensors: OpTensors, **backend: str) -> Tensor:
        """Call `op`, of `fastdw.ops` or `fastdw.reference`, on the operands."""
        options = {**self.options, **backend}
        if self.op in SINGLE_CONVS:
            [conv] = tensors.convs
            assert conv is not None
            if self.op == "pointwise_conv":
                options["residual"] = tensors.residual
            return op(tensors.x, *conv[:3], activation=conv[3], **options)
        if self.op == "classifier_head":
            [linear] = tensors.convs
            assert linear is not None
            return op(tensors.x, linear[0], linear[2], **options)
        return op(tensors.x, *tensors.convs, **options)

    def sum_length(self) -> int:
        """The products and additions behind one output, scale, bias and residual included."""
        pooled = prod(self.x[2:]) if self.op == "classifier_head" else 0
        return pooled + sum(prod(spec[0][1:]) + 3 for spec in self.convs if spec)


def depthwise(channels: int, kernel: int = 3, activation: str = "relu6") -> tuple[Shape, str]:
    return (channels, 1, kernel, kernel), activation


def dense(
    channels_out: int, channels_in: int, activation: str = "none", kernel: int = 1
) -> tuple[Shape, str]:
    return (channels_out, channels_in, kernel, kernel), activation


_DEPTHWISE = [
    OpCase(
        "depthwise_conv",
        f"{kernel}x{kernel} stride {stride} channels {channels} {activation}",
        (2, channels, 15, 14),
        (depthwise(channels, kernel, activation),),
        {"stride": stride, "padding": padding},
    )
    for kernel, stride, channels, activation, padding in (
        (3, 1, 32, "relu6", 1),
        (3, 2, 33, "relu", (0, 1, 0, 1)),
        (5, 1, 100, "hardswish", "same"),
        (5, 2, 17, "silu", 2),
        (7, 1, 7, "none", 3),
    )
]
_DEPTHWISE += [
    OpCase(
        "depthwise_conv",
        "3x3 dilation 2",
        (1, 24, 11, 13),
        (depthwise(24),),
        {"padding": 2, "dilation": 2},
    ),
    OpCase(
        "depthwise_conv",
        "depth multiplier 2",
        (1, 15, 9, 9),
        (((30, 1, 3, 3), "relu6"),),
        {"padding": 1},
    ),
    OpCase("depthwise_conv", "1x9 image", (1, 16, 1, 9), (depthwise(16),), {"padding": 1}),
]
_POINTWISE = [
    OpCase(
        "pointwise_conv",
        f"{channels_in} to {channels_out} {activation}" + (" + residual" if residual else ""),
        (2, channels_in, 7, 9),
        (dense(channels_out, channels_in, activation),),
        residual=residual,
    )
    for channels_in, channels_out, activation, residual in (
        (16, 96, "relu6", False),
        (96, 24, "none", True),
        (33, 31, "hardswish", False),
        (1, 17, "silu", False),
        (320, 1280, "relu6", False),
        (100, 1, "relu", True),
    )
]
_STEM = [
    OpCase(
        "stem_conv",
        f"{channels} channels, stride {stride}, padding {padding}",
        (2, 3, height, width),
        (dense(channels, 3, "relu6", kernel=3),),
        {"stride": stride, "padding": padding},
    )
    for channels, stride, padding, height, width in (
        (32, 2, 1, 32, 30),
        (17, 2, "same", 33, 32),
        (24, 1, 1, 9, 11),
    )
]
_SEPARABLE = [
    OpCase(
        "separable_block",
        f"{channels_in} to {channels_out}, stride {stride}, padding {padding}",
        (2, channels_in, 15, 14),
        (depthwise(channels_in), dense(channels_out, channels_in, "relu6")),
        {"stride": stride, "padding": padding},
    )
    for channels_in, channels_out, stride, padding in (
        (32, 64, 1, 1),
        (33, 31, 2, "same"),
        (128, 100, 2, 1),
    )
]
_INVERTED = [
    OpCase(
        "inverted_residual",
        f"{channels} x {expand} to {channels_out}, {kernel}x{kernel} stride {stride}",
        (2, channels, 14, 15),
        (
            dense(channels * expand, channels, "relu6") if expand > 1 else None,
            depthwise(channels * expand, kernel),
            dense(channels_out, channels * expand),
        ),
        {"stride": stride, "padding": kernel // 2},
    )
    for channels, expand, channels_out, kernel, stride in (
        (32, 1, 16, 3, 1),
        (24, 6, 24, 3, 1),
        (17, 6, 31, 3, 2),
        (32, 3, 32, 5, 1),
        (160, 6, 160, 3, 1),
    )
]
_HEAD = [
    OpCase(
        "classifier_head",
        f"{channels} to {classes}",
        (2, channels, size, size),
        (((classes, channels), "none"),),
    )
    for channels, classes, size in ((1280, 1000, 7), (33, 31, 5), (7, 1, 1))
]

OP_CASES: dict[str, list[OpCase]] = {}
for _case in (*_DEPTHWISE, *_POINTWISE, *_STEM, *_SEPARABLE, *_INVERTED, *_HEAD):
    OP_CASES.setdefault(_case.op, []).append(_case)
