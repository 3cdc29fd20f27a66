"""Networks that join maps, planned whole: Unets, DeepLab's heads of others, detectors' layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nn_checks import fused_ops, randomize
from timm.layers import ConvNormAct
from torch import Tensor, nn

import fastdw
from fastdw.benchmark.torch_steps import TorchSteps
from fastdw.convert.report import Reason
from fastdw.nn import ConvBNAct, DepthwiseConvBNAct, InvertedResidual, PointwiseConvBNAct
from fastdw.ops.program import parse_program
from fastdw.plan import PlannedNetwork, network
from fastdw.plan.record import NotPlannable, record


def layers(channels_in: int, channels_out: int, **settings: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False, **settings),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class Unet(nn.Module):
    """Dense convolutions of torch's own modules, nearest and bilinear upsampling, two skips."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, 16, stride=2)
        self.down = nn.Sequential(InvertedResidual(16, 24, 2), layers(24, 32))
        self.deep = layers(32, 48, stride=2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.middle, self.last = layers(48 + 32, 32), layers(32 + 16, 16)
        self.head = nn.Conv2d(16, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        second = self.down(first)
        y = self.middle(torch.cat([self.up(self.deep(second)), second], dim=1))
        y = F.interpolate(y, size=first.shape[2:], mode="nearest")
        return self.head(self.last(torch.cat((y, first), 1)))


class Pooling(nn.Sequential):
    """The image-level feature as torchvision has it."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        for layer in self:
            x = layer(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """Dense dilated branches and a pooled one, in any place among them."""

    def __init__(self, pooled_at: int = 2, width: int = 16, reader: str = "1x1") -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBNAct(3, 16, stride=2), InvertedResidual(16, 24, 2))
        self.pooled_at = pooled_at
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(24, width, 3, padding=rate, dilation=rate, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for rate in (1, 4)
        )
        pool = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, width, 1, bias=False))
        self.pooling = Pooling(*pool, nn.BatchNorm2d(width), nn.ReLU())
        kernel = 1 if reader == "1x1" else 3
        self.project = nn.Sequential(
            nn.Conv2d(3 * width, 20, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(20),
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.classifier = nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        parts = [branch(y) for branch in self.branches]
        parts.insert(self.pooled_at, self.pooling(y))
        logits = self.classifier(self.project(torch.cat(parts, 1)))
        height, width = x.shape[2], x.shape[3]
        return F.interpolate(logits, (height, width), mode="bilinear", align_corners=True)


class Gated(nn.Module):
    """LR-ASPP's head: gates multiply a map that is resized before a 1x1 convolution reads it."""

    def __init__(self, factor: float | None) -> None:
        super().__init__()
        self.stem, self.deep = ConvBNAct(3, 16, stride=2), InvertedResidual(16, 24, 2)
        gate = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 24, 1, bias=False), nn.Sigmoid())
        self.gate, self.factor = nn.Sequential(*gate), factor
        self.low, self.high = nn.Conv2d(16, 5, 1), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = self.stem(x)
        y = self.deep(low)
        y = y * self.gate(y)
        if self.factor is None:
            y = F.interpolate(y, size=low.shape[-2:], mode="bilinear")
        else:
            y = F.interpolate(y, scale_factor=self.factor)
        return F.interpolate(self.low(low) + self.high(y), size=x.shape[-2:], mode="bilinear")


def built(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomize(model).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "Unet": Unet,
    "pooled last": Pyramid,
    "pooled first": lambda: Pyramid(0),
    "pooled between": lambda: Pyramid(1),
    "read by a 3x3": lambda: Pyramid(1, reader="3x3"),
    "gated": lambda: Gated(None),
    "gated and scaled": lambda: Gated(2),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_one_plan_with_the_same_answer(name: str) -> None:
    model = built(MODELS[name]())
    fast = fastdw.optimize(model, torch.randn(1, 3, 64, 64), strict=True)
    assert isinstance(fast, PlannedNetwork)
    for shape in ((1, 3, 64, 96), (3, 3, 32, 32)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert fused_ops(lambda x=x: fast(x)) == {"planned_network": 1}
        expected = model.double()(x.double())
        model.float()
        torch.testing.assert_close(fast(x).double(), expected, rtol=1e-4, atol=1e-5)
    again = fastdw.optimize(built(MODELS[name]()), torch.randn(1, 3, 64, 64))
    again.load_state_dict(fast.state_dict())
    assert torch.equal(again(x), fast(x))


def test_a_norm_that_ends_in_another_layer_is_not_planned() -> None:
    layer = ConvNormAct(3, 8, 3, act_layer=nn.GELU)
    model = built(nn.Sequential(layer, ConvNormAct(8, 8, 1)))
    report = fastdw.optimize(model, torch.randn(1, 3, 20, 20)).report
    assert report.plan_reason == "0.bn: BatchNormAct2d has no step"


def test_the_pooled_part_is_multiplied_once_an_image() -> None:
    fast = fastdw.optimize(built(Pyramid()), torch.randn(1, 3, 64, 64))
    steps = parse_program(fast.program).steps
    assert [s.channels_in for s in steps if s.op == "biased_pointwise_conv"] == [32]
    assert not any(step.op == "resize" and step.input == "x" for step in steps)
    mixed = fastdw.optimize(built(Pyramid(reader="3x3")), torch.randn(1, 3, 64, 64))
    assert "biased_pointwise_conv" not in mixed.program


@torch.no_grad()
def test_the_report_says_what_runs_a_dense_convolution() -> None:
    def rows(report: Any) -> dict[str, tuple[bool, Reason]]:
        return {row.name: (row.fused, row.reason) for row in report}

    model = built(nn.Sequential(ConvBNAct(3, 300), ConvBNAct(300, 8), ConvBNAct(8, 8, groups=2)))
    x = torch.randn(1, 3, 20, 20)
    assert rows(fastdw.explain(model)) == {
        "0": (True, Reason.ALREADY_FUSED),
        "1": (False, Reason.DENSE_CONVOLUTION),
        "2": (False, Reason.GROUPED_CONVOLUTION),
    }
    model(x)
    assert fused_ops(lambda: model(x)) == {"stem_conv_packed": 1}
    planned = fastdw.optimize(model[:2].eval(), x)
    assert planned.report.planned and rows(planned.report)["1"] == (True, Reason.PLANNED)
    assert planned.report.rows[1].backend == "cpp"
    unet = fastdw.optimize(built(Unet()), torch.randn(1, 3, 32, 32))
    assert {reason for _, reason in rows(unet.report).values()} <= {
        *(Reason.FUSED, Reason.ALREADY_FUSED, Reason.PLANNED, Reason.NO_BATCH_NORM),
    }


class Joining(nn.Module):
    """Two maps of 16 and 20 channels, and something done with them."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.other, self.join = ConvBNAct(3, 16), ConvBNAct(3, 20), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.one(x), self.other(x))


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "batch": (lambda a, b: torch.cat((a, b[:, :16])), "has no step"),
    "cubic": (lambda a, b: F.interpolate(a, scale_factor=2, mode="bicubic"), "has no step"),
    "half": (lambda a, b: F.interpolate(a, scale_factor=0.5), "has no step"),
    "fixed": (lambda a, b: F.interpolate(a, size=(7, 7)), "has no step"),
    "antialias": (
        lambda a, b: F.interpolate(a, scale_factor=2, mode="bilinear", antialias=True),
        "has no step",
    ),
    "zeros": (lambda a, b: torch.zeros_like(a), "a zeros is no output"),
    "strided slice": (lambda a, b: b[:, ::2], "getitem has no step"),
    "rows": (lambda a, b: b[:, :, 2:], "getitem has no step"),
    "split of rows": (lambda a, b: b.split(6, 2)[0], "split has no step"),
    "other axes": (
        lambda a, b: shuffle(b, 2).view(b.shape[0], 2, 10, 12, 12).transpose(1, 3),
        "view has no step",
    ),
    "shuffle of pixels": (lambda a, b: F.pixel_shuffle(b, 2), "pixel_shuffle has no step"),
    "pool of rows": (lambda a, b: F.max_pool2d(b, 3, ceil_mode=True), "max_pool2d has no step"),
}


def shuffle(x: Tensor, groups: int) -> Tensor:
    """As torchvision's ShuffleNet has it."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


@pytest.mark.parametrize("name", REFUSED)
@torch.no_grad()
def test_what_has_no_step_is_refused_with_a_reason(name: str) -> None:
    join, reason = REFUSED[name]
    model = built(Joining(join))
    with pytest.raises(NotPlannable, match=reason):
        record(model)
    x = torch.randn(1, 3, 12, 12)
    torch.testing.assert_close(fastdw.optimize(model, x)(x), model(x), rtol=1e-4, atol=1e-5)


def test_no_gpu_gets_such_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(Unet())
    recording = record(model)
    reason = recording.program.gpu_refusal
    assert reason is not None and "planned on the CPU alone: concat, dense_conv, resize" in reason
    planned = PlannedNetwork(model, recording, keep_weights=False)
    with pytest.raises(RuntimeError, match="planned on the CPU alone"):
        planned._apply(lambda tensor: tensor.to("meta") if tensor.numel() else FakeCuda())
    monkeypatch.setattr(network, "placement", lambda _: (torch.device("cuda"), torch.float32))
    with pytest.raises(NotPlannable, match="planned on the CPU alone"):
        PlannedNetwork(model, recording)


class FakeCuda:
    """What `.to("cuda")` makes of an empty tensor."""

    is_cuda, dtype = True, torch.float32


@pytest.mark.parametrize("padding", ["same", "torch"])
def test_symbolic_sizes_stay_small(padding: str) -> None:
    """torch.compile(dynamic=True) took minutes where sizes grew from layer to layer."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from fastdw.geometry import output_size

    size: Any = ShapeEnv().create_unbacked_symint()
    sides = [] if padding == "same" else [1, 1, 1, 1]
    height, width = size, 31
    for stride in (2, 1, 1, 1, 1):
        height, width = output_size((height, width), (3, 3), (stride,) * 2, sides, (1, 1))
    assert width == 16 and len(str(height)) < 60


class Tapped(nn.Module):
    """A depthwise result that a 1x1 convolution reads, and something else or its size."""

    def __init__(self, size_alone: bool) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, 16, stride=2)
        self.depthwise = DepthwiseConvBNAct(16, stride=2)
        self.project = PointwiseConvBNAct(16, 32)
        self.small = ConvBNAct(32, 16, stride=2)
        self.size_alone = size_alone

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.depthwise(self.stem(x))
        y = self.project(hidden)
        if self.size_alone:
            return F.interpolate(self.small(y), hidden.shape[2:], mode="bilinear")
        return torch.cat([y, hidden], 1)


@pytest.mark.parametrize("size_alone", [False, True])
@torch.no_grad()
def test_what_a_join_reads_is_not_swallowed_by_a_block(size_alone: bool) -> None:
    model, x = built(Tapped(size_alone)), torch.randn(2, 3, 36, 28)
    fast = fastdw.optimize(model, x, strict=True)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_torch_runs_the_steps_to_the_same_end(name: str) -> None:
    """What `fastdw bench --layers` holds each step against."""
    model, x = built(MODELS[name]()), torch.randn(2, 3, 64, 64)
    expected = model(x)
    fastdw.convert(model)
    outputs, seconds = TorchSteps(record(model)).run(x)
    torch.testing.assert_close(outputs[0], expected, rtol=1e-4, atol=1e-5)
    joins = {"resize"} if isinstance(model, Gated) else {"dense_conv", "resize", "concat"}
    assert joins <= {op for _, op in seconds}
