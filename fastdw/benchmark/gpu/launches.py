"""Ways to time calls on a device; each gives a slot: milliseconds a call, once a round.

graph    CUDA events around replays of one CUDA graph that holds the calls of all inputs
flushed  the same for a graph of one call, every cache overwritten before each replay
queue    CUDA events around calls that the host has put into the queue ahead of the device
call     the clock of the host around one call and a synchronization: what a user waits for
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from fastdw.benchmark.gpu.device import Device
from fastdw.benchmark.timing import calls_per_slot, time_slot

Run = Callable[[Tensor], Any]
GRAPH_MS = 0.5  # a graph shorter than this would be launched more slowly than it runs
MOST_CALLS = 64  # of one graph
SLEEP_CYCLES_PER_S = 2e9  # at least as many as the clock of a GPU has
MOST_AHEAD_S = 0.03


class CallSlot:
    """The host's clock; on the CPU the only one."""

    remark: str | None = None

    def __init__(self, run: Run, inputs: Sequence[Tensor], device: Device, seconds: float) -> None:
        self.outputs: list[Any] = []
        turns = cycle(inputs)

        def call() -> None:
            run(next(turns))
            device.synchronize()

        self._call = call
        self._calls = calls_per_slot(call, seconds)

    def __call__(self) -> float:
        return time_slot(self._call, self._calls)


class GraphSlot:
    """Replays of one graph; the launches of the host do not count."""

    remark: str | None = None

    def __init__(self, run: Run, inputs: Sequence[Tensor], device: Device, seconds: float) -> None:
        warm_up(run, inputs)
        calls = list(inputs)
        # Outputs that stay alive have memory of their own: a small one rewritten in the L2 again
        # and again would not count as traffic.
        self._graph, self.outputs = capture(run, calls)
        graph_ms = time_queued(self._graph.replay, MOST_AHEAD_S)
        if graph_ms < GRAPH_MS:
            calls *= max(1, min(math.ceil(GRAPH_MS / graph_ms), MOST_CALLS // len(calls)))
            self._graph, self.outputs = capture(run, calls)
            graph_ms = time_queued(self._graph.replay, MOST_AHEAD_S)
        self._replays = max(1, round(1e3 * seconds / graph_ms))
        self._calls = len(calls)
        self._ahead_s = host_seconds(self._graph.replay)

    def __call__(self) -> float:
        def enqueue() -> None:
            for _ in range(self._replays):
                self._graph.replay()

        return time_queued(enqueue, self._ahead_s) / (self._replays * self._calls)


class FlushedSlot:
    """One call at a time, input and weights from memory; includes the start of a graph."""

    remark: str | None = None
    REPLAYS = 10

    def __init__(self, run: Run, inputs: Sequence[Tensor], device: Device, seconds: float) -> None:
        warm_up(run, inputs)
        self._graph, self.outputs = capture(run, inputs[:1])
        size_bytes = 3 * device.cache_bytes()
        self._other = torch.empty(size_bytes, dtype=torch.uint8, device=device.torch_device)
        self._pairs = [_events() for _ in range(self.REPLAYS)]
        self._ahead_s = host_seconds(self._enqueue)

    def __call__(self) -> float:
        sleep(self._ahead_s)
        self._enqueue()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in self._pairs)

    def _enqueue(self) -> None:
        for start, end in self._pairs:
            self._other.zero_()
            start.record()
            self._graph.replay()
            end.record()


class QueueSlot:
    """Plain calls; a sleeping kernel in front lets the host get ahead of the device."""

    MOST_CALLS = 200

    def __init__(self, run: Run, inputs: Sequence[Tensor], device: Device, seconds: float) -> None:
        self._run, self._turns = run, cycle(inputs)
        self.outputs: list[Any] = []
        self._slots = self._drained = 0
        wanted = max(3, round(1e3 * seconds / warm_up(run, inputs)))
        self._calls = min(wanted, self.MOST_CALLS)
        self._ahead_s = host_seconds(self._enqueue)
        self._slots = self._drained = 0

    @property
    def remark(self) -> str | None:
        """Whether the device had to wait for the host."""
        if 2 * self._drained <= self._slots:
            return None
        return "host-bound: the device waited for launches"

    def __call__(self) -> float:
        return time_queued(self._enqueue, self._ahead_s) / self._calls

    def _enqueue(self) -> None:
        for _ in range(self._calls - 1):
            self._run(next(self._turns))
        before_last = torch.cuda.Event()
        before_last.record()
        self._run(next(self._turns))
        self._slots += 1
        self._drained += before_last.query()  # reached already: nothing was queued behind it


Slot = GraphSlot | FlushedSlot | QueueSlot | CallSlot
SLOTS: dict[str, type[Slot]] = {
    "graph": GraphSlot,
    "flushed": FlushedSlot,
    "queue": QueueSlot,
    "call": CallSlot,
}


def time_queued(enqueue: Callable[[], object], ahead_s: float) -> float:
    """Milliseconds of the device for what is put into its queue while it sleeps."""
    start, end = _events()
    sleep(ahead_s)
    start.record()
    enqueue()
    end.record()
    end.synchronize()
    return max(start.elapsed_time(end), 1e-6)


def host_seconds(enqueue: Callable[[], object]) -> float:
    """How long the device has to sleep for the host to get ahead."""
    begin = time.perf_counter()
    enqueue()
    seconds = time.perf_counter() - begin
    torch.cuda.synchronize()
    return min(1.5 * seconds, MOST_AHEAD_S)


def sleep(seconds: float) -> None:
    """Keep the device busy and the host free."""
    kernel = getattr(torch.cuda, "_sleep", None)  # private; without it the queue starts empty
    if kernel is not None and seconds > 0:
        kernel(int(seconds * SLEEP_CYCLES_PER_S))


def warm_up(run: Run, inputs: Sequence[Tensor]) -> float:
    """Run on another stream, as capturing wants it; returns milliseconds a call, roughly."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    start, end = _events()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(inputs[0])
        start.record()
        for _ in range(3):
            run(inputs[0])
        end.record()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return max(start.elapsed_time(end) / 3, 1e-3)


def capture(run: Run, inputs: Sequence[Tensor]) -> tuple[Any, list[Any]]:
    """One graph of the calls, replayed once, and their outputs."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [run(x) for x in inputs]
    graph.replay()
    torch.cuda.synchronize()
    return graph, outputs


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
