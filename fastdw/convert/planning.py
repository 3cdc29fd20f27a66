"""`optimize`: copy, convert, plan, verify."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastdw import backends, native
from fastdw.backends import DTYPE_NAMES
from fastdw.convert.parts import PlannedParts, plan_parts
from fastdw.convert.report import Reason, Report, Row
from fastdw.convert.rewrite import convert, revert
from fastdw.convert.shape_run import input_size_of
from fastdw.nn.fused_module import has_hooks
from fastdw.plan.network import PlannedNetwork, gpu_reason, placement, share_state
from fastdw.plan.packed_layout import DTYPES as CUDA_DTYPES
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

    It has the children of the network, so `state_dict` holds the network's keys. Feature maps are
    channels_last, unless the network needs them otherwise.

    Args:
        model: the converted network.
        backend: what its blocks run on, see `fastdw.use_backend`; `"auto"`: what is in use then.
    """

    _model: tuple[nn.Module, ...]

    def __init__(self, model: nn.Module, backend: str = "auto") -> None:
        super().__init__()
        share_state(self, model)
        self._backend = backend
        self.training = False  # children keep their flags: a dropout may be on by intention

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        """Run the network."""
        if self._backend == "auto":
            return self._model[0](*arguments, **settings)
        with backends.use_backend(self._backend):
            return self._model[0](*arguments, **settings)

    def train(self, mode: bool = True) -> PartlyFusedNetwork:
        """Stay in eval mode; raise RuntimeError for `mode=True`."""
        if mode:
            raise RuntimeError("this copy cannot train: train the model, optimize it again")
        self._model[0].eval()
        return super().train(False)


def optimize(
    model: nn.Module,
    example: Tensor | list[Tensor] | tuple[Any, ...] | None = None,
    *,
    dtype: torch.dtype | None = None,
    keep_weights: bool = True,
    backend: str = "auto",
    strict: bool = False,
    tolerance: float | None = None,
) -> nn.Module:
    """Return a fast copy of `model` for inference; `model` stays as it is.

    The copy is converted (`fastdw.convert`) and, where every layer is understood, planned: one op
    runs it from the image to the logits. Else the children that can be planned by themselves are,
    and fused blocks run between torch's own layers. The result is compared with the original on
    `example`, a plan on another batch size too. `.report` says what was done.

    Args:
        model: a module in eval mode.
        example: an input (an image, or a list of them as torchvision's detectors take it), or a
            tuple of inputs. Default: a random image at the channels of the first convolution and
            224x224.
        dtype: convert the copy to this dtype. On the CPU only fp32 is planned; other dtypes run
            fused blocks.
        keep_weights: keep the unpacked weights, so that `state_dict` has the keys of `model` and
            other dtypes and devices work. Without them a planned network holds the packed buffer
            only.
        backend: `"torch"` has no planned network, `"triton"` has one on the GPU only: else they run
            fused blocks.
        strict: raise if nothing is fused, there is no plan or the result differs too much.
        tolerance: largest allowed `|optimized - original|`. Default: 1e-4 (fp32), 2e-2 (fp16), 0.1
            (bf16) or 1e-9 (fp64) times the largest output of the original. For an fp32 network that
            amplifies rounding: 4 times the original's own difference from fp64, if that is more.

    Returns:
        `fastdw.plan.PlannedNetwork` or `PartlyFusedNetwork`; `train()` on them raises RuntimeError.

    Raises:
        TypeError: `model` is no module.
        ValueError: `model` is in training mode, does not run on the random image, or `example` is
            empty.
        NothingConverted: `strict=True` and nothing could be fused.
        RuntimeError: `strict=True` and there is no plan or the difference is above the tolerance.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError("model: expected eval mode, got training mode: call model.eval() first")
    if isinstance(model, (PlannedNetwork, PartlyFusedNetwork)) and model._model:
        model = model._model[0]
    with torch.inference_mode(False), torch.no_grad():
        runs = [_run_original(model, example)]
        fast = copy.deepcopy(model).to(dtype=dtype)
        for parameter in fast.parameters():
            parameter.requires_grad_(False)
        report = convert(fast, backend=backend, strict=strict)
        network = _network(fast, report, runs[0], keep_weights, backend)
        parts = PlannedParts()
        if not report.planned:
            parts = _planned_parts(fast, report, runs[0], dtype, backend)
        if report.planned or (parts.names and len(runs[0][0]) == 1):
            runs += _other_batch(model, runs[0])
        _name_planned_steps(report)
        if strict and not report.planned:
            raise RuntimeError(f"{type(model).__name__} cannot be planned: {report.plan_reason}")
        message = _verify(network, report, runs, tolerance, dtype)
        if message and tolerance is None:
            tolerance = _tolerance_of_rounding(model, runs)
            message = _verify(network, report, runs, tolerance, dtype)
        if message and strict:
            raise RuntimeError(message)
        if message and (parts.names or report.planned):
            _forget_planned_steps(report)
        if message and parts.names:
            parts.undo()
            message = _verify(network, report, runs, tolerance, dtype)
        if message and report.planned:
            report.planned, report.plan_reason = False, message
            del network.packed  # it may stand among the buffers of `fast`
            _lay_out(fast, torch.channels_last)
            network = PartlyFusedNetwork(fast, backend)
            message = _verify(network, report, runs, tolerance, dtype)
        if message:  # as of a model that calls `view` on a feature map
            _lay_out(fast, torch.contiguous_format)
            message = _verify(network, report, runs, tolerance, dtype)
        if message:
            warnings.warn(f"fastdw.optimize returns an unfused copy: {message}", stacklevel=2)
            report.rows = [replace(row, reason=Reason.WRONG, backend="torch") for row in report]
            network = PartlyFusedNetwork(revert(fast))
            report.plan_reason = message
    network.__dict__["report"] = report
    return network


def _forget_planned_steps(report: Report) -> None:
    report.rows = [
        replace(row, reason=Reason.DENSE_CONVOLUTION, backend="torch")
        if row.reason is Reason.PLANNED
        else row
        for row in report
    ]


def _name_planned_steps(report: Report) -> None:
    """Say of convolutions that are left by themselves that the plan around them runs them."""

    def is_planned(row: Row) -> bool:
        inside = any(row.name == p or row.name.startswith(f"{p}.") for p in report.planned_parts)
        return row.reason in (Reason.DENSE_CONVOLUTION, Reason.STRIDED_POINTWISE) and (
            inside or bool(report.planned)
        )

    report.rows = [
        replace(row, reason=Reason.PLANNED, backend="cpp") if is_planned(row) else row
        for row in report
    ]


_Run = tuple[tuple[Any, ...], list[Tensor]]
"""Inputs of the original, and its outputs."""


def _run_original(model: nn.Module, example: Any) -> _Run:
    """Run `model` on the example or on a random image."""
    if example is not None:
        arguments = example if isinstance(example, tuple) else (example,)
        if any(isinstance(x, Tensor) and x.numel() == 0 for x in arguments):
            shapes = [list(x.shape) for x in arguments if isinstance(x, Tensor)]
            raise ValueError(f"example: expected something to compare by, got {shapes}: empty")
        return arguments, _run(model, arguments)
    size = input_size_of(model)
    if size is None:
        raise ValueError("example: expected an input, got None, and no convolution to guess by")
    first = next(model.parameters())
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    image = image.to(dtype=first.dtype, device=first.device)
    try:
        return (image,), _run(model, (image,))
    except Exception as error:
        raise ValueError(
            f"example: expected an input, got None: the model does not run on a random image of "
            f"{list(image.shape)}: {error}"
        ) from error


def _other_batch(model: nn.Module, run: _Run) -> list[_Run]:
    """Run `model` on one image less, or on two instead of one, if it takes that."""
    (x,), _ = run
    other: Tensor | list[Tensor]
    if isinstance(x, Tensor):
        other = torch.cat((x, x.flip(-1))) if len(x) == 1 else x[1:]
    elif isinstance(x, list):  # images of any sizes, as torchvision's detectors take them
        other = [x[0], x[0].flip(-1)] if len(x) == 1 else x[1:]
    else:
        return []
    try:
        return [((other,), _run(model, (other,)))]
    except Exception:  # a network for one batch size only
        return []


def _network(
    fast: nn.Module, report: Report, run: _Run, keep_weights: bool, backend: str
) -> PlannedNetwork | PartlyFusedNetwork:
    """The planned network, or the converted one with the reason in the report."""
    report.planned = False
    try:
        _check_plannable(fast, backend)
        image = run[0][0] if run[0] else None
        shape = image.shape if isinstance(image, Tensor) and image.dim() == 4 else None
        network = PlannedNetwork(fast, record(fast, shape), keep_weights, backend)
    except NotPlannable as reason:
        report.plan_reason = str(reason)
        _lay_out(fast, torch.channels_last)
        return PartlyFusedNetwork(fast, backend)
    report.planned = True
    return network


def _planned_parts(
    fast: nn.Module, report: Report, run: _Run, dtype: torch.dtype | None, backend: str
) -> PlannedParts:
    """Plan what can be planned of a network that cannot be planned as a whole."""
    inputs = _cast(run[0], dtype) if dtype else run[0]
    try:
        _check_plannable(fast, backend)
        parts = plan_parts(fast, lambda: _run(fast, inputs), backend)
    except Exception:  # no plan is possible here, or the converted forward fails: seen below
        return PlannedParts()
    report.planned_parts = parts.names
    return parts


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Give the convolutions' weights this layout: their outputs take it, whatever the input's."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module._parameters.get("weight") is not None:
            module.weight.data = module.weight.data.contiguous(memory_format=memory_format)


def _check_plannable(fast: nn.Module, backend: str) -> None:
    wanted = backends.current_backend() if backend == "auto" else backend
    if wanted == "torch":
        raise NotPlannable("the backend torch has no planned network")
    if not native.loaded:
        raise NotPlannable("the native library is not loaded: `fastdw doctor` says why")
    device, dtype = placement(fast)
    dtypes = _planned_dtypes(device, wanted)
    for name, tensor in (*fast.named_parameters(), *fast.named_buffers()):
        if tensor.device != device:
            raise NotPlannable(f"{name} is on {tensor.device}, other weights are on {device}")
        if tensor.is_floating_point() and (tensor.dtype != dtype or dtype not in dtypes):
            names = ", ".join(DTYPE_NAMES[known] for known in dtypes)
            kind = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
            raise NotPlannable(f"{name} is {kind}, only {names} is planned, all in one dtype")
    for name, module in fast.named_modules():
        if has_hooks(module):
            raise NotPlannable(f"{name or 'the model'} has a hook, which would not run")
        if module.training:
            raise NotPlannable(f"{name} is in training mode")


def _planned_dtypes(device: torch.device, backend: str) -> tuple[torch.dtype, ...]:
    if device.type == "cpu":
        if backend == "triton":
            raise NotPlannable("the backend triton has no planned network on the CPU")
        return (torch.float32,)
    reason = gpu_reason(backend) if device.type == "cuda" else "only on the CPU and on CUDA"
    if reason is not None:
        raise NotPlannable(f"the model is on {device}, no network is planned there: {reason}")
    return CUDA_DTYPES


def _verify(
    network: nn.Module,
    report: Report,
    runs: list[_Run],
    tolerance: float | None,
    cast_to: torch.dtype | None,
) -> str:
    """Put the largest difference into the report; return a message if it is too large."""
    dtypes = {p.dtype for p in network.parameters() if p.is_floating_point()}
    if isinstance(network, PlannedNetwork) and not dtypes:
        dtypes = {network.dtype}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    try:
        outputs = [t for inputs, _ in runs for t in _run(network, _cast(inputs, dtype))]
    except Exception as error:  # whatever it is, the original ran on the same input
        return f"the optimized copy fails: {type(error).__name__}: {error}"
    expected = [t for _, results in runs for t in results]
    wanted, got = ([_form(t, cast_to) for t in tensors] for tensors in (expected, outputs))
    if wanted != got:
        return f"expected outputs of {wanted}, got {got}"
    pairs = list(zip(outputs, expected, strict=True))
    report.largest_error = max((_difference(a, b) for a, b in pairs), default=0.0)
    if tolerance is None:
        tolerance = RELATIVE_TOLERANCE.get(dtype, 1e-4) * _largest(expected)
    report.tolerance = tolerance
    if report.largest_error <= tolerance:
        return ""
    return f"optimized and original differ by {report.largest_error:.3g}, tolerance {tolerance:.3g}"


def _form(tensor: Tensor, cast_to: torch.dtype | None) -> str:
    """Shape and, unless `optimize` was asked for another one, dtype."""
    dtype = "" if cast_to else DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
    return f"{dtype}{list(tensor.shape)}"


def _tolerance_of_rounding(model: nn.Module, runs: list[_Run]) -> float | None:
    """Four times what rounding alone does to the original, for networks that amplify it."""
    if any(p.dtype is not torch.float32 for p in model.parameters()):
        return None
    try:
        exact = copy.deepcopy(model).double()
        rounding = [
            _difference(a, b)
            for inputs, results in runs
            for a, b in zip(_run(exact, _cast(inputs, torch.float64)), results, strict=True)
        ]
    except Exception:  # a model may be for its own dtype only
        return None
    largest = _largest([t for _, results in runs for t in results])
    return 4 * max(*rounding, RELATIVE_TOLERANCE[torch.float32] / 4 * largest)


def _largest(tensors: list[Tensor]) -> float:
    """The largest finite absolute value."""
    values = [t.abs().nan_to_num(0, 0, 0).max().item() for t in tensors if t.numel()]
    return max(values, default=1.0)


def _cast(arguments: tuple[Any, ...], dtype: torch.dtype) -> list[Any]:
    def cast(a: Any) -> Any:
        return a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a

    return pytree.tree_map(cast, list(arguments))


def _difference(output: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; equal infinities and NaN against NaN count as equal."""
    output, expected = output.double(), expected.double()
    same = (output == expected) | (output.isnan() & expected.isnan())
    difference = (output - expected).abs().masked_fill(same, 0.0)
    return difference.nan_to_num(nan=float("inf")).max().item() if difference.numel() else 0.0


def _run(network: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    """Run from the same seed each time; what layers left in training mode count is restored."""
    training = [module for module in network.modules() if module.training]
    counted = [(b, b.clone()) for module in training for b in module.buffers(recurse=False)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            return _tensors(network(*inputs))
        finally:
            for buffer, value in counted:
                buffer.copy_(value)


def _tensors(result: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
