"""What every op means, in plain torch: the definition of correct and the ``torch`` backend.

Any device, any floating dtype, differentiable. fp16 and bf16 are computed in fp32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdw import activation as activations
from fastdw.geometry import Padding, Pair, keeps_size, normalize_padding, normalize_pair
from fastdw.geometry import resolve_padding as resolve_padding

Conv = tuple[Tensor, Tensor | None, Tensor | None, str]
"""One convolution of a block: (weight, scale, bias, activation)."""
Linear = tuple[Tensor, Tensor | None, str]
"""One linear layer: (weight, bias, activation)."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which an op on ``dtype`` is computed: fp32 for fp16 and bf16."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def convolution(
    x: Tensor, weight: Tensor, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Tensor:
    """``torch.nn.functional.conv2d`` with every form of padding."""
    stride = normalize_pair(stride, "stride")
    dilation = normalize_pair(dilation, "dilation")
    left, right, top, bottom = resolve_padding(
        padding, weight.shape[2:], stride, dilation, x.shape[2:]
    )
    if left == right and top == bottom:
        return F.conv2d(x, weight, None, stride, (top, left), dilation, groups)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, stride, 0, dilation, groups)


def pre_activation(y: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """``scale * y + bias`` with one scale and one bias a channel."""
    if scale is not None:
        y = y * scale.to(y.dtype)[:, None, None]
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None, None]
    return y


def _conv_unit(
    x: Tensor, conv: Conv, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Tensor:
    weight, scale, bias, activation = conv
    y = convolution(x, weight.to(x.dtype), stride, padding, dilation, groups)
    return activations.apply(activation, pre_activation(y, scale, bias))


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    activation: str = "none",
) -> Tensor:
    """See ``fastdw.ops.depthwise_conv``."""
    return _wide_depthwise_conv(x, weight, scale, bias, stride, padding, dilation, activation).to(
        x.dtype
    )


def depthwise_conv_pooled(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """See ``fastdw.ops.depthwise_conv_pooled``."""
    y = _wide_depthwise_conv(x, weight, scale, bias, stride, padding, dilation, activation)
    return y.to(x.dtype), y.mean((2, 3))


def _wide_depthwise_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    activation: str,
) -> Tensor:
    wide = x.to(compute_dtype(x.dtype))
    conv = (weight, scale, bias, activation)
    return _conv_unit(wide, conv, stride, padding, dilation, x.shape[1])


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """See ``fastdw.ops.pointwise_conv``."""
    y = _conv_unit(x.to(compute_dtype(x.dtype)), (weight, scale, bias, activation), 1, 0, 1, 1)
    return (y if residual is None else y + residual).to(x.dtype)


def stem_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: Pair = 2,
    padding: Padding = 1,
    activation: str = "none",
) -> Tensor:
    """See ``fastdw.ops.stem_conv``."""
    conv = (weight, scale, bias, activation)
    return _conv_unit(x.to(compute_dtype(x.dtype)), conv, stride, padding, 1, 1).to(x.dtype)


def separable_block(
    x: Tensor,
    depthwise: Conv,
    pointwise: Conv,
    *,
    stride: Pair = 1,
    padding: Padding = 1,
    dilation: Pair = 1,
) -> Tensor:
    """See ``fastdw.ops.separable_block``."""
    wide = x.to(compute_dtype(x.dtype))
    hidden = _conv_unit(wide, depthwise, stride, padding, dilation, x.shape[1])
    return _conv_unit(hidden, pointwise, 1, 0, 1, 1).to(x.dtype)


def inverted_residual(
    x: Tensor,
    expand: Conv | None,
    depthwise: Conv,
    project: Conv,
    *,
    stride: Pair = 1,
    padding: Padding = 1,
    dilation: Pair = 1,
    residual: bool | Literal["auto"] = "auto",
) -> Tensor:
    """See ``fastdw.ops.inverted_residual``."""
    wide = x.to(compute_dtype(x.dtype))
    hidden = wide if expand is None else _conv_unit(wide, expand, 1, 0, 1, 1)
    hidden = _conv_unit(hidden, depthwise, stride, padding, dilation, hidden.shape[1])
    y = _conv_unit(hidden, project, 1, 0, 1, 1)
    if residual == "auto":
        residual = adds_residual(x, depthwise[0], project[0], stride, padding, dilation)
    return (y + wide if residual else y).to(x.dtype)


def adds_residual(
    x: Tensor,
    depthwise_weight: Tensor,
    project_weight: Tensor,
    stride: Pair,
    padding: Padding | Sequence[int],
    dilation: Pair,
) -> bool:
    """What ``residual="auto"`` means: the block keeps channels, height and width."""
    kernel_size = list(depthwise_weight.shape[2:])
    stride, dilation = normalize_pair(stride, "stride"), normalize_pair(dilation, "dilation")
    sides = normalize_padding(padding, kernel_size, stride, dilation) if padding != [] else []
    return bool(x.shape[1] == project_weight.shape[0]) and keeps_size(
        kernel_size, stride, sides, dilation
    )


def classifier_head(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See ``fastdw.ops.classifier_head``."""
    dtype = compute_dtype(x.dtype)
    pooled = x.to(dtype).mean((2, 3))
    return F.linear(pooled, weight.to(dtype), None if bias is None else bias.to(dtype)).to(x.dtype)


def squeeze_excite(x: Tensor, reduce: Linear, expand: Linear) -> Tensor:
    """The gates of a squeeze-excite (Hu et al. 2018, equations 2 and 3), one a channel.

    ``gates = act(expand @ act(reduce @ mean(x) + bias) + bias)``; planned networks multiply ``x``
    by them inside of the 1x1 convolution that reads it.

    Args:
        x: [batch, channels, height, width].
        reduce, expand: (weight [channels_out, channels_in], bias, activation), the activation one
            of ``fastdw.activation.GATES`` too.

    Returns:
        [batch, channels of ``expand``].
    """
    wide = x.to(compute_dtype(x.dtype)).mean((2, 3))
    for weight, bias, activation in (reduce, expand):
        bias = None if bias is None else bias.to(wide.dtype)
        wide = activations.apply_linear(activation, F.linear(wide, weight.to(wide.dtype), bias))
    return wide.to(x.dtype)
