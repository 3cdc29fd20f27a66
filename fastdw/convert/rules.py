"""What can be proved about modules: which layers make a unit, which units make a fused pattern.

Nothing here goes by names. Classes count only exactly: a subclass may compute something else. Other
libraries add their classes through the tables, in files of their own (`rewrite.RULES`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from torch import nn
from torch.nn.utils import parametrize

from fastdw import activation as activations
from fastdw.convert.report import Reason
from fastdw.geometry import Padding
from fastdw.nn.fused_module import has_hooks
from fastdw.nn.units import STEM_CHANNELS, ConvUnit, NotFusable
from fastdw.plan.record import NORMS

CONV_PADDING: dict[type, Padding | None] = {nn.Conv2d: None}
"""Exact convolution classes, with the padding that they apply at run time instead of `.padding`."""

NORM_TYPES: set[type] = {nn.BatchNorm2d}
"""Exact classes that compute a batch norm, and after it what `plan.record.NORMS` gives."""

ACTIVATION_TYPES: dict[type, str] = {}
"""Exact classes of activations besides torch's own."""

UNITS: dict[type, Callable[[nn.Module], tuple[ConvUnit, ...]]] = {}
"""Exact classes whose forward does more than run layers, say pads: how to read their units."""

CONTAINERS: set[type] = {nn.Sequential}
"""Exact classes whose forward runs their children one after another."""

NAMED_LAYERS: dict[type, Reason] = {nn.SyncBatchNorm: Reason.SYNC_BATCH_NORM}
"""Layers that are refused with a reason of their own."""


class Refused(NotFusable):
    """A module cannot be fused; `.reason` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.sentence)
        self.reason = reason


def check_untouched(module: nn.Module) -> None:
    """Raise `Refused` if something stands between `module` and what its class computes."""
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        raise Refused(Reason.UNINITIALIZED)
    if has_hooks(module):
        raise Refused(Reason.HOOKS)
    if "forward" in module.__dict__:
        raise Refused(Reason.PATCHED_FORWARD)
    if parametrize.is_parametrized(module):
        raise Refused(Reason.PARAMETRIZED)
    if getattr(module, "qconfig", None) is not None:
        raise Refused(Reason.QUANTIZED)


def layers_of(modules: Iterable[nn.Module | None]) -> Iterator[nn.Module]:
    """Give the layers that run, in order: containers opened, `nn.Identity` and None dropped."""
    for module in modules:
        if module is None or type(module) is nn.Identity:
            continue
        kind = original_class(module)
        check_untouched(module)
        if kind in CONTAINERS:
            yield from layers_of(children_of(module))
        else:
            yield module
            if kind in NORMS:
                yield from layers_of(NORMS[kind](module))


def children_of(container: nn.Module) -> list[nn.Module | None]:
    """The children in the order they run; `children()` gives one that stands twice only once."""
    return list(container._modules.values())


def original_class(module: nn.Module) -> type:
    """Return the class of `module` before `convert` swapped it."""
    return getattr(type(module), "_fastdw_original", type(module))


def is_depthwise(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == conv.in_channels
        and conv.out_channels % conv.groups == 0
        and not (conv.in_channels == 1 and conv.kernel_size == (1, 1))
    )


def pattern_of_conv(conv: nn.Conv2d) -> str:
    """Return the fused op for one convolution, or raise `Refused`."""
    if conv.padding_mode != "zeros":
        raise Refused(Reason.PADDING_MODE)
    if is_depthwise(conv):
        return "depthwise_conv"
    if conv.groups != 1:
        raise Refused(Reason.GROUPED_CONVOLUTION)
    if tuple(conv.kernel_size) == (1, 1):
        if tuple(conv.stride) != (1, 1) or conv.padding not in ((0, 0), "valid", "same"):
            raise Refused(Reason.STRIDED_POINTWISE)
        return "pointwise_conv"
    if conv.in_channels <= STEM_CHANNELS and tuple(conv.dilation) == (1, 1):
        return "stem_conv"
    raise Refused(Reason.DENSE_CONVOLUTION)


def conv_unit(conv: nn.Module) -> ConvUnit:
    """Return `conv` as a unit without batch norm and activation, or raise `Refused`."""
    kind = original_class(conv)
    if kind not in CONV_PADDING or not isinstance(conv, nn.Conv2d):
        raise Refused(Reason.UNKNOWN_CLASS)
    pattern_of_conv(conv)
    return ConvUnit(conv, None, "none", CONV_PADDING[kind])


def is_norm(module: nn.Module) -> bool:
    """Say whether `module` is a batch norm, one that is refused included."""
    kind = original_class(module)
    return kind in NORM_TYPES or NAMED_LAYERS.get(kind) is Reason.SYNC_BATCH_NORM


def check_norm(norm: nn.Module) -> None:
    """Raise `Refused` unless `norm` is an affine batch norm with running statistics."""
    kind = original_class(norm)
    if kind in NAMED_LAYERS:
        raise Refused(NAMED_LAYERS[kind])
    if kind not in NORM_TYPES:
        raise Refused(Reason.NO_BATCH_NORM)
    if norm.weight is None or norm.bias is None:
        raise Refused(Reason.BATCH_NORM_WITHOUT_AFFINE)
    if norm.running_mean is None or norm.running_var is None:
        raise Refused(Reason.BATCH_NORM_WITHOUT_STATISTICS)


def activation_name(module: nn.Module) -> str | None:
    """`fastdw.activation.name_of`, for modules that `convert` swapped too."""
    kind = original_class(module)
    if kind in ACTIVATION_TYPES:
        return ACTIVATION_TYPES[kind]
    return activations.name_of(module, kind)


def units_of(modules: Iterable[nn.Module | None]) -> tuple[ConvUnit, ...]:
    """Group the layers of a chain into conv -> batch norm -> activation units.

    Raises:
        Refused: a layer is unknown, or stands where no unit has a place for it.
    """
    units: list[ConvUnit] = []
    for layer in layers_of(modules):
        kind = original_class(layer)
        if kind in UNITS:
            units += UNITS[kind](layer)
            continue
        if isinstance(layer, nn.Conv2d):
            units.append(conv_unit(layer))
            continue
        if kind in NAMED_LAYERS:
            raise Refused(NAMED_LAYERS[kind])
        last = units[-1] if units else None
        activation = activation_name(layer)
        if kind in NORM_TYPES:
            check_norm(layer)
            if last is None or last.bn is not None or last.activation != "none":
                raise Refused(Reason.NO_PATTERN)
            units[-1] = replace(last, bn=layer)
        elif activation is None:
            known = type(layer).__module__ == nn.ReLU.__module__
            raise Refused(Reason.UNKNOWN_ACTIVATION if known else Reason.UNKNOWN_CLASS)
        elif last is None or last.activation != "none":
            raise Refused(Reason.NO_PATTERN)
        else:
            units[-1] = replace(last, activation=activation)
    parts = [id(part) for unit in units for part in (unit.conv, unit.bn) if part is not None]
    if len(set(parts)) < len(parts):
        raise Refused(Reason.USED_TWICE)
    return tuple(units)


def check_gain(units: tuple[ConvUnit, ...]) -> None:
    """Raise `Refused` for a dense convolution without batch norm alone: torch is as fast.

    Squeeze-excites are made of them, on a single pixel.
    """
    if len(units) == 1 and units[0].bn is None and not is_depthwise(units[0].conv):
        raise Refused(Reason.NO_BATCH_NORM)


PATTERNS = {
    ("depthwise_conv",): "depthwise_conv",
    ("pointwise_conv",): "pointwise_conv",
    ("stem_conv",): "stem_conv",
    ("depthwise_conv", "pointwise_conv"): "separable_block",
    ("pointwise_conv", "depthwise_conv", "pointwise_conv"): "inverted_residual",
}


def pattern_of(units: tuple[ConvUnit, ...]) -> str:
    """Return the fused op that runs `units` in one call, or raise `Refused`."""
    pattern = PATTERNS.get(tuple(pattern_of_conv(unit.conv) for unit in units))
    convs = [unit.conv for unit in units]
    multiplied = any(is_depthwise(c) and c.out_channels != c.in_channels for c in convs)
    if pattern is None or (len(units) > 1 and multiplied):
        raise Refused(Reason.NO_PATTERN)
    return pattern
