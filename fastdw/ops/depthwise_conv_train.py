"""Gradients of the depthwise convolution on Triton kernels, as ops of their own.

Both are linear in both of their tensors, and with the convolution itself each is the derivative of
another one, so derivatives of any order stay on these kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdw.ops import triton_backend


def takes(grad: Tensor) -> bool:
    """Say whether the kernels run on the device of ``grad``, and in its dtype."""
    return (
        grad.dtype != torch.float64
        and hasattr(torch.ops.fastdw_triton, "depthwise_conv_input_grad")
        and triton_backend.reason(grad.device.type, grad.device.index) is None
    )


def input_grad(
    grad: Tensor, weight: Tensor, x_size: Sequence[int], geometry: Sequence[Sequence[int]]
) -> Tensor:
    """``x_grad[b, c, i] = sum over m, taps of grad[b, c m, o] weight[c m, tap]``, i of o and tap.

    Args:
        grad: ``[batch, channels * m, height_out, width_out]``, fp32, fp16 or bf16.
        weight: ``[channels * m, 1, kernel_h, kernel_w]``.
        x_size: ``[channels, height, width]``.
        geometry: stride, padding, dilation in schema form.

    Returns:
        ``[batch, channels, height, width]`` in grad's dtype, channels_last.
    """
    return torch.ops.fastdw_triton.depthwise_conv_input_grad(grad, weight, x_size, *geometry)


def weight_grad(
    grad: Tensor, x: Tensor, weight_size: Sequence[int], geometry: Sequence[Sequence[int]]
) -> Tensor:
    """``weight_grad[c m, tap] = sum over b, o of grad[b, c m, o] x[b, c, i]``, i of o and tap.

    Args:
        grad: ``[batch, channels * m, height_out, width_out]``, fp32, fp16 or bf16.
        x: ``[batch, channels, height, width]``, of any of these dtypes.
        weight_size: ``[channels * m, 1, kernel_h, kernel_w]``.
        geometry: stride, padding, dilation in schema form.

    Returns:
        ``weight_size`` in fp32, contiguous; the same bits at every call.
    """
    return torch.ops.fastdw_triton.depthwise_conv_weight_grad(grad, x, weight_size, *geometry)


def register(library: torch.library.Library) -> None:
    """Give both ops of ``fastdw_triton`` their kernels, fakes and gradients."""
    for device in ("CPU", "CUDA"):
        library.impl("depthwise_conv_input_grad", _run_input_grad, device)
        library.impl("depthwise_conv_weight_grad", _run_weight_grad, device)
    name = "fastdw_triton::depthwise_conv_input_grad"
    torch.library.register_fake(name, _empty_input_grad, lib=library)
    torch.library.register_autograd(name, _input_grad_backward, setup_context=_save, lib=library)
    name = "fastdw_triton::depthwise_conv_weight_grad"
    torch.library.register_fake(name, _empty_weight_grad, lib=library)
    torch.library.register_autograd(name, _weight_grad_backward, setup_context=_save, lib=library)


def _run_input_grad(grad: Tensor, weight: Tensor, x_size: Sequence[int], *geometry: Any) -> Tensor:
    x_grad = _empty_input_grad(grad, weight, x_size)
    if x_grad.numel():
        triton_backend.run_input_grad(x_grad, grad, weight, *geometry)
    return x_grad


def _run_weight_grad(grad: Tensor, x: Tensor, weight_size: Sequence[int], *geometry: Any) -> Tensor:
    weight_grad = _empty_weight_grad(grad, x, weight_size)
    if not grad.numel():
        return weight_grad.zero_()
    triton_backend.run_weight_grad(weight_grad, grad, x, *geometry)
    return weight_grad


def _empty_input_grad(grad: Tensor, weight: Tensor, x_size: Sequence[int], *_: Any) -> Tensor:
    size = (grad.shape[0], *x_size)
    return torch.empty(
        size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
    )


def _empty_weight_grad(grad: Tensor, x: Tensor, weight_size: Sequence[int], *_: Any) -> Tensor:
    return torch.empty(list(weight_size), dtype=torch.float32, device=x.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, _, *ctx.geometry = inputs
    ctx.save_for_backward(first, second)


def _input_grad_backward(ctx: Any, x_grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    grad_grad = weight_grad_ = None
    if ctx.needs_input_grad[0]:
        grad_grad = _convolved(x_grad_grad, weight, ctx.geometry).to(grad.dtype)
    if ctx.needs_input_grad[1]:
        weight_grad_ = weight_grad(grad, x_grad_grad, weight.shape, ctx.geometry).to(weight.dtype)
    return grad_grad, weight_grad_, None, None, None, None


def _weight_grad_backward(ctx: Any, weight_grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad, x = ctx.saved_tensors
    grad_grad = x_grad = None
    if ctx.needs_input_grad[0]:
        grad_grad = _convolved(x, weight_grad_grad.to(x.dtype), ctx.geometry).to(grad.dtype)
    if ctx.needs_input_grad[1]:
        x_grad = input_grad(grad, weight_grad_grad, x.shape[1:], ctx.geometry).to(x.dtype)
    return grad_grad, x_grad, None, None, None, None


def _convolved(x: Tensor, weight: Tensor, geometry: Sequence[Sequence[int]]) -> Tensor:
    return torch.ops.fastdw_triton.depthwise_conv(
        x, weight.to(x.dtype), None, None, *geometry, "none"
    )
