"""What the pytest-benchmark suites time: the layers of the networks, each checked first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastdw
import fastdw.models
from fastdw.backends import BackendRefused
from fastdw.benchmark import op_timing
from fastdw.benchmark.cases import OpCase
from fastdw.benchmark.network_cases import network_cases
from fastdw.benchmark.op_timing import multiply_adds, parameters, time_op
from fastdw.ops.registration import OPS

BENCH = Path(__file__).resolve().parents[1] / "bench"


def test_every_op_has_a_suite() -> None:
    assert {path.stem for path in BENCH.glob("test_bench_*.py")} == {
        f"test_bench_{op}" for op in OPS
    }
    for op in OPS:
        assert f'parameters("{op}")' in (BENCH / f"test_bench_{op}.py").read_text()
        backends = {parameter.values[1] for parameter in parameters(op)}
        assert {"cpp", "torch"} <= backends


def test_the_cases_are_the_layers_of_the_networks() -> None:
    """Together, and the repeats counted, they have the multiply-adds of the network."""
    for name, block in (("v1", "separable_block"), ("v2", "inverted_residual")):
        model = getattr(fastdw.models, f"mobilenet_{name}")()
        whole = fastdw.models.summarize(model, 224).multiply_adds
        labels = [case.label for case in network_cases(block)]
        assert len(labels) == len(set(labels))
        head = network_cases("classifier_head")[name == "v2"]
        parts = [*network_cases("stem_conv"), *network_cases(block), head]
        counted = sum(multiply_adds(case) for case in parts)
        assert 0.5 * whole < counted < whole  # repeated blocks are there once
    [last] = [c for c in network_cases("pointwise_conv") if "320 to 1280" in c.label]
    assert multiply_adds(last) == 49 * 320 * 1280
    assert network_cases("stem_conv", batch=8)[0].x == (8, 3, 224, 224)


class Stopwatch:
    """In place of pytest-benchmark's fixture: a call takes a millisecond."""

    def __init__(self, disabled: bool = False) -> None:
        self.extra_info: dict[str, Any] = {}
        self.calls = 0
        stats = SimpleNamespace(median=1e-3)
        self.stats = None if disabled else SimpleNamespace(stats=stats)

    def __call__(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        self.calls += 1
        return function(*arguments, **settings)


HEAD = OpCase("classifier_head", "small", (1, 32, 4, 4), (((100, 32), "none"),))


def test_a_right_op_is_timed_with_its_share() -> None:
    watch = Stopwatch()
    time_op(watch, HEAD, "cpp")
    info = watch.extra_info
    assert watch.calls == 1 and info["multiply_adds"] == 3200
    assert info["gflops"] == pytest.approx(0.0064)
    assert info["share_of_peak"] == pytest.approx(info["gflops"] / info["peak_gflops"])
    disabled = Stopwatch(disabled=True)
    time_op(disabled, HEAD, "torch")
    assert "gflops" not in disabled.extra_info


def test_a_wrong_op_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastdw.ops.classifier_head
    monkeypatch.setattr(fastdw.ops, "classifier_head", lambda *a, **k: right(*a, **k) * 1.01)
    watch = Stopwatch()
    with pytest.raises(AssertionError, match="small: error .* not timed"):
        time_op(watch, HEAD, "cpp")
    assert watch.calls == 0


def test_a_backend_that_refuses_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> torch.Tensor:
        raise BackendRefused("no GPU")

    monkeypatch.setattr(op_timing.fastdw.ops, "classifier_head", refuse)
    with pytest.raises(pytest.skip.Exception, match="no GPU"):
        time_op(Stopwatch(), HEAD, "cpp")
