"""Depthwise-separable block of MobileNet V1 (depthwise, then pointwise): one kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastdw import activation as activations
from fastdw import reference
from fastdw.backends import Call, dispatch
from fastdw.geometry import Padding, Pair
from fastdw.ops import checks, packing, registration
from fastdw.ops.gradient import Unit, unit_backward, unit_forward
from fastdw.ops.layout import empty_output
from fastdw.reference import Conv


def separable_block(
    x: Tensor,
    depthwise: Conv,
    pointwise: Conv,
    *,
    stride: Pair = 1,
    padding: Padding = 1,
    dilation: Pair = 1,
    backend: str = "auto",
) -> Tensor:
    """Depthwise and pointwise convolution, each with scale, bias and activation, in one call.

    ``y = pointwise_conv(depthwise_conv(x))``; the tensor between them is never stored whole.

    Args:
        x: ``[batch, channels, height, width]``, fp32, fp16, bf16 or fp64, any strides;
            channels_last is fastest. The batch may be empty.
        depthwise: ``(weight, scale, bias, activation)`` as of ``depthwise_conv``.
        pointwise: ``(weight, scale, bias, activation)`` as of ``pointwise_conv``.
        stride, padding, dilation: of the depthwise convolution, as of ``depthwise_conv``.
        backend: ``"auto"`` or the name of one backend.

    Returns:
        ``[batch, channels_out, height_out, width_out]`` in x's dtype; channels_last if x or a
        weight is, else contiguous.

    Raises:
        ValueError: a shape, device, size or name does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        BackendRefused: the backend asked for cannot run the call.

    Backends: cpp (CPU, CUDA; as many depthwise filters as channels), torch.

    Source: Howard et al., MobileNets (2017), section 3.1, figure 3.
    """
    (x,) = registration.autocast(x)
    checks.check_input(x)
    depthwise_weight, *depthwise_rest = registration.block_conv(depthwise, "depthwise", x)
    pointwise_weight, *pointwise_rest = registration.block_conv(pointwise, "pointwise", x)
    kernel_size = checks.kernel_size(depthwise_weight, "depthwise_weight")
    arguments = (
        x,
        depthwise_weight,
        *depthwise_rest[:2],
        pointwise_weight,
        *pointwise_rest[:2],
        *registration.window(kernel_size, stride, padding, dilation),
        depthwise_rest[2],
        pointwise_rest[2],
    )
    _check(*arguments)
    return dispatch("separable_block", backend, x, arguments)


def _check(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_scale: Tensor | None,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_scale: Tensor | None,
    pointwise_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise_activation: str,
    pointwise_activation: str,
) -> tuple[int, int, int, int]:
    checks.check_input(x)
    checks.check_depthwise_weight(depthwise_weight, "depthwise_weight", x.shape[1], x)
    hidden = depthwise_weight.shape[0]
    checks.check_per_channel(depthwise_scale, "depthwise_scale", hidden, x)
    checks.check_per_channel(depthwise_bias, "depthwise_bias", hidden, x)
    checks.check_pointwise_weight(pointwise_weight, "pointwise_weight", hidden, x)
    channels_out = pointwise_weight.shape[0]
    checks.check_per_channel(pointwise_scale, "pointwise_scale", channels_out, x)
    checks.check_per_channel(pointwise_bias, "pointwise_bias", channels_out, x)
    activations.check(depthwise_activation, "depthwise_activation")
    activations.check(pointwise_activation, "pointwise_activation")
    height, width = checks.check_window(x, depthwise_weight.shape[2:], stride, padding, dilation)
    return x.shape[0], channels_out, height, width


def _limits(call: Call) -> str | None:
    x, depthwise_weight = call.arguments[:2]
    assert isinstance(x, Tensor) and isinstance(depthwise_weight, Tensor)
    if depthwise_weight.shape[0] == x.shape[1]:
        return None
    return "no fused kernel for a depth multiplier above 1"


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return empty_output(x, _check(x, *rest), [rest[0], rest[3]])


def _units(arguments: Sequence[Any]) -> tuple[Unit, Unit]:
    """Read the arguments after x."""
    depthwise, pointwise = arguments[0:3], arguments[3:6]
    stride, padding, dilation, depthwise_activation, pointwise_activation = arguments[6:11]
    return (
        Unit.of(depthwise, depthwise_activation).sampling(stride, padding, dilation),
        Unit.of(pointwise, pointwise_activation),
    )


def _reference(x: Tensor, *rest: Any) -> Tensor:
    depthwise, pointwise = _units(rest)
    return reference.separable_block(
        x,
        depthwise[:4],
        pointwise[:4],
        stride=depthwise.stride,
        padding=depthwise.padding or "same",
        dilation=depthwise.dilation,
    )


def _gradient(
    grad: Tensor, needs: Sequence[bool], x: Tensor, *rest: Any
) -> tuple[Tensor | None, ...]:
    depthwise, pointwise = _units(rest)
    dtype = reference.compute_dtype(x.dtype)
    wide = x.to(dtype)
    below = any(needs[:4])
    hidden = unit_forward(wide, depthwise)
    hidden_grad, *pointwise_grads = unit_backward(
        grad.to(dtype), hidden, pointwise, (below, *needs[4:7])
    )
    if hidden_grad is None:
        return (None, None, None, None, *pointwise_grads)
    x_grad, *depthwise_grads = unit_backward(hidden_grad, wide, depthwise, needs[:4])
    return (
        None if x_grad is None else x_grad.to(x.dtype),
        *depthwise_grads,
        *pointwise_grads,
    )


def _flops(
    x: Any,
    depthwise_weight: Any,
    depthwise_scale: Any,
    depthwise_bias: Any,
    pointwise_weight: Any,
    *rest: Any,
    out_shape: Any,
    **settings: Any,
) -> int:
    pixels = out_shape[0] * math.prod(out_shape[2:])
    return 2 * pixels * (math.prod(depthwise_weight) + math.prod(pointwise_weight))


def _pack_fake(
    depthwise_weight: Tensor,
    depthwise_scale: Tensor | None,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_scale: Tensor | None,
    pointwise_bias: Tensor | None,
) -> Tensor:
    return packing.empty_blob(
        depthwise_weight,
        packing.depthwise_bytes(depthwise_weight),
        packing.dense_bytes(pointwise_weight),
    )


def _packed_fake(
    x: Tensor,
    packed: Tensor,
    channels_out: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise_activation: str,
    pointwise_activation: str,
    channels_last: bool,
) -> Tensor:
    checks.check_packed_input(x, packed)
    activations.check(depthwise_activation, "depthwise_activation")
    activations.check(pointwise_activation, "pointwise_activation")
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
    pixels = out_shape[0] * math.prod(out_shape[2:])
    return 2 * pixels * x[1] * (math.prod(kernel_size) + channels_out)


registration.define(
    registration.Op(
        name="separable_block",
        fake=_fake,
        gradient=_gradient,
        flops=_flops,
        reference=_reference,
        autocast=("x", "depthwise_weight", "pointwise_weight"),
        pack_fake=_pack_fake,
        packed_fake=_packed_fake,
        packed_flops=_packed_flops,
        native_limits=_limits,
    )
)
