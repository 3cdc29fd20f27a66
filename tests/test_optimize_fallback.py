"""optimize where there is no plan, where it must refuse, and what it leaves untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from convert_models import PARTLY_FUSED, assert_same_answer, build, outputs, photo
from nn_checks import fused_ops
from torch import Tensor, nn
from torch.autograd import forward_ad

import fastdw
from fastdw.convert import NothingConverted, PartlyFusedNetwork
from fastdw.convert.planning import RELATIVE_TOLERANCE
from fastdw.plan import PlannedNetwork
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
    parts = fast.report.planned_parts
    inside = [
        row for row in fast.report.fused if row.name.startswith(tuple(f"{p}." for p in parts))
    ]
    assert calls.pop("planned_network", 0) == len(parts)
    assert sum(calls.values()) + len(inside) == len(fast.report.fused) > 0
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
    assert fast.report.plan_reason == "the backend torch has no planned network"
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
    with pytest.raises(ValueError, match="example: expected something to compare by"):
        fastdw.optimize(nn.Conv2d(3, 4, 1).eval(), torch.ones(0, 3, 8, 8))
    with pytest.raises(ValueError, match="model: expected eval mode, got training mode"):
        fastdw.optimize(model.train())
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module"):
        fastdw.optimize(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(NothingConverted):
        fastdw.optimize(nn.Sequential(nn.Conv2d(16, 16, 3)).eval(), strict=True)
    resnet = torchvision.models.resnet18(num_classes=4).eval()
    with pytest.raises(RuntimeError, match="ResNet cannot be planned: add: "):
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


def _verified(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor], Tensor]) -> str:
    """Break what every plan computes; return why it was given up."""
    forward = PlannedNetwork.forward
    monkeypatch.setattr(PlannedNetwork, "forward", lambda self, x: wrong(forward(self, x)))
    fast = fastdw.optimize(build("torchvision:mobilenet_v2"), photo(1, 32, 32))
    assert isinstance(fast, PartlyFusedNetwork)
    return fast.report.plan_reason


def test_the_verification_compares_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = _verified(monkeypatch, lambda y: y.double())
    assert reason == "expected outputs of ['fp32[1, 1000]', 'fp32[2, 1000]'], got " + (
        "['fp64[1, 1000]', 'fp64[2, 1000]']"
    )


def test_the_verification_uses_another_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "[2, 1000]" in _verified(monkeypatch, lambda y: y.reshape(1, -1))


def test_layers_left_in_training_mode() -> None:
    """A dropout that is on by intention stays on, and nothing counts the images of `optimize`."""
    model = build("torchvision:mobilenet_v2")
    model.classifier[0].train()
    model.features[3].conv[0][1].train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    fast = fastdw.optimize(model, photo(2, 32, 32))
    assert fast.report.plan_reason == "features.3.conv.0.1 is in training mode"
    assert fast.report.fused
    for net in (model, fast):
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    torch.manual_seed(0)
    expected = model(photo(2, 32, 32))
    torch.manual_seed(0)
    actual = fast(photo(2, 32, 32))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert not torch.equal(fast(photo(2, 32, 32)), actual)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("classifier.1", "classifier.1: forward was replaced on the instance"),
        ("features.18", "mul: mul has no step"),
        ("", "torch.fx cannot trace the model: forward was replaced on the instance"),
    ],
)
def test_a_replaced_forward(name: str, reason: str) -> None:
    """Where torch.fx would not see it, the plan is refused, not merely caught as wrong."""
    model = build("torchvision:mobilenet_v2")
    module = model.get_submodule(name)
    module.__dict__["forward"] = _Doubled(module)
    fast = fastdw.optimize(model, photo(1, 32, 32))
    assert fast.report.plan_reason == reason and fast.report.fused
    y, expected = fast(photo(1, 32, 32)), model(photo(1, 32, 32))
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


class _Doubled:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return type(self.module).forward(self.module, x) * 2.0


def test_models_that_run_in_one_dtype_only() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = build("torchvision:mobilenet_v2").features

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype is not torch.float32:
                raise TypeError("fp32 only")
            return self.features(x)

    with pytest.warns(UserWarning, match="unfused copy"):
        fastdw.optimize(Fixed().eval(), photo(1, 32, 32), tolerance=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RELATIVE_TOLERANCE, torch.float32, 0.0)
        with pytest.warns(UserWarning, match="unfused copy"):
            fastdw.optimize(Fixed().eval(), photo(1, 32, 32))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:fastdw can fuse nothing")
def test_script_modules_are_left() -> None:
    model = build("torchvision:mobilenet_v2")
    traced = torch.jit.trace(model, photo(1, 32, 32))
    fast = fastdw.optimize(traced, photo(1, 32, 32))
    assert [row.reason.code for row in fast.report] == ["scripted"]
    assert torch.equal(fast(photo(1, 32, 32)), traced(photo(1, 32, 32)))


def test_what_is_optimized_already() -> None:
    once = fastdw.optimize(build("torchvision:mobilenet_v2"), photo(1, 32, 32))
    twice = fastdw.optimize(once, photo(1, 32, 32))
    assert twice.report.planned and twice is not once
    assert torch.equal(twice(photo(1, 32, 32)), once(photo(1, 32, 32)))


def test_functional_transforms_of_a_plan() -> None:
    """The op has no forward-mode gradient and no batching rule: the children run instead."""
    original = build("torchvision:mobilenet_v2")
    x = photo(2, 32, 32)
    fast = fastdw.optimize(original, x)
    tangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    batched = torch.vmap(fast)(x[None])
    torch.testing.assert_close(batched[0], original(x), rtol=1e-3, atol=1e-3)
    packed = fastdw.optimize(original, x, keep_weights=False)
    for call in (
        lambda: torch.vmap(packed)(x[None]),
        lambda: _forward_gradient(packed, x, tangent),
    ):
        with pytest.raises(TypeError, match="x: expected no torch.func transform"):
            call()
    with pytest.raises(TypeError, match="x: expected a Tensor, got NoneType"):
        packed(None)


def _forward_gradient(net: nn.Module, x: Tensor, tangent: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(net(forward_ad.make_dual(x, tangent))).tangent
