"""optimize where there is no plan, where it must refuse, and what it leaves untouched."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from convert_models import PARTLY_FUSED, assert_same_answer, build, outputs, photo
from nn_checks import fused_ops
from torch import nn

import fastdw
from fastdw.convert import NothingConverted, PartlyFusedNetwork
from fastdw.plan import network as plan_network


@pytest.mark.parametrize("name", PARTLY_FUSED)
def test_partly_understood_models_run_fused_blocks(name: str) -> None:
    original = build(name)
    fast = fastdw.optimize(original, photo(1))
    assert isinstance(fast, PartlyFusedNetwork)
    assert_same_answer(fast, original, photo(3, 96, 64))
    x = photo(1, 32, 32)
    outputs(fast, x)
    calls = fused_ops(lambda: outputs(fast, x))
    assert sum(calls.values()) == len(fast.report.fused) > 0
    assert list(fast.state_dict()) == list(original.state_dict())
    assert fast.report.planned is False and fast.report.plan_reason
    with pytest.raises(RuntimeError, match="cannot train"):
        fast.train()
    again = copy.deepcopy(fast)
    assert all(map(torch.equal, outputs(again, x), outputs(fast, x)))


def test_the_original_stays_as_it_was() -> None:
    original = build("torchvision:mobilenet_v2")
    types = [type(module) for module in original.modules()]
    state = {key: value.clone() for key, value in original.state_dict().items()}
    fastdw.optimize(original)
    assert [type(module) for module in original.modules()] == types
    assert all(torch.equal(value, state[key]) for key, value in original.state_dict().items())
    assert all(parameter.requires_grad for parameter in original.parameters())


def test_optimize_inside_inference_mode_then_train() -> None:
    original = build("torchvision:mobilenet_v2")
    with torch.inference_mode():
        fast = fastdw.optimize(original, photo(1, 32, 32))
        inside = fast(photo(1, 32, 32)).clone()
    assert not any(t.is_inference() for t in fast.state_dict().values())
    assert torch.equal(fast(photo(1, 32, 32)), inside)
    original.train()(photo(4, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in original.parameters())
    fast.load_state_dict(original.eval().state_dict())
    assert_same_answer(fast, original, photo(1, 32, 32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_run_fused_blocks(dtype: torch.dtype) -> None:
    original = build("torchvision:mobilenet_v2")
    fast = fastdw.optimize(original, photo(1, 32, 32), dtype=dtype)
    assert isinstance(fast, PartlyFusedNetwork)
    assert "only fp32 is planned" in fast.report.plan_reason
    y = outputs(fast, photo(1, 32, 32).to(dtype))[0]
    assert y.dtype == dtype
    calls = fused_ops(lambda: outputs(fast, photo(1, 32, 32).to(dtype)))
    assert sum(n for op, n in calls.items() if op.startswith("inverted_residual")) == 17
    assert fast.report.largest_error <= fast.report.tolerance


def test_a_model_with_hooks_is_not_planned() -> None:
    original = build("torchvision:mobilenet_v2")
    seen: list[int] = []
    original.features[4].register_forward_hook(lambda module, args, y: seen.append(1))
    fast = fastdw.optimize(original, photo(1, 32, 32))
    assert fast.report.plan_reason == "features.4 has a hook, which would not run"
    seen.clear()
    outputs(fast, photo(1, 32, 32))
    assert seen == [1]


def test_backends_without_a_plan() -> None:
    fast = fastdw.optimize(build("torchvision:mobilenet_v2"), photo(1, 32, 32), backend="torch")
    assert "only the backend cpp" in fast.report.plan_reason
    with fastdw.use_backend("torch"):
        fast = fastdw.optimize(build("torchvision:mobilenet_v2"), photo(1, 32, 32))
    assert isinstance(fast, PartlyFusedNetwork)


def test_without_an_example() -> None:
    fast = fastdw.optimize(build("torchvision:mobilenet_v2"))
    assert fast.report.planned and fast.report.largest_error is not None
    with pytest.raises(ValueError, match="example: expected an input, got None"):
        fastdw.optimize(nn.Linear(3, 4).eval())
    unfit = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(7, 2)).eval()
    with pytest.raises(ValueError, match=r"random image of \[1, 3, 224, 224\]"):
        fastdw.optimize(unfit)


def test_refusals() -> None:
    model = build("torchvision:mobilenet_v2")
    with pytest.raises(ValueError, match="model: expected eval mode, got training mode"):
        fastdw.optimize(model.train())
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module"):
        fastdw.optimize(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(NothingConverted):
        fastdw.optimize(nn.Sequential(nn.Conv2d(16, 16, 3)).eval(), strict=True)
    resnet = torchvision.models.resnet18(num_classes=4).eval()
    with pytest.raises(RuntimeError, match="ResNet cannot be planned: maxpool"):
        fastdw.optimize(resnet, photo(1, 32, 32), strict=True)


def test_above_the_tolerance() -> None:
    model = build("torchvision:mobilenet_v2")
    with pytest.raises(RuntimeError, match="differ by .* tolerance 0"):
        fastdw.optimize(model, photo(1, 32, 32), tolerance=0, strict=True)
    with pytest.warns(UserWarning, match="unfused copy"):
        fast = fastdw.optimize(model, photo(1, 32, 32), tolerance=0)
    assert torch.equal(fast(photo(1, 32, 32)), model(photo(1, 32, 32)))
    assert not fast.report.fused and not fast.report.planned


def test_a_wrong_plan_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verification falls back to the converted copy if only the plan is wrong."""
    pack = plan_network.pack

    def broken(recording: plan_network.Recording) -> tuple[torch.Tensor, str]:
        packed, program = pack(recording)
        return packed, program.replace("activation=relu6 weights=64", "activation=none weights=64")

    monkeypatch.setattr(plan_network, "pack", broken)
    original = build("torchvision:mobilenet_v2")
    fast = fastdw.optimize(original, photo(1))
    assert isinstance(fast, PartlyFusedNetwork)
    assert "differ by" in fast.report.plan_reason
    assert_same_answer(fast, original, photo(1))


def test_tuple_of_inputs() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = build("torchvision:mobilenet_v2").features

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.features(x) * scale

    model = Scaled().eval()
    fast = fastdw.optimize(model, (photo(1, 32, 32), torch.tensor(2.0)))
    assert fast.report.plan_reason == "forward takes more than one input"
    y = fast(photo(1, 32, 32), torch.tensor(3.0))
    expected = model(photo(1, 32, 32), torch.tensor(3.0))
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4)
