"""Contenders side by side on the same inputs: each is checked, then all are timed in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastdw.benchmark.gpu.bench import Bench
from fastdw.benchmark.gpu.device import Device
from fastdw.benchmark.gpu.launches import SLOTS, Run, Slot
from fastdw.benchmark.timing import Timing, interleave

MOST_INPUTS = 32


@dataclass(frozen=True)
class Contender:
    """What is timed against others.

    Attributes:
        name: the provider's, as in the CSV.
        build: makes the function that is called with one batch.
        is_fused: whether it rounds as the fused ops do; else it is held to what whole networks may
            differ by.
        layout: memory format that its inputs are put into before anything is timed.
    """

    name: str
    build: Callable[[], Run]
    is_fused: bool = False
    layout: torch.memory_format = torch.channels_last


class Check(Protocol):
    """Compares an output with what the batch of that number must give: (error, allowed)."""

    def __call__(self, contender: Contender, output: Any, number: int) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Batches:
    """Inputs that are used in turn.

    Attributes:
        indices: which of the distinct images stand in each batch.
        state: "cold" if the caches cannot hold all batches, so that each comes from memory; else
            "warm".
    """

    indices: list[Tensor]
    state: str

    def gather(self, images: Tensor, layout: torch.memory_format) -> list[Tensor]:
        return [images[index].contiguous(memory_format=layout) for index in self.indices]


def rotate(batch: int, distinct: int, batch_bytes: int, device: Device) -> Batches:
    """As many batches as it takes to overflow the cache twice, each of the images in its own order.

    The order is random, so that an image in the place of another one shows.
    """
    wanted = math.ceil(2 * device.cache_bytes() / batch_bytes)
    most = max(2, min(MOST_INPUTS, device.free_bytes() // (4 * batch_bytes)))
    count = min(max(2, wanted), most)
    generator = torch.Generator().manual_seed(0)
    first = torch.randperm(batch, generator=generator) % distinct
    indices = [((first + turn) % distinct).to(device.torch_device) for turn in range(count)]
    return Batches(indices, "cold" if count >= wanted else "warm")


@dataclass
class Ready:
    """A contender whose output was right."""

    contender: Contender
    run: Run
    inputs: list[Tensor]
    error: float
    allowed: float


class Race:
    """Checks and times the contenders of one case, and records a row for each and each way.

    Args:
        bench: of the section.
        table: which CSV the rows go to.
        about: the columns that tell the case.
        check: compares an output with the truth.
        derive: further columns of a row with a time, from its milliseconds.
    """

    def __init__(
        self,
        bench: Bench,
        table: str,
        about: dict[str, Any],
        check: Check,
        derive: Callable[[float], dict[str, Any]],
    ) -> None:
        self._bench, self._table, self._about = bench, table, about
        self._check, self._derive = check, derive

    def run(
        self,
        contenders: Sequence[Contender],
        images: Tensor,
        batches: Batches,
        ways: Sequence[str],
    ) -> None:
        """Do it; see the class."""
        bench = self._bench
        ready: list[Ready] = []
        for contender in contenders:

            def prepare(contender: Contender = contender) -> Ready | None:
                return self._prepare(contender, images, batches)

            done = bench.attempt(contender.name, prepare, self._failing(contender.name))
            if done is not None:
                ready.append(done)
        slots: dict[str, tuple[Ready, str, Slot]] = {}
        for one in ready:
            for way in ways:

                def build(one: Ready = one, way: str = way) -> Slot | None:
                    return self._build_slot(one, way)

                failing = self._failing(one.contender.name, way)
                slot = bench.attempt(one.contender.name, build, failing)
                if slot is not None:
                    slots[f"{one.contender.name} {way}"] = (one, way, slot)
        for key, timing in self._interleave(slots).items():
            one, way, slot = slots[key]
            state = "cold" if way == "flushed" else batches.state
            self._record_time(one, way, state, slot, timing)

    def _prepare(self, contender: Contender, images: Tensor, batches: Batches) -> Ready | None:
        run = contender.build()
        inputs = batches.gather(images, contender.layout)
        ready = Ready(contender, run, inputs, 0.0, 0.0)
        for number in {0, len(inputs) - 1}:
            output = run(inputs[number])
            if not self._is_right(ready, output, number, "-"):
                return None
        return ready

    def _build_slot(self, one: Ready, way: str) -> Slot | None:
        bench = self._bench
        slot = SLOTS[way](one.run, one.inputs, bench.device, bench.sizes.slot_seconds)
        last = len(one.inputs) - 1
        for number, output in enumerate(slot.outputs):  # what the replayed graph has written
            if number in (0, last) and not self._is_right(one, output, number, way):
                return None
        return slot

    def _is_right(self, one: Ready, output: Any, number: int, way: str) -> bool:
        """Whether an output is right; a wrong one is recorded, without a time."""
        error, allowed = self._check(one.contender, output, number)
        one.error, one.allowed = max(one.error, error), allowed
        if error <= allowed:
            return True
        self._bench.say(f"{self._about}: {one.contender.name}: wrong: {error:.3g} of {allowed:.3g}")
        self._record(
            one.contender.name,
            way,
            status="wrong",
            error=error,
            allowed=allowed,
            reason=f"batch {number}: off by {error:.3g}, {allowed:.3g} allowed",
        )
        return False

    def _interleave(self, slots: dict[str, tuple[Ready, str, Slot]]) -> dict[str, Timing]:
        broken: set[str] = set()

        def guarded(key: str) -> float:
            one, way, slot = slots[key]
            if key in broken:
                return 0.0
            name = one.contender.name
            time_ms = self._bench.attempt(name, slot, self._failing(name, way))
            if time_ms is None:
                broken.add(key)
            return time_ms or 0.0

        calls = {key: (lambda key=key: guarded(key)) for key in slots}
        timings = interleave(calls, self._bench.sizes.rounds)
        return {key: timing for key, timing in timings.items() if key not in broken}

    def _record_time(self, one: Ready, way: str, state: str, slot: Slot, timing: Timing) -> None:
        self._record(
            one.contender.name,
            way,
            status="ok",
            inputs=state,
            error=one.error,
            allowed=one.allowed,
            reason=slot.remark,
            **timing.to_dict(),
            **self._derive(timing.median_ms),
        )

    def _failing(self, name: str, way: str = "-") -> Callable[[str, str], None]:
        def failed(status: str, reason: str) -> None:
            self._record(name, way, status=status, reason=reason)

        return failed

    def _record(self, provider: str, way: str, **row: Any) -> None:
        self._bench.record(self._table, **self._about, provider=provider, how=way, **row)


def largest_difference(output: Tensor, truth: Tensor) -> float:
    """The largest difference over the largest true value; infinite for NaN or another shape."""
    if output.shape != truth.shape:
        return math.inf
    error = (output.double() - truth).abs().max() / truth.abs().max()
    return error.nan_to_num(nan=math.inf).item()
