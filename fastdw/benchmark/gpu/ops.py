"""Single ops and blocks against cuDNN and eager modules, with achieved bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

import fastdw.ops
from fastdw.benchmark.cases import OpCase
from fastdw.benchmark.gpu.bench import Bench, Item
from fastdw.benchmark.gpu.contenders import Contender, Race, largest_difference, rotate
from fastdw.benchmark.gpu.device import Device
from fastdw.benchmark.gpu.launches import SLOTS, Run
from fastdw.benchmark.gpu.layers import TorchLayers
from fastdw.benchmark.gpu.settings import network_tolerance, products_in
from fastdw.benchmark.gpu.truths import DeviceTruth, backends_on, device_truth
from fastdw.benchmark.network_cases import network_cases
from fastdw.benchmark.timing import interleave
from fastdw.benchmark.verify import error_over_budget

# Whole blocks first: they are what fastdw is for.
OPS = (
    *("inverted_residual", "separable_block", "depthwise_conv", "pointwise_conv"),
    *("stem_conv", "classifier_head"),
)
COPY_BYTES = 2**30
DISTINCT = 2  # images that a batch is put together of


def items(bench: Bench) -> Iterator[Item]:
    sizes = bench.sizes
    for precision in sizes.precisions:
        for batch in sizes.op_batches:
            for op in OPS:
                cases = network_cases(op, DISTINCT)
                for case in cases if sizes.cases is None else cases[-sizes.cases :]:
                    key = f"{op} {case.label} {precision} batch {batch}"
                    yield Item(key, partial(race, bench, case, precision, batch))


def race(
    bench: Bench,
    case: OpCase,
    precision: str,
    batch: int,
    table: str = "ops",
    change: Callable[[list[Contender]], list[Contender]] = list,
) -> None:
    """Check and time one layer of MobileNet V1 or V2.

    Args:
        bench: of the section.
        case: the layer, with as many images as are distinct.
        precision: of the tensors.
        batch: images a call.
        table: where the rows go.
        change: makes other contenders of the usual ones.
    """
    with products_in(precision):
        truth = device_truth(case, precision, bench.device.torch_device)
        images = truth.tensors.x
        ideal = ideal_bytes(truth, batch)
        batch_bytes = images[0].numel() * images.element_size() * batch
        batches = rotate(batch, DISTINCT, batch_bytes, bench.device)
        copy_rate = copy_bandwidth(bench.device, bench.settings.quick, bench.sizes.rounds)

        def check(contender: Contender, output: Any, number: int) -> tuple[float, float]:
            expected = truth.of_images(batches.indices[number])
            if contender.is_fused:
                return error_over_budget(output, expected), 1.0
            return largest_difference(output, expected.result), network_tolerance(precision)

        def derive(time_ms: float) -> dict[str, Any]:
            rate = 1e-6 * ideal / time_ms
            return {"gb_per_s": rate, "share_of_copy": rate / copy_rate}

        about = {"op": case.op, "case": case.label, "batch": batch, "precision": precision}
        about |= {"ideal_bytes": ideal, "copy_gb_per_s": copy_rate}
        ways = bench.device.throughput_ways[:1]
        contenders = change(contenders_of(case, truth, bench.device.kind))
        Race(bench, table, about, check, derive).run(contenders, images, batches, ways)


def contenders_of(case: OpCase, truth: DeviceTruth, kind: str) -> list[Contender]:
    """fastdw's backends, cuDNN with batch norm folded in two layouts, the layers as written."""

    def fused(backend: str) -> Run:
        function = getattr(fastdw.ops, case.op)
        return lambda x: case.call(function, replace(truth.tensors, x=x), backend=backend)

    def layers(folded: bool, layout: torch.memory_format) -> Run:
        return TorchLayers(case, truth.tensors, folded).to(memory_format=layout)

    last, planar = torch.channels_last, torch.contiguous_format
    return [
        *(
            Contender(f"fastdw-{backend}", partial(fused, backend), is_fused=True)
            for backend in backends_on(case.op, kind)
        ),
        Contender("torch-folded-channels-last", partial(layers, True, last)),
        Contender("torch-folded-nchw", partial(layers, True, planar), layout=planar),
        Contender("torch-modules", partial(layers, False, last)),
    ]


def ideal_bytes(truth: DeviceTruth, batch: int) -> int:
    """Input, output and weights once each: what any way to do it has to move."""
    x, y = truth.tensors.x, truth.result
    weights = [tensor for conv in truth.tensors.convs if conv for tensor in conv[:3]]
    per_image = (x[0].numel() + y[0].numel()) * x.element_size()
    return batch * per_image + sum(t.numel() * t.element_size() for t in weights if t is not None)


@lru_cache(maxsize=1)
def copy_bandwidth(device: Device, quick: bool, rounds: int) -> float:
    """GB/s of a device copy, read and write counted: what any kernel can hope for."""
    size_bytes = 2**22 if quick else min(COPY_BYTES, device.free_bytes() // 8)
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)

    def copy(x: Tensor) -> Tensor:
        return target.copy_(x)

    way = device.throughput_ways[-1]
    slot = SLOTS[way](copy, [source, source], device, 0.0 if quick else 0.02)
    timing = interleave({"copy": slot}, rounds)["copy"]
    return 2e-6 * size_bytes / timing.median_ms
