"""Networks that branch on the image's size: planned for one way, others run block by block."""

from __future__ import annotations

import pickle

import pytest
import torch
from nn_checks import fused_ops
from test_convert_tables import SEGMENTATION_MODELS
from test_convert_tables import built as built_row
from test_optimize_joins import built
from torch import Tensor, nn

import fastdw
from fastdw.nn import ConvBNAct
from fastdw.plan.record import NotPlannable, record


class Checked(nn.Module):
    """A forward that refuses some sizes, as segmentation_models_pytorch's, or goes two ways."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.first, self.other, self.raises = ConvBNAct(3, 8), ConvBNAct(3, 8), raises

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % 4 != 0 or width % 4 != 0:
            if self.raises:
                raise RuntimeError(f"Wrong input shape {(height // 4 + 1) * 4}")
            return self.other(x)
        return self.other(x) if x.size(3) > 2 * x.size()[2] else self.first(x)


@pytest.mark.parametrize("keep_weights", [True, False])
@pytest.mark.parametrize("raises", [True, False])
@torch.no_grad()
def test_a_plan_is_for_one_way_through_the_network(raises: bool, keep_weights: bool) -> None:
    model = built(Checked(raises))
    fast = fastdw.optimize(model, torch.randn(1, 3, 8, 12), keep_weights=keep_weights, strict=True)
    for size, way in {(8, 12): "planned", (12, 8): "planned", (8, 20): "", (9, 8): "odd"}.items():
        x = torch.randn(2, 3, *size)
        if way != "planned" and not keep_weights:
            with pytest.raises(TypeError, match="x: the network takes another way at"):
                fast(x)
        elif way == "odd" and raises:
            with pytest.raises(RuntimeError, match="Wrong input shape 12"):
                fast(x)
        else:
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
            assert ("planned_network" in fused_ops(lambda x=x: fast(x))) == (way == "planned")
    again = pickle.loads(pickle.dumps(fast))
    x = torch.randn(1, 3, 8, 12)
    assert torch.equal(again(x), fast(x)) and again.conditions == fast.conditions


class ByBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = ConvBNAct(3, 8), ConvBNAct(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.shape[0] > 1 else self.other(x)


def test_no_plan_goes_by_the_size_of_the_batch() -> None:
    with pytest.raises(NotPlannable, match="control flow"):
        record(built(ByBatch()), (2, 3, 8, 8))


@torch.no_grad()
def test_deeplab_of_segmentation_models_pytorch() -> None:
    model = built_row(SEGMENTATION_MODELS["DeepLabV3Plus"])
    fast = fastdw.optimize(model, torch.randn(1, 3, 64, 64), strict=True)
    x = torch.randn(2, 3, 64, 96)
    assert fused_ops(lambda: fast(x)) == {"planned_network": 1}
    torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-4)
    with pytest.raises(RuntimeError, match="Wrong input shape height=72"):
        fast(torch.randn(1, 3, 72, 64))
