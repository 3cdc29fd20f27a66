"""The activations of the fused epilogue: their names, values and derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "silu")
GATES = ("hardsigmoid", "sigmoid")
"""What a squeeze-excite's last layer ends in: linear layers of a planned network alone know it."""


def check(name: str, argument: str = "activation", known: tuple[str, ...] = ACTIVATIONS) -> str:
    """Return ``name`` if it is an activation; raise ``ValueError`` naming ``argument`` if not."""
    if name not in known:
        raise ValueError(f"{argument}: expected one of {', '.join(known)}, got {name!r}")
    return name


def apply(name: str, tensor: Tensor) -> Tensor:
    """Apply the activation called ``name`` to ``tensor``, as ``torch.nn.functional`` does.

    Raises:
        ValueError: ``name`` is not one of ``ACTIVATIONS``.
    """
    if check(name) == "none":
        return tensor
    if name == "relu":
        return F.relu(tensor)
    if name == "relu6":
        return F.relu6(tensor)
    if name == "hardswish":
        return F.hardswish(tensor)
    return F.silu(tensor)


def apply_linear(name: str, tensor: Tensor) -> Tensor:
    """As ``apply``, for what a linear layer may end in: ``GATES`` as well."""
    if name not in GATES:
        return apply(name, tensor)
    return F.hardsigmoid(tensor) if name == "hardsigmoid" else torch.sigmoid(tensor)


def gradient(name: str, grad: Tensor, pre_activation: Tensor) -> Tensor:
    """Return ``grad * activation'(pre_activation)``, torch's value at the kinks included."""
    if check(name) == "none":
        return grad
    aten = torch.ops.aten
    if name == "relu":
        return aten.threshold_backward(grad, pre_activation, 0)
    if name == "relu6":
        return aten.hardtanh_backward(grad, pre_activation, 0.0, 6.0)
    if name == "hardswish":
        return aten.hardswish_backward(grad, pre_activation)
    sigmoid = torch.sigmoid(pre_activation)  # aten's silu_backward has no derivative of its own
    return grad * sigmoid * (1 + pre_activation * (1 - sigmoid))


def name_of(module: nn.Module | None, kind: type | None = None) -> str | None:
    """Return the activation that ``module`` computes, or None if it is none of ``ACTIVATIONS``.

    Only exact types count: a subclass may compute something else. ``None`` and ``nn.Identity``
    are ``"none"``; ``nn.Hardtanh(0, 6)`` is ``"relu6"``. ``kind``: the module's class before
    ``convert`` gave it another one.
    """
    if module is None:
        return "none"
    kind = kind or type(module)
    if kind is nn.Hardtanh:
        return "relu6" if (module.min_val, module.max_val) == (0, 6) else None
    return {
        nn.Identity: "none",
        nn.ReLU: "relu",
        nn.ReLU6: "relu6",
        nn.Hardswish: "hardswish",
        nn.SiLU: "silu",
    }.get(kind)


def gate_of(module: nn.Module) -> str | None:
    """Return which of ``GATES`` ``module`` computes, or None. Only exact types count."""
    return {nn.Hardsigmoid: "hardsigmoid", nn.Sigmoid: "sigmoid"}.get(type(module))
