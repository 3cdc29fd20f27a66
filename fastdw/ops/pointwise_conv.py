"""Pointwise (1x1) convolution with batch norm, activation and residual: one kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastdw import activation as activations
from fastdw import reference
from fastdw.backends import dispatch
from fastdw.ops import checks, packing, registration
from fastdw.ops.gradient import Unit, unit_backward
from fastdw.ops.layout import empty_output


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    backend: str = "auto",
) -> Tensor:
    """1x1 convolution, scale, bias, activation and residual in one pass.

    ``y = activation(scale * conv2d(x, weight) + bias) + residual``

    Args:
        x: ``[batch, channels, height, width]``, fp32, fp16, bf16 or fp64, any strides;
            channels_last is fastest. The batch may be empty.
        weight: ``[channels_out, channels, 1, 1]`` in x's dtype.
        scale, bias: ``[channels_out]`` in fp32, or None.
        residual: the output's shape in x's dtype, or None; added after the activation.
        activation: ``"none"``, ``"relu"``, ``"relu6"``, ``"hardswish"`` or ``"silu"``.
        backend: ``"auto"`` or the name of one backend.

    Returns:
        ``[batch, channels_out, height, width]`` in x's dtype; channels_last if x or weight is, else
        contiguous.

    Raises:
        ValueError: a shape, device or name does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        BackendRefused: the backend asked for cannot run the call.

    Backends: cpp (CPU, CUDA), torch.

    Source: Howard et al., MobileNets (2017), section 3.1; Sandler et al., MobileNetV2 (2018),
    section 3.
    """
    x, weight, residual = registration.autocast(x, weight, residual)
    scale, bias = registration.epilogue_dtype(scale), registration.epilogue_dtype(bias)
    arguments = (x, weight, scale, bias, residual, activation)
    _check(*arguments)
    return dispatch("pointwise_conv", backend, x, arguments)


def _check(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> tuple[int, int, int, int]:
    checks.check_input(x)
    checks.check_pointwise_weight(weight, "weight", x.shape[1], x)
    checks.check_per_channel(scale, "scale", weight.shape[0], x)
    checks.check_per_channel(bias, "bias", weight.shape[0], x)
    activations.check(activation)
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    checks.check_residual(residual, shape, x)
    return shape


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return empty_output(x, _check(x, weight, *rest), [weight])


def _reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    return reference.pointwise_conv(
        x, weight, scale, bias, residual=residual, activation=activation
    )


def _gradient(
    grad: Tensor,
    needs: Sequence[bool],
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> tuple[Tensor | None, ...]:
    dtype = reference.compute_dtype(x.dtype)
    unit = Unit(weight, scale, bias, activation)
    x_grad, *others = unit_backward(grad.to(dtype), x.to(dtype), unit, needs[:4])
    return (
        None if x_grad is None else x_grad.to(x.dtype),
        *others,
        grad if needs[4] else None,
    )


def _flops(x: Any, weight: Any, *rest: Any, out_shape: Any, **settings: Any) -> int:
    return 2 * math.prod(out_shape) * weight[1]


def _pack_fake(weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    return packing.empty_blob(weight, packing.dense_bytes(weight))


def _packed_fake(
    x: Tensor,
    packed: Tensor,
    channels_out: int,
    residual: Tensor | None,
    activation: str,
    channels_last: bool,
) -> Tensor:
    checks.check_packed_input(x, packed)
    activations.check(activation)
    shape = (x.shape[0], channels_out, x.shape[2], x.shape[3])
    checks.check_residual(residual, shape, x)
    return empty_output(x, shape, [], channels_last)


def _packed_flops(x: Any, *rest: Any, out_shape: Any, **settings: Any) -> int:
    return 2 * math.prod(out_shape) * x[1]


registration.define(
    registration.Op(
        name="pointwise_conv",
        fake=_fake,
        gradient=_gradient,
        flops=_flops,
        reference=_reference,
        autocast=("x", "weight", "residual"),
        pack_fake=_pack_fake,
        packed_fake=_packed_fake,
        packed_flops=_packed_flops,
        packed_autocast=("x", "residual"),
    )
)
