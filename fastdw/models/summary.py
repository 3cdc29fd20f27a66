"""What a model costs, per layer and in total: parameters, mult-adds, activations, bytes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

COUNTED = (nn.Conv2d, nn.Linear)
"""The layers whose mult-adds and activations are counted; all others have parameters at most."""


@dataclass(frozen=True)
class LayerSummary:
    """One layer for one image.

    Attributes:
        name, kind: qualified name and class.
        input_shape, output_shape: without the batch.
        parameters: trainable numbers (running statistics are not).
        multiply_adds: products and sums of a convolution or linear layer, biases left out.
        activations: elements of the output of a convolution or linear layer.
        parameter_bytes, activation_bytes: the same in the dtype of weight and output.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activations: int
    parameter_bytes: int
    activation_bytes: int

    @property
    def bytes(self) -> int:
        return self.parameter_bytes + self.activation_bytes


@dataclass(frozen=True)
class ModelSummary:
    """The layers of a model in the order in which they run, and what they cost together."""

    resolution: tuple[int, int]
    layers: tuple[LayerSummary, ...]
    parameters: int
    parameter_bytes: int

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def activations(self) -> int:
        return sum(layer.activations for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        return sum(layer.activation_bytes for layer in self.layers)

    @property
    def bytes(self) -> int:
        return self.parameter_bytes + self.activation_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return layers and totals as plain data."""
        totals = ("parameters", "multiply_adds", "activations", "bytes")
        return {
            "resolution": list(self.resolution),
            "layers": [{**asdict(layer), "bytes": layer.bytes} for layer in self.layers],
            "totals": {name: getattr(self, name) for name in totals},
        }


def summarize(
    model: nn.Module, resolution: int | tuple[int, int] = 224, channels: int = 3
) -> ModelSummary:
    """Count what ``model`` costs for one image of ``resolution`` in eval mode.

    Nothing is computed: the forward runs on fake tensors. The model is left as it was. Counted are
    the calls of ``nn.Conv2d`` and ``nn.Linear``; products that a forward writes out itself
    (attention) are not.

    Args:
        model: any module that takes one image batch.
        resolution: input height and width, one int for a square.
        channels: of the input.

    Raises:
        ValueError: ``resolution`` or ``channels`` is below 1.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if min(height, width, channels) < 1:
        raise ValueError(
            f"resolution: expected sizes of at least 1, got {channels} x {height} x {width}"
        )
    layers: list[LayerSummary] = []
    names = {module: name for name, module in model.named_modules()}
    seen: set[nn.Parameter] = set()

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            layers.append(_layer(names[module], module, inputs[0], output, seen))

    leaves = [module for module in names if not any(True for _ in module.children())]
    parameters = list(model.parameters())
    dtype = parameters[0].dtype if parameters else torch.float32
    handles = [leaf.register_forward_hook(record) for leaf in leaves]
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, log.disabled = log.disabled, True  # it prints a traceback; ours is one sentence
    try:
        with _in_eval_mode(model), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            device = parameters[0].device if parameters else torch.device("cpu")
            model(torch.empty(1, channels, height, width, dtype=dtype, device=device))
    finally:
        log.disabled = was_disabled
        for handle in handles:
            handle.remove()
    return ModelSummary(
        (height, width),
        tuple(layers),
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.nbytes for parameter in parameters),
    )


def _layer(
    name: str, module: nn.Module, x: Tensor, y: Tensor, seen: set[nn.Parameter]
) -> LayerSummary:
    own = [p for p in module.parameters(recurse=False) if p not in seen]
    seen.update(own)
    counted = isinstance(module, COUNTED)
    terms = math.prod(module.weight.shape[1:]) if isinstance(module, COUNTED) else 0
    return LayerSummary(
        name,
        type(module).__name__,
        tuple(x.shape[1:]),
        tuple(y.shape[1:]),
        sum(p.numel() for p in own),
        y.numel() * terms,
        y.numel() if counted else 0,
        sum(p.nbytes for p in own),
        y.nbytes if counted else 0,
    )


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
