"""A planned network: one op from the image to the outputs, right for every batch and resolution."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from convert_models import PLANNED, assert_same_answer, build, calibrate, outputs, photo
from nn_checks import ops_of, randomize
from torch import Tensor, nn

import fastdw
import fastdw.models
from fastdw import native
from fastdw.backends import BackendRefused
from fastdw.ops.program import parse_program
from fastdw.plan import PlannedNetwork


def planned(name: str = "torchvision:mobilenet_v2", **settings: object) -> PlannedNetwork:
    fast = fastdw.optimize(build(name), photo(1, 32, 32), **settings)  # type: ignore[arg-type]
    assert isinstance(fast, PlannedNetwork)
    return fast


@pytest.mark.parametrize("name", PLANNED)
def test_gives_the_same_answer(name: str) -> None:
    original = build(name)
    fast = fastdw.optimize(original, photo(1))
    assert isinstance(fast, PlannedNetwork)
    for x in (photo(1), photo(3, 96, 64), photo(2, 33, 47).to(memory_format=torch.channels_last)):
        assert_same_answer(fast, original, x)
    report = fast.report
    assert report.planned and report.largest_error <= report.tolerance
    assert list(fast.state_dict()) == list(original.state_dict())


@pytest.mark.parametrize("name", PLANNED)
def test_is_one_op(name: str) -> None:
    """The profiler shows the planned op and no compute op of torch."""
    fast = planned(name)
    x = photo(1, 32, 32)
    calls = ops_of(lambda: outputs(fast, x))
    assert {op: n for op, n in calls.items() if op.startswith("fastdw::")} == {
        "fastdw::planned_network": 1
    }
    allowed = {"aten::empty", "aten::empty_strided", "aten::resolve_conj", "aten::detach"}
    assert not {op for op in calls if op.startswith("aten::")} - allowed


def test_program_of_mobilenet_v2() -> None:
    program = parse_program(planned().program)
    assert [step.op for step in program.steps] == [
        "stem_conv",
        *["inverted_residual"] * 17,
        *("pointwise_conv", "classifier_head"),
    ]
    assert program.multiply_adds(1, 224, 224) == 300_774_272
    assert sum(step.residual == "1" for step in program.steps) == 10
    assert all(step.weights % 64 == 0 for step in program.steps)


def test_feature_maps_and_nested_outputs() -> None:
    fast = planned("timm:features_only")
    maps = fast(photo(1, 64, 64))
    assert isinstance(maps, list)
    assert [tuple(t.shape[1:]) for t in maps] == [
        (16, 32, 32),
        (24, 16, 16),
        (32, 8, 8),
        (96, 4, 4),
        (320, 2, 2),
    ]


class OwnBlocks(nn.Module):
    """A network of somebody's own: residual by hand, functions for activations, mean and view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.norm = nn.BatchNorm2d(24)
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1), nn.BatchNorm2d(8))
        self.last = nn.Conv2d(8, 16, 1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 5))

    def forward(self, x: Tensor, scale: float | None = None) -> dict[str, Tensor]:
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu6(self.norm(self.depthwise(self.expand(x))))
        y = x + self.project(y)
        features = F.hardswish(self.last(y))
        pooled = F.dropout(features.mean(3).mean(2), training=self.training)
        logits = self.classifier(pooled.view(x.size(0), -1))
        return {"features": features, "pooled": pooled, "logits": logits}


def test_somebodys_own_forward() -> None:
    torch.manual_seed(0)
    original = randomize(OwnBlocks()).eval()
    fast = fastdw.optimize(original, photo(1))
    assert_same_answer(fast, original, photo(2, 20, 30))
    assert list(fast(photo(1))) == ["features", "pooled", "logits"]
    assert [step.op for step in parse_program(fast.program).steps] == [
        *("stem_conv", "inverted_residual", "pointwise_conv"),
        *("classifier_head", "global_pool"),
    ]
    assert parse_program(fast.program).steps[1].residual == "1"


class ReadInside(OwnBlocks):
    """Its block's hidden features are outputs too, so that one op cannot compute the block."""

    def __init__(self, also: str) -> None:
        super().__init__()
        self.also = also

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        x = F.relu(self.stem_norm(self.stem(x)))
        expanded = self.expand(x)
        filtered = F.relu6(self.norm(self.depthwise(expanded)))
        hidden = {"expanded": expanded, "filtered": filtered}
        return [x + self.project(filtered), hidden[self.also]]


@pytest.mark.parametrize("also", ["expanded", "filtered"])
def test_a_value_that_something_else_reads_is_computed(also: str) -> None:
    torch.manual_seed(0)
    original = randomize(ReadInside(also)).eval()
    fast = fastdw.optimize(original, photo(1))
    assert_same_answer(fast, original, photo(2, 20, 30))
    steps = [step.op for step in parse_program(fast.program).steps]
    assert steps == ["stem_conv", "pointwise_conv", "depthwise_conv", "pointwise_conv"]


def test_v1_of_plain_layers_becomes_separable_blocks() -> None:
    def unit(channels_in: int, channels_out: int, groups: int, kernel: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels_in, channels_out, kernel, 1, kernel // 2, groups=groups)
        return [conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]

    torch.manual_seed(0)
    layers = [*unit(3, 8, 1, 3), *unit(8, 8, 8, 3), *unit(8, 12, 1, 1), *unit(12, 12, 12, 3)]
    layers += [*unit(12, 12, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)]
    original = randomize(nn.Sequential(*layers)).eval()
    fast = fastdw.optimize(original, photo(1))
    assert_same_answer(fast, original, photo(2))
    ops = [step.op for step in parse_program(fast.program).steps]
    assert ops == ["stem_conv", "separable_block", "separable_block", "classifier_head"]


class Variant(nn.Module):
    """A stem, and after it what `ending` does with its two features."""

    def __init__(self, ending: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last, self.norm2 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.identity = nn.Sequential(nn.Identity(), nn.Dropout())
        self.ending = ending

    def forward(self, x: Tensor) -> object:
        x = self.norm(self.stem(x))
        return self.ending(x, self.identity(self.norm2(self.last(x))))


def _overwritten(x: Tensor, y: Tensor) -> object:
    return x.add_(y), x


def _overwritten_unseen(x: Tensor, y: Tensor) -> object:
    first = x
    x += y  # torch.fx records `x + y`
    return x, first


def _viewed(y: Tensor, size: Callable[[Tensor], int]) -> Tensor:
    pooled = F.adaptive_avg_pool2d(y, 1)
    return pooled.view(size(pooled), -1)


ENDINGS: dict[str, tuple[Callable[[Tensor, Tensor], object], bool]] = {
    "relu": (lambda x, y: F.relu(y), True),
    "relu of the mean": (lambda x, y: F.relu(y.mean((2, 3))), False),
    "relu twice": (lambda x, y: F.relu6(F.relu(y)), False),
    "relu and before": (lambda x, y: (F.relu(y), y), False),
    "relu of the sum": (lambda x, y: F.relu(x + y), False),
    "sum": (lambda x, y: [x + y, x], True),
    "sum with itself": (lambda x, y: y + y, False),
    "sum with a number": (lambda x, y: y + 1, False),
    "sum in place": (lambda x, y: y.add_(x), True),
    "sum over a value read later": (_overwritten, False),
    "mean over the channels": (lambda x, y: y.mean((1, 2)), False),
    "pooled": (lambda x, y: F.adaptive_avg_pool2d(y, 1), False),
    "pooled and flat": (lambda x, y: (F.adaptive_avg_pool2d(y, 1).flatten(1), y), True),
    "dropout that is on": (lambda x, y: F.dropout(y, 0.0), False),
    "mean in another dtype": (lambda x, y: y.mean((2, 3), dtype=torch.float64), False),
    "flat up to the height": (
        lambda x, y: F.adaptive_avg_pool2d(y, 1).flatten(1, end_dim=2),
        False,
    ),
    "flat by names": (lambda x, y: F.adaptive_avg_pool2d(y, 1).flatten(start_dim=1), True),
    "view by batch": (lambda x, y: F.adaptive_avg_pool2d(y, 1).view(y.shape[0], 6), True),
    "view by channels": (lambda x, y: F.adaptive_avg_pool2d(y, 1).view(-1, 6), True),
    "view by others": (lambda x, y: F.adaptive_avg_pool2d(y, 1).view(-1, 3), False),
    "view by pooled height": (lambda x, y: _viewed(y, lambda p: p.size(2)), False),
    "view by pooled width": (lambda x, y: _viewed(y, lambda p: p.shape[3]), False),
    "sum of multiples": (lambda x, y: torch.add(x, y, alpha=2), False),
    "the input": (lambda x, y: {"x": x, "sizes": y.shape}, False),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_what_a_plan_may_fold(case: str) -> None:
    """Each ending gives the same answer, planned or not; the plan is not merely caught as wrong."""
    ending, is_planned = ENDINGS[case]
    torch.manual_seed(0)
    original = randomize(Variant(ending)).eval()
    fast = fastdw.optimize(original, photo(1))
    assert fast.report.planned is is_planned
    assert "differ" not in fast.report.plan_reason and "fails" not in fast.report.plan_reason
    assert_same_answer(fast, original, photo(2, 9, 14))


def test_the_verification_catches_what_the_trace_does_not_show() -> None:
    torch.manual_seed(0)
    original = randomize(Variant(_overwritten_unseen)).eval()
    fast = fastdw.optimize(original, photo(1))
    assert "differ" in fast.report.plan_reason
    assert list(fast.state_dict()) == list(original.state_dict())
    assert_same_answer(fast, original, photo(2, 9, 14))


def test_copies_and_pickles() -> None:
    for keep_weights in (True, False):
        fast = planned(keep_weights=keep_weights)
        x = photo(2, 32, 32)
        expected = outputs(fast, x)[0]
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        for other in (
            copy.deepcopy(fast),
            pickle.loads(pickle.dumps(fast)),
            torch.load(file, weights_only=False),
        ):
            assert torch.equal(outputs(other, x)[0], expected)
            assert other.packed.data_ptr() != fast.packed.data_ptr()
            assert list(other.state_dict()) == list(fast.state_dict())
            assert other.report.planned


def test_compiles_and_exports() -> None:
    fast = planned()
    x = photo(2, 32, 32)
    expected = outputs(fast, x)[0]
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), expected)
        sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
        exported = torch.export.export(fast, (x,), dynamic_shapes=(sizes,)).module()
        for y in (x, photo(5, 48, 64)):
            assert torch.equal(exported(y), fast(y))


def planned_small() -> PlannedNetwork:
    torch.manual_seed(0)
    model = calibrate(randomize(fastdw.models.mobilenet_v2(width=0.25, num_classes=10)))
    fast = fastdw.optimize(model, photo(2, 32, 32))
    assert isinstance(fast, PlannedNetwork)
    return fast


RUN_SAVED = """
import sys, torch, fastdw
folder, isa = sys.argv[1:]
assert fastdw.native.active_isa() == isa
pickled = torch.load(f"{folder}/pickled.pt", weights_only=False)
exported = torch.export.load(f"{folder}/exported.pt2").module()
images = torch.load(f"{folder}/images.pt")
with torch.no_grad():
    answers = [[network(x) for x in images] for network in (pickled, exported)]
torch.save(answers, f"{folder}/{isa}.pt")
"""


def test_packed_under_one_isa_and_run_under_another(tmp_path: Path) -> None:
    """Saved by a process on the best instruction set, loaded by one on each."""
    images = [photo(2, 32, 32), photo(3, 32, 32)]
    best, *others = native.supported_isas()
    with native.force_isa(best):
        fast = planned_small()
        expected = [outputs(fast, x)[0] for x in images]
        sizes = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(fast, (images[0],), dynamic_shapes=sizes)
    torch.save(fast, tmp_path / "pickled.pt")
    torch.export.save(exported, tmp_path / "exported.pt2")
    torch.save(images, tmp_path / "images.pt")
    for isa in others:
        subprocess.run(
            [sys.executable, "-c", RUN_SAVED, str(tmp_path), isa],
            env={**os.environ, "FASTDW_CPU_ISA": isa},
            check=True,
        )
        for answers in torch.load(tmp_path / f"{isa}.pt"):
            torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)


def test_aot_inductor(tmp_path: Path) -> None:
    fast = planned_small()
    network = nn.Sequential(fast, nn.Softmax(1))  # compiled code that reads what the op returns
    sizes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(network, (photo(2, 32, 32),), dynamic_shapes=sizes)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "network.pt2")
        )
        loaded = torch._inductor.aoti_load_package(path)
        for x in (photo(2, 32, 32), photo(5, 32, 32)):
            torch.testing.assert_close(loaded(x), network(x), rtol=1e-5, atol=1e-6)


def test_threads() -> None:
    fast = planned()
    images = [photo(1 + index % 3, 32 + 16 * (index % 2), 32) for index in range(16)]
    expected = [fast(x) for x in images]
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(fast, images))
    assert all(map(torch.equal, actual, expected))


def test_cannot_train() -> None:
    for fast in (planned(), planned(keep_weights=False)):
        with pytest.raises(RuntimeError, match="cannot train"):
            fast.train()
        assert fast.train(False) is fast.eval() is fast
        assert not any(module.training for module in fast.modules())


def test_load_state_dict_packs_again() -> None:
    fast, other = planned(), build("torchvision:mobilenet_v2")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    fast.load_state_dict(other.state_dict())
    assert_same_answer(fast, other, photo(1, 32, 32))
    parent = nn.Sequential(planned())  # as a child of somebody's module
    parent.load_state_dict({f"0.{key}": value for key, value in other.state_dict().items()})
    assert_same_answer(parent[0], other, photo(1, 32, 32))


def test_without_weights() -> None:
    fast = planned(keep_weights=False)
    assert list(fast.state_dict()) == ["packed"]
    assert not list(fast.parameters())
    other = planned(keep_weights=False)
    other.packed.zero_()
    other.load_state_dict(fast.state_dict())
    x = photo(1, 32, 32)
    assert torch.equal(other(x), fast(x))
    for move in (
        lambda: fast.half(),
        lambda: fast.to(torch.float64),
        lambda: fast.to(dtype=torch.bfloat16),
        lambda: fast.to("meta"),
    ):
        with pytest.raises(RuntimeError, match="packed weights run in fp32 on the CPU"):
            move()
    assert torch.equal(fast.to(torch.float32).cpu()(x), other(x))


def test_inputs_that_the_op_cannot_take() -> None:
    """With weights the converted network runs, block by block; without, the error says why."""
    original = build("torchvision:mobilenet_v2")
    kept, packed = planned(), planned(keep_weights=False)
    x = photo(1, 32, 32)
    for net in (original, kept):
        net(leaf := x.clone().requires_grad_()).sum().backward()
        if net is original:
            expected = leaf.grad
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-3, atol=1e-5)
    assert_same_answer(copy.deepcopy(kept).double(), copy.deepcopy(original).double(), x.double())
    with fastdw.use_backend("torch"):
        torch.testing.assert_close(outputs(kept, x), outputs(original, x), rtol=1e-3, atol=1e-3)
        with pytest.raises(BackendRefused, match="torch has no planned network"):
            packed(x)
    with pytest.raises(TypeError, match="x: expected fp32, got fp64"):
        packed(x.double())
    with pytest.raises(TypeError, match="x: expected no requires_grad"):
        packed(x.clone().requires_grad_())


def test_wrong_shapes() -> None:
    fast = planned()
    for x in (torch.zeros(1, 4, 32, 32), torch.zeros(3, 32, 32), torch.zeros(1, 3, 0, 32)):
        with pytest.raises((ValueError, RuntimeError)):
            fast(x)
    assert fast(torch.zeros(0, 3, 32, 32)).shape == (0, 1000)


def test_nan_reaches_the_output() -> None:
    original = build("torchvision:mobilenet_v2")
    with torch.no_grad():
        original.features[5].conv[1][0].weight[0, 0, 0, 0] = float("nan")
    fast = fastdw.optimize(original, photo(1, 32, 32))
    assert fast.report.planned
    assert outputs(fast, photo(1, 32, 32))[0].isnan().all()
