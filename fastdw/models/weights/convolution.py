"""One trained convolution in torch's layout, whatever format it came from, and where it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdw.activation import name_of
from fastdw.geometry import Padding, resolve_padding
from fastdw.nn import ConvBNAct


@dataclass(frozen=True)
class Convolution:
    """``y = activation(conv(x) + bias)``: a convolution whose batch norm is folded into it.

    Attributes:
        name: what the file calls it.
        weight: fp32 ``[out, in / groups, kernel_h, kernel_w]``; a linear layer's has a 1x1 kernel.
        bias: fp32 ``[out]``.
        stride, dilation: (vertical, horizontal).
        padding: ``"same"`` (TensorFlow's), or (left, right, top, bottom).
        groups: as in ``nn.Conv2d``.
        activation: ``"none"``, ``"relu"``, ``"relu6"``, or another one as the file names it.
        input_size: (height, width) of what it is run on, where the file says it.
        read_by: the kinds of the operators that read the result, in the file's words.
    """

    name: str
    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: Padding = "same"
    groups: int = 1
    activation: str = "none"
    input_size: tuple[int, int] | None = None
    read_by: tuple[str, ...] = ()


def identity_batch_norm(bias: Tensor, eps: float) -> dict[str, Tensor]:
    """Return the ``state_dict`` of a batch norm that only adds ``bias``, for folded weights.

    Its variance is ``1 - eps``, so that ``1 / sqrt(variance + eps)`` is 1.
    """
    return {
        "weight": torch.ones_like(bias),
        "bias": bias.clone(),
        "running_mean": torch.zeros_like(bias),
        "running_var": torch.full_like(bias, 1 - eps),
    }


def layers_in_order(model: nn.Module) -> list[str]:
    """Return the names of a model's convolutions and linear layers in the order in which they run.

    That is what ``model.graph_layers()`` says, or else the order in which they were added. A
    ``ConvBNAct`` counts as one layer.
    """
    told: Callable[[], list[str]] | None = getattr(model, "graph_layers", None)
    return added_layers(model) if told is None else told()


def added_layers(model: nn.Module, prefix: str = "") -> list[str]:
    """Return the names of the layers below ``prefix`` in the order in which they were added."""
    return [
        name
        for name, module in model.get_submodule(prefix).named_modules(prefix=prefix)
        if isinstance(module, (ConvBNAct, nn.Linear))
        or (isinstance(module, nn.Conv2d) and not _is_inside(model, name))
    ]


def _is_inside(model: nn.Module, name: str) -> bool:
    """Say whether this convolution is the one of a ``ConvBNAct``."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), ConvBNAct)


def folded_state(
    model: nn.Module, names: Sequence[str], convolutions: Sequence[Convolution]
) -> dict[str, Tensor]:
    """Return the ``state_dict`` entries that give ``model`` these convolutions.

    Args:
        model: holds the modules.
        names: for each convolution the qualified name of its ``ConvBNAct``, ``nn.Conv2d`` or
            ``nn.Linear``.
        convolutions: in the same order.

    Raises:
        ValueError: another number of them, or one of another shape, stride, dilation, padding,
            activation or number of groups.
    """
    if len(names) != len(convolutions):
        raise ValueError(
            f"source: expected {len(names)} convolutions, got {len(convolutions)}: "
            "the weights of another architecture"
        )
    state: dict[str, Tensor] = {}
    for name, found in zip(names, convolutions, strict=True):
        module = model.get_submodule(name)
        layer = module.conv if isinstance(module, ConvBNAct) else module
        if isinstance(layer, nn.Linear):
            found_weight = found.weight.flatten(1)
        else:
            assert isinstance(layer, nn.Conv2d)
            found_weight = found.weight
            _check_geometry(name, module, layer, found)
        if found_weight.shape != layer.weight.shape:
            raise ValueError(
                f"source: {name}: expected {list(layer.weight.shape)}, "
                f"got {list(found_weight.shape)} ({found.name})"
            )
        activation = name_of(module.act) if isinstance(module, ConvBNAct) else "none"
        if activation != found.activation:
            raise ValueError(
                f"source: {name}: expected the activation {activation}, got {found.activation} "
                f"({found.name})"
            )
        if isinstance(module, ConvBNAct):
            state[f"{name}.conv.weight"] = found_weight
            for key, tensor in identity_batch_norm(found.bias, module.bn.eps).items():
                state[f"{name}.bn.{key}"] = tensor
        else:
            state[f"{name}.weight"], state[f"{name}.bias"] = found_weight, found.bias
    return state


def _check_geometry(name: str, module: nn.Module, layer: nn.Conv2d, found: Convolution) -> None:
    """Raise ValueError unless ``layer`` looks at the pixels that the file's convolution does."""
    geometry = (layer.stride, layer.dilation, layer.groups)
    if geometry != (found.stride, found.dilation, found.groups):
        raise ValueError(
            f"source: {name}: expected stride, dilation and groups {geometry}, got "
            f"{(found.stride, found.dilation, found.groups)} ({found.name})"
        )
    if found.input_size is None:
        return
    window = (found.weight.shape[2:], found.stride, found.dilation, found.input_size)
    own = module.padding if isinstance(module, ConvBNAct) and module.padding else layer.padding
    expected, got = (resolve_padding(sides, *window) for sides in (own, found.padding))
    if expected != got:
        raise ValueError(
            f"source: {name}: expected padding {expected} (left, right, top, bottom) at "
            f"{found.input_size}, got {got} ({found.name})"
        )
