"""Depthwise convolution that also gives the means of its result, which squeeze-excites start from.

A variant of ``depthwise_conv``: the same kernels add up what they write while they hold it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdw import reference
from fastdw.backends import dispatch
from fastdw.geometry import Padding, Pair
from fastdw.ops import registration
from fastdw.ops.depthwise_conv import schema_arguments
from fastdw.ops.registration import OPS


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
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution, scale, bias and activation, and the global average of the result.

    ``y = activation(scale * conv2d(x, weight, groups=channels) + bias)``,
    ``means = y.mean((2, 3))``

    The means are those of y before it is rounded to its dtype. They are added up in a fixed order:
    the same bits at every number of threads.

    Args:
        x, weight, scale, bias, stride, padding, dilation, activation, backend: as of
            ``depthwise_conv``.

    Returns:
        y as ``depthwise_conv`` returns it, and the means: ``[batch, channels * m]`` in fp32, of an
        fp64 x in fp64.

    Raises:
        ValueError, TypeError, BackendRefused: as ``depthwise_conv``.

    Backends: cpp (CPU), triton, torch.

    Source: Hu et al., Squeeze-and-Excitation Networks (2018), equation 2.
    """
    arguments = schema_arguments(x, weight, scale, bias, stride, padding, dilation, activation)
    return dispatch("depthwise_conv_pooled", backend, arguments[0], arguments)


_PLAIN = OPS["depthwise_conv"]


def _means_like(y: Tensor) -> Tensor:
    return torch.empty(y.shape[:2], dtype=reference.compute_dtype(y.dtype), device=y.device)


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    y = _PLAIN.fake(x, weight, *rest)
    return y, _means_like(y)


def _packed_fake(x: Tensor, packed: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    y = _PLAIN.packed_fake(x, packed, *rest)
    return y, _means_like(y)


def _reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> tuple[Tensor, Tensor]:
    return reference.depthwise_conv_pooled(
        x,
        weight,
        scale,
        bias,
        stride=stride,
        padding=padding or "same",
        dilation=dilation,
        activation=activation,
    )


def _gradient(
    grads: tuple[Tensor, Tensor], needs: Sequence[bool], x: Tensor, *rest: Any
) -> Sequence[Tensor | None]:
    """Every pixel has the same share in the mean of its channel."""
    grad, means_grad = grads
    shares = means_grad[:, :, None, None] / math.prod(grad.shape[2:])
    return _PLAIN.gradient(grad.to(shares.dtype) + shares, needs, x, *rest)


def _flops(x: Any, weight: Any, *rest: Any, out_shape: Any, **settings: Any) -> int:
    return _PLAIN.flops(x, weight, out_shape=out_shape[0])


def _packed_flops(*shapes: Any, out_shape: Any, **settings: Any) -> int:
    return _PLAIN.packed_flops(*shapes, out_shape=out_shape[0])


registration.define(
    registration.Op(
        name="depthwise_conv_pooled",
        variant_of="depthwise_conv",
        fake=_fake,
        gradient=_gradient,
        flops=_flops,
        reference=_reference,
        autocast=("x", "weight"),
        pack_fake=_PLAIN.pack_fake,
        packed_fake=_packed_fake,
        packed_flops=_packed_flops,
        native_devices=("cpu", "meta"),
    )
)
