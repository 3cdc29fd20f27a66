"""Modules swapped as a whole: one fused op runs all their layers in eval mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from fastdw import backends
from fastdw.convert.report import Reason
from fastdw.convert.rules import (
    CONV_PADDING,
    NORM_TYPES,
    Refused,
    check_gain,
    children_of,
    pattern_of,
    units_of,
)
from fastdw.nn.fused_module import ConvUnit, FusedModule

if TYPE_CHECKING:
    from fastdw.convert.handover import Handover


class ConvertedModule(FusedModule):
    """A fused subclass of somebody else's module class, set by `convert` on a living instance.

    Attributes:
        _fastdw_original: the class that `revert` sets again.
        _fastdw_backend: the backend that `convert` was asked for.
        _fastdw_handover: where a depthwise convolution's means go, or None.
    """

    _fastdw_original: ClassVar[type[nn.Module]]
    _fastdw_backend: str = "auto"
    _fastdw_handover: Handover | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._fastdw_backend == "auto":
            return super().forward(x)
        with backends.use_backend(self._fastdw_backend):
            return super().forward(x)

    def _hands_means(self) -> bool:
        return self._fastdw_handover is not None and self._fastdw_handover.active()


class FusedBlock(ConvertedModule):
    """A block whose layers run one after another, with or without its input added at the end.

    Subclasses say what their original's `forward` hides: `layers` in order, and `adds_input`. Both
    take the module before or after the swap.
    """

    is_container: ClassVar[bool] = False
    """Whether the original is a mere list of layers, without a row of the report when left."""

    @staticmethod
    def layers(module: Any) -> Iterable[nn.Module | None]:
        """The layers of the original's forward; `Refused` for parts that nothing can fuse."""
        raise NotImplementedError

    @staticmethod
    def adds_input(module: Any) -> bool:
        """Say whether the original's forward adds its input to the result."""
        return False

    @classmethod
    def units(cls, module: nn.Module) -> tuple[ConvUnit, ...]:
        """What the original's forward computes, or raise `Refused`."""
        units = units_of(cls.layers(module))
        check_gain(units)
        return units

    @classmethod
    def describe(cls, module: nn.Module) -> tuple[str, tuple[ConvUnit, ...]]:
        """Return the pattern and units of `module`, or raise `Refused`."""
        units = cls.units(module)
        pattern, residual = pattern_of(units), cls.adds_input(module)
        if pattern == "separable_block" and (residual or units[-1].activation == "none"):
            pattern = "inverted_residual"  # a linear bottleneck, only without expansion
        if residual and pattern != "inverted_residual":
            raise Refused(Reason.NO_PATTERN)
        return pattern, units

    @property
    def _fused_conv_types(self) -> tuple[type, ...]:  # type: ignore[override]
        return tuple(CONV_PADDING)

    @property
    def _fused_norm_types(self) -> tuple[type, ...]:  # type: ignore[override]
        return tuple(NORM_TYPES)

    def _fused_units(self) -> tuple[ConvUnit, ...]:
        pattern, units = self.describe(self)
        if pattern != self._fused_pattern:
            raise Refused(Reason.NO_PATTERN)
        return units

    def _fused_residual(self) -> bool:
        return self.adds_input(self)

    def _unfused_forward(self, x: Tensor) -> Tensor:
        return self._fastdw_original.forward(self, x)


class FusedSequential(FusedBlock, nn.Sequential):
    """`nn.Sequential` of the layers of one conv -> batch norm -> activation unit or one block."""

    _fastdw_original = nn.Sequential
    is_container = True

    @staticmethod
    def layers(module: nn.Sequential) -> Iterable[nn.Module | None]:
        return children_of(module)


BLOCKS: dict[type, type[FusedBlock]] = {nn.Sequential: FusedSequential}
"""Exact classes of blocks and the fused subclass that takes their place."""
