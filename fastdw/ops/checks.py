"""Checks of what a user passes: the message names the argument, what came and what was wanted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdw.backends import DTYPE_NAMES
from fastdw.geometry import output_size


def _tensor(value: object, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise ValueError(f"{name}: expected a strided tensor, got layout {value.layout}")
    return value


def check_input(x: Tensor) -> None:
    """Check an image batch: 4-d, floating, at least one channel, row and column; batch may be 0."""
    _tensor(x, "x")
    if x.dim() != 4:
        raise ValueError(f"x: expected [batch, channels, height, width], got {list(x.shape)}")
    if x.dtype not in DTYPE_NAMES:
        wanted = ", ".join(str(dtype) for dtype in DTYPE_NAMES)
        raise TypeError(f"x: expected one of {wanted}, got {x.dtype}")
    if any(size < 1 for size in x.shape[1:]):  # min() would compare symbolic sizes
        raise ValueError(
            f"x: expected at least one channel, row and column, got {list(x.shape)} "
            "(batch, channels, height, width)"
        )


def check_packed_input(x: Tensor, packed: Tensor) -> None:
    """Check the input of a packed op (fp32, fp16 or bf16) and its blob of bytes."""
    check_input(x)
    if x.dtype == torch.float64:
        raise TypeError("x: expected fp32, fp16 or bf16 with packed weights, got torch.float64")
    _tensor(packed, "packed")
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise TypeError(
            "packed: expected a one-dimensional uint8 tensor, got "
            f"{packed.dtype} {list(packed.shape)}"
        )
    if packed.device != x.device:
        raise ValueError(f"packed: expected device {x.device} as x, got {packed.device}")


def kernel_size(weight: Tensor, name: str) -> list[int]:
    """Return ``[kernel_h, kernel_w]`` of a 4-d weight."""
    if _tensor(weight, name).dim() != 4:
        raise ValueError(
            f"{name}: expected [filters, channels, kernel_h, kernel_w], got {list(weight.shape)}"
        )
    return list(weight.shape[2:])


def _like_x(tensor: Tensor, name: str, x: Tensor) -> None:
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name}: expected {x.dtype} as x, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as x, got {tensor.device}")


def check_depthwise_weight(weight: Tensor, name: str, channels: int, x: Tensor) -> None:
    """Check ``[channels * multiplier, 1, kernel_h, kernel_w]``."""
    _like_x(_tensor(weight, name), name, x)
    shape = list(weight.shape)
    if (
        weight.dim() != 4
        or shape[1] != 1
        or min(shape) < 1
        or shape[0] < channels
        or shape[0] % channels != 0
    ):
        kernel = shape[2:] if weight.dim() == 4 else ["kernel_h", "kernel_w"]
        wanted = f"[{', '.join(str(size) for size in [channels, 1, *kernel])}]"
        raise ValueError(
            f"{name}: expected {wanted} or a multiple of {channels} filters, got {shape}: "
            "not a depthwise filter"
        )


def check_dense_weight(weight: Tensor, name: str, channels_in: int, x: Tensor) -> None:
    """Check ``[channels_out, channels_in, kernel_h, kernel_w]``."""
    _like_x(_tensor(weight, name), name, x)
    shape = list(weight.shape)
    if weight.dim() != 4 or shape[1] != channels_in or min(shape) < 1:
        raise ValueError(
            f"{name}: expected [channels_out, {channels_in}, kernel_h, kernel_w], got {shape}"
        )


def check_pointwise_weight(weight: Tensor, name: str, channels_in: int, x: Tensor) -> None:
    """Check ``[channels_out, channels_in, 1, 1]``."""
    _like_x(_tensor(weight, name), name, x)
    shape = list(weight.shape)
    if shape[1:] != [channels_in, 1, 1] or shape[0] < 1:
        raise ValueError(f"{name}: expected [channels_out, {channels_in}, 1, 1], got {shape}")


def check_linear_weight(weight: Tensor, name: str, channels_in: int, x: Tensor) -> None:
    """Check ``[channels_out, channels_in]``."""
    _like_x(_tensor(weight, name), name, x)
    shape = list(weight.shape)
    if shape[1:] != [channels_in] or shape[0] < 1:
        raise ValueError(f"{name}: expected [channels_out, {channels_in}], got {shape}")


def check_per_channel(tensor: Tensor | None, name: str, channels: int, x: Tensor) -> None:
    """Check a scale or bias: None or ``[channels]`` in fp32 (fp64 allowed with an fp64 x)."""
    if tensor is None:
        return
    _tensor(tensor, name)
    if list(tensor.shape) != [channels]:
        raise ValueError(f"{name}: expected [{channels}], got {list(tensor.shape)}")
    if tensor.dtype != torch.float32 and (tensor.dtype, x.dtype) != (torch.float64, torch.float64):
        raise TypeError(f"{name}: expected torch.float32, got {tensor.dtype} with x {x.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as x, got {tensor.device}")


def check_residual(residual: Tensor | None, shape: Sequence[int], x: Tensor) -> None:
    """Check a residual: None or a tensor of the output's shape."""
    if residual is None:
        return
    _like_x(_tensor(residual, "residual"), "residual", x)
    if list(residual.shape) != list(shape):
        raise ValueError(
            f"residual: expected {list(shape)} as the output, got {list(residual.shape)}"
        )


def check_window(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Check a window in schema form and return the output's (height, width)."""
    for name, pair in (("stride", stride), ("dilation", dilation)):
        if len(pair) != 2 or min(pair) < 1:
            raise ValueError(f"{name}: expected two ints of at least 1, got {list(pair)}")
    if len(padding) not in (0, 4) or any(side < 0 for side in padding):
        raise ValueError(f"padding: expected none or four ints of at least 0, got {list(padding)}")
    size = output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    if any(side < 1 for side in size):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
        raise ValueError(
            f"x: expected height and width of at least {reach} with padding {list(padding)}, got "
            f"{list(x.shape[2:])}: the dilated kernel is larger than the padded input"
        )
    return size
