"""Small networks for the tests of the planned op: program text, packed weights, float64 truth."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdw import activation, native, reference
from fastdw.geometry import normalize_padding, resolve_padding

native.load()
fastdw_ops = torch.ops.fastdw

MAGIC = 0x50574446  # "FDWP"


def plan_header(steps: int, magic: int = MAGIC, version: int = 1) -> Tensor:
    data = struct.pack("<4I48x", magic, version, 0, steps)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class NetworkBuilder:
    """Adds steps one by one; each method returns the id of the value that its step computes."""

    def __init__(self, channels: int = 3, seed: int = 0) -> None:
        self.channels = {"x": channels}
        self.lines: list[str] = []
        self.blobs: list[Tensor] = []
        self.truths: list[tuple[str, Callable[[dict[str, Tensor]], Tensor]]] = []
        self.outputs: list[str] = []
        self._generator = torch.Generator().manual_seed(seed)

    def weights(self, *shape: int) -> Tensor:
        fan_in = max(torch.Size(shape[1:]).numel(), 1)
        return torch.randn(shape, generator=self._generator) / fan_in**0.5

    def _add(
        self,
        op: str,
        source: str,
        channels: int,
        tokens: str,
        blob: Tensor | None,
        truth: Callable[[dict[str, Tensor]], Tensor],
    ) -> str:
        value = str(len(self.lines))
        line = f"{op} in={source} out={value} {tokens}"
        if blob is not None:
            line += f" weights={64 + sum(len(earlier) for earlier in self.blobs)}"
            self.blobs.append(blob)
        self.lines.append(line)
        self.truths.append((value, truth))
        self.channels[value] = channels
        return value

    def _conv(self, op: str, source: str, weight: Tensor, window: dict[str, Any], act: str) -> str:
        bias, scale = self.weights(len(weight)), 1 + self.weights(len(weight)) / 4
        blob = getattr(fastdw_ops, f"pack_{op}")(weight, scale, bias)
        channels_in, channels_out = self.channels[source], len(weight)
        tokens = f"channels_in={channels_in} channels_out={channels_out} {_window(window)}"
        parts = [part.double() for part in (weight, scale, bias)]
        arguments = {key: value for key, value in window.items() if key != "kernel"}

        def truth(values: dict[str, Tensor]) -> Tensor:
            convolve = getattr(reference, op)
            return convolve(values[source], *parts, **arguments, activation=act)

        return self._add(op, source, channels_out, f"{tokens} activation={act}", blob, truth)

    def stem(self, source: str, channels: int, act: str = "relu6", **window: Any) -> str:
        window = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1), **window}
        weight = self.weights(channels, self.channels[source], *window["kernel"])
        return self._conv("stem_conv", source, weight, window, act)

    def depthwise(self, source: str, multiplier: int = 1, act: str = "relu", **window: Any) -> str:
        window = {**_DEPTHWISE, **window}
        weight = self.weights(self.channels[source] * multiplier, 1, *window["kernel"])
        return self._conv("depthwise_conv", source, weight, window, act)

    def pointwise(
        self,
        source: str,
        channels: int,
        act: str = "none",
        residual: str | None = None,
        gate: str | None = None,
    ) -> str:
        channels_in = self.channels[source]
        weight, bias = self.weights(channels, channels_in, 1, 1), self.weights(channels)
        tokens = f"channels_in={channels_in} channels_out={channels} residual={residual or '-'}"
        tokens += "" if gate is None else f" gate={gate}"
        blob = fastdw_ops.pack_pointwise_conv(weight, None, bias)

        def truth(values: dict[str, Tensor]) -> Tensor:
            x = values[source] if gate is None else values[source] * values[gate][:, :, None, None]
            y = activation.apply(act, F.conv2d(x, weight.double(), bias.double()))
            return y if residual is None else y + values[residual]

        return self._add(
            "pointwise_conv", source, channels, f"{tokens} activation={act}", blob, truth
        )

    def dense(self, source: str, channels: int, act: str = "relu", **window: Any) -> str:
        window = {**_DEPTHWISE, **window}
        channels_in = self.channels[source]
        weight = self.weights(channels, channels_in, *window["kernel"])
        bias = self.weights(channels)
        rows = weight.permute(0, 2, 3, 1).reshape(channels, -1, 1, 1)
        blob = fastdw_ops.pack_pointwise_conv(rows, None, bias)
        tokens = f"channels_in={channels_in} channels_out={channels} {_window(window)}"

        def truth(values: dict[str, Tensor]) -> Tensor:
            x = values[source]
            sides = normalize_padding(
                window["padding"], window["kernel"], window["stride"], window["dilation"]
            )
            sides = resolve_padding(
                sides, window["kernel"], window["stride"], window["dilation"], x.shape[2:]
            )
            y = F.conv2d(
                F.pad(x, sides),
                weight.double(),
                bias.double(),
                window["stride"],
                dilation=window["dilation"],
            )
            return activation.apply(act, y)

        return self._add("dense_conv", source, channels, f"{tokens} activation={act}", blob, truth)

    def biased_pointwise(self, source: str, channels: int, vector: str, act: str = "none") -> str:
        channels_in = self.channels[source]
        weight = self.weights(channels, channels_in, 1, 1)
        tokens = f"channels_in={channels_in} channels_out={channels} bias={vector} activation={act}"

        def truth(values: dict[str, Tensor]) -> Tensor:
            y = F.conv2d(values[source], weight.double()) + values[vector][:, :, None, None]
            return activation.apply(act, y)

        blob = fastdw_ops.pack_pointwise_conv(weight, None, None)
        return self._add("biased_pointwise_conv", source, channels, tokens, blob, truth)

    def resize(
        self, source: str, mode: str, like: str = "-", scale: tuple[int, int] = (1, 1)
    ) -> str:
        channels = self.channels[source]
        tokens = f"channels={channels} like={like} scale={scale[0]},{scale[1]} mode={mode}"

        def truth(values: dict[str, Tensor]) -> Tensor:
            x = values[source]
            x = x if x.dim() == 4 else x[:, :, None, None]
            size = [side * times for side, times in zip(x.shape[2:], scale, strict=True)]
            name, aligned = mode.partition("_")[::2]
            return F.interpolate(
                x,
                values[like].shape[2:] if like != "-" else size,
                mode=name,
                align_corners=bool(aligned) if name == "bilinear" else None,
            )

        return self._add("resize", source, channels, tokens, None, truth)

    def concat(
        self, *sources: str, groups: int = 1, first: int = 0, channels: int | None = None
    ) -> str:
        channels = channels or sum(self.channels[source] for source in sources) - first
        tokens = f"channels={channels}"
        tokens += "" if groups == 1 else f" groups={groups}"
        tokens += "" if first == 0 else f" first={first}"

        def truth(values: dict[str, Tensor]) -> Tensor:
            joined = torch.cat([values[source] for source in sources], 1)
            grouped = joined.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
            return grouped[:, first : first + channels]

        return self._add("concat", ",".join(sources), channels, tokens, None, truth)

    def max_pool(self, source: str, **window: Any) -> str:
        window = {**_DEPTHWISE, **window}
        channels = self.channels[source]

        def truth(values: dict[str, Tensor]) -> Tensor:
            kernel, stride, dilation = window["kernel"], window["stride"], window["dilation"]
            sides = normalize_padding(window["padding"], kernel, stride, dilation)
            sides = resolve_padding(sides, kernel, stride, dilation, values[source].shape[2:])
            x = F.pad(values[source], sides, value=float("-inf"))
            return F.max_pool2d(x, kernel, stride, dilation=dilation)

        tokens = f"channels={channels} {_window(window)}"
        return self._add("max_pool", source, channels, tokens, None, truth)

    def separable(self, source: str, channels: int, **window: Any) -> str:
        window = {**_DEPTHWISE, **window}
        channels_in = self.channels[source]
        depthwise = self.weights(channels_in, 1, *window["kernel"])
        pointwise, bias = self.weights(channels, channels_in, 1, 1), self.weights(channels)
        blob = fastdw_ops.pack_separable_block(depthwise, None, None, pointwise, None, bias)
        tokens = (
            f"channels_in={channels_in} channels_out={channels} {_window(window)} "
            "depthwise_activation=relu6 pointwise_activation=hardswish"
        )
        arguments = {key: value for key, value in window.items() if key != "kernel"}

        def truth(values: dict[str, Tensor]) -> Tensor:
            return reference.separable_block(
                values[source],
                (depthwise.double(), None, None, "relu6"),
                (pointwise.double(), None, bias.double(), "hardswish"),
                **arguments,
            )

        return self._add("separable_block", source, channels, tokens, blob, truth)

    def inverted_residual(
        self, source: str, channels: int, expansion: int = 6, residual: bool = False, **window: Any
    ) -> str:
        window = {**_DEPTHWISE, **window}
        channels_in = self.channels[source]
        hidden = channels_in * expansion
        expand = self.weights(hidden, channels_in, 1, 1) if expansion > 1 else None
        depthwise = self.weights(hidden, 1, *window["kernel"])
        project, bias = self.weights(channels, hidden, 1, 1), self.weights(channels)
        blob = fastdw_ops.pack_inverted_residual(
            expand, None, None, depthwise, None, None, project, None, bias
        )
        tokens = (
            f"channels_in={channels_in} channels_hidden={hidden} channels_out={channels} "
            f"expand={int(expand is not None)} residual={int(residual)} {_window(window)} "
            "expand_activation=relu6 depthwise_activation=relu6 project_activation=none"
        )
        arguments = {key: value for key, value in window.items() if key != "kernel"}

        def truth(values: dict[str, Tensor]) -> Tensor:
            return reference.inverted_residual(
                values[source],
                None if expand is None else (expand.double(), None, None, "relu6"),
                (depthwise.double(), None, None, "relu6"),
                (project.double(), None, bias.double(), "none"),
                residual=residual,
                **arguments,
            )

        return self._add("inverted_residual", source, channels, tokens, blob, truth)

    def pool(self, source: str) -> str:
        channels = self.channels[source]
        return self._add(
            "global_pool",
            source,
            channels,
            f"channels={channels}",
            None,
            lambda values: values[source].mean((2, 3)),
        )

    def head(self, source: str, classes: int, act: str = "none") -> str:
        channels = self.channels[source]
        weight, bias = self.weights(classes, channels), self.weights(classes)

        def truth(values: dict[str, Tensor]) -> Tensor:
            x = values[source]
            pooled = x.mean((2, 3)) if x.dim() == 4 else x
            linear = F.linear(pooled, weight.double(), bias.double())
            return activation.apply_linear(act, linear)

        return self._add(
            "classifier_head",
            source,
            classes,
            f"channels_in={channels} channels_out={classes}"
            + ("" if act == "none" else f" activation={act}"),
            fastdw_ops.pack_classifier_head(weight, bias),
            truth,
        )

    def squeeze_excite(
        self, source: str, hidden: int, act: str = "relu", gate: str = "hardsigmoid"
    ) -> str:
        """The gates of a value's channels."""
        return self.head(self.head(source, hidden, act), self.channels[source], gate)

    def program(self) -> str:
        head = (
            f"fastdw-program version=1 channels={self.channels['x']} "
            f"outputs={','.join(self.outputs)}"
        )
        return "\n".join([head, *self.lines]) + "\n"

    def packed(self) -> Tensor:
        return torch.cat([plan_header(len(self.lines)), *self.blobs])

    def expected(self, x: Tensor) -> list[Tensor]:
        values = {"x": x.double()}
        for value, truth in self.truths:
            values[value] = truth(values)
        return [values[value] for value in self.outputs]


_DEPTHWISE: dict[str, Any] = {
    "kernel": (3, 3),
    "stride": (1, 1),
    "padding": (1, 1, 1, 1),
    "dilation": (1, 1),
}


def _window(window: dict[str, Any]) -> str:
    tokens = []
    for key, value in window.items():
        tokens.append(f"{key}={value if isinstance(value, str) else ','.join(map(str, value))}")
    return " ".join(tokens)


def small_mobilenet(seed: int = 0) -> NetworkBuilder:
    """Every kind of step, a residual over several steps, outputs in the middle and at the end."""
    net = NetworkBuilder(seed=seed)
    stem = net.stem("x", 16)
    first = net.inverted_residual(stem, 24, expansion=1)
    second = net.inverted_residual(first, 24, residual=True)
    third = net.separable(second, 24, padding="same")
    third = net.depthwise(third, act="hardswish", kernel=(5, 5), padding=(2, 2, 2, 2))
    third = net.pointwise(third, 24, residual=first)
    down = net.inverted_residual(third, 40, stride=(2, 2))
    last = net.pointwise(down, 64, act="relu6")
    logits = net.head(last, 11)
    pooled = net.pool(last)
    net.outputs = [logits, third, pooled]
    return net


def random_step(net: NetworkBuilder, values: list[str], choice: random.Random) -> str:
    source, older = choice.choice(values[-2:]), choice.choice(values[-5:])
    kind = choice.choice(["pointwise", "block", "depthwise", "separable"])
    if kind == "pointwise":
        return net.pointwise(source, 12, residual=older)
    if kind == "block":
        return net.inverted_residual(source, 12, residual=True)
    return net.depthwise(source, act="silu") if kind == "depthwise" else net.separable(source, 12)
