"""Inverted residual block of MobileNet V2 (expand, depthwise, project, residual): one kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from fastdw import activation as activations
from fastdw import reference
from fastdw.backends import Call, dispatch
from fastdw.geometry import Padding, Pair
from fastdw.ops import checks, packing, registration
from fastdw.ops.gradient import Unit, unit_backward, unit_forward
from fastdw.ops.layout import empty_output
from fastdw.reference import Conv, adds_residual


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
    backend: str = "auto",
) -> Tensor:
    """Expand, depthwise and project convolution and the residual in one call.

    ``y = pointwise_conv(depthwise_conv(pointwise_conv(x, expand), depthwise), project) [+ x]``; the
    hidden tensors are never stored whole.

    Args:
        x: ``[batch, channels, height, width]``, fp32, fp16, bf16 or fp64, any strides;
            channels_last is fastest. The batch may be empty.
        expand: ``(weight [hidden, channels, 1, 1], scale, bias, activation)`` or None.
        depthwise: ``(weight [hidden, 1, kernel_h, kernel_w], scale, bias, activation)``.
        project: ``(weight [channels_out, hidden, 1, 1], scale, bias, activation)``.
        stride, padding, dilation: of the depthwise convolution, as of ``depthwise_conv``.
        residual: whether x is added; ``"auto"``: where channels, height and width stay the same.
        backend: ``"auto"`` or the name of one backend.

    Returns:
        ``[batch, channels_out, height_out, width_out]`` in x's dtype; channels_last if x or a
        weight is, else contiguous.

    Raises:
        ValueError: a shape, device, size or name does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        BackendRefused: the backend asked for cannot run the call.

    Backends: cpp (CPU, CUDA; as many depthwise filters as hidden channels), torch.

    Source: Sandler et al., MobileNetV2 (2018), section 3.3 and table 1.
    """
    (x,) = registration.autocast(x)
    checks.check_input(x)
    expand_weight, *expand_rest = registration.block_conv(expand, "expand", x)
    depthwise_weight, *depthwise_rest = registration.block_conv(depthwise, "depthwise", x)
    project_weight, *project_rest = registration.block_conv(project, "project", x)
    kernel_size = checks.kernel_size(depthwise_weight, "depthwise_weight")
    checks.kernel_size(project_weight, "project_weight")
    window = registration.window(kernel_size, stride, padding, dilation)
    if residual == "auto":
        residual = adds_residual(x, depthwise_weight, project_weight, *window)
    arguments = (
        x,
        expand_weight,
        *expand_rest[:2],
        depthwise_weight,
        *depthwise_rest[:2],
        project_weight,
        *project_rest[:2],
        *window,
        residual,
        expand_rest[2],
        depthwise_rest[2],
        project_rest[2],
    )
    _check(*arguments)
    return dispatch("inverted_residual", backend, x, arguments)


def _check(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_scale: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_scale: Tensor | None,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_scale: Tensor | None,
    project_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: bool,
    expand_activation: str,
    depthwise_activation: str,
    project_activation: str,
) -> tuple[int, int, int, int]:
    checks.check_input(x)
    channels = x.shape[1]
    if expand_weight is not None:
        checks.check_pointwise_weight(expand_weight, "expand_weight", channels, x)
        channels = expand_weight.shape[0]
        checks.check_per_channel(expand_scale, "expand_scale", channels, x)
        checks.check_per_channel(expand_bias, "expand_bias", channels, x)
    checks.check_depthwise_weight(depthwise_weight, "depthwise_weight", channels, x)
    channels = depthwise_weight.shape[0]
    checks.check_per_channel(depthwise_scale, "depthwise_scale", channels, x)
    checks.check_per_channel(depthwise_bias, "depthwise_bias", channels, x)
    checks.check_pointwise_weight(project_weight, "project_weight", channels, x)
    channels = project_weight.shape[0]
    checks.check_per_channel(project_scale, "project_scale", channels, x)
    checks.check_per_channel(project_bias, "project_bias", channels, x)
    activations.check(expand_activation, "expand_activation")
    activations.check(depthwise_activation, "depthwise_activation")
    activations.check(project_activation, "project_activation")
    size = checks.check_window(x, depthwise_weight.shape[2:], stride, padding, dilation)
    return _with_residual(x, (x.shape[0], channels, *size), residual)


def _with_residual(
    x: Tensor, shape: tuple[int, int, int, int], residual: bool
) -> tuple[int, int, int, int]:
    if residual and list(shape) != list(x.shape):
        raise ValueError(
            f"residual: expected False, got {residual}: the output {list(shape)} has not x's shape "
            f"{list(x.shape)}"
        )
    return shape


def _limits(call: Call) -> str | None:
    x, expand_weight, _, _, depthwise_weight = call.arguments[:5]
    assert isinstance(x, Tensor) and isinstance(depthwise_weight, Tensor)
    channels = expand_weight.shape[0] if isinstance(expand_weight, Tensor) else x.shape[1]
    if depthwise_weight.shape[0] == channels:
        return None
    return "no fused kernel for a depth multiplier above 1"


def _fake(x: Tensor, *rest: Any) -> Tensor:
    shape = _check(x, *rest)
    return empty_output(x, shape, [weight for weight in rest[0:9:3] if weight is not None])


def _units(arguments: Sequence[Any]) -> tuple[Unit | None, Unit, Unit]:
    """Read the arguments after x."""
    expand, depthwise, project = arguments[0:3], arguments[3:6], arguments[6:9]
    stride, padding, dilation, _, *activations_ = arguments[9:16]
    return (
        None if expand[0] is None else Unit.of(expand, activations_[0]),
        Unit.of(depthwise, activations_[1]).sampling(stride, padding, dilation),
        Unit.of(project, activations_[2]),
    )


def _reference(x: Tensor, *rest: Any) -> Tensor:
    expand, depthwise, project = _units(rest)
    return reference.inverted_residual(
        x,
        None if expand is None else expand[:4],
        depthwise[:4],
        project[:4],
        stride=depthwise.stride,
        padding=depthwise.padding or "same",
        dilation=depthwise.dilation,
        residual=rest[12],
    )


def _gradient(
    grad: Tensor, needs: Sequence[bool], x: Tensor, *rest: Any
) -> tuple[Tensor | None, ...]:
    expand, depthwise, project = _units(rest)
    dtype = reference.compute_dtype(x.dtype)
    wide, grad = x.to(dtype), grad.to(dtype)
    expanded = wide if expand is None else unit_forward(wide, expand)
    hidden = unit_forward(expanded, depthwise)
    below_depthwise = any(needs[:4])
    below_project = any(needs[:7])

    hidden_grad, *project_grads = unit_backward(
        grad, hidden, project, (below_project, *needs[7:10])
    )
    expand_grads: list[Tensor | None] = [None, None, None]
    depthwise_grads: list[Tensor | None] = [None, None, None]
    x_grad = None
    if hidden_grad is not None:
        x_grad, *depthwise_grads = unit_backward(
            hidden_grad, expanded, depthwise, (below_depthwise, *needs[4:7])
        )
    if x_grad is not None and expand is not None:
        x_grad, *expand_grads = unit_backward(x_grad, wide, expand, needs[:4])
    if x_grad is not None:
        x_grad = (x_grad + grad if rest[12] else x_grad).to(x.dtype)
    return (x_grad, *expand_grads, *depthwise_grads, *project_grads)


def _flops(
    x: Any,
    expand_weight: Any,
    expand_scale: Any,
    expand_bias: Any,
    depthwise_weight: Any,
    depthwise_scale: Any,
    depthwise_bias: Any,
    project_weight: Any,
    *rest: Any,
    out_shape: Any,
    **settings: Any,
) -> int:
    expand = 0 if expand_weight is None else x[0] * math.prod(x[2:]) * math.prod(expand_weight)
    pixels = out_shape[0] * math.prod(out_shape[2:])
    return 2 * (expand + pixels * (math.prod(depthwise_weight) + math.prod(project_weight)))


def _pack_fake(
    expand_weight: Tensor | None,
    expand_scale: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_scale: Tensor | None,
    depthwise_bias: Tensor | None,
    project_weight: Tensor,
    project_scale: Tensor | None,
    project_bias: Tensor | None,
) -> Tensor:
    return packing.empty_blob(
        depthwise_weight,
        0 if expand_weight is None else packing.dense_bytes(expand_weight),
        packing.depthwise_bytes(depthwise_weight),
        packing.dense_bytes(project_weight),
    )


def _packed_fake(
    x: Tensor,
    packed: Tensor,
    channels_out: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: bool,
    expand_activation: str,
    depthwise_activation: str,
    project_activation: str,
    channels_last: bool,
) -> Tensor:
    checks.check_packed_input(x, packed)
    activations.check(expand_activation, "expand_activation")
    activations.check(depthwise_activation, "depthwise_activation")
    activations.check(project_activation, "project_activation")
    size = checks.check_window(x, kernel_size, stride, padding, dilation)
    shape = _with_residual(x, (x.shape[0], channels_out, *size), residual)
    return empty_output(x, shape, [], channels_last)


def _packed_flops(
    x: Any,
    packed: Any,
    channels_out: int,
    kernel_size: Sequence[int],
    *rest: Any,
    out_shape: Any,
    **settings: Any,
) -> int:
    taps = math.prod(kernel_size)
    hidden, expands = _hidden_channels(packed[0], x[1], channels_out, taps)
    expand = x[0] * math.prod(x[2:]) * x[1] * hidden if expands else 0
    pixels = out_shape[0] * math.prod(out_shape[2:])
    return 2 * (expand + pixels * hidden * (taps + channels_out))


def _hidden_channels(
    blob_bytes: int, channels_in: int, channels_out: int, taps: int
) -> tuple[int, bool]:
    """Return (hidden channels, whether there is an expansion) of a blob of this size."""

    def size(hidden: int, expands: bool) -> int:
        expand = packing.unit_bytes(hidden, channels_in) if expands else 0
        depthwise = packing.unit_bytes(hidden, taps)
        return packing.HEADER_BYTES + expand + depthwise + packing.unit_bytes(channels_out, hidden)

    if size(channels_in, False) == blob_bytes:
        return channels_in, False
    hidden = 1
    while size(hidden, True) < blob_bytes:  # grows with every hidden channel
        hidden += 1
    return hidden, True


registration.define(
    registration.Op(
        name="inverted_residual",
        fake=_fake,
        gradient=_gradient,
        flops=_flops,
        reference=_reference,
        autocast=("x", "expand_weight", "depthwise_weight", "project_weight"),
        pack_fake=_pack_fake,
        packed_fake=_packed_fake,
        packed_flops=_packed_flops,
        native_limits=_limits,
    )
)
