"""Planning the parts of a network that can be planned, where the whole network cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastdw.nn.fused_module import FusedModule
from fastdw.ops.program import CPU_STEPS
from fastdw.plan.network import PlannedNetwork, check_device, placement
from fastdw.plan.record import NotPlannable, Recording, record

FEWEST_STEPS = 2
"""A part of one step is as fast as the fused module that it is."""


@dataclass
class PlannedParts:
    """Children of a network that are planned now, and what stood in their places.

    Attributes:
        places: (parent, name of the child, the child as it was).
        names: the qualified names of the children; `undo` empties this list.
    """

    places: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def undo(self) -> None:
        """Put back what stood there."""
        for parent, name, child in self.places:
            parent._modules[name] = child
        self.places.clear()
        self.names.clear()


def plan_parts(model: nn.Module, run: Callable[[], object], backend: str) -> PlannedParts:
    """Replace children of `model` by planned networks: the largest that can be planned.

    Only a child that the forward calls once, with an image, can gain by it.

    Args:
        model: a converted network that cannot be planned as a whole.
        run: calls its forward.
        backend: see `PlannedNetwork`.
    """
    called, parts = _called_once(model, run), PlannedParts()
    try:
        _plan_children(model, "", called, backend, parts)
    except Exception:
        parts.undo()
        raise
    return parts


def _plan_children(
    parent: nn.Module, prefix: str, called: set[nn.Module], backend: str, parts: PlannedParts
) -> None:
    for name, child in list(parent.named_children()):
        recording = _recording(child) if child in called else None
        if recording is None:
            if not isinstance(child, FusedModule):
                _plan_children(child, f"{prefix}{name}.", called, backend, parts)
            continue
        parts.places.append((parent, name, child))
        parts.names.append(f"{prefix}{name}")
        parent._modules[name] = PlannedNetwork(child, recording, backend=backend)


def _recording(child: nn.Module) -> Recording | None:
    if isinstance(child, FusedModule):
        return None
    try:
        recording = record(child)
        check_device(recording, placement(child)[0])
    except NotPlannable:
        return None
    steps = recording.program.steps
    alone = any(step.op in CPU_STEPS for step in steps)  # no fused module runs these
    return recording if alone or len(steps) >= FEWEST_STEPS else None


def _called_once(model: nn.Module, run: Callable[[], object]) -> set[nn.Module]:
    """The modules that one forward calls once, with one feature map and nothing else."""
    calls: dict[nn.Module, int] = {}
    strange: set[nn.Module] = set()

    def note(module: nn.Module, arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
        calls[module] = calls.get(module, 0) + 1
        is_map = len(arguments) == 1 and isinstance(arguments[0], Tensor)
        if settings or not is_map or arguments[0].dim() != 4:
            strange.add(module)

    handles = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in model.modules()
        if module is not model and not isinstance(module, FusedModule)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {module for module, count in calls.items() if count == 1} - strange
