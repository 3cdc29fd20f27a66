"""A training step, forward and backward: MobileNet V2 converted by fastdw against eager torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastdw.benchmark.gpu.bench import Bench, Item
from fastdw.benchmark.gpu.contenders import Batches, Contender, Race
from fastdw.benchmark.gpu.launches import Run
from fastdw.benchmark.gpu.networks import calibrated, converted, eager
from fastdw.benchmark.gpu.settings import DTYPES, Network, products_in
from fastdw.benchmark.providers.plain_torch import plain


def items(bench: Bench) -> Iterator[Item]:
    sizes = bench.sizes
    network, batch = sizes.networks[0], sizes.training_batch
    for precision in sizes.training_precisions:
        key = f"{network.label} {precision} batch {batch}"
        yield Item(key, partial(race, bench, network, precision, batch))


def race(bench: Bench, network: Network, precision: str, batch: int) -> None:
    """Time one step; its gradients may be twice as far from float64 as stock torch's.

    fp16 and bf16 mean autocast; the parameters are fp32.
    """
    device = bench.device
    with products_in(precision), torch.enable_grad():
        model = without_dropout(calibrated(network)).to(device.torch_device).train()
        generator = torch.Generator().manual_seed(1)
        size = network.resolution
        images = torch.randn((batch, 3, size, size), generator=generator).to(device.torch_device)
        same = torch.arange(batch, device=device.torch_device)
        batches = Batches([same, same], "warm")  # one truth serves both
        exact = _gradients(step(plain(model).double(), "fp32")(images.double()))
        by_torch = _distance(step(eager(model), precision)(images), exact)
        device.release_memory()

        def check(contender: Contender, output: Any, number: int) -> tuple[float, float]:
            return _distance(output, exact), 2 * by_torch + 1e-4

        builders: dict[str, Callable[[nn.Module], nn.Module]] = {
            "fastdw-modules": converted,
            "torch-eager": eager,
        }
        contenders = [
            Contender(name, partial(_build, build, model, precision))
            for name, build in builders.items()
        ]
        about = {"network": network.label, "batch": batch, "precision": precision}
        ways = ("queue",) if "queue" in device.throughput_ways else device.throughput_ways
        Race(
            bench, "training", about, check, lambda ms: {"images_per_second": 1e3 * batch / ms}
        ).run(contenders, images, batches, ways)


def step(model: nn.Module, precision: str) -> Run:
    """What one call does; gives the gradients of all parameters."""
    parameters = list(model.parameters())
    autocast = partial(_autocast, next(model.parameters()).device.type, precision)

    def run(x: Tensor) -> list[Tensor | None]:
        for parameter in parameters:
            parameter.grad = None
        with torch.enable_grad():
            with autocast():
                y = model(x)
            y.to(parameters[0].dtype).square().mean().backward()
        return [parameter.grad for parameter in parameters]

    return run


def without_dropout(model: nn.Module) -> nn.Module:
    """A copy whose step is the same each time."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _build(build: Callable[[nn.Module], nn.Module], model: nn.Module, precision: str) -> Run:
    return step(build(model), precision)


def _autocast(device: str, precision: str) -> AbstractContextManager[object]:
    dtype = DTYPES[precision]
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def _gradients(gradients: list[Tensor | None]) -> Tensor:
    return torch.cat([torch.zeros(0) if g is None else g.double().flatten() for g in gradients])


def _distance(gradients: list[Tensor | None], exact: Tensor) -> float:
    """Of all gradients as one vector, relative."""
    if any(gradient is None for gradient in gradients):
        return math.inf
    error = (_gradients(gradients) - exact).norm() / exact.norm()
    return error.nan_to_num(nan=math.inf).item()
