"""What all fused modules share: when they run fused, the op call, the weight cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fastdw import activation as activations
from fastdw import backends, native, ops
from fastdw.nn import weight_cache
from fastdw.nn.means import hand_over
from fastdw.nn.units import ConvUnit, LinearUnit, NotFusable, Unit, check_units
from fastdw.nn.weight_cache import PackedCall, WeightCache
from fastdw.ops import registration
from fastdw.ops.layout import suggests_channels_last

__all__ = ["ConvUnit", "FusedModule", "LinearUnit", "NotFusable", "fused_call", "pack_call"]

POOLED_OP = "depthwise_conv_pooled"
"""What runs the pattern ``depthwise_conv`` where somebody reads the means of the result."""

PACKED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class FusedModule(nn.Module):
    """A module that keeps its children and parameters and runs them as one fused op in eval mode.

    Subclasses give ``_fused_pattern``, ``_fused_units()``, ``_unfused_forward(x)`` and, where it
    applies, ``_fused_residual()``. The original forward runs in training mode and whenever the
    children are no longer what they were (a hook, another norm, ...); the reason then stands in
    ``_fastdw_reason``.

    With gradients off, packed weights are kept between calls. They are dropped on ``train()``,
    ``eval()``, ``load_state_dict``, ``.to()`` and the like, on a forward with gradients, and when a
    parameter, buffer or child changes. After a write that torch does not count (in place through
    ``.data``), call ``eval()`` again.
    """

    _fused_pattern: str
    _fused_conv_types: tuple[type, ...] = (nn.Conv2d,)
    _fused_norm_types: tuple[type, ...] = (nn.BatchNorm2d,)
    _fastdw_reason: str | None = None
    _fastdw_cache: WeightCache | None = None

    def _fused_units(self) -> tuple[Unit, ...]:
        """The units that the fused op computes, in order; may raise ``NotFusable``."""
        raise NotImplementedError

    def _unfused_forward(self, x: Tensor) -> Tensor:
        """The forward of the children, one after another."""
        raise NotImplementedError

    def _fused_residual(self) -> bool:
        """Say whether the input is added to the output."""
        return False

    def _hands_means(self) -> bool:
        """Say whether a module behind reads the means of the result (`fastdw.nn.means`)."""
        return False

    def _fused_children(self) -> tuple[nn.Module, ...]:
        """The modules that the fused op replaces: their own forward does not run."""
        return tuple(module for module in self.modules() if module is not self)

    def _fused_settings(self) -> Iterable[tuple[dict[str, Any], str]]:
        """What ``_fused_units()`` reads besides modules: entries of dicts, compared by identity."""
        return ()

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or self.training or not _may_keep(x):
            return self._checked_forward(x)
        cache = self._cache_for(x)
        return self._checked_forward(x) if cache is None else cache.call(x)

    def _cache_for(self, x: Tensor) -> WeightCache | None:
        """The prepared weights, if they are those of this call."""
        cache = self._fastdw_cache
        if (
            cache is not None
            and cache.accepts(x)
            and cache.hands_means == self._hands_means()
            and cache.is_current(self)
        ):
            return cache
        return None

    def _checked_forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return self._traced_forward(x)
        if self.training or is_transformed():
            return self._unfused_forward(x)
        try:
            units = self._checked_units()
        except NotFusable as reason:
            self._note(str(reason))
            return self._unfused_forward(x)
        self._note(None)
        pattern, residual = self._op(units, x), self._fused_residual()
        backend = _packed_backend(pattern, units, x)
        if backend is not None:
            if torch.compiler.is_compiling() or torch.jit.is_tracing():
                return pack_call(pattern, units, residual, backend)(x)
            if _may_keep(x) and _is_plain(units):
                return self._keep(pattern, units, x, backend).call(x)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._drop_cache()  # a fused optimizer may write the weights next, uncounted
        return fused_call(pattern, units, x, residual)

    def _checked_units(self, pattern: str | None = None) -> tuple[Unit, ...]:
        """``_fused_units()`` if they may stand for the children now, else raise ``NotFusable``.

        ``pattern``: what is to run them, in place of ``_fused_pattern``.
        """
        for child in self._fused_children():
            name = type(child).__name__
            if has_hooks(child):
                raise NotFusable(f"a hook on the child {name} would not run")
            if child.training and not _ignores_training(child):
                raise NotFusable(f"the child {name} is in training mode")
            if "forward" in child.__dict__:
                raise NotFusable(f"the child {name} has a forward of its own")
        units = self._fused_units()
        conv_types, norm_types = self._fused_conv_types, self._fused_norm_types
        check_units(pattern or self._fused_pattern, units, conv_types, norm_types)
        return units

    def _traced_forward(self, x: Proxy) -> Any:
        """Under ``torch.fx.symbolic_trace``: a call of this module; at the root, its children."""
        tracer: Any = x.tracer
        if tracer.root is self:
            return self._unfused_forward(x)
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (x,), {})

    def _op(self, units: Sequence[Unit], x: Tensor) -> str:
        """The op that runs the pattern: the pooled one where its means are read, if the backend of
        the plain one has it."""
        if not self._hands_means():
            return self._fused_pattern
        weights = [_weight(unit) for unit in units]
        plain, pooled = (_kernel_for(op, weights, x) for op in (self._fused_pattern, POOLED_OP))
        return POOLED_OP if plain == pooled else self._fused_pattern

    def _keep(self, op: str, units: Sequence[Unit], x: Tensor, backend: str) -> WeightCache:
        with weight_cache.lock():
            there = self._cache_for(x)
            if there is not None:
                return there  # another thread was faster
            cache = WeightCache(self, self._fused_children(), x, self._fused_settings())
            cache.hands_means = self._hands_means()
            cache.call = pack_call(op, units, self._fused_residual(), backend)
            self.__dict__["_fastdw_cache"] = cache
        return cache

    def _drop_cache(self) -> None:
        with weight_cache.lock():  # a thread that is packing old weights must finish first
            self.__dict__.pop("_fastdw_cache", None)

    def _note(self, reason: str | None) -> None:
        if not torch.compiler.is_compiling() and self._fastdw_reason != reason:
            self.__dict__["_fastdw_reason"] = reason

    def train(self, mode: bool = True):  # type: ignore[no-untyped-def]
        self._drop_cache()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any):  # type: ignore[no-untyped-def]
        self._drop_cache()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop_cache()
        super()._load_from_state_dict(*args, **kwargs)


def fused_call(pattern: str, units: Sequence[Unit], x: Tensor, residual: bool = False) -> Tensor:
    """Run ``units`` on ``x`` as the op called ``pattern``: live parameters, differentiable."""
    first = units[0]
    if isinstance(first, LinearUnit):
        return ops.classifier_head(x, first.linear.weight, first.linear.bias)
    convs = [unit.operands() for unit in units if isinstance(unit, ConvUnit)]
    window = _window(units)
    geometry: dict[str, Any] = {"stride": window.stride, "padding": window.raw_padding}
    if pattern == "pointwise_conv":
        return ops.pointwise_conv(x, *convs[0][:3], activation=convs[0][3])
    if pattern == "stem_conv":
        return ops.stem_conv(x, *convs[0][:3], activation=convs[0][3], **geometry)
    geometry["dilation"] = window.dilation
    if pattern == "depthwise_conv":
        return ops.depthwise_conv(x, *convs[0][:3], activation=convs[0][3], **geometry)
    if pattern == POOLED_OP:
        weights, act = convs[0][:3], convs[0][3]
        return hand_over(ops.depthwise_conv_pooled(x, *weights, activation=act, **geometry))
    if pattern == "separable_block":
        return ops.separable_block(x, convs[0], convs[1], **geometry)
    expand = convs[0] if len(convs) == 3 else None
    return ops.inverted_residual(x, expand, convs[-2], convs[-1], residual=residual, **geometry)


def pack_call(
    pattern: str, units: Sequence[Unit], residual: bool = False, backend: str = "cpp"
) -> PackedCall:
    """Prepare the weights of ``units``; return the call of the op on them (no gradients).

    On CUDA, and in Triton, the kernels read torch's own weights, and only batch norms are folded;
    on the CPU the packed twin of the op gets packed weights.
    """
    tensors = op_tensors(pattern, units)
    settings = op_settings(pattern, units, residual)
    if backend == "triton":
        return plain_call(pattern, tensors, settings, "fastdw_triton")
    if _weight(units[0]).is_cuda:
        return plain_call(pattern, tensors, settings)
    packing = "depthwise_conv" if pattern == POOLED_OP else pattern
    packed = getattr(torch.ops.fastdw, f"pack_{packing}").default(*tensors)
    if pattern == "classifier_head":
        arguments: tuple[Any, ...] = (_weight(units[0]).shape[0],)
    else:
        kernel = [] if pattern == "pointwise_conv" else [_window(units).kernel_size]
        channels_last = any(suggests_channels_last(_weight(unit)) for unit in units)
        arguments = (_weight(units[-1]).shape[0], *kernel, *settings, channels_last)
    return plain_call(f"{pattern}_packed", (packed,), arguments)


def plain_call(
    op: str,
    tensors: Sequence[Tensor | None],
    settings: Sequence[Any],
    namespace: str = "fastdw",
) -> PackedCall:
    """Return the call of an op on these tensors."""
    run = getattr(getattr(torch.ops, namespace), op).default
    if op.startswith(POOLED_OP):
        return lambda x: hand_over(run(x, *tensors, *settings))
    return lambda x: run(x, *tensors, *settings)


def op_settings(pattern: str, units: Sequence[Unit], residual: bool) -> tuple[Any, ...]:
    """The arguments of ``fastdw::<pattern>`` after the tensors."""
    if pattern == "classifier_head":
        return ()
    activations = tuple(unit.activation for unit in units if isinstance(unit, ConvUnit))
    if pattern == "pointwise_conv":
        return (None, *activations)
    window = _window(units)
    if pattern == "stem_conv":
        return (window.stride, window.padding4, *activations)
    geometry = (window.stride, window.padding4, window.dilation)
    if pattern == "inverted_residual":
        expanded = activations if len(activations) == 3 else ("none", *activations)
        return (*geometry, residual, *expanded)
    return (*geometry, *activations)


def _weight(unit: Unit) -> Tensor:
    return unit.linear.weight if isinstance(unit, LinearUnit) else unit.weight


def _window(units: Sequence[Unit]) -> ConvUnit:
    """The unit whose stride, padding and dilation the op takes: the last but the projection."""
    unit = units[max(len(units) - 2, 0)]
    assert isinstance(unit, ConvUnit)
    return unit


def op_tensors(pattern: str, units: Sequence[Unit]) -> list[Tensor | None]:
    """The tensor arguments of the op after x, in schema order."""
    tensors: list[Tensor | None] = []
    if pattern == "classifier_head":
        return list(_linear_tensors(units[0]))
    for unit in units:
        assert isinstance(unit, ConvUnit)
        tensors += [unit.weight, *unit.scale_bias()]
    no_expansion = pattern == "inverted_residual" and len(units) == 2
    return [None, None, None, *tensors] if no_expansion else tensors


def _linear_tensors(unit: Unit) -> tuple[Tensor, Tensor | None]:
    """Weight and bias; of a 1x1 convolution on a single pixel as of the linear layer it is."""
    if isinstance(unit, LinearUnit):
        return unit.linear.weight, unit.linear.bias
    weight, (scale, bias) = unit.weight.flatten(1), unit.scale_bias()
    return (weight if scale is None else weight * scale[:, None].to(weight.dtype)), bias


def _may_keep(x: Tensor) -> bool:
    """Say whether weights packed for this call may serve later calls."""
    return (
        not torch.is_grad_enabled()
        and type(x) is Tensor
        and registration.autocast_dtype(x.device.type) is None
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and not is_transformed()
    )


def _packed_backend(pattern: str, units: Sequence[Unit], x: Tensor) -> str | None:
    """The backend whose kernels take the call on prepared weights; None: the plain op decides."""
    weights = [_weight(unit) for unit in units]
    first = units[0]
    channels_in = weights[0].shape[1]
    if isinstance(first, ConvUnit) and first.conv.groups > 1:
        channels_in = first.conv.groups
    if (
        not torch.is_grad_enabled()
        and native.loaded
        and backends.current_backend() != "torch"
        and registration.autocast_dtype(x.device.type) is None
        and x.device.type in ("cpu", "cuda")
        and x.dim() == 4
        and x.shape[1] == channels_in
        and x.dtype in PACKED_DTYPES
        and all(weight.dtype == x.dtype and weight.device == x.device for weight in weights)
    ):
        return _kernel_for(pattern, weights, x)
    return None


def _kernel_for(pattern: str, weights: Sequence[Tensor], x: Tensor) -> str | None:
    """Ask the rows of the table, which read no scale and no bias."""
    arguments: list[Tensor | None] = [x]
    if pattern == "inverted_residual" and len(weights) == 2:
        arguments += [None, None, None]
    for weight in weights:
        arguments += [weight, None, None]
    call = backends.Call(pattern, x.device.type, x.dtype, tuple(arguments))
    wanted = backends.current_backend()
    rows = [row for row in backends.ROWS[pattern] if wanted in ("auto", row.backend)]
    taking = next((row.backend for row in rows if row.refuse(call) is None), "torch")
    return None if taking == "torch" else taking


def _is_plain(units: Sequence[Unit]) -> bool:
    """Say whether all weights are ordinary tensors."""
    return all(type(_weight(unit)) in (Tensor, nn.Parameter) for unit in units)


def is_transformed() -> bool:
    """Say whether a functorch transform or forward-mode AD is active: neither sees into an op."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _ignores_training(module: nn.Module) -> bool:
    return type(module) in (nn.Conv2d, nn.Linear) or activations.name_of(module) is not None


def has_hooks(module: nn.Module) -> bool:
    """Say whether a hook watches the forward or backward of ``module``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
