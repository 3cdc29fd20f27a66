"""Partly fused networks run channels_last inside, whatever layout the model came in."""

from __future__ import annotations

import warnings

import pytest
import torch
from convert_models import assert_same_answer, build, outputs, photo
from nn_checks import fused_ops, randomize
from torch import Tensor, nn

import fastdw
from fastdw.convert import planning
from fastdw.plan.record import NotPlannable


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:lcnet_050"])
def test_channels_last_from_the_stem_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotPlannable("for this test")

    monkeypatch.setattr(planning, "_check_plannable", refuse)
    model = build(name)
    fast = fastdw.optimize(model, photo())
    assert not fast.report.planned
    for before, module in zip(model.modules(), fast._model[0].modules(), strict=True):
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            assert isinstance(before, nn.Conv2d) and before.weight.is_contiguous()
    state, expected = fast.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    x = photo(1, 64, 64)
    assert_same_answer(fast, model, x)
    with torch.no_grad():
        maps = fast._model[0]
        seen = []
        for module in maps.modules():
            if hasattr(module, "_fastdw_original"):
                module.register_forward_hook(lambda _, args, y: seen.append((args[0], y)))
        maps(x)
    wide = [y for _, y in seen if y.shape[2] > 1]
    assert len(wide) > 10
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in wide)


class Views(nn.Module):
    """Reads its feature map as NCHW memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).view(x.shape[0], -1))


def test_a_model_that_needs_nchw_maps_keeps_them() -> None:
    torch.manual_seed(0)
    model = randomize(Views()).eval()
    x = photo(2, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = fastdw.optimize(model, x)
    assert [row.reason.code for row in fast.report] == ["fused"]
    assert_same_answer(fast, model, x)
    assert fused_ops(lambda: outputs(fast, x)) == {"stem_conv_packed": 1}


def test_other_weights_are_left_alone() -> None:
    """channels_last is a layout of four dimensions only."""

    class Volumes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
            self.volume = nn.Conv3d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.volume(self.image(x)[:, None])

    torch.manual_seed(0)
    model = randomize(Volumes()).eval()
    fast = fastdw.optimize(model, photo(2, 6, 6))
    assert [row.reason.code for row in fast.report] == ["fused"]
    assert_same_answer(fast, model, photo(1, 6, 6))
