"""Where the whole network cannot be planned, its children are that can."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from nn_checks import fused_ops, image, randomize
from torch import Tensor, nn

import fastdw
from fastdw.convert import PartlyFusedNetwork
from fastdw.nn import ConvBNAct, InvertedResidual, SeparableBlock
from fastdw.plan import PlannedNetwork


class Detector(nn.Module):
    """A backbone that can be planned, a layer that cannot, a neck that can; one block by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(ConvBNAct(3, 8, stride=2), InvertedResidual(8, 8))
        self.wide = ConvBNAct(8, 8, groups=2)  # no step for groups
        self.neck = nn.Sequential(SeparableBlock(8, 12), SeparableBlock(12, 12))
        self.last = SeparableBlock(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.neck(self.wide(self.backbone(x))))


class Iterating(Detector):
    """Its forward goes through the backbone's layers itself."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.backbone:
            x = block(x)
        return self.last(self.neck(self.wide(x)))


class Indexing(Detector):
    """Its forward calls the backbone, and takes one of its layers by index as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.backbone[0](x).mean()


class Twice(Detector):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.neck(self.wide(self.backbone(x) + self.backbone(x.flip(-1)))))


class OfLists(Detector):
    """Takes a list of images, as torchvision's detectors do, and answers for each of them."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:  # type: ignore[override]
        return [{"map": y} for y in super().forward(torch.stack(images))]


def built(kind: type[Detector]) -> Detector:
    torch.manual_seed(0)
    return randomize(kind()).eval()  # type: ignore[return-value]


def x_of(batch: int = 1, size: int = 32) -> Tensor:
    return image("stem", size, batch)


@torch.no_grad()
def test_children_are_planned_by_themselves() -> None:
    model = built(Detector)
    fast = fastdw.optimize(model, x_of())
    assert isinstance(fast, PartlyFusedNetwork)
    assert fast.report.planned_parts == ["backbone", "neck"]
    assert "planned by themselves: backbone, neck" in str(fast.report)
    assert fast.report.to_dict()["plan"]["parts"] == ["backbone", "neck"]
    calls = fused_ops(lambda: fast(x_of()))
    assert calls == {"planned_network": 2, "separable_block_packed": 1}
    for x in (x_of(), x_of(3, 40)):
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert not any(isinstance(module, PlannedNetwork) for module in model.modules())


@torch.no_grad()
def test_copies_and_loaded_weights_follow() -> None:
    model, other = built(Detector), randomize(Detector(), seed=5).eval()
    fast = fastdw.optimize(model, x_of())
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(again(x_of()), fast(x_of()))
    fast.load_state_dict(other.state_dict())
    torch.testing.assert_close(fast(x_of()), other(x_of()), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="cannot train"):
        fast.train()


@pytest.mark.parametrize("kind", [Iterating, Twice])
@torch.no_grad()
def test_a_child_that_is_not_called_once_stays(kind: type[Detector]) -> None:
    model = built(kind)
    fast = fastdw.optimize(model, x_of())
    assert fast.report.planned_parts == ["neck"]
    torch.testing.assert_close(fast(x_of(2)), model(x_of(2)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_parts_are_given_up_where_the_forward_needs_the_child_itself() -> None:
    model = built(Indexing)
    fast = fastdw.optimize(model, x_of())
    assert fast.report.planned_parts == []
    assert type(fast._model[0].backbone) is nn.Sequential
    assert fast.report.largest_error <= fast.report.tolerance
    torch.testing.assert_close(fast(x_of(2)), model(x_of(2)), rtol=1e-4, atol=1e-5)


def test_no_part_is_planned_where_no_network_is() -> None:
    model = built(Detector)
    assert fastdw.optimize(model, x_of(), backend="torch").report.planned_parts == []
    assert fastdw.optimize(model, x_of(), dtype=torch.bfloat16).report.planned_parts == []
    model.wide.register_forward_hook(lambda *_: None)
    assert fastdw.optimize(model, x_of()).report.planned_parts == []


def test_strict_still_wants_one_plan() -> None:
    with pytest.raises(RuntimeError, match="Detector cannot be planned: wide"):
        fastdw.optimize(built(Detector), x_of(), strict=True)


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("count", [1, 3])
def test_example_may_be_a_list_of_images(count: int, dtype: torch.dtype | None) -> None:
    model, images = built(OfLists), [x_of(size=32)[0] + i for i in range(count)]
    fast = fastdw.optimize(model, images, dtype=dtype)
    assert isinstance(fast, PartlyFusedNetwork) and fast.report.fused
    assert fast.report.planned_parts == (["backbone", "neck"] if dtype is None else [])
    got = fast([x.to(dtype) for x in images[:2]])
    for answer, expected in zip(got, model(images[:2]), strict=True):
        torch.testing.assert_close(answer["map"].float(), expected["map"], rtol=1e-4, atol=1e-4)
