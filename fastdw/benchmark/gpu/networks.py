"""Whole networks: fastdw planned and converted against torch eager, at small and large batches."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import fastdw
from fastdw.benchmark.gpu.bench import Bench, Item
from fastdw.benchmark.gpu.contenders import Contender, Race, largest_difference, rotate
from fastdw.benchmark.gpu.device import Device
from fastdw.benchmark.gpu.launches import Run
from fastdw.benchmark.gpu.settings import DTYPES, Network, network_tolerance, products_in
from fastdw.benchmark.models import calibrate_batch_norm, float64_output
from fastdw.benchmark.providers.plain_torch import plain
from fastdw.convert import convert
from fastdw.ops import triton_backend

FASTDW = ("fastdw-planned", "fastdw-modules")
TRITON = "fastdw-triton"


@dataclass(frozen=True)
class Trial:
    """A network in one precision on the device, with images and what it must make of them.

    Attributes:
        by_torch: how far eager torch is from the truth, relative to its largest value.
        allowed: how far anybody may be: rounding alone makes a narrow network's fp16 differ.
    """

    model: nn.Module
    images: Tensor
    truth: Tensor
    by_torch: float
    allowed: float


@lru_cache(maxsize=1)
def trial_of(network: Network, precision: str, device: Device, images: int) -> Trial:
    """The truth is that of the rounded weights and images, in float64 on the CPU."""
    dtype, where = DTYPES[precision], device.torch_device
    model = copy.deepcopy(calibrated(network)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    size = network.resolution
    x = torch.randn((images, 3, size, size), generator=generator).to(dtype)
    truth = torch.from_numpy(float64_output(model, x)).to(where)
    model, x = model.to(where), x.to(where)
    by_torch = largest_difference(eager(model)(x), truth)
    allowed = max(network_tolerance(precision), 1.5 * by_torch)
    return Trial(model, x, truth, by_torch, allowed)


@lru_cache(maxsize=8)
def calibrated(network: Network) -> nn.Module:
    """The network with random weights, and statistics that keep the signal at size one."""
    torch.manual_seed(0)
    model = fastdw.models.create(network.model, **network.options)
    calibrate_batch_norm(model, network.resolution)
    return model


def planned(trial: Trial) -> Run:
    # The benchmark compares by itself: optimize is not to fall back to torch where it differs.
    fast = fastdw.optimize(trial.model, trial.images[:1], tolerance=math.inf)
    report: Any = fast.report
    if not report.planned:
        raise RuntimeError(f"not planned: {report.plan_reason}")
    return fast


def on_triton(trial: Trial) -> Run:
    """Blocks on Triton's kernels between torch's own layers."""
    return fastdw.optimize(trial.model, trial.images[:1], backend="triton", tolerance=math.inf)


def converted(model: nn.Module) -> nn.Module:
    """A copy with fastdw's modules."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a network of fastdw.models is fused already
        convert(model)
    return model


def eager(model: nn.Module) -> nn.Module:
    """A copy that runs no op of fastdw."""
    return plain(model).to(memory_format=torch.channels_last)


def folded(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """A copy that runs no op of fastdw, every batch norm folded into its convolution."""
    model = fuse(plain(model))
    left = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if left:
        raise RuntimeError(f"torch.fx left {left} batch norms unfolded")
    return model.to(memory_format=layout)


BUILDERS: dict[str, Callable[[Trial], Run]] = {
    "fastdw-planned": planned,
    "fastdw-modules": lambda trial: converted(trial.model),
    TRITON: on_triton,
    "torch-eager": lambda trial: eager(trial.model),
    "torch-folded-channels-last": lambda trial: folded(trial.model, torch.channels_last),
    "torch-folded-nchw": lambda trial: folded(trial.model, torch.contiguous_format),
}
# A planned network reads images as they come; torch wants them channels_last.
LAYOUTS = {
    "fastdw-planned": torch.contiguous_format,
    TRITON: torch.contiguous_format,
    "torch-folded-nchw": torch.contiguous_format,
}


def fastdw_builders(device: Device) -> dict[str, Callable[[Trial], Run]]:
    """fastdw's ways to run a network on a device."""
    has_triton = triton_backend.reason(device.kind) is None
    return {name: BUILDERS[name] for name in (*FASTDW, *(TRITON,) * has_triton)}


def items(bench: Bench) -> Iterator[Item]:
    sizes = bench.sizes
    others = {name: build for name, build in BUILDERS.items() if name.startswith("torch")}
    builders = {**fastdw_builders(bench.device), **others}
    for precision in sizes.precisions:
        for network in sizes.networks:
            for batch in sizes.batches:
                key = f"{network.label} {precision} batch {batch}"
                yield Item(key, partial(race, bench, network, precision, batch, builders))


def race(
    bench: Bench,
    network: Network,
    precision: str,
    batch: int,
    builders: dict[str, Callable[[Trial], Run]],
    table: str = "networks",
) -> None:
    """Check and time the builders' networks on the same images; their names begin as a layout's."""
    with products_in(precision):
        trial = trial_of(network, precision, bench.device, bench.sizes.distinct)
        batches = rotate(batch, len(trial.images), _batch_bytes(trial, batch), bench.device)
        contenders = [
            Contender(name, partial(build, trial), layout=layout_of(name))
            for name, build in builders.items()
        ]

        def check(contender: Contender, output: Any, number: int) -> tuple[float, float]:
            truth = trial.truth[batches.indices[number]]
            return largest_difference(output, truth), trial.allowed

        about = {"network": network.label, "batch": batch, "precision": precision}
        Race(bench, table, about, check, lambda ms: {"images_per_second": 1e3 * batch / ms}).run(
            contenders, trial.images, batches, ways(bench.device, batch)
        )


def layout_of(name: str) -> torch.memory_format:
    return LAYOUTS.get(name.partition(" ")[0], torch.channels_last)


def ways(device: Device, batch: int) -> Sequence[str]:
    return device.latency_ways if batch == 1 else device.throughput_ways


def _batch_bytes(trial: Trial, batch: int) -> int:
    return trial.images[0].numel() * trial.images.element_size() * batch
