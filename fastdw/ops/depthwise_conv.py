"""Depthwise convolution with batch norm, activation: one kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastdw import activation as activations
from fastdw import reference
from fastdw.backends import dispatch
from fastdw.geometry import Padding, Pair
from fastdw.ops import checks, packing, registration
from fastdw.ops.gradient import Unit, unit_backward
from fastdw.ops.layout import empty_output


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
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution, scale, bias and activation in one pass.

    ``y = activation(scale * conv2d(x, weight, groups=channels) + bias)``

    Args:
        x: ``[batch, channels, height, width]``, fp32, fp16, bf16 or fp64, any strides;
            channels_last is fastest. The batch may be empty.
        weight: ``[channels * m, 1, kernel_h, kernel_w]`` in x's dtype, m >= 1.
        scale, bias: ``[channels * m]`` in fp32, or None.
        stride, dilation: int or pair (vertical, horizontal).
        padding: int, pair (vertical, horizontal), 4-tuple (left, right, top, bottom), ``"same"``
            (TensorFlow) or ``"keras_v1"``.
        activation: ``"none"``, ``"relu"``, ``"relu6"``, ``"hardswish"`` or ``"silu"``.
        backend: ``"auto"`` or the name of one backend.

    Returns:
        ``[batch, channels * m, height_out, width_out]`` in x's dtype; channels_last if x or weight
        is, else contiguous.

    Raises:
        ValueError: a shape, device, size or name does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        BackendRefused: the backend asked for cannot run the call.

    Backends: cpp (CPU, CUDA), torch.

    Source: Howard et al., MobileNets (2017), section 3.1; Chollet, Xception (2017).
    """
    arguments = schema_arguments(x, weight, scale, bias, stride, padding, dilation, activation)
    return dispatch("depthwise_conv", backend, arguments[0], arguments)


def schema_arguments(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    activation: str,
) -> tuple[Any, ...]:
    """Return the arguments of the public op as its schema takes them, checked."""
    x, weight = registration.autocast(x, weight)
    scale, bias = registration.epilogue_dtype(scale), registration.epilogue_dtype(bias)
    window = registration.window(checks.kernel_size(weight, "weight"), stride, padding, dilation)
    arguments = (x, weight, scale, bias, *window, activation)
    _check(*arguments)
    return arguments


def _check(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> tuple[int, int, int, int]:
    checks.check_input(x)
    checks.check_depthwise_weight(weight, "weight", x.shape[1], x)
    checks.check_per_channel(scale, "scale", weight.shape[0], x)
    checks.check_per_channel(bias, "bias", weight.shape[0], x)
    activations.check(activation)
    height, width = checks.check_window(x, weight.shape[2:], stride, padding, dilation)
    return x.shape[0], weight.shape[0], height, width


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return empty_output(x, _check(x, weight, *rest), [weight])


def _reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> Tensor:
    return reference.depthwise_conv(
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
    grad: Tensor,
    needs: Sequence[bool],
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> tuple[Tensor | None, ...]:
    dtype = reference.compute_dtype(x.dtype)
    unit = Unit(weight, scale, bias, activation, stride, padding, dilation, depthwise=True)
    x_grad, *others = unit_backward(grad.to(dtype), x.to(dtype), unit, needs[:4])
    return (None if x_grad is None else x_grad.to(x.dtype), *others)


def _flops(x: Any, weight: Any, *rest: Any, out_shape: Any, **settings: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _pack_fake(weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    return packing.empty_blob(weight, packing.depthwise_bytes(weight))


def _packed_fake(
    x: Tensor,
    packed: Tensor,
    channels_out: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    channels_last: bool,
) -> Tensor:
    checks.check_packed_input(x, packed)
    height, width = checks.check_window(x, kernel_size, stride, padding, dilation)
    return empty_output(x, (x.shape[0], channels_out, height, width), [], channels_last)


def _packed_flops(
    x: Any,
    packed: Any,
    channels_out: int,
    kernel_size: Sequence[int],
    *rest: Any,
    out_shape: Any,
    **settings: Any,
) -> int:
    return 2 * math.prod(out_shape) * math.prod(kernel_size)


registration.define(
    registration.Op(
        name="depthwise_conv",
        fake=_fake,
        gradient=_gradient,
        flops=_flops,
        reference=_reference,
        autocast=("x", "weight"),
        pack_fake=_pack_fake,
        packed_fake=_packed_fake,
        packed_flops=_packed_flops,
    )
)
