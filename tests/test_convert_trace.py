"""A forward that does something else with tensors than in a torch.fx trace is not fused by it."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from convert_models import assert_same_answer, photo
from nn_checks import randomize
from torch import Tensor, fx, nn

import fastdw

Forward = Callable[["Layers", Tensor], Tensor]


class Layers(nn.Module):
    """Conv, batch norm and activation, and what `run` does with them."""

    def __init__(self, run: Forward) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU6(inplace=True)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def layers(run: Forward) -> nn.Module:
    torch.manual_seed(0)
    return randomize(Layers(run)).eval()


def _leaves_early(self: Layers, x: Tensor) -> Tensor:
    y = self.conv(x)
    return y if isinstance(x, Tensor) else self.act(self.norm(y))


def _reads_twice(self: Layers, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = self.act(self.norm(y))
    return z + y if type(x) is Tensor else z


def _gives_it_out(self: Layers, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = self.act(self.norm(y))
    return z if isinstance(x, fx.Proxy) else (z, y)  # type: ignore[return-value]


def _norm_of_another(self: Layers, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.act(self.norm(y if isinstance(x, fx.Proxy) else y + 1))


def _catches(self: Layers, x: Tensor) -> Tensor:
    y = self.conv(x)
    try:
        if x.shape[2] > 1000:
            return self.act(self.norm(y))
    except Exception:
        return self.act(self.norm(y))
    return y


def _catches_unpacking(self: Layers, x: Tensor) -> Tensor:
    y = self.conv(x)
    try:
        sizes = list(x.shape)
    except Exception:
        return self.act(self.norm(y))
    return y * len(sizes)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (_leaves_early, "trace_differs"),
        (_reads_twice, "trace_differs"),
        (_gives_it_out, "trace_differs"),
        (_norm_of_another, "trace_differs"),
        (_catches, "not_traced"),
        (_catches_unpacking, "not_traced"),
    ],
)
@pytest.mark.filterwarnings("ignore:fastdw can fuse nothing")
def test_a_trace_that_differs_is_not_believed(run: Forward, reason: str) -> None:
    model = layers(run)
    fast = copy.deepcopy(model)
    assert [row.reason.code for row in fastdw.convert(fast)] == [reason]
    assert_same_answer(fast, model, photo())
    assert_same_answer(fastdw.optimize(model, photo()), model, photo(2))


def test_an_honest_forward_is_fused() -> None:
    """Asking for types does no harm as long as the layers follow each other."""

    def run(self: Layers, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x if isinstance(x, Tensor) else x)))
        return F.relu(y) + y

    model = layers(run)
    fast = copy.deepcopy(model)
    assert [row.reason.code for row in fastdw.convert(fast)] == ["fused"]
    assert_same_answer(fast, model, photo())


@pytest.mark.filterwarnings("ignore:fastdw can fuse nothing")
def test_forward_replaced_on_the_model() -> None:
    """torch.fx would trace the forward of the class."""
    model = layers(lambda self, x: self.act(self.norm(self.conv(x))))
    model.forward = types.MethodType(lambda self, x: self.conv(x), model)  # type: ignore[method-assign]
    fast = layers(lambda self, x: self.act(self.norm(self.conv(x))))
    fast.forward = types.MethodType(lambda self, x: self.conv(x), fast)  # type: ignore[method-assign]
    assert [row.reason.code for row in fastdw.convert(fast)] == ["not_traced"]
    torch.testing.assert_close(fast(photo()), model(photo()), rtol=1e-4, atol=1e-5)


class Branching(nn.Module):
    """Cannot be traced, so that its children are; one layer stands in two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Layers(lambda self, x: self.norm(self.conv(x)))
        self.second = nn.Sequential(self.first.conv, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x) if x.sum() < 1e9 else x


@pytest.mark.filterwarnings("ignore:fastdw can fuse nothing")
def test_a_layer_shared_by_parts_that_are_traced_apart() -> None:
    torch.manual_seed(0)
    model = randomize(Branching()).eval()
    fast = copy.deepcopy(model)
    report = fastdw.convert(fast)
    assert {row.name: row.reason.code for row in report} == {"first.conv": "shared_module"}
    assert_same_answer(fast, model, photo())


@pytest.mark.filterwarnings("ignore:fastdw can fuse nothing")
def test_convert_again_with_a_new_layer() -> None:
    model = layers(lambda self, x: self.norm(self.conv(x)))
    fast = copy.deepcopy(model)
    fastdw.convert(fast)
    for net in (model, fast):
        torch.manual_seed(1)
        net.conv = nn.Conv2d(3, 8, 1)
    assert [row.reason.code for row in fastdw.convert(fast)] == ["partly_converted"]
    assert_same_answer(fast, model, photo())


def _twice(conv: nn.Module, norm: nn.Module, act: nn.Module, case: str) -> list[nn.Module]:
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    first = [conv, norm, act, depthwise]
    if case == "activation":
        return [*first, nn.BatchNorm2d(8), act, nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)]
    if case == "batch norm":
        return [*first, norm, nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)]
    return [*first, nn.BatchNorm2d(8), nn.ReLU6(), conv, nn.BatchNorm2d(8)]


@pytest.mark.parametrize("case", ["activation", "batch norm", "convolution"])
@pytest.mark.parametrize("kind", ["sequential", "torchvision"])
@pytest.mark.filterwarnings("ignore:fastdw can fuse nothing")
def test_one_layer_twice_in_a_block(kind: str, case: str) -> None:
    """`children()` gives it once: what stands twice must run twice."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(
        *_twice(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True), case)
    )
    if kind == "torchvision":
        from torchvision.ops.misc import Conv2dNormActivation

        model.__class__ = Conv2dNormActivation
    model = randomize(model).eval()
    fast = copy.deepcopy(model)
    report = fastdw.convert(fast)
    as_a_whole = "inverted_residual" in {row.pattern for row in report.fused}
    assert as_a_whole is (case == "activation")
    x = torch.randn(2, 8, 9, 11)
    assert_same_answer(fast, model, x)
    assert_same_answer(fastdw.optimize(model, x), model, x)
