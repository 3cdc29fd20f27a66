"""Steps of a plan: the same values by torch's layers, their times, and how they are shown."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fastdw
from fastdw.benchmark import explanation, layers, report
from fastdw.benchmark.layers import LayerReport, LayerTime
from fastdw.benchmark.models import ModelCase, calibrate_batch_norm
from fastdw.benchmark.peak import Bandwidth
from fastdw.benchmark.torch_steps import TorchSteps, relative_error
from fastdw.plan.record import NotPlannable, record

ENVIRONMENT = {"date": "2026-01-02T03:04:05", "commit": "abc", "cpu": "Test CPU", "torch": "2.x"}


class Small(nn.Module):
    """A stem with the padding of TensorFlow, a block that adds, a wide layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = fastdw.nn.ConvBNAct(3, 16, 3, stride=2)
        self.block = fastdw.nn.InvertedResidual(16, 16)
        self.down = fastdw.nn.InvertedResidual(16, 24, stride=2)
        self.last = fastdw.nn.ConvBNAct(24, 40, 1)
        self.head = nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.down(self.block(self.stem(x))))
        return self.head(y.mean((2, 3)))


def small() -> nn.Module:
    return Small()


CASE = ModelCase(f"{__name__}:small", resolution=48, batch=2)


def printed(table: object) -> str:
    console = Console(file=io.StringIO(), width=250)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["fastdw:mobilenet_v1", "torchvision:mobilenet_v2", f"{__name__}:small"]
)
@torch.no_grad()
def test_torchs_steps_compute_the_network(name: str) -> None:
    torch.manual_seed(0)
    model = fastdw.models.create(name)
    calibrate_batch_norm(model, 64)
    fused = fastdw.models.create(name).eval()
    fused.load_state_dict(model.state_dict())
    fastdw.convert(fused)
    x = torch.randn(2, 3, 64, 64).double()
    outputs, seconds = TorchSteps(record(fused.double())).run(x)
    assert relative_error(outputs, [model.double()(x)]) < 1e-12
    assert all(value >= 0 for value in seconds.values())
    assert [key[1] for key in seconds][-2:] == ["global_pool", "classifier_head"]


class TwoOutputs(Small):
    """Hands out a feature map that it goes on to read."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        features = self.block(self.stem(x))
        return features, self.last(self.down(features))


@torch.no_grad()
def test_outputs_that_are_read_again_stay() -> None:
    model = TwoOutputs().eval()
    x = torch.randn(1, 3, 32, 32)
    expected = list(model(x))
    fastdw.convert(model)
    outputs, _ = TorchSteps(record(model)).run(x)
    assert relative_error(outputs, expected) < 1e-5


def test_relative_error_sees_a_difference_and_nan() -> None:
    one, two = torch.tensor([1.0, -2.0]), torch.tensor([1.0, -2.2])
    assert relative_error([one], [one]) == 0
    assert relative_error([one, two], [one, one]) == pytest.approx(0.1)
    assert not relative_error([one * torch.nan, one], [one, one]) <= 1
    with pytest.raises(ArithmeticError, match="off by 1.0e-01 .* not timed"):
        layers.check_outputs([two], [one])


def test_every_step_is_timed(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "measure_bandwidths", lambda threads: [Bandwidth("L1", 1, 9.0)])
    threads(1)
    measured = layers.measure(CASE, rounds=2, slot_seconds=0)
    kinds = [layer.kind for layer in measured.layers]
    assert kinds == [
        *("stem_conv", "inverted_residual", "inverted_residual", "pointwise_conv"),
        *("global_pool", "classifier_head"),
    ]
    for layer in measured.layers:
        assert layer.time_ms > 0 and layer.torch_ms > 0
        assert 0 <= layer.share_of_peak < 1.5
    whole = layers.totals_of(measured.layers)
    assert whole.multiply_adds == 2 * fastdw.models.summarize(small(), 48).multiply_adds
    assert measured.bandwidths == (Bandwidth("L1", 1, 9.0),)


@pytest.mark.slow  # starts a process that imports torch
def test_steps_are_timed_in_a_process_of_their_own() -> None:
    before = torch.get_num_threads()
    measured = layers.time_layers(CASE, rounds=1, slot_seconds=0)
    assert len(measured.layers) == 6 and torch.get_num_threads() == before


def layer(index: int = 0, time_ms: float = 1.0, **changed: object) -> LayerTime:
    fields = {"kind": "pointwise_conv", "shape": "7x7x8 -> 7x7x16", "multiply_adds": 50_000_000}
    values = {**fields, "bytes": 2_000_000, "torch_ms": 3.0, "peak_gflops": 200.0, **changed}
    return LayerTime(index=index, time_ms=time_ms, **values)  # type: ignore[arg-type]


def test_rates() -> None:
    one = layer()
    assert (one.gflops, one.share_of_peak) == pytest.approx((100.0, 0.5))
    assert (one.gigabytes_per_second, one.flops_per_byte) == pytest.approx((2.0, 50.0))
    both = layers.totals_of([one, layer(1, time_ms=3.0)])
    assert (both.time_ms, both.torch_ms, both.gflops) == pytest.approx((4.0, 6.0, 50.0))


def test_the_table_shows_shares_and_the_sum() -> None:
    steps = (layer(), layer(1, time_ms=3.0, kind="classifier_head"))
    told = LayerReport(CASE, steps, 200.0, (Bandwidth("L1", 1024, 321.0),))
    text = printed(layers.layer_table(told))
    for shown in ("50.0%", "25.0%", "75.0%", "3.00 x", "1.50 x", "L1 321 GB/s", "200 GFLOP/s"):
        assert shown in text


def test_layers_csv_is_read_back_the_newest_of_each_case(tmp_path: Path) -> None:
    path = tmp_path / "layers.csv"
    for date, time_ms in (("2026-01-01", 9.0), ("2026-01-02", 1.5)):
        told = LayerReport(CASE, (layer(0, time_ms), layer(1, 2.0)), 200.0, ())
        rows = layers.layer_rows(told)
        environment = {**ENVIRONMENT, "date": date}
        assert report.append_rows(path, layers.LAYER_COLUMNS, rows, environment, "avx2") == path
    found = layers.read_layers(path)
    assert found == {CASE: [layer(0, 1.5), layer(1, 2.0)]}


def test_explanation_of_a_model() -> None:
    told = explanation.explain_model(small().eval(), 1, 64, 1)
    kinds = [step["kind"] for step in told["steps"]]
    assert kinds[:2] == ["stem_conv", "inverted_residual"] and len(kinds) == 6
    text = printed(explanation.step_table("plan", told))
    assert "64x64x3 -> 32x32x16 3x3/2" in text and "band_rows" in text and "slab" in text
    assert "whole images" not in text and "1 worker: 1 whole image each" in text
    assert "32x32x16 x6 -> 16x16x24 3x3/2" in text
    peak = explanation.peak_memory_bytes(small().eval(), 1, 64, 1)
    assert peak == told["memory"]["peak_bytes"] > 0


def test_what_has_no_plan_has_no_explanation() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(2)).eval()
    with pytest.raises(NotPlannable, match="AvgPool2d"):
        explanation.explain_model(model, 1, 32, 1)
    assert explanation.peak_memory_bytes(model, 1, 32, 1) is None
