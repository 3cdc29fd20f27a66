"""Interleaving, the summary of a provider's slots, and how many calls a slot holds."""

import time

import pytest

from fastdw.benchmark.timing import calls_per_slot, interleave, summarize, time_slot


def test_every_slot_runs_once_a_round_and_the_order_turns() -> None:
    order: list[str] = []
    rounds: list[int] = []

    def slot(name: str, time_ms: float) -> float:
        order.append(name)
        return time_ms

    slots = {"a": lambda: slot("a", 1.0), "b": lambda: slot("b", 2.0), "c": lambda: slot("c", 3.0)}
    timings = interleave(slots, rounds=4, on_round=lambda: rounds.append(len(order)))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert rounds == [3, 6, 9, 12]
    assert [timings[name].median_ms for name in "abc"] == [1.0, 2.0, 3.0]


def test_interleaving_nothing_gives_nothing() -> None:
    assert interleave({}, rounds=3) == {}


def test_summary_is_robust_against_an_outlier() -> None:
    timing = summarize([5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 1000.0])
    assert (timing.p20_ms, timing.median_ms, timing.p80_ms) == (3.0, 6.0, 9.0)
    assert timing.rounds == 11


def test_a_slot_is_the_median_of_its_calls_without_the_first() -> None:
    waits = iter([0.2, 0.004, 0.004, 0.1, 0.004, 0.004])
    calls: list[float] = []

    def call() -> None:
        calls.append(next(waits))
        time.sleep(calls[-1])

    assert time_slot(call, calls=5) == pytest.approx(4, abs=3)
    assert len(calls) == 6


@pytest.mark.parametrize("slot_seconds,expected", [(0.0, (1, 1)), (0.1, (5, 20))])
def test_calls_fill_a_slot(slot_seconds: float, expected: tuple[int, int]) -> None:
    low, high = expected
    assert low <= calls_per_slot(lambda: time.sleep(0.005), slot_seconds) <= high
