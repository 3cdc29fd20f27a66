"""Batch norm in eval mode, folded into the scale and bias of the epilogue."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


def fold_batch_norm(bn: _BatchNorm, conv_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fold a batch norm with running statistics into a scale and a bias per channel.

    ``scale = gamma / sqrt(running_var + eps)`` and
    ``bias = beta + (conv_bias - running_mean) * scale``, so that
    ``batch_norm(conv(x) + conv_bias) == scale * conv(x) + bias``. Differentiable with respect to
    gamma, beta and ``conv_bias``, and traceable.

    Args:
        bn: a batch norm over C channels; gamma and beta may be absent (``affine=False``).
        conv_bias: ``[C]`` or None, the bias of the convolution before it.

    Returns:
        ``(scale, bias)``, each ``[C]`` in fp32 (fp64 if the running statistics are fp64).

    Raises:
        ValueError: the batch norm keeps no running statistics, or ``conv_bias`` is not ``[C]``.

    Source: Ioffe and Szegedy, Batch Normalization (2015), section 3.1, "inference".
    """
    mean, variance = bn.running_mean, bn.running_var
    if mean is None or variance is None:
        raise ValueError("bn: expected a batch norm with running statistics, got none to fold")
    if conv_bias is not None and conv_bias.shape != mean.shape:
        raise ValueError(f"conv_bias: expected {list(mean.shape)}, got {list(conv_bias.shape)}")
    dtype = torch.float64 if variance.dtype == torch.float64 else torch.float32
    scale = (variance.to(dtype) + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = bn.weight.to(dtype) * scale
    shift = -mean.to(dtype) if conv_bias is None else conv_bias.to(dtype) - mean.to(dtype)
    bias = shift * scale
    return scale, bias if bn.bias is None else bias + bn.bias.to(dtype)
