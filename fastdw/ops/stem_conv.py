"""Dense convolution of few input channels (a network's stem) with its epilogue: one kernel."""

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

_NO_DILATION = [1, 1]


def stem_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: Pair = 2,
    padding: Padding = 1,
    activation: str = "none",
    backend: str = "auto",
) -> Tensor:
    """Dense convolution, scale, bias and activation in one pass, for few input channels.

    ``y = activation(scale * conv2d(x, weight) + bias)``

    Args:
        x: ``[batch, channels, height, width]``, fp32, fp16, bf16 or fp64, any strides; contiguous
            and channels_last images are read as they are. The batch may be empty.
        weight: ``[channels_out, channels, kernel_h, kernel_w]`` in x's dtype.
        scale, bias: ``[channels_out]`` in fp32, or None.
        stride: int or pair (vertical, horizontal).
        padding: int, pair (vertical, horizontal), 4-tuple (left, right, top, bottom), ``"same"``
            (TensorFlow) or ``"keras_v1"``.
        activation: ``"none"``, ``"relu"``, ``"relu6"``, ``"hardswish"`` or ``"silu"``.
        backend: ``"auto"`` or the name of one backend.

    Returns:
        ``[batch, channels_out, height_out, width_out]`` in x's dtype; channels_last if x or weight
        is, else contiguous.

    Raises:
        ValueError: a shape, device, size or name does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        BackendRefused: the backend asked for cannot run the call.

    Backends: cpp (CPU, CUDA), torch.

    Source: Howard et al., MobileNets (2017), table 1, first row.
    """
    x, weight = registration.autocast(x, weight)
    scale, bias = registration.epilogue_dtype(scale), registration.epilogue_dtype(bias)
    steps, sides, _ = registration.window(checks.kernel_size(weight, "weight"), stride, padding, 1)
    arguments = (x, weight, scale, bias, steps, sides, activation)
    _check(*arguments)
    return dispatch("stem_conv", backend, x, arguments)


def _check(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
) -> tuple[int, int, int, int]:
    checks.check_input(x)
    checks.check_dense_weight(weight, "weight", x.shape[1], x)
    checks.check_per_channel(scale, "scale", weight.shape[0], x)
    checks.check_per_channel(bias, "bias", weight.shape[0], x)
    activations.check(activation)
    height, width = checks.check_window(x, weight.shape[2:], stride, padding, _NO_DILATION)
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
    activation: str,
) -> Tensor:
    return reference.stem_conv(
        x,
        weight,
        scale,
        bias,
        stride=stride,
        padding=padding or "same",
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
    activation: str,
) -> tuple[Tensor | None, ...]:
    dtype = reference.compute_dtype(x.dtype)
    unit = Unit(weight, scale, bias, activation, stride, padding)
    x_grad, *others = unit_backward(grad.to(dtype), x.to(dtype), unit, needs[:4])
    return (None if x_grad is None else x_grad.to(x.dtype), *others)


def _flops(x: Any, weight: Any, *rest: Any, out_shape: Any, **settings: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _pack_fake(weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    return packing.empty_blob(weight, packing.dense_bytes(weight))


def _packed_fake(
    x: Tensor,
    packed: Tensor,
    channels_out: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
    channels_last: bool,
) -> Tensor:
    checks.check_packed_input(x, packed)
    activations.check(activation)
    height, width = checks.check_window(x, kernel_size, stride, padding, _NO_DILATION)
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
    return 2 * math.prod(out_shape) * x[1] * math.prod(kernel_size)


registration.define(
    registration.Op(
        name="stem_conv",
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
