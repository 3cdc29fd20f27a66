"""What cannot be proved is left, with its reason; what changes later runs as it did."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from convert_models import assert_same_answer, build, outputs, photo
from nn_checks import fused_ops, randomize
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fastdw


class Siblings(nn.Module):
    """Depthwise and 1x1 convolutions as somebody would write them in a forward of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU6()
        self.pointwise = nn.Conv2d(3, 8, 1)
        self.norm2 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.depthwise(x)))
        return self.norm2(self.pointwise(x))


def siblings() -> Siblings:
    torch.manual_seed(0)
    model = randomize(Siblings()).eval()
    assert isinstance(model, Siblings)
    return model


def reasons(model: nn.Module) -> dict[str, str]:
    return {row.name: row.reason.code for row in fastdw.explain(model).rows}


def converted(model: nn.Module) -> nn.Module:
    fast = copy.deepcopy(model)
    fastdw.convert(fast)
    return fast


def test_siblings_are_fused() -> None:
    model = siblings()
    fast = converted(model)
    assert reasons(model) == {"depthwise": "fused", "pointwise": "fused"}
    assert fused_ops(lambda: outputs(fast, photo())) == {
        "pack_depthwise_conv": 1,
        "depthwise_conv_packed": 1,
        "pack_pointwise_conv": 1,
        "pointwise_conv_packed": 1,
    }
    assert_same_answer(fast, model, photo())


class TwoReaders(Siblings):
    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x)
        return self.norm2(self.pointwise(self.act(self.norm(y)) + y))


class CalledTwice(Siblings):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.depthwise(x)))
        x = self.act(self.norm(self.depthwise(x)))
        return self.norm2(self.pointwise(x))


class SharedActivation(Siblings):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class ControlFlow(Siblings):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class NotCalled(Siblings):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.pointwise(x))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (TwoReaders, {"depthwise": "used_twice", "pointwise": "fused"}),
        (CalledTwice, {"depthwise": "used_twice", "pointwise": "fused"}),
        (SharedActivation, {"depthwise": "fused", "pointwise": "fused"}),
        (ControlFlow, {"depthwise": "not_traced", "pointwise": "not_traced"}),
        (NotCalled, {"depthwise": "not_called", "pointwise": "fused"}),
    ],
)
@pytest.mark.filterwarnings("ignore:fastdw can fuse nothing")
def test_only_what_the_trace_proves(kind: type[Siblings], expected: dict[str, str]) -> None:
    torch.manual_seed(0)
    model = randomize(kind()).eval()
    assert reasons(model) == expected
    assert_same_answer(converted(model), model, photo())


def _hook(model: Siblings) -> None:
    model.norm.register_forward_hook(lambda module, args, y: y + 1)


def _pre_hook(model: Siblings) -> None:
    prune.l1_unstructured(model.depthwise, "weight", 0.5)


def _parametrize(model: Siblings) -> None:
    parametrizations.weight_norm(model.depthwise)


def _share(model: Siblings) -> None:
    model.alias = model.depthwise


def _sync(model: Siblings) -> None:
    model.norm = nn.SyncBatchNorm(3)


def _no_affine(model: Siblings) -> None:
    model.norm = nn.BatchNorm2d(3, affine=False)


def _no_statistics(model: Siblings) -> None:
    model.norm = nn.BatchNorm2d(3, track_running_stats=False)


def _reflect(model: Siblings) -> None:
    model.depthwise.padding_mode = "reflect"


def _group_norm(model: Siblings) -> None:
    model.norm = nn.GroupNorm(3, 3)


def _patched(model: Siblings) -> None:
    forward = model.depthwise.forward
    model.depthwise.forward = lambda x: forward(x) * 2


def _subclass(model: Siblings) -> None:
    class Doubling(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model.depthwise.__class__ = Doubling


def _quantized(model: Siblings) -> None:
    model.depthwise.qconfig = object()


CHANGES: dict[str, Callable[[Siblings], None]] = {
    "hooks": _hook,
    "hooks-pruning": _pre_hook,
    "parametrized": _parametrize,
    "shared_module": _share,
    "sync_batch_norm": _sync,
    "batch_norm_without_affine": _no_affine,
    "batch_norm_without_statistics": _no_statistics,
    "padding_mode": _reflect,
    "no_batch_norm": _group_norm,
    "patched_forward": _patched,
    "unknown_class": _subclass,
    "quantized": _quantized,
}


@pytest.mark.parametrize("case", [case for case in CHANGES if case != "no_batch_norm"])
def test_left_with_its_reason(case: str) -> None:
    model = siblings()
    CHANGES[case](model)
    model.eval()
    assert reasons(model) == {"depthwise": case.partition("-")[0], "pointwise": "fused"}
    expected = outputs(model, photo())[0]
    fastdw.convert(model)
    torch.testing.assert_close(outputs(model, photo())[0], expected, rtol=1e-4, atol=1e-5)


def test_without_batch_norm() -> None:
    """A depthwise convolution is fused alone too: torch computes dense ones as fast."""
    model = siblings()
    model.norm, model.norm2 = nn.GroupNorm(3, 3), nn.GroupNorm(4, 8)
    assert reasons(model) == {"depthwise": "fused", "pointwise": "no_batch_norm"}
    fast = converted(model)
    assert fused_ops(lambda: outputs(fast, photo()))["depthwise_conv_packed"] == 1
    assert_same_answer(fast, model, photo())


def test_without_batch_norm_in_a_block() -> None:
    """Convolutions with bias and activation, and a head whose last layer is linear."""
    torch.manual_seed(0)
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()),
        nn.Sequential(depthwise, nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 5, 1)),
        nn.Sequential(nn.Conv2d(5, 5, 1)),
    )
    model = randomize(model).eval()
    rows = {row.name: (row.pattern, row.reason.code) for row in fastdw.explain(model)}
    assert rows == {
        "0.0": ("pointwise_conv", "no_batch_norm"),
        "1": ("inverted_residual", "fused"),
        "2.0": ("pointwise_conv", "no_batch_norm"),
    }
    assert_same_answer(converted(model), model, photo())


def test_frozen_batch_norms() -> None:
    """The backbones of torchvision's detectors have them in place of batch norms."""
    torch.manual_seed(0)
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None
    )
    for module in detector.modules():
        if isinstance(module, torchvision.ops.FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
    model = detector.backbone.eval()
    fast = copy.deepcopy(model)
    report = fastdw.convert(fast)
    assert report.totals["depthwise_fused"] == 15
    assert "no_batch_norm" in report.totals["reasons_left"]
    assert_same_answer(fast, model, photo())
    siblings = Siblings()
    siblings.norm, siblings.norm2 = (torchvision.ops.FrozenBatchNorm2d(n) for n in (3, 8))
    assert reasons(siblings.eval()) == {"depthwise": "fused", "pointwise": "fused"}
    assert_same_answer(converted(siblings), siblings, photo())


AFTERWARDS = [name for name in CHANGES if name not in ("parametrized", "unknown_class")]


@pytest.mark.parametrize("case", AFTERWARDS)
def test_changed_after_conversion(case: str) -> None:
    """The same changes on a converted model: the original forward runs where they touch it."""
    model = siblings()
    fast = converted(model)
    outputs(fast, photo())  # fills the caches of packed weights
    for net in (model, fast):
        assert isinstance(net, Siblings)
        CHANGES[case](net)
        net.eval()
    expected, actual = outputs(model, photo())[0], outputs(fast, photo())[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_block_changed_after_conversion() -> None:
    model = build("torchvision:mobilenet_v2")
    fast = converted(model)
    outputs(fast, photo(1, 32, 32))
    seen: list[int] = []
    for net in (model, fast):
        net.features[2].conv[1][2].register_forward_hook(lambda module, args, y: seen.append(1))
    assert_same_answer(fast, model, photo(1, 32, 32))
    assert len(seen) == 3  # once in fast, once in the original, once in its fp64 copy
    assert "hook" in fast.features[2]._fastdw_reason


def test_sync_batch_norm_put_in_afterwards() -> None:
    model = build("torchvision:mobilenet_v2")
    fast = converted(model)
    fast = nn.SyncBatchNorm.convert_sync_batchnorm(fast)
    assert_same_answer(fast, model, photo(1, 32, 32))


def test_part_of_a_site_in_training_mode() -> None:
    """A frozen or thawed batch norm behaves as its own flag says."""
    model = siblings()
    fast = converted(model)
    for net in (model, fast):
        assert isinstance(net, Siblings)
        net.norm.train()
        outputs(net, photo())
    torch.testing.assert_close(fast.norm.running_mean, model.norm.running_mean)  # type: ignore[union-attr]


def test_blocks_that_share_their_layers() -> None:
    """A fused block leaves what its layers compute alone: somebody else may use them too."""
    features = build("torchvision:mobilenet_v2").features
    model = nn.Sequential(features[:2], features[2].conv[0], features[2].conv[1:], features[3])
    shared = nn.ModuleList([model, features])
    expected = outputs(model, photo()) + outputs(features, photo())
    fastdw.convert(shared)
    actual = outputs(model, photo()) + outputs(features, photo())
    for y, stock in zip(actual, expected, strict=True):
        torch.testing.assert_close(y, stock, rtol=1e-3, atol=1e-3)


def test_transformers_have_nothing_to_fuse() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 16)
    expected = outputs(model, x)
    with pytest.warns(UserWarning, match="it has no convolution"):
        report = fastdw.convert(model)
    assert len(report) == 0
    assert all(map(torch.equal, outputs(model, x), expected))


def test_vision_transformer() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 32).eval()
    nn.init.normal_(model.heads.head.weight)  # torchvision's zeros would hide all else
    x = photo(2, 32, 32)
    expected = outputs(model, x)
    with pytest.warns(UserWarning, match="in VisionTransformer: 1 no_batch_norm$"):
        fastdw.convert(model)
    assert reasons(model) == {"conv_proj": "no_batch_norm"}
    assert all(map(torch.equal, outputs(model, x), expected))


def test_script_modules_and_compiled_modules() -> None:
    scripted = nn.Sequential(torch.jit.trace(siblings(), photo()), siblings())
    assert reasons(scripted) == {"0": "scripted", "1.depthwise": "fused", "1.pointwise": "fused"}
    compiled = nn.Sequential(torch.compile(siblings(), backend="eager"), siblings())
    assert reasons(compiled)["0"] == "compiled"
    assert_same_answer(converted(scripted[1]), siblings(), photo())


def test_sharded_modules() -> None:
    """FSDP needs a process group; what counts is that a class of its package is left alone."""
    sharded = type("FSDPSiblings", (Siblings,), {"__module__": "torch.distributed.fsdp.fake"})()
    assert reasons(nn.Sequential(sharded, siblings()))["0"] == "sharded"


def test_lazy_modules() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 1), nn.BatchNorm2d(8))
    assert reasons(model) == {"0": "uninitialized"}


def test_conversion_does_not_touch_training_flags() -> None:
    model = build("timm:lcnet_050").train()
    model.blocks[2].eval()
    flags = [module.training for module in model.modules()]
    fastdw.convert(model)
    assert [module.training for module in model.modules()] == flags


def test_random_state_is_left_alone() -> None:
    model = build("torchvision:mobilenet_v2")
    state = torch.get_rng_state()
    fastdw.optimize(model)
    fastdw.convert(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_patched() -> None:
    forwards = [nn.Conv2d.forward, nn.BatchNorm2d.forward, nn.Module.__call__]
    forwards.append(torchvision.models.mobilenetv2.InvertedResidual.forward)
    fastdw.convert(build("torchvision:mobilenet_v2"))
    assert forwards == [
        nn.Conv2d.forward,
        nn.BatchNorm2d.forward,
        nn.Module.__call__,
        torchvision.models.mobilenetv2.InvertedResidual.forward,
    ]
