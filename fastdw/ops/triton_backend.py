"""The Triton backend: layouts, allocation and launches behind the ops ``fastdw_triton::<op>``.

The kernels take NHWC, so other inputs are copied once; the outputs have torch's layout. Triton is
imported at the first call, not with fastdw.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fastdw.geometry import resolve_padding

OLDEST_TRITON = (3, 6)
DTYPES = ("fp32", "fp16", "bf16")
DEVICES = ("cuda",)  # torch's name for ROCm too


def interpreting() -> bool:
    """Say whether Triton runs kernels in its interpreter, on CPU tensors (``TRITON_INTERPRET``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def devices() -> tuple[str, ...]:
    """The devices whose tensors the kernels can take in this process."""
    return (*DEVICES, "cpu") if interpreting() else DEVICES


@functools.cache
def missing() -> str | None:
    """Why Triton's kernels cannot be called in this process, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: `python -m pip install triton`"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return f"Triton {version} is too old: `python -m pip install --upgrade 'triton>=3.6'`"
    if importlib.util.find_spec("fastdw.triton_kernels") is None:
        return (
            "fastdw was imported from a source tree that is not installed: "
            "`python -m pip install --no-build-isolation -e .`"
        )
    return None


@torch.compiler.assume_constant_result
def reason(device: str, index: int | None = None) -> str | None:
    """Why the kernels cannot run on this device (index None: the current GPU), or None."""
    if device not in devices():
        return f"no kernel for device {device!r}, only for {', '.join(DEVICES)}"
    absent = missing()
    if absent is not None or device != "cuda" or torch.version.hip or not torch.cuda.is_available():
        return absent
    return _refusal_of(*torch.cuda.get_device_capability(index))


@functools.cache
def _refusal_of(major: int, minor: int) -> str | None:
    if major >= 8:
        return None
    return f"the kernels need compute capability 8.0 or newer, this GPU has {major}.{minor}"


@functools.cache
def _kernels(module: str) -> Any:
    """A module of the kernels: with the first of them Triton is imported."""
    return importlib.import_module(f"fastdw.triton_kernels.{module}")


def run(op: str, outputs: Any, x: Tensor, *arguments: Any) -> Any:
    """Run ``op`` (arguments in schema order) and return its outputs: y, or y and others."""
    y, *others = outputs if isinstance(outputs, tuple) else (outputs,)
    if y.numel() == 0:
        return outputs
    out = y if _is_nhwc(y) else torch.empty_like(y, memory_format=torch.channels_last)
    _run(plan(op, target_of(x.device), out, x, *arguments, *others), x)
    if out is not y:
        y.copy_(out)
    return outputs


def plan(op: str, target: Any, y: Tensor, x: Tensor, *arguments: Any) -> list[Any]:
    """The launches that write ``op`` of x (and the schema's other arguments) to y, which is NHWC.

    Outputs besides y stand behind the arguments.

    Runs nothing, so meta tensors do.
    """
    kernels = _kernels(op)
    launches: list[Any] = getattr(kernels, f"plan_{op}")(*_PLANNED[op](x, y, *arguments), target)
    return launches


def plan_input_grad(
    target: Any,
    x_grad: Tensor,
    grad: Tensor,
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> list[Any]:
    """The launches of ``depthwise_conv_train.input_grad`` into x_grad, which is NHWC."""
    kernels = _kernels("depthwise_conv_train")
    geometry = (stride, _sides(x_grad, weight, stride, padding, dilation), dilation)
    launches: list[Any] = kernels.plan_depthwise_conv_input_grad(
        _nhwc(grad), weight.contiguous(), x_grad, *geometry, target
    )
    return launches


def plan_weight_grad(
    target: Any,
    weight_grad: Tensor,
    grad: Tensor,
    x: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> list[Any]:
    """The launches of ``depthwise_conv_train.weight_grad`` into weight_grad, which is fp32."""
    kernels = _kernels("depthwise_conv_train")
    geometry = (stride, _sides(x, weight_grad, stride, padding, dilation), dilation)
    launches: list[Any] = kernels.plan_depthwise_conv_weight_grad(
        _nhwc(grad), _nhwc(x), weight_grad, *geometry, target
    )
    return launches


def target_of(device: torch.device) -> Any:
    """The ``Target`` that kernels on ``device`` are planned for."""
    return _target(device.type, device.index or 0)


@functools.cache
def _target(kind: str, index: int) -> Any:
    launch = _kernels("launch")
    if kind != "cuda":
        return launch.Target("interpreter")
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        arch = properties.gcnArchName.split(":")[0]
    else:
        arch = f"sm_{properties.major}{properties.minor}"
    tuning = _kernels("tuning")
    tiles = _kernels("tiles")
    tiles.tuned[arch] = tuning.load(tuning.table_path(properties.name))
    return launch.Target(arch, properties.multi_processor_count)


def _run(launches: list[Any], tensor: Tensor) -> None:
    """Triton launches on the current GPU, which must be the tensor's."""
    with torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext():
        _kernels("launch").run(launches)


def run_input_grad(x_grad: Tensor, grad: Tensor, weight: Tensor, *geometry: Any) -> None:
    """Write the gradient by the input."""
    _run(plan_input_grad(target_of(grad.device), x_grad, grad, weight, *geometry), grad)


def run_weight_grad(weight_grad: Tensor, grad: Tensor, x: Tensor, *geometry: Any) -> None:
    """Write the gradient by the filters."""
    _run(plan_weight_grad(target_of(grad.device), weight_grad, grad, x, *geometry), grad)


def _is_nhwc(tensor: Tensor) -> bool:
    return tensor.dim() != 4 or tensor.is_contiguous(memory_format=torch.channels_last)


def _nhwc(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def tf32() -> bool:
    """What ``torch.backends`` says of fp32 convolutions."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _sides(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> list[int]:
    return list(resolve_padding(padding, weight.shape[2:], stride, dilation, x.shape[2:]))


# Each function turns (x, y, the schema's other arguments) into the arguments of plan_<op>.


def _depthwise(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    activation: str,
) -> tuple[Any, ...]:
    sides = _sides(x, weight, stride, padding, dilation)
    return (_nhwc(x), *_dense(weight, scale, bias), y, stride, sides, dilation, activation)


def _depthwise_pooled(x: Tensor, y: Tensor, *rest: Any) -> tuple[Any, ...]:
    *arguments, means = rest
    return (*_depthwise(x, y, *arguments), means)


def _pointwise(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> tuple[Any, ...]:
    added = None if residual is None else _nhwc(residual)
    return (_nhwc(x), *_dense(weight, scale, bias), added, y, activation, tf32())


def _stem(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    activation: str,
) -> tuple[Any, ...]:
    sides = _sides(x, weight, stride, padding, (1, 1))
    return (x, *_dense(weight, scale, bias), y, stride, sides, activation, tf32())


def _separable(x: Tensor, y: Tensor, *rest: Any) -> tuple[Any, ...]:
    *tensors, stride, padding, dilation, depthwise_activation, pointwise_activation = rest
    sides = _sides(x, tensors[0], stride, padding, dilation)
    activations = (depthwise_activation, pointwise_activation)
    return (_nhwc(x), *_dense(*tensors), y, stride, sides, dilation, None, *activations, tf32())


def _inverted(x: Tensor, y: Tensor, *rest: Any) -> tuple[Any, ...]:
    tensors, (stride, padding, dilation, residual, *activations) = rest[:9], rest[9:]
    sides = _sides(x, tensors[3], stride, padding, dilation)
    settings = (stride, sides, dilation, residual, *activations, tf32())
    return (_nhwc(x), *_dense(*tensors), y, *settings)


def _head(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    return (_nhwc(x), *_dense(weight, bias), y)


_PLANNED: dict[str, Callable[..., tuple[Any, ...]]] = {
    "depthwise_conv": _depthwise,
    "depthwise_conv_pooled": _depthwise_pooled,
    "pointwise_conv": _pointwise,
    "stem_conv": _stem,
    "separable_block": _separable,
    "inverted_residual": _inverted,
    "classifier_head": _head,
}
