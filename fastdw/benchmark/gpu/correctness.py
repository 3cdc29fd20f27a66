"""Every op on the device against the float64 reference; then whole networks against stock torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastdw.ops
from fastdw.benchmark.cases import OP_CASES, OpCase, dense, depthwise
from fastdw.benchmark.gpu import networks
from fastdw.benchmark.gpu.bench import Bench, Item
from fastdw.benchmark.gpu.contenders import largest_difference
from fastdw.benchmark.gpu.launches import Run, capture, warm_up
from fastdw.benchmark.gpu.settings import Network, products_in
from fastdw.benchmark.gpu.truths import absences, backends_on, device_truth
from fastdw.benchmark.network_cases import network_cases
from fastdw.benchmark.verify import error_over_budget

# Grids have at most 65,535 blocks in y and z; elements are counted in 32 bits by mistake.
MANY_IMAGES = 70_000
MANY_ELEMENTS = 2**31 + 2**20


def items(bench: Bench) -> Iterator[Item]:
    """The ops in the dtypes, most used first; networks; then sizes that only a large memory has."""
    kind = bench.device.kind
    precisions = ("fp16", "fp32", "bf16") + (("tf32",) if kind == "cuda" else ())
    for precision in precisions:
        for op in OP_CASES:
            backends = backends_on(op, kind)
            if not backends:
                yield Item(f"{op} {precision}", partial(_tell_absence, bench, op, precision))
            for backend in backends:
                for case in _cases(bench, op, every=1 if precision == precisions[0] else 3):
                    key = f"{op} {backend} {precision} {case.label} batch {case.x[0]}"
                    yield Item(key, partial(check_op, bench, case, backend, precision))
        if precision == precisions[0]:
            yield from _network_items(bench, bench.sizes.precisions)
    yield from _large_items(bench)


def _cases(bench: Bench, op: str, every: int) -> list[OpCase]:
    """Awkward shapes, and every so manieth layer of MobileNet V1 and V2."""
    most = bench.sizes.cases
    layers = [] if bench.settings.quick else network_cases(op)[::every]
    return OP_CASES[op][:most] + layers


def _tell_absence(bench: Bench, op: str, precision: str) -> None:
    reason = absences(op, bench.device.kind)
    bench.record("correctness", subject=op, precision=precision, status="skipped", reason=reason)


def check_op(bench: Bench, case: OpCase, backend: str, precision: str) -> None:
    """One call: right within the budget, and the same bits again."""
    about = {"subject": case.op, "case": case.label, "backend": backend, "precision": precision}

    def failed(status: str, reason: str) -> None:
        bench.record("correctness", **about, status=status, reason=reason)

    def compare() -> tuple[float, bool]:
        with products_in(precision):
            return _compare(case, backend, precision, bench.device.torch_device)

    done = bench.attempt(f"{case.op} {backend}", compare, failed)
    if done is not None:
        _record_verdict(bench, about, *done, allowed=1.0)


def _compare(
    case: OpCase, backend: str, precision: str, device: torch.device
) -> tuple[float, bool]:
    function = getattr(fastdw.ops, case.op)
    truth = device_truth(case, precision, device)
    everything = truth.of_images(torch.arange(case.x[0], device=device))
    outputs = [case.call(function, truth.tensors, backend=backend) for _ in range(2)]
    # An image laid out as NCHW goes through other code, and must give the same.
    images = replace(truth.tensors, x=truth.tensors.x.contiguous())
    planar = case.call(function, images, backend=backend)
    error = max(error_over_budget(output, everything) for output in (outputs[0], planar))
    return error, torch.equal(*outputs)


def _record_verdict(
    bench: Bench, about: dict[str, Any], error: float, repeats: bool, allowed: float
) -> None:
    reason = None
    if not error <= allowed:
        reason = f"error {error:.3g}, {allowed:.3g} allowed (op: as a share of its budget)"
    elif not repeats:
        reason = "two calls differ"
    status = "ok" if reason is None else "wrong"
    if reason is not None:
        bench.say(f"{about}: wrong: {reason}")
    bench.record("correctness", **about, status=status, error=error, allowed=allowed, reason=reason)


def _network_items(bench: Bench, precisions: tuple[str, ...]) -> Iterator[Item]:
    for precision in precisions:
        for network in bench.sizes.networks:
            for kind in networks.fastdw_builders(bench.device):
                key = f"{network.label} {kind} {precision}"
                yield Item(key, partial(check_network, bench, network, kind, precision))


def check_network(bench: Bench, network: Network, kind: str, precision: str) -> None:
    """Batches of 1 and 3; stock torch's own error stands in the row for comparison."""
    about = {"subject": network.label, "backend": kind, "precision": precision}

    def failed(status: str, reason: str) -> None:
        bench.record("correctness", **about, status=status, reason=reason)

    def compare() -> None:
        with products_in(precision):
            _compare_network(bench, about, network, kind, precision)

    bench.attempt(kind, compare, failed)


def _compare_network(
    bench: Bench, about: dict[str, Any], network: Network, kind: str, precision: str
) -> None:
    trial = networks.trial_of(network, precision, bench.device, images=3)
    ours = networks.BUILDERS[kind](trial)
    for batch in (3, 1):
        images, truth = trial.images[:batch], trial.truth[:batch]
        outputs = [run(ours, images) for run in _ways_to_run(bench)]
        error = max(largest_difference(output, truth) for output in outputs)
        case = f"batch {batch} (stock torch is off by {trial.by_torch:.2g})"
        _record_verdict(
            bench,
            {**about, "case": case},
            error,
            all(torch.equal(outputs[0], output) for output in outputs),
            trial.allowed,
        )


def _ways_to_run(bench: Bench) -> list[Callable[[Run, Tensor], Tensor]]:
    if bench.device.kind == "cuda":
        return [_run_plainly, _run_aside, _run_captured]
    return [_run_plainly, _run_plainly]


def _run_plainly(run: Run, images: Tensor) -> Tensor:
    return run(images)


def _run_captured(run: Run, images: Tensor) -> Tensor:
    """Inside somebody else's graph, which is replayed with images that it has not seen."""
    static = torch.zeros_like(images)
    warm_up(run, [static])
    graph, [output] = capture(run, [static])
    static.copy_(images)
    graph.replay()
    torch.cuda.synchronize()
    return output.clone()


def _run_aside(run: Run, images: Tensor) -> Tensor:
    """On a stream of its own: a launch on torch's default stream would come too early or late."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = run(images.clone())
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return output


def _large_items(bench: Bench) -> Iterator[Item]:
    if bench.settings.quick or bench.device.kind != "cuda":
        return
    for op, cases in OP_CASES.items():
        narrow = min(cases, key=lambda case: case.x[1])
        size = (1, 1) if op == "classifier_head" else (2, 2)
        case = replace(narrow, x=(MANY_IMAGES, narrow.x[1], *size), label="many images")
        for backend in backends_on(op, bench.device.kind):
            key = f"{op} {backend} {MANY_IMAGES} images"
            yield Item(key, partial(check_op, bench, case, backend, "fp16"))
    large = (
        OpCase("depthwise_conv", "", (1, 8, 128, 128), (depthwise(8),), {"padding": 1}),
        OpCase("pointwise_conv", "", (1, 8, 128, 128), (dense(8, 8, "relu6"),)),
        OpCase(
            "inverted_residual",
            "",
            (1, 8, 128, 128),
            (dense(16, 8, "relu6"), depthwise(16), dense(8, 16)),
            {"padding": 1},
        ),
    )
    for case in large:
        for backend in backends_on(case.op, bench.device.kind):
            key = f"{case.op} {backend} more than 2^31 elements"
            yield Item(key, partial(check_large, bench, case, backend))


def check_large(bench: Bench, case: OpCase, backend: str) -> None:
    """A tensor that 32-bit offsets cannot address: its first and its last image are looked at."""
    about = {"subject": case.op, "case": "more than 2^31 elements", "backend": backend}
    about["precision"] = "fp16"

    def failed(status: str, reason: str) -> None:
        bench.record("correctness", **about, status=status, reason=reason)

    image_elements = math.prod(case.x)
    count = MANY_ELEMENTS // image_elements + 1
    needed = 2 * 2 * count * image_elements
    if bench.device.free_bytes() < 1.2 * needed:
        failed("skipped", f"needs {needed / 2**30:.1f} GiB")
        return

    def compare() -> float:
        truth = device_truth(case, "fp16", bench.device.torch_device)
        image = truth.tensors.x
        shape, layout = (count, *case.x[1:]), torch.channels_last
        x = torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=layout)
        x.zero_()
        x[0], x[-1] = image[0], image[0]
        y = case.call(getattr(fastdw.ops, case.op), replace(truth.tensors, x=x), backend=backend)
        index = torch.zeros(1, dtype=torch.long, device=x.device)
        expected = truth.of_images(index)
        return max(error_over_budget(part, expected) for part in (y[:1], y[-1:]))

    error = bench.attempt(f"{case.op} {backend}", compare, failed)
    if error is not None:
        _record_verdict(bench, about, error, True, allowed=1.0)
