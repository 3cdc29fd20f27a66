"""Global average pool and linear layer: one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastdw import reference
from fastdw.backends import dispatch
from fastdw.ops import checks, packing, registration
from fastdw.ops.gradient import strided_like


def classifier_head(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Global average pool and linear layer in one call.

    ``y = linear(x.mean((2, 3)), weight, bias)``

    Args:
        x: ``[batch, channels, height, width]``, fp32, fp16, bf16 or fp64, any strides;
            channels_last is fastest. The batch may be empty.
        weight: ``[channels_out, channels]`` in x's dtype.
        bias: ``[channels_out]`` in fp32, or None.
        backend: ``"auto"`` or the name of one backend.

    Returns:
        ``[batch, channels_out]`` in x's dtype, contiguous.

    Raises:
        ValueError: a shape or device does not fit; the message names the argument.
        TypeError: a dtype does not fit.
        BackendRefused: the backend asked for cannot run the call.

    Backends: cpp (CPU, CUDA), torch.

    Source: Howard et al., MobileNets (2017), table 1, last rows.
    """
    x, weight = registration.autocast(x, weight)
    arguments = (x, weight, registration.epilogue_dtype(bias))
    _check(*arguments)
    return dispatch("classifier_head", backend, x, arguments)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[int, int]:
    checks.check_input(x)
    checks.check_linear_weight(weight, "weight", x.shape[1], x)
    checks.check_per_channel(bias, "bias", weight.shape[0], x)
    return x.shape[0], weight.shape[0]


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(_check(x, weight, bias))


def _gradient(
    grad: Tensor,
    needs: Sequence[bool],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    dtype = reference.compute_dtype(x.dtype)
    grad = grad.to(dtype)
    x_grad = weight_grad = bias_grad = None
    if needs[0]:
        pixels = x.shape[2] * x.shape[3]
        pooled_grad = (grad @ weight.to(dtype) / pixels).to(x.dtype)
        x_grad = pooled_grad[:, :, None, None].expand(x.shape)
    if needs[1]:
        weight_grad = strided_like(grad.t() @ x.to(dtype).mean((2, 3)), weight)
    if needs[2] and bias is not None:
        bias_grad = grad.sum(0).to(bias.dtype)
    return x_grad, weight_grad, bias_grad


def _flops(x: Any, weight: Any, *rest: Any, out_shape: Any, **settings: Any) -> int:
    return 2 * out_shape[0] * weight[0] * weight[1]


def _pack_fake(weight: Tensor, bias: Tensor | None) -> Tensor:
    return packing.empty_blob(weight, packing.dense_bytes(weight))


def _packed_fake(x: Tensor, packed: Tensor, channels_out: int) -> Tensor:
    checks.check_packed_input(x, packed)
    return x.new_empty((x.shape[0], channels_out))


def _packed_flops(x: Any, *rest: Any, out_shape: Any, **settings: Any) -> int:
    return 2 * out_shape[0] * out_shape[1] * x[1]


registration.define(
    registration.Op(
        name="classifier_head",
        fake=_fake,
        gradient=_gradient,
        flops=_flops,
        reference=reference.classifier_head,
        autocast=("x", "weight"),
        pack_fake=_pack_fake,
        packed_fake=_packed_fake,
        packed_flops=_packed_flops,
    )
)
