"""Conv, batch norm and activation that follow each other in somebody's own forward.

The class of the convolution computes all of them in eval mode and the others hand their input on.
All decide by the same function of the modules' state, `Site.active`, so that they always agree.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.fx import Proxy

from fastdw.convert.blocks import ConvertedModule
from fastdw.convert.rules import pattern_of, units_of
from fastdw.nn.fused_module import ConvUnit, has_hooks
from fastdw.plan.record import INERT_TYPES

Path = tuple[str, ...]


class Site:
    """Where a convolution and the layers it swallows stand: names below one parent module.

    The layers are looked up at each call: somebody may put another one in their place.
    """

    def __init__(self, parent: nn.Module, paths: tuple[Path, ...]) -> None:
        self.parent = parent
        self.paths = paths

    def members(self) -> list[Any]:
        """The modules that stand at the paths now: the convolution, then what it swallows."""
        found = []
        for path in self.paths:
            module: Any = self.parent
            for name in path:
                module = module._modules.get(name)
                if module is None:
                    return []
            found.append(module)
        return found

    def active(self, caller: nn.Module) -> bool:
        """Say whether the convolution computes for all members: eval mode, and nothing changed."""
        members = self.members()
        return any(member is caller for member in members) and all(
            getattr(member, "_fastdw_site", None) is self
            and not member.training
            and not has_hooks(member)
            and "forward" not in member.__dict__
            for member in members
        )


class FusedSibling(ConvertedModule):
    """A convolution that computes the batch norm and activation behind it too."""

    _fastdw_site: Site

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy) or self._fastdw_site.active(self):
            return super().forward(x)
        if not self.training:
            self._note("a layer of its site was replaced, has a hook or is in training mode")
        return self._fastdw_original.forward(self, x)

    @property
    def _fused_conv_types(self) -> tuple[type, ...]:  # type: ignore[override]
        return (type(self),)

    @property
    def _fused_norm_types(self) -> tuple[type, ...]:  # type: ignore[override]
        return tuple(SIBLINGS.values())

    def _fused_children(self) -> tuple[nn.Module, ...]:
        swallowed = self._fastdw_site.members()[1:]
        return tuple(layer for member in swallowed for layer in member.modules())

    def _fused_units(self) -> tuple[ConvUnit, ...]:
        units = units_of(self._fastdw_site.members())
        pattern_of(units)
        return units

    def _unfused_forward(self, x: Tensor) -> Tensor:
        """All members one after another: while the site is active the others only hand on."""
        for member in self._fastdw_site.members():
            x = member._fastdw_original.forward(member, x)
        return x


class Passed(nn.Module):
    """A layer that a convolution before it computes in eval mode."""

    _fastdw_original: ClassVar[type[nn.Module]]
    _fastdw_site: Site

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            tracer = x.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (x,), {})
        return x if self._fastdw_site.active(self) else self._fastdw_original.forward(self, x)


class FusedConv2d(FusedSibling, nn.Conv2d):
    """`nn.Conv2d` computing its whole site."""

    _fastdw_original = nn.Conv2d


class PassedBatchNorm2d(Passed, nn.BatchNorm2d):
    """`nn.BatchNorm2d` of a fused site."""

    _fastdw_original = nn.BatchNorm2d


class PassedReLU(Passed, nn.ReLU):
    """`nn.ReLU` of a fused site."""

    _fastdw_original = nn.ReLU


class PassedReLU6(Passed, nn.ReLU6):
    """`nn.ReLU6` of a fused site."""

    _fastdw_original = nn.ReLU6


class PassedHardtanh(Passed, nn.Hardtanh):
    """`nn.Hardtanh(0, 6)` of a fused site."""

    _fastdw_original = nn.Hardtanh


class PassedHardswish(Passed, nn.Hardswish):
    """`nn.Hardswish` of a fused site."""

    _fastdw_original = nn.Hardswish


class PassedSiLU(Passed, nn.SiLU):
    """`nn.SiLU` of a fused site."""

    _fastdw_original = nn.SiLU


SIBLINGS: dict[type, type[nn.Module]] = {
    nn.Conv2d: FusedConv2d,
    nn.BatchNorm2d: PassedBatchNorm2d,
    nn.ReLU: PassedReLU,
    nn.ReLU6: PassedReLU6,
    nn.Hardtanh: PassedHardtanh,
    nn.Hardswish: PassedHardswish,
    nn.SiLU: PassedSiLU,
}
"""Exact classes of the members of a site and the subclass that takes their place."""

INERT_TYPES.update(kind for kind in SIBLINGS.values() if issubclass(kind, Passed))
