"""``fastdw_triton::planned_network``: a program on Triton's kernels, one CUDA graph a shape.

The weights are those of the layout for CUDA. A graph has an image, values and outputs of its own:
a call copies the image in and the outputs out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdw.ops import checks, triton_backend
from fastdw.ops.program import CPU, Program, Step, parse_program

MOST_GRAPHS = 16
"""How many are kept; each holds its values, and its network's weights."""


def run(x: Tensor, packed: Tensor, program: str) -> list[Tensor]:
    """Run the network; see ``fastdw.plan.PlannedNetwork``."""
    checks.check_packed_input(x, packed)
    parsed = parse_program(program)
    if parsed.target == CPU:
        raise ValueError("program: expected one with target=cuda_<dtype>, got one for the CPU")
    if x.shape[1] != parsed.channels:
        raise ValueError(f"x: expected {parsed.channels} channels, got {list(x.shape)}")
    refusal = parsed.gpu_refusal or triton_backend.reason(x.device.type, x.device.index)
    if refusal is not None:
        raise RuntimeError(f"fastdw_triton::planned_network: {refusal}")
    with torch.no_grad():
        image = x.to(parsed.cuda_dtype)
        if not x.is_cuda or x.numel() == 0 or torch.cuda.is_current_stream_capturing():
            outputs = _steps(image, packed, parsed)
        else:
            with torch.cuda.device(x.device):
                outputs = _graph_of(image, packed, program).replay(image)
        return [output.to(x.dtype) for output in outputs]


@dataclass
class _Graph:
    """A captured network on one stream."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    packed: Tensor  # kept alive
    outputs: list[Tensor]

    def replay(self, x: Tensor) -> list[Tensor]:
        self.x.copy_(x)
        self.graph.replay()
        return [output.clone() for output in self.outputs]


_graphs: OrderedDict[tuple[Any, ...], _Graph] = OrderedDict()
_lock = threading.Lock()


def _graph_of(x: Tensor, packed: Tensor, program: str) -> _Graph:
    """The graph for this network, shape and stream: from the cache, or captured now."""
    stream = torch.cuda.current_stream().cuda_stream
    key = (program, packed.data_ptr(), x.shape, x.dtype, x.device, stream, triton_backend.tf32())
    with _lock:
        found = _graphs.pop(key, None)
        if found is None:
            found = _capture(x, packed, parse_program(program))
        _graphs[key] = found
        while len(_graphs) > MOST_GRAPHS:
            _graphs.popitem(last=False)
    return found


def _capture(x: Tensor, packed: Tensor, program: Program) -> _Graph:
    image = torch.empty_like(x, memory_format=torch.preserve_format).copy_(x)
    _steps(image, packed, program)  # compiles the kernels, which a capture cannot
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = _steps(image, packed, program)
    return _Graph(graph, image, packed, outputs)


def _steps(x: Tensor, packed: Tensor, program: Program) -> list[Tensor]:
    """Run the steps one after another; a value is let go after its last use."""
    values = {"x": x}
    shapes = program.value_shapes(x.shape[0], x.shape[2], x.shape[3])
    needed = [{step.input, step.residual} for step in program.steps]
    for number, step in enumerate(program.steps):
        values[step.output] = _step(step, values, packed, shapes[step.output])
        later = set(program.outputs).union(*needed[number + 1 :])
        values = {name: value for name, value in values.items() if name in later}
    return [values[name] for name in program.outputs]


def _step(step: Step, values: dict[str, Tensor], packed: Tensor, shape: Any) -> Tensor:
    x = values[step.input]
    if step.op == "global_pool":
        return x.float().mean((2, 3)).to(x.dtype)
    if x.dim() == 2:  # pooled before
        x = x[:, :, None, None]
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    tensors = _tensors(step, packed, x.dtype)
    return triton_backend.run(step.op, y, x, *tensors, *_settings(step, values))


def _tensors(step: Step, packed: Tensor, dtype: torch.dtype) -> Iterator[Tensor | None]:
    """Yield the tensors of the step's op; the scale is in the weight."""
    if step.op == "inverted_residual" and not step.expand:
        yield from (None, None, None)
    for weight, bias in step.cuda_weights(packed, dtype):
        yield weight
        if step.op != "classifier_head":
            yield None
        yield bias


def _settings(step: Step, values: dict[str, Tensor]) -> tuple[Any, ...]:
    """The arguments of the step's op after its tensors."""
    window = (list(step.stride), list(step.padding), list(step.dilation))
    if step.op == "classifier_head":
        return ()
    if step.op == "pointwise_conv":
        return (values.get(step.residual), step.activation)
    if step.op == "stem_conv":
        return (*window[:2], step.activation)
    if step.op == "depthwise_conv":
        return (*window, step.activation)
    if step.op == "separable_block":
        return (*window, step.depthwise_activation, step.pointwise_activation)
    activations = (step.expand_activation, step.depthwise_activation, step.project_activation)
    return (*window, step.residual == "1", *activations)
