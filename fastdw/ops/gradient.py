"""Gradient of a fused unit, ``activation(scale * conv(x) + bias)``: ops compose theirs from it.

Nothing but x and the parameters is kept from the forward: the pre-activation is computed again.
fp16 and bf16 are computed in fp32. Every step is differentiable, so double backward works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdw import activation as activations
from fastdw.geometry import resolve_padding
from fastdw.ops import depthwise_conv_train
from fastdw.reference import convolution, pre_activation


class Unit(NamedTuple):
    """One convolution with its epilogue; stride, padding and dilation in schema form."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    activation: str
    stride: Sequence[int] = (1, 1)
    padding: Sequence[int] = (0, 0, 0, 0)
    dilation: Sequence[int] = (1, 1)
    depthwise: bool = False

    @classmethod
    def of(cls, tensors: Sequence[Any], activation: str) -> Unit:
        """Return the pointwise unit of (weight, scale, bias)."""
        weight, scale, bias = tensors
        return cls(weight, scale, bias, activation)

    def sampling(
        self, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> Unit:
        """Return the depthwise unit of the same tensors."""
        return self._replace(stride=stride, padding=padding, dilation=dilation, depthwise=True)


UnitGradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def unit_forward(x: Tensor, unit: Unit) -> Tensor:
    """Compute the unit in x's dtype."""
    return activations.apply(
        unit.activation, pre_activation(_convolved(x, unit), unit.scale, unit.bias)
    )


def _convolved(x: Tensor, unit: Unit) -> Tensor:
    groups = x.shape[1] if unit.depthwise else 1
    return convolution(x, unit.weight.to(x.dtype), unit.stride, unit.padding, unit.dilation, groups)


def unit_backward(grad: Tensor, x: Tensor, unit: Unit, needs: Sequence[bool]) -> UnitGradients:
    """Return the gradients of (x, weight, scale, bias); those that ``needs`` leaves out are None.

    ``grad`` and ``x`` have the dtype to compute in.
    """
    needs_x, needs_weight, needs_scale, needs_bias = needs
    convolved = _convolved(x, unit) if needs_scale or unit.activation != "none" else None
    if convolved is not None:
        grad = activations.gradient(
            unit.activation, grad, pre_activation(convolved, unit.scale, unit.bias)
        )
    scale_grad = bias_grad = x_grad = weight_grad = None
    if needs_scale and unit.scale is not None and convolved is not None:
        scale_grad = (grad * convolved).sum((0, 2, 3)).to(unit.scale.dtype)
    if needs_bias and unit.bias is not None:
        bias_grad = grad.sum((0, 2, 3)).to(unit.bias.dtype)
    if needs_x or needs_weight:
        if unit.scale is not None:
            grad = grad * unit.scale.to(grad.dtype)[:, None, None]
        x_grad, weight_grad = _convolution_backward(grad, x, unit, needs_x, needs_weight)
    return x_grad, weight_grad, scale_grad, bias_grad


def _convolution_backward(
    grad: Tensor, x: Tensor, unit: Unit, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    if unit.depthwise and depthwise_conv_train.takes(grad):
        return _depthwise_backward(grad, x, unit, needs_x, needs_weight)
    kernel_size = list(unit.weight.shape[2:])
    left, right, top, bottom = resolve_padding(
        unit.padding, kernel_size, unit.stride, unit.dilation, x.shape[2:]
    )
    symmetric = left == right and top == bottom
    x_grad, weight_grad, _ = torch.ops.aten.convolution_backward(
        grad,
        x if symmetric else F.pad(x, (left, right, top, bottom)),
        unit.weight.to(x.dtype),
        None,
        list(unit.stride),
        [top, left] if symmetric else [0, 0],
        list(unit.dilation),
        False,
        [0, 0],
        x.shape[1] if unit.depthwise else 1,
        [needs_x, needs_weight, False],
    )
    if needs_x and not symmetric:
        x_grad = F.pad(x_grad, (-left, -right, -top, -bottom))
    return (
        x_grad if needs_x else None,
        strided_like(weight_grad, unit.weight) if needs_weight else None,
    )


def _depthwise_backward(
    grad: Tensor, x: Tensor, unit: Unit, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    geometry = (list(unit.stride), list(unit.padding), list(unit.dilation))
    x_grad = weight_grad = None
    if needs_x:
        x_grad = depthwise_conv_train.input_grad(grad, unit.weight, x.shape[1:], geometry)
    if needs_weight:
        weight_grad = depthwise_conv_train.weight_grad(grad, x, unit.weight.shape, geometry)
        weight_grad = strided_like(weight_grad, unit.weight)
    return x_grad, weight_grad


def strided_like(grad: Tensor, parameter: Tensor) -> Tensor:
    """Return ``grad`` with the dtype and strides of ``parameter``: DDP warns if they differ."""
    grad = grad.to(parameter.dtype)
    if grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter).copy_(grad)
