"""`optimize`: copy, convert, plan, verify."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastdw import backends, native
from fastdw.backends import DTYPE_NAMES
from fastdw.convert.multiply_adds import input_size_of
from fastdw.convert.report import Reason, Report
from fastdw.convert.rewrite import convert, revert
from fastdw.convert.rules import has_hooks
from fastdw.plan.network import PlannedNetwork
from fastdw.plan.record import NotPlannable, record

RELATIVE_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Largest difference allowed, as a share of the largest output; by the dtype of the weights."""


class PartlyFusedNetwork(nn.Module):
    """A converted network in eval mode: fused blocks between torch's own layers.

    It has the children of the network, so `state_dict` holds the network's keys.

    Args:
        model: the converted network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # The same dicts, not copies: what `.to()` or a new child does to one holds for the other.
        self._parameters, self._buffers = model._parameters, model._buffers
        self._modules = model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self._model = (model,)  # in a tuple it is no child: its keys would appear twice
        super().train(False)

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        """Run the network."""
        return self._model[0](*arguments, **settings)

    def train(self, mode: bool = True) -> PartlyFusedNetwork:
        """Stay in eval mode; raise RuntimeError for `mode=True`."""
        if mode:
            raise RuntimeError("this copy cannot train: train the model, optimize it again")
        self._model[0].eval()
        return super().train(False)


def optimize(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | None = None,
    *,
    dtype: torch.dtype | None = None,
    keep_weights: bool = True,
    backend: str = "auto",
    strict: bool = False,
    tolerance: float | None = None,
) -> nn.Module:
    """Return a fast copy of `model` for inference; `model` stays as it is.

    The copy is converted (`fastdw.convert`) and, where every layer is understood, planned: one op
    runs it from the image to the logits. Else fused blocks run between torch's own layers. The
    result is compared with the original on `example`. `.report` says what was done.

    Args:
        model: a module in eval mode.
        example: an input, or a tuple of inputs. Default: a random image at the channels of the
        first
            convolution and 224x224.
        dtype: convert the copy to this dtype. Only fp32 is planned; other dtypes run fused blocks.
        keep_weights: keep the unpacked weights, so that `state_dict` has the keys of `model` and
        other
            dtypes and devices work. Without them a planned network holds the packed buffer only.
        backend: `"torch"` and `"triton"` have no planned network and run fused blocks.
        strict: raise if nothing is fused, there is no plan or the result differs too much.
        tolerance: largest allowed `|optimized - original|`. Default: 1e-4 (fp32), 2e-2 (fp16), 0.1
            (bf16) or 1e-9 (fp64) times the largest output of the original. For a fp32 network that
            amplifies rounding: 4 times the original's own difference from fp64, if that is more.

    Returns:
        `fastdw.plan.PlannedNetwork` or `PartlyFusedNetwork`; `train()` on them raises RuntimeError.

    Raises:
        TypeError: `model` is no module.
        ValueError: `model` is in training mode, or does not run on the random image.
        NothingConverted: `strict=True` and nothing could be fused.
        RuntimeError: `strict=True` and there is no plan or the difference is above the tolerance.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError("model: expected eval mode, got training mode: call model.eval() first")
    with torch.inference_mode(False), torch.no_grad():
        arguments, expected = _run_original(model, example)
        fast = copy.deepcopy(model).requires_grad_(False).to(dtype=dtype)
        report = convert(fast, backend=backend, strict=strict)
        network = _network(fast, report, keep_weights, backend)
        if strict and not report.planned:
            raise RuntimeError(f"{type(model).__name__} cannot be planned: {report.plan_reason}")
        message = _verify(network, report, arguments, expected, tolerance)
        if message and tolerance is None:
            tolerance = _tolerance_of_rounding(model, arguments, expected)
            message = _verify(network, report, arguments, expected, tolerance)
        if message and strict:
            raise RuntimeError(message)
        if message and report.planned:
            report.planned, report.plan_reason = False, message
            del network.packed  # it may stand among the buffers of `fast`
            network = PartlyFusedNetwork(fast)
            message = _verify(network, report, arguments, expected, tolerance)
        if message:
            warnings.warn(f"fastdw.optimize returns an unfused copy: {message}", stacklevel=2)
            report.rows = [replace(row, reason=Reason.WRONG, backend="torch") for row in report]
            network = PartlyFusedNetwork(revert(fast))
            report.plan_reason = message
    network.__dict__["report"] = report
    return network


def _run_original(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Return the verification's inputs and the original's outputs."""
    if example is not None:
        arguments = example if isinstance(example, tuple) else (example,)
        return arguments, _tensors(model(*arguments))
    size = input_size_of(model)
    if size is None:
        raise ValueError("example: expected an input, got None, and no convolution to guess by")
    first = next(model.parameters())
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    image = image.to(dtype=first.dtype, device=first.device)
    try:
        return (image,), _tensors(model(image))
    except Exception as error:
        raise ValueError(
            f"example: expected an input, got None: the model does not run on a random image of "
            f"{list(image.shape)}: {error}"
        ) from error


def _network(
    fast: nn.Module, report: Report, keep_weights: bool, backend: str
) -> PlannedNetwork | PartlyFusedNetwork:
    """The planned network, or the converted one with the reason in the report."""
    report.planned = False
    try:
        _check_plannable(fast, backend)
        network = PlannedNetwork(fast, record(fast), keep_weights)
    except NotPlannable as reason:
        report.plan_reason = str(reason)
        return PartlyFusedNetwork(fast)
    report.planned = True
    return network


def _check_plannable(fast: nn.Module, backend: str) -> None:
    if backend not in ("auto", "cpp") or backends.current_backend() not in ("auto", "cpp"):
        raise NotPlannable("only the backend cpp has a planned network")
    if not native.loaded:
        raise NotPlannable("the native library is not loaded: `fastdw doctor` says why")
    for name, tensor in (*fast.named_parameters(), *fast.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            raise NotPlannable(f"{name} is {DTYPE_NAMES.get(tensor.dtype)}, only fp32 is planned")
        if tensor.device.type != "cpu":
            raise NotPlannable(f"{name} is on {tensor.device}, only the CPU has a planned network")
    for name, module in fast.named_modules():
        if has_hooks(module):
            raise NotPlannable(f"{name or 'the model'} has a hook, which would not run")


def _verify(
    network: nn.Module,
    report: Report,
    arguments: tuple[Any, ...],
    expected: list[Tensor],
    tolerance: float | None,
) -> str:
    """Put the largest difference into the report; return a message if it is too large."""
    dtypes = {p.dtype for p in network.parameters() if p.is_floating_point()} or {torch.float32}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    try:
        outputs = _tensors(network(*_cast(arguments, dtype)))
    except Exception as error:  # whatever it is, the original ran on the same input
        return f"the optimized copy fails: {type(error).__name__}: {error}"
    if [tuple(t.shape) for t in outputs] != [tuple(t.shape) for t in expected]:
        return f"expected outputs of {[tuple(t.shape) for t in expected]}, got others"
    pairs = list(zip(outputs, expected, strict=True))
    report.largest_error = max((_difference(a, b) for a, b in pairs), default=0.0)
    if tolerance is None:
        tolerance = RELATIVE_TOLERANCE.get(dtype, 1e-4) * _largest(expected)
    report.tolerance = tolerance
    if report.largest_error <= tolerance:
        return ""
    return f"optimized and original differ by {report.largest_error:.3g}, tolerance {tolerance:.3g}"


def _tolerance_of_rounding(
    model: nn.Module, arguments: tuple[Any, ...], expected: list[Tensor]
) -> float | None:
    """Four times what rounding alone does to the original, for networks that amplify it."""
    if any(p.dtype is not torch.float32 for p in model.parameters()):
        return None
    exact = _tensors(copy.deepcopy(model).double()(*_cast(arguments, torch.float64)))
    return 4 * max(
        max(_difference(a, b) for a, b in zip(exact, expected, strict=True)),
        RELATIVE_TOLERANCE[torch.float32] / 4 * _largest(expected),
    )


def _largest(tensors: list[Tensor]) -> float:
    """The largest finite absolute value."""
    values = [t.abs().nan_to_num(0, 0, 0).max().item() for t in tensors if t.numel()]
    return max(values, default=1.0)


def _cast(arguments: tuple[Any, ...], dtype: torch.dtype) -> list[Any]:
    return [
        a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments
    ]


def _difference(output: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; equal infinities and NaN against NaN count as equal."""
    output, expected = output.double(), expected.double()
    same = (output == expected) | (output.isnan() & expected.isnan())
    difference = (output - expected).abs().masked_fill(same, 0.0)
    return difference.nan_to_num(nan=float("inf")).max().item() if difference.numel() else 0.0


def _tensors(result: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
