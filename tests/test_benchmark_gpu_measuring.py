"""What bench/run_gpu.py holds outputs against, and how it reads the clocks of a device."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdw import reference
from fastdw.benchmark.cases import OP_CASES, OpCase, OpTensors
from fastdw.benchmark.gpu import launches, settings
from fastdw.benchmark.gpu.contenders import largest_difference
from fastdw.benchmark.gpu.device import Device
from fastdw.benchmark.gpu.layers import TorchLayers
from fastdw.benchmark.gpu.truths import device_truth
from fastdw.benchmark.network_cases import network_cases
from fastdw.benchmark.verify import error_over_budget

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", OP_CASES)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounding_hidden_values_is_allowed_and_a_wrong_weight_is_not(
    op: str, precision: str
) -> None:
    for case in OP_CASES[op]:
        truth = device_truth(case, precision, CPU)
        images = truth.of_images(torch.arange(case.x[0]))
        assert error_over_budget(with_hidden_values_rounded(case, truth.tensors), images) <= 1
        operands = truth.tensors
        for number, conv in enumerate(operands.convs):
            if conv is None:
                continue
            weight = conv[0].clone()
            taps = weight.view(weight.shape[0], -1)[weight.shape[0] // 2]
            taps[taps.numel() // 2] += 1
            convs = list(operands.convs)
            convs[number] = (weight, *conv[1:])
            wrong = OpTensors(operands.x, tuple(convs), operands.residual)
            out = case.call(getattr(reference, op), wrong)
            assert error_over_budget(out, images) > 1, f"{case.label}: convolution {number}"


def with_hidden_values_rounded(case: OpCase, tensors: OpTensors) -> Tensor:
    """The reference, op by op where it is a block."""
    if case.op not in ("separable_block", "inverted_residual"):
        return case.call(getattr(reference, case.op), tensors)
    x = tensors.x
    for conv in tensors.convs:
        if conv is None:
            continue
        weight, scale, bias, activation = conv
        if weight.shape[2:] == (1, 1):
            x = reference.pointwise_conv(x, weight, scale, bias, activation=activation)
        else:
            window = {name: case.options[name] for name in ("stride", "padding")}
            x = reference.depthwise_conv(x, weight, scale, bias, activation=activation, **window)
    adds = case.op == "inverted_residual" and x.shape == tensors.x.shape
    return x + tensors.x if adds else x


@pytest.mark.parametrize("op", ["pointwise_conv", "stem_conv", "classifier_head"])
def test_tf32_may_round_its_operands(op: str) -> None:
    for case in OP_CASES[op]:
        images = device_truth(case, "tf32", CPU).of_images(torch.arange(case.x[0]))
        exact = case.tensors(torch.float32)
        rounded = exact.map(lambda t: ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(t.dtype))
        pairs = zip(exact.convs, rounded.convs, strict=True)
        convs = tuple(c and r and (r[0], *c[1:]) for c, r in pairs)
        out = case.call(getattr(reference, op), OpTensors(rounded.x, convs, exact.residual))
        assert error_over_budget(out, images) <= 1
        if op != "classifier_head":  # its average over the pixels takes most of it away
            fp32 = device_truth(case, "fp32", CPU).of_images(torch.arange(case.x[0]))
            assert error_over_budget(out, fp32) > 1


@pytest.mark.parametrize("op", OP_CASES)
@pytest.mark.parametrize("folded", [True, False])
def test_torchs_layers_compute_the_op(op: str, folded: bool) -> None:
    for case in network_cases(op)[-4:]:
        tensors = case.tensors(torch.float32)
        expected = case.call(getattr(reference, op), tensors.map(Tensor.double))
        with torch.no_grad():
            output = TorchLayers(case, tensors, folded)(tensors.x)
        assert largest_difference(output, expected) < 1e-5


def test_the_switches_for_tf32_come_back() -> None:
    switches: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for precision in settings.DTYPES:
        with settings.products_in(precision):
            assert [s.allow_tf32 for s in switches] == 2 * [precision == "tf32"]
    assert [switch.allow_tf32 for switch in switches] == before


class FakeCuda:
    """torch.cuda as far as `launches` uses it: a queue that the host fills and the device empties.

    Time is counted, not waited for: `host` is the host's clock, `device` says when the device will
    be done with all that is queued.
    """

    def __init__(self, launch_ms: float, places: int) -> None:
        self.launch_ms, self.places = launch_ms, places
        self.host = self.device = 0.0
        self.ends: list[float] = []
        self.captured: list[float] | None = None
        fake = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.at = 0.0

            def record(self) -> None:
                fake.device = max(fake.device, fake.host)
                self.at = fake.device

            def query(self) -> bool:
                return self.at <= fake.host

            def synchronize(self) -> None:
                fake.host = max(fake.host, self.at)

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        class CUDAGraph:
            work: list[float]

            def replay(self) -> None:
                fake.enqueue(sum(self.work))

        class Capture:
            def __init__(self, graph: CUDAGraph) -> None:
                self.graph = graph

            def __enter__(self) -> None:
                fake.captured = self.graph.work = []

            def __exit__(self, *error: object) -> None:
                fake.captured = None

        self.Event, self.CUDAGraph, self.graph = Event, CUDAGraph, Capture
        stream = SimpleNamespace(wait_stream=lambda other: None)
        self.Stream = self.current_stream = lambda: stream

    def stream(self, stream: object) -> Any:
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        self.host = max(self.host, self.device)

    def _sleep(self, cycles: int) -> None:
        self.enqueue(1e3 * cycles / launches.SLEEP_CYCLES_PER_S)

    def enqueue(self, work_ms: float) -> None:
        if self.captured is not None:
            self.captured.append(work_ms)
            return
        self.host += self.launch_ms
        if len(self.ends) >= self.places:
            self.host = max(self.host, self.ends[-self.places])  # the queue is full
        self.device = max(self.device, self.host) + work_ms
        self.ends.append(self.device)


@pytest.mark.parametrize("way", ["graph", "flushed", "queue"])
@pytest.mark.parametrize(
    ("call_ms", "launch_ms", "places"), [(2, 0.01, 1000), (0.005, 0.002, 1000), (0.02, 0.2, 8)]
)
def test_what_the_events_say_is_the_time_of_one_call(
    way: str, call_ms: float, launch_ms: float, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeCuda(launch_ms, places)
    monkeypatch.setattr(launches.torch, "cuda", fake)
    monkeypatch.setattr(launches.time, "perf_counter", lambda: 1e-3 * fake.host)
    monkeypatch.setattr(Tensor, "zero_", lambda tensor: fake.enqueue(0.5))
    seen: list[float] = []

    def run(x: Tensor) -> Tensor:
        fake.enqueue(call_ms)
        seen.append(x.item())
        return x

    inputs = [torch.tensor(float(number)) for number in range(3)]
    slot = launches.SLOTS[way](run, inputs, Device(), 0.02)
    times = [slot() for _ in range(4)]
    if way == "queue" and launch_ms > call_ms:  # and says so
        assert slot.remark and min(times) > call_ms
    else:
        assert slot.remark is None and times == pytest.approx(4 * [call_ms], rel=1e-3)
    if way == "graph":
        assert len(slot.outputs) >= 3 and set(seen) == {0.0, 1.0, 2.0}
