"""Squeeze-excites in converted models read the means that the depthwise convolution leaves them."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from convert_models import assert_same_answer, calibrate, outputs, photo
from nn_checks import fused_ops, ops_of, randomize
from torch import Tensor, nn
from torchvision.ops.misc import SqueezeExcitation

import fastdw

MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 9),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 16),
    "lcnet_050": (lambda: timm.create_model("lcnet_050"), 2),
    "tf_mobilenetv3_small_075": (lambda: timm.create_model("tf_mobilenetv3_small_075"), 9),
}
"""Model -> how many squeeze-excites stand behind a depthwise convolution."""


def ready(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return calibrate(randomize(model))


def pooled_ops(model: nn.Module, x: Tensor) -> int:
    outputs(model, x)  # packs
    ran = fused_ops(lambda: outputs(model, x))
    return sum(count for op, count in ran.items() if op.startswith("depthwise_conv_pooled"))


@pytest.mark.parametrize("name", MODELS)
def test_every_squeeze_excite_reads_them(name: str) -> None:
    make, blocks = MODELS[name]
    original = ready(make())
    model = copy.deepcopy(original)
    report = fastdw.convert(model)
    assert report.totals["patterns"]["depthwise_conv_pooled"] == blocks
    x = photo(1, 64, 96)
    assert pooled_ops(model, x) == blocks
    ran = ops_of(lambda: outputs(model, x))
    assert ran["aten::mean"] == 1  # the classifier's own
    for image in (x, photo(3, 96, 64)):
        assert_same_answer(model, original, image)
    planned = fastdw.optimize(original, x)
    assert planned.report.planned
    assert [type(m) for m in fastdw.revert(model).modules()] == [
        type(m) for m in original.modules()
    ]


class Block(nn.Module):
    """A depthwise convolution and a squeeze-excite by hand."""

    def __init__(self, channels: int = 20, between: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.Hardswish()
        self.between = between or nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self.act(self.bn(self.conv(x))))
        return y * self.fc(self.pool(y).flatten(1)).sigmoid()[:, :, None, None]


class PooledSecond(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.conv(x)))
        F.relu_(y)
        return y * self.pool(y)


class PooledTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.conv(x)))
        gates = self.pool(y)
        return self.pool(y.add_(1)) + gates


class PooledFinely(Block):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.conv(x)))
        return F.interpolate(self.pool(y), y.shape[2:]) * y


class SharedPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        self.second.pool = self.first.pool

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def image(batch: int = 2, size: int = 9) -> Tensor:
    return torch.randn(batch, 20, size, size + 2, generator=torch.Generator().manual_seed(batch))


def assert_same_in_inference_mode(model: nn.Module, original: nn.Module, x: Tensor) -> None:
    """Where writes to tensors are not counted, and where they are."""
    with torch.inference_mode():
        torch.testing.assert_close(model(x.clone()), original(x.clone()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs(model, x), outputs(original, x), rtol=1e-4, atol=1e-5)


def converted(block: nn.Module, **settings: object) -> tuple[nn.Module, nn.Module]:
    original = randomize(block).eval()
    model = copy.deepcopy(original)
    fastdw.convert(model, **settings)
    return model, original


def test_a_squeeze_excite_by_hand() -> None:
    model, original = converted(Block())
    assert pooled_ops(model, image()) == 1
    for x in (image(), image(33, 5), image(1, 1), image().contiguous(), image()[:, :, ::2, 1:]):
        assert_same_in_inference_mode(model, original, x)


@pytest.mark.parametrize("make", [PooledSecond, PooledTwice, PooledFinely, SharedPool])
def test_what_is_not_the_first_global_average(make: Callable[[], nn.Module]) -> None:
    model, original = converted(make())
    assert pooled_ops(model, image()) == 0
    assert_same_in_inference_mode(model, original, image())


HOOKED: dict[str, tuple[str, str]] = {
    "the convolution": ("conv", "register_forward_hook"),
    "the norm": ("bn", "register_forward_hook"),
    "the activation": ("act", "register_forward_hook"),
    "a layer between": ("between", "register_forward_pre_hook"),
    "the pooling": ("pool", "register_forward_pre_hook"),
}


def _double_in_place(module: nn.Module, given: object, y: object = None) -> None:
    [tensor] = given if y is None and isinstance(given, tuple) else [y]
    tensor.mul_(2)  # type: ignore[union-attr]


@pytest.mark.parametrize("place", HOOKED)
def test_hooks_that_write_to_the_result(place: str) -> None:
    model, original = converted(Block())
    assert pooled_ops(model, image()) == 1
    name, register = HOOKED[place]
    handles = []
    for net in (model, original):
        handles.append(getattr(getattr(net, name), register)(_double_in_place))
    assert_same_in_inference_mode(model, original, image())
    assert pooled_ops(model, image()) == 0
    for handle in handles:
        handle.remove()
    assert pooled_ops(model, image()) == 1
    assert_same_in_inference_mode(model, original, image())


def test_hooks_between_the_blocks_of_a_model() -> None:
    model, original = converted(ready(torchvision.models.mobilenet_v3_small()))
    x = photo(1, 32, 32)
    assert pooled_ops(model, x) == 9
    for net in (model, original):
        net.features[4].block[1].register_forward_hook(_double_in_place)
        net.features[5].block[2].register_forward_pre_hook(_double_in_place)
    assert pooled_ops(model, x) == 7
    assert_same_in_inference_mode(model, original, x)


def test_layers_put_in_place_of_others() -> None:
    for name, layer in (("pool", nn.AdaptiveMaxPool2d(1)), ("between", nn.Hardtanh(0, 1, True))):
        model, original = converted(Block())
        outputs(model, image())
        for net in (model, original):
            setattr(net, name, layer)
        assert_same_in_inference_mode(model, original, image())


def test_a_result_that_is_written_to_elsewhere() -> None:
    """Called by hand, one after another: counted writes are seen."""
    model, _ = converted(Block())
    with torch.no_grad():
        y = model.act(model.bn(model.conv(image())))
        torch.testing.assert_close(model.pool(y), y.mean((2, 3), keepdim=True))
        y.mul_(3)
        torch.testing.assert_close(model.pool(y), y.mean((2, 3), keepdim=True))
        torch.testing.assert_close(model.pool(y + 1), (y + 1).mean((2, 3), keepdim=True))


def test_training_and_back() -> None:
    model, original = converted(Block())
    for net in (model, original):
        net.train()
        net(image(4)).square().mean().backward()
    for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    model.eval(), original.eval()
    assert pooled_ops(model, image()) == 1
    assert_same_in_inference_mode(model, original, image())


def test_gradients_in_eval_mode() -> None:
    model, original = converted(Block().double())
    grads = []
    for net in (model, original):
        x = image().double().requires_grad_()
        net(x).square().mean().backward()
        grads.append([x.grad, *(p.grad for p in net.parameters())])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    ran = fused_ops(lambda: model(image().double()))
    assert ran["depthwise_conv_pooled"] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    model, original = converted(Block())
    x, (truth,) = image(), outputs(original, image())
    with torch.autocast("cpu", dtype=dtype):
        results = [*outputs(model, x)]
    results += outputs(model.to(dtype), x.to(dtype))
    for y in results:
        assert y.dtype == dtype
        assert (y.float() - truth).abs().max() <= 20 * torch.finfo(dtype).eps * truth.abs().max()
    assert pooled_ops(model, x.to(dtype)) == 1


def test_copies_and_pickles_read_their_own() -> None:
    model, _ = converted(Block())
    expected = outputs(model, image())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.conv._fastdw_handover._seen is None  # what was looked up stays behind
        assert pooled_ops(other, image()) == 1
        assert all(map(torch.equal, outputs(other, image()), expected))
        with torch.no_grad():
            other.bn.bias.zero_()
        assert not any(map(torch.equal, outputs(other, image()), expected))
    assert all(map(torch.equal, outputs(model, image()), expected))
    lone = copy.deepcopy(model.conv)  # no longer the one that stands before the pooling
    outputs(lone, image())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
def test_compiles_exports_and_traces() -> None:
    model, original = converted(Block())
    x = image()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
        for other in (x, image(3, 12)):
            torch.testing.assert_close(compiled(other), original(other), rtol=1e-4, atol=1e-5)
        for strict in (False, True):
            program = torch.export.export(model, (x,), strict=strict)
            assert "depthwise_conv_pooled" in str(program.graph)
            torch.testing.assert_close(program.module()(x), original(x), rtol=1e-4, atol=1e-5)
        traced = torch.jit.trace(model, (x,), check_trace=False)
        torch.testing.assert_close(traced(image(3)), original(image(3)), rtol=1e-4, atol=1e-5)
    graph = torch.fx.symbolic_trace(model)
    assert_same_in_inference_mode(graph, original, x)


def test_threads_do_not_read_each_others() -> None:
    model, original = converted(Block())
    wanted = [outputs(original, image(batch)) for batch in (1, 2, 3)]
    wrong: list[int] = []

    def run(index: int) -> None:
        for _ in range(30):
            [y] = outputs(model, image(index + 1))
            if not torch.allclose(y, wanted[index][0], rtol=1e-4, atol=1e-5):
                wrong.append(index)

    workers = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_who_is_left_out() -> None:
    model, _ = converted(Block(), exclude="pool")
    assert type(model.pool) is nn.AdaptiveAvgPool2d and pooled_ops(model, image()) == 0
    with pytest.warns(UserWarning, match="can fuse nothing"):
        model, _ = converted(Block(), exclude="conv")
    assert type(model.pool) is nn.AdaptiveAvgPool2d
    with torch.no_grad(), fastdw.use_backend("torch"):
        model, original = converted(Block())
        torch.testing.assert_close(model(image()), original(image()), rtol=1e-4, atol=1e-5)


def test_a_backend_without_the_pooled_op_runs_the_plain_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the CUDA kernels: another backend does not take over."""
    rows = fastdw.backends.ROWS["depthwise_conv_pooled"]
    monkeypatch.setitem(fastdw.backends.ROWS, "depthwise_conv_pooled", rows[1:])
    model, original = converted(Block())
    assert fused_ops(lambda: outputs(model, image()))["depthwise_conv_packed"] == 1
    assert_same_in_inference_mode(model, original, image())


def test_squeeze_excitation_behind_something_else() -> None:
    """Its own pooling runs behind a dense convolution."""
    dense = nn.Sequential(nn.Conv2d(20, 20, 1, bias=False), nn.BatchNorm2d(20), nn.ReLU())
    model, original = converted(nn.Sequential(dense, SqueezeExcitation(20, 5)))
    assert pooled_ops(model, image()) == 0
    assert_same_in_inference_mode(model, original, image())
