"""TF-slim's ``expanded_conv`` with all its options: by default the block of MobileNet V2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdw.geometry import Padding, Pair, normalize_pair
from fastdw.models.specs import make_divisible
from fastdw.nn import DepthwiseConvBNAct, InvertedResidual, PointwiseConvBNAct

ExpansionSize = int | Callable[[int], int]
"""Hidden channels, or what gives them for the channels of the input."""

Residual = bool | Callable[[Tensor, Tensor], Tensor]
"""Whether to add the input, or what makes the block's result of its input and output."""

DEPTHWISE_LOCATIONS = (None, "input", "expansion", "output")


def expand_input(factor: float, divisible_by: int = 8) -> Callable[[int], int]:
    """Return what gives ``factor`` times the channels, rounded to multiples of ``divisible_by``."""
    return lambda channels: make_divisible(channels * factor, divisible_by)


SIX_TIMES = expand_input(6)
"""MobileNet V2's expansion."""


def split_sizes(channels: int, ways: int, divisible_by: int = 8) -> list[int]:
    """Split channels into nearly equal multiples of ``divisible_by``.

    Raises:
        ValueError: they are no multiple of it, or too few.
    """
    if channels % divisible_by or channels // ways < divisible_by:
        raise ValueError(
            f"channels: expected a multiple of {divisible_by}, at least {divisible_by * ways} for "
            f"{ways} parts, got {channels}"
        )
    units = channels // divisible_by
    ends = [-(-units * part // ways) * divisible_by for part in range(ways + 1)]
    return [end - begin for begin, end in zip(ends, ends[1:], strict=False)]


class SplitConv(nn.Module):
    """1x1 convolutions side by side, each from its part of the input to its part of the output.

    ``y = concat(act(bn_0(conv_0(x_0))), act(bn_1(conv_1(x_1))), ...)``. It is one convolution where
    a part would have fewer than ``divisible_by`` channels.

    Args:
        in_channels, out_channels: channels of the input and the output.
        ways: parts.
        divisible_by: channels of each part are multiples of it.
        activation, eps, momentum: as in ``PointwiseConvBNAct``.

    Shape:
        ``[batch, in_channels, height, width]`` to ``[batch, out_channels, height, width]``.

    Raises:
        ValueError: the channels are no multiples of ``divisible_by``.

    Source: the authors' code, ``slim/nets/mobilenet/conv_blocks.py``, ``split_conv``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        ways: int,
        divisible_by: int = 8,
        activation: str = "relu6",
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.sizes = split_sizes(in_channels, ways, divisible_by)
        outputs = split_sizes(out_channels, ways, divisible_by)
        self.parts = nn.ModuleList(
            PointwiseConvBNAct(size, output, activation, eps, momentum)
            for size, output in zip(self.sizes, outputs, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.parts, x.split(self.sizes, 1), strict=True)
        return torch.cat([convolution(part) for convolution, part in parts], 1)


class ExpandedConv(nn.Module):
    """The block of MobileNet V2 with every option of TF-slim; see ``expanded_conv``.

    Attributes:
        expand, depthwise, project: its layers; the first two may be None.
        expansion_transform: see ``expanded_conv``.
        residual: see ``expanded_conv``; False where it does not fit.
        depthwise_location: where ``depthwise`` stands.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion_size: ExpansionSize = SIX_TIMES,
        stride: Pair = 1,
        rate: Pair = 1,
        kernel_size: Pair = 3,
        residual: Residual = True,
        split_projection: int = 1,
        split_expansion: int = 1,
        split_divisible_by: int = 8,
        expansion_transform: Callable[[Tensor, Tensor], Tensor] | None = None,
        depthwise_location: str | None = "expansion",
        depthwise_channel_multiplier: int = 1,
        use_explicit_padding: bool = False,
        padding: str = "SAME",
        inner_activation: str = "relu6",
        depthwise_activation: str | None = None,
        project_activation: str = "none",
        eps: float = 1e-3,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if depthwise_location not in DEPTHWISE_LOCATIONS:
            wanted = "None, input, expansion or output"
            raise ValueError(f"depthwise_location: expected {wanted}, got {depthwise_location!r}")
        sides = window_padding(padding, use_explicit_padding, kernel_size, rate)
        norm: dict[str, Any] = {"eps": eps, "momentum": momentum}
        multiplier = {depthwise_location: depthwise_channel_multiplier}
        channels = in_channels * multiplier.get("input", 1)
        hidden = expansion_size(in_channels) if callable(expansion_size) else expansion_size
        self.expand: nn.Module | None = None
        if hidden > channels:
            expansion = (channels, hidden, split_expansion, split_divisible_by, inner_activation)
            self.expand = _pointwise(*expansion, **norm)
            channels = hidden
        # Where it stands: its channels and activation.
        windows = {
            "input": (in_channels, "none"),
            "expansion": (channels, depthwise_activation or inner_activation),
            "output": (out_channels, "none"),
        }
        self.depthwise_location = depthwise_location
        self.depthwise: DepthwiseConvBNAct | None = None
        if depthwise_location is not None:
            width, activation = windows[depthwise_location]
            window = (kernel_size, stride, sides, rate, depthwise_channel_multiplier, activation)
            self.depthwise = DepthwiseConvBNAct(width, *window, **norm)
        self.expansion_transform = expansion_transform
        channels *= multiplier.get("expansion", 1)
        projection = (channels, out_channels, split_projection, split_divisible_by)
        self.project = _pointwise(*projection, project_activation, **norm)
        keeps_channels = in_channels == out_channels * multiplier.get("output", 1)
        fits = keeps_channels and normalize_pair(stride, "stride") == [1, 1]
        self.residual: Residual = residual if callable(residual) else residual and fits
        if self.residual is True and sides == 0 and self._shrinks():
            raise ValueError("residual: expected False with padding VALID: the block shrinks")

    def forward(self, x: Tensor) -> Tensor:
        y = self._depthwise_at("input", x)
        if self.expand is not None:
            y = self.expand(y)
        y = self._depthwise_at("expansion", y)
        if self.expansion_transform is not None:
            y = self.expansion_transform(y, x)
        y = self._depthwise_at("output", self.project(y))
        if callable(self.residual):
            return self.residual(x, y)
        return x + y if self.residual else y

    def _shrinks(self) -> bool:
        return self.depthwise is not None and self.depthwise.conv.kernel_size != (1, 1)

    def _depthwise_at(self, location: str, x: Tensor) -> Tensor:
        if self.depthwise is None or self.depthwise_location != location:
            return x
        return self.depthwise(x)


def expanded_conv(in_channels: int, out_channels: int, **options: Any) -> nn.Module:
    """Build one block of MobileNet V2 as TF-slim's ``expanded_conv`` does.

    ``y = project(transform(depthwise(expand(x)), x)) + x``; each layer has its batch norm.

    Args:
        in_channels, out_channels: channels of the input and the output.
        expansion_size: hidden channels, an int or what gives them for ``in_channels``; default
            ``SIX_TIMES``. No more than there are: no expansion.
        stride, rate, kernel_size: of the depthwise convolution; ``rate`` is its dilation.
        residual: add the input where stride and channels allow; or a callable that makes the
            block's result of input and output.
        split_expansion, split_projection: into how many parts these 1x1 convolutions are split.
        split_divisible_by: channels of a part are multiples of it; with fewer it stays one.
        expansion_transform: called on the hidden features and the input, before the projection.
        depthwise_location: ``"expansion"``, ``"input"``, ``"output"`` or None (none at all); at the
            ends of the block it has no activation.
        depthwise_channel_multiplier: filters per channel.
        use_explicit_padding: pad as if the input were large, instead of by its size.
        padding: ``"SAME"`` or ``"VALID"``.
        inner_activation, depthwise_activation, project_activation: after the expansion (and the
            depthwise convolution, where the second is None); by default relu6, none at the end.
        eps, momentum: of the batch norms; TF-slim's momentum is 1 minus torch's.

    Returns:
        A ``fastdw.nn.InvertedResidual`` (one op) where the options say so, else an
        ``ExpandedConv``, each layer of which is one op; the names of the weights are the same.

    Raises:
        ValueError: an argument is out of range; the message names it.
        TypeError: an unknown option.

    Source: the authors' code, ``slim/nets/mobilenet/conv_blocks.py``, ``expanded_conv``.
    """
    block = ExpandedConv(in_channels, out_channels, **options)
    if (
        block.depthwise_location != "expansion"
        or block.depthwise is None
        or block.depthwise.conv.out_channels != block.depthwise.conv.in_channels
        or block.expansion_transform is not None
        or callable(block.residual)
        or isinstance(block.expand, SplitConv)
        or isinstance(block.project, SplitConv)
    ):
        return block
    return _as_inverted_residual(block)


def _as_inverted_residual(block: ExpandedConv) -> InvertedResidual:
    """The same layers, as the module that runs them as one op."""
    assert block.depthwise is not None and isinstance(block.project, PointwiseConvBNAct)
    assert block.expand is None or isinstance(block.expand, PointwiseConvBNAct)
    first = block.depthwise if block.expand is None else block.expand
    fused = InvertedResidual(first.conv.in_channels, block.project.conv.out_channels)
    fused.expand, fused.depthwise, fused.project = block.expand, block.depthwise, block.project
    fused.residual = bool(block.residual)
    return fused


def window_padding(
    padding: str,
    use_explicit_padding: bool,
    kernel_size: Pair,
    rate: Pair = 1,
) -> Padding:
    """Return slim's padding in the form that ``ConvBNAct`` takes.

    Raises:
        ValueError: neither SAME nor VALID, or explicit padding with VALID.
    """
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"padding: expected SAME or VALID, got {padding!r}")
    if use_explicit_padding and padding != "SAME":
        raise ValueError("use_explicit_padding: expected only with padding SAME")
    if not use_explicit_padding:
        return "same" if padding == "SAME" else 0
    kernel, rates = normalize_pair(kernel_size, "kernel_size"), normalize_pair(rate, "rate")
    vertical, horizontal = ((k - 1) * r for k, r in zip(kernel, rates, strict=True))
    above, left = vertical // 2, horizontal // 2
    return (left, horizontal - left, above, vertical - above)


def _pointwise(
    in_channels: int, out_channels: int, ways: int, divisible_by: int, activation: str, **norm: Any
) -> nn.Module:
    """A 1x1 convolution, split where each part has enough channels."""
    if ways == 1 or min(in_channels // ways, out_channels // ways) < divisible_by:
        return PointwiseConvBNAct(in_channels, out_channels, activation, **norm)
    return SplitConv(in_channels, out_channels, ways, divisible_by, activation, **norm)
