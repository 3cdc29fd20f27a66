"""Interleaved timing: every contender gets one slot a round, so that noise meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

SLOT_SECONDS = 0.1


@dataclass(frozen=True)
class Timing:
    """Median and spread over the rounds, milliseconds a call."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    rounds: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def time_slot(call: Callable[[], object], calls: int) -> float:
    """Median milliseconds of `calls` calls, after one that only warms the caches."""
    call()
    samples = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(samples)


def calls_per_slot(call: Callable[[], object], slot_seconds: float = SLOT_SECONDS) -> int:
    """How many calls fill a slot; warms up on the way (the first calls allocate and compile)."""
    for _ in range(3):
        call()
    return max(1, round(slot_seconds * 1e3 / time_slot(call, calls=3)))


def interleave(
    slots: Mapping[str, Callable[[], float]],
    rounds: int,
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Run every slot once a round, and sum up what they return (milliseconds).

    The order turns by one each round, so that none always follows the same neighbour.
    """
    names = list(slots)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            samples[name].append(slots[name]())
        on_round()
    return {name: summarize(values) for name, values in samples.items()}


def summarize(samples_ms: list[float]) -> Timing:
    ordered = sorted(samples_ms)
    last = len(ordered) - 1
    return Timing(
        median_ms=statistics.median(ordered),
        p20_ms=ordered[round(0.2 * last)],
        p80_ms=ordered[round(0.8 * last)],
        rounds=len(ordered),
    )
