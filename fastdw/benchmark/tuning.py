"""`fastdw tune`: measures tiles of the Triton kernels on this machine's GPU."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastdw.ops
from fastdw.benchmark import triton_launches
from fastdw.benchmark.cases import OpCase
from fastdw.benchmark.gpu.device import Device
from fastdw.benchmark.gpu.launches import SLOTS, Run
from fastdw.benchmark.gpu.settings import DTYPES, products_in
from fastdw.benchmark.gpu.truths import device_truth
from fastdw.benchmark.network_cases import network_cases
from fastdw.benchmark.verify import error_over_budget
from fastdw.ops import depthwise_conv_train, triton_backend
from fastdw.ops.registration import OPS
from fastdw.triton_kernels import tiles, tuning
from fastdw.triton_kernels.tiles import Key, Tile

LAYERS_OF_A_CLASS = 3
SLOT_SECONDS = 0.01
ROUNDS = 3
GRADIENTS = triton_launches.GRADIENTS


@dataclass(frozen=True)
class Tuned:
    """What was found for one shape class: milliseconds are sums over its layers."""

    op: str
    shape_class: str
    layers: int
    shipped: Tile
    shipped_ms: float
    tile: Tile
    tile_ms: float


@dataclass(frozen=True)
class Layer:
    """One call that chooses the tile of a key."""

    op: str  # or the name of a gradient
    case: OpCase
    precision: str


def layers_by_key(
    ops: Sequence[str], precisions: Sequence[str], batches: Sequence[int], target: Any
) -> dict[Key, list[Layer]]:
    """The layers of MobileNet V1 and V2 under the keys whose tiles they run with."""
    found: dict[Key, list[Layer]] = {}
    for precision in precisions:
        with products_in(precision):
            for op in ops:
                forward = "depthwise_conv" if op in GRADIENTS else op
                for batch in batches:
                    for case in network_cases(forward, batch):
                        for key in _keys(op, case, DTYPES[precision], target):
                            found.setdefault(key, []).append(Layer(op, case, precision))
    return found


def _keys(op: str, case: OpCase, dtype: torch.dtype, target: Any) -> list[Key]:
    with tiles.recorded() as chosen:
        if op in GRADIENTS:
            triton_launches.gradient_launches(case, dtype, target)
        else:
            triton_launches.launches(case, dtype, target)
    return [key for key in chosen if op not in GRADIENTS or key[0] == op]


def tune(
    device: Device,
    ops: Sequence[str] = (*OPS, *GRADIENTS),
    precisions: Sequence[str] = ("fp16", "tf32"),
    batches: Sequence[int] = (1, 32),
    most_tiles: int = 40,
    on_key: Callable[[Key, int, int], object] = lambda key, number, count: None,
) -> Iterator[Tuned]:
    """Search tiles for every shape class that MobileNets use; yield them as they are found.

    Args:
        device: the GPU (or, with Triton's interpreter, the CPU: the times then mean nothing).
        ops: names of ops and of the gradients of ``depthwise_conv``.
        precisions: fp16, bf16, tf32, fp32.
        batches: images a call.
        most_tiles: that are tried for a class.
        on_key: told each class, its number and how many there are.
    """
    target = triton_backend.target_of(device.torch_device)
    keys = layers_by_key(ops, precisions, batches, target)
    for number, (key, layers) in enumerate(keys.items()):
        on_key(key, number, len(keys))
        rivals = [Rival(layer, device) for layer in _spread(layers)]
        measure = partial(time_of, key, rivals)
        shipped = tiles.choose(*key, target.arch)
        if measure(shipped) is None:
            continue
        tile, _ = tuning.search(shipped, measure, most=most_tiles)
        shipped_ms, tile_ms = _in_turns(shipped, tile, measure)
        if tile_ms >= shipped_ms:
            tile, tile_ms = shipped, shipped_ms
        op, shape_class = key
        yield Tuned(op, shape_class, len(rivals), shipped, shipped_ms, tile, tile_ms)


def _in_turns(
    shipped: Tile, tile: Tile, measure: Callable[[Tile], float | None]
) -> tuple[float, float]:
    """Medians of both, measured by turns: the search took the luckiest of many."""
    times = [[measure(t) or math.inf for t in (shipped, tile)] for _ in range(ROUNDS)]
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return first, second


def _spread(layers: Sequence[Layer]) -> list[Layer]:
    """The first, the last and those between them in equal steps."""
    count = min(len(layers), LAYERS_OF_A_CLASS)
    steps = max(count - 1, 1)
    return [layers[round(i * (len(layers) - 1) / steps)] for i in range(count)]


def time_of(key: Key, rivals: Sequence[Rival], tile: Tile) -> float | None:
    """Milliseconds of all layers with a tile; None where one does not run or is wrong."""
    total = 0.0
    with tiles.forced({key: tile}):
        for rival in rivals:
            try:
                time_ms = rival.time()
            except Exception:  # whatever the compiler or the driver says of this tile
                return None
            total += time_ms
    return total if math.isfinite(total) else None


class Rival:
    """One layer on the device; its output is checked before it is timed."""

    def __init__(self, layer: Layer, device: Device) -> None:
        self._layer, self._device = layer, device
        truth = device_truth(layer.case, layer.precision, device.torch_device)
        self._x, tensors = truth.tensors.x, truth.tensors
        if layer.op not in GRADIENTS:
            op = getattr(fastdw.ops, layer.op)
            self._run: Run = lambda x: layer.case.call(
                op, type(tensors)(x, tensors.convs, tensors.residual), backend="triton"
            )
            truths = truth.of_images(torch.arange(len(self._x), device=device.torch_device))
            self._is_right = lambda y: error_over_budget(y, truths) <= 1
            return
        [conv] = tensors.convs
        assert conv is not None
        self._run, expected = _gradient(layer, truth.result.to(self._x.dtype), self._x, conv[0])
        scale = expected.abs().max().item()
        eps = torch.finfo(self._x.dtype).eps
        self._is_right = lambda y: (y - expected).abs().max().item() <= 8 * eps * scale

    def time(self) -> float:
        with torch.no_grad(), products_in(self._layer.precision):
            if not self._is_right(self._run(self._x)):
                return math.inf
            slot = SLOTS[self._device.throughput_ways[0]]
            return slot(self._run, [self._x, self._x.clone()], self._device, SLOT_SECONDS)()


def _gradient(layer: Layer, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Run, Tensor]:
    """The call of a gradient, and what it must give."""
    stride, sides = layer.case.options["stride"], layer.case.options["padding"]
    geometry = ([stride, stride], [sides] * 4, [1, 1])
    by_input, by_weight, _ = torch.ops.aten.convolution_backward(
        *(tensor.double() for tensor in (grad, x, weight)),
        None,
        *([stride, stride], [sides, sides], [1, 1], False, [0, 0], x.shape[1]),
        [True, True, False],
    )
    if layer.op == "depthwise_conv_input_grad":
        return (
            lambda x: depthwise_conv_train.input_grad(grad, weight, x.shape[1:], geometry),
            by_input,
        )
    return lambda x: depthwise_conv_train.weight_grad(grad, x, weight.shape, geometry), by_weight
