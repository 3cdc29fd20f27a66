"""Shapes and data of the op tests: a ``Case`` is one call, ``arguments`` makes its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastdw import ops, reference

AWKWARD_CHANNELS = (1, 7, 8, 15, 16, 17, 31, 33, 100)
KINDS = ("normal", "clamp", "large", "special")
LAYOUTS = ("channels_last", "contiguous", "sliced", "transposed")


@dataclass(frozen=True)
class Case:
    """One call of an op; which fields count depends on the op."""

    op: str
    channels: int = 8
    channels_out: int = 8
    height: int = 7
    width: int = 6
    batch: int = 2
    multiplier: int = 1
    hidden: int | None = None  # of an inverted residual; None: no expansion
    kernel: tuple[int, int] = (3, 3)
    stride: int | tuple[int, int] = 1
    padding: Any = 1
    dilation: int | tuple[int, int] = 1
    residual: bool = False
    activation: str = "relu6"
    epilogue: bool = True
    layout: str = "channels_last"

    def __str__(self) -> str:
        default = Case(self.op)
        changed = [
            f"{name}={value}".replace(" ", "")
            for name, value in vars(self).items()
            if name != "op" and value != getattr(default, name)
        ]
        return ",".join(changed) or "plain"

    @property
    def terms(self) -> int:
        """Length of the sum behind an output: products, scale, bias and residual, all stages."""
        taps = math.prod(self.kernel)
        hidden = self.hidden or self.channels
        return (
            3
            + {
                "depthwise_conv": taps,
                "pointwise_conv": self.channels,
                "stem_conv": taps * self.channels,
                "separable_block": taps + self.channels + 3,
                "inverted_residual": (self.channels + 3 if self.hidden else 0) + taps + 3 + hidden,
                "classifier_head": self.channels + self.height * self.width,
            }[self.op]
        )


def ids(case: Case) -> str:
    """Name a case in the id of a test."""
    return str(case)


def _filled(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if kind == "clamp":
        return values * 1e-3
    if kind == "large":
        return values * 1e15
    if kind == "special":
        flat = values.view(-1)
        for i, value in enumerate((math.nan, math.inf, -math.inf)):
            flat[i * 7 % max(flat.numel(), 1) :: 23] = value
    return values


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return the same values with other strides."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "sliced":
        batch, channels, height, width = x.shape
        wide = torch.full((batch, channels + 2, 2 * height, width + 3), torch.nan, dtype=x.dtype)
        view = wide[:, 1 : channels + 1, ::2, 2 : width + 2]
        return view.copy_(x)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x.contiguous()


def arguments(
    case: Case, kind: str = "normal", dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs) of the public op, without ``backend``."""
    generator = torch.Generator().manual_seed(seed)
    per_channel = torch.float64 if dtype == torch.float64 else torch.float32

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def conv(*shape: int) -> tuple[Any, ...]:
        if not case.epilogue:
            return weight(*shape), None, None, case.activation
        scale = torch.rand(shape[0], generator=generator) + 0.5
        bias = torch.randn(shape[0], generator=generator)
        if kind == "clamp":
            bias = 6.0 * (torch.arange(shape[0]) % 2)
        return weight(*shape), scale.to(per_channel), bias.to(per_channel), case.activation

    shape = (case.batch, case.channels, case.height, case.width)
    x = laid_out(_filled(kind, shape, generator).to(dtype), case.layout)
    window = {"stride": case.stride, "padding": case.padding}
    dilated = {**window, "dilation": case.dilation}
    if case.op == "classifier_head":
        weight_, _, bias, _ = conv(case.channels_out, case.channels)
        return (x, weight_, bias), {}
    if case.op == "depthwise_conv":
        *unit, activation = conv(case.channels * case.multiplier, 1, *case.kernel)
        return (x, *unit), {**dilated, "activation": activation}
    if case.op == "stem_conv":
        *unit, activation = conv(case.channels_out, case.channels, *case.kernel)
        return (x, *unit), {**window, "activation": activation}
    if case.op == "pointwise_conv":
        *unit, activation = conv(case.channels_out, case.channels, 1, 1)
        shape = (case.batch, case.channels_out, case.height, case.width)
        residual = laid_out(weight(*shape), case.layout) if case.residual else None
        return (x, *unit), {"residual": residual, "activation": activation}
    hidden = case.hidden or case.channels
    depthwise = conv(hidden * case.multiplier, 1, *case.kernel)
    project = conv(case.channels_out, hidden * case.multiplier, 1, 1)
    if case.op == "separable_block":
        return (x, depthwise, project), dilated
    expand = conv(hidden, case.channels, 1, 1) if case.hidden else None
    project = (*project[:3], "none")
    return (x, expand, depthwise, project), {**dilated, "residual": case.residual}


def _map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def truth_of(case: Case, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return the float64 reference and its magnitude S (see ``tolerances``)."""
    operation = getattr(reference, case.op)

    def absolute(tensor: Tensor) -> Tensor:
        return tensor.double().abs().nan_to_num(100.0, 100.0)

    wide_args, wide_kwargs = _map_tensors(torch.Tensor.double, (args, kwargs))
    absolute_args, absolute_kwargs = _map_tensors(absolute, (args, kwargs))
    absolute_args = tuple(
        (*arg[:3], "none") if isinstance(arg, tuple) else arg for arg in absolute_args
    )
    if "activation" in absolute_kwargs:
        absolute_kwargs["activation"] = "none"
    return (
        operation(*wide_args, **wide_kwargs),
        operation(*absolute_args, **absolute_kwargs),
    )


def run(case: Case, args: Any, kwargs: Any, backend: str = "cpp") -> Tensor:
    """Call the public op."""
    return getattr(ops, case.op)(*args, **kwargs, backend=backend)


def weights_of(args: Any) -> list[Tensor]:
    """Return the weights among the arguments of a public op, in order."""
    if isinstance(args[1], Tensor):
        return [args[1]]
    return [arg[0] for arg in args[1:] if arg is not None]


def small(op: str, **changes: Any) -> Case:
    """Return a small case that uses everything the op has; for gradients, tracing and the like."""
    case = Case(op, channels=5, channels_out=5, height=6, width=5, stride=1, activation="silu")
    if op == "inverted_residual":
        case = replace(case, hidden=7, residual=True)
    if op == "pointwise_conv":
        case = replace(case, residual=True)
    return replace(case, **changes)
