"""When a module cannot run fused, its children run one after another, and it says why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nn_checks import MODULES, fused_ops, image, module
from torch import nn
from torch.nn.utils import parametrize

import fastdw
import fastdw.nn
from fastdw.backends import BackendRefused, use_backend

HOOKS = {
    "forward": lambda child, hook: child.register_forward_hook(hook),
    "forward_pre": lambda child, hook: child.register_forward_pre_hook(hook),
    "full_backward": lambda child, hook: child.register_full_backward_hook(hook),
}


PATHS = ["expand", "depthwise.bn", "project.conv", "depthwise.act"]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        *((kind, path) for kind in ("forward", "forward_pre") for path in PATHS),
        ("full_backward", "expand"),
        ("full_backward", "project.conv"),  # torch forbids them around in-place activations
    ],
)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_a_hook_on_a_child_runs(kind: str, path: str, grad: bool) -> None:
    block, x = module("residual"), image().requires_grad_(grad)
    calls: list[int] = []
    with torch.set_grad_enabled(grad):
        expected = block(x)
        child = block.get_submodule(path)
        handle = HOOKS[kind](child, lambda *args: calls.append(1))
        y = block(x)
        if kind == "full_backward" and grad:
            y.sum().backward()
        if kind != "full_backward" or grad:
            assert calls == [1]
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        if kind != "full_backward" or grad:
            assert type(child).__name__ in block._fastdw_reason
            assert "hook" in block._fastdw_reason
        handle.remove()
        assert any("inverted_residual" in op for op in fused_ops(lambda: block(x)))
        assert block._fastdw_reason is None


def test_a_hook_that_changes_the_output_changes_the_output() -> None:
    block, x = module("separable"), image()
    with torch.no_grad():
        block(x)
        block.pointwise.register_forward_hook(lambda module, args, output: output * 0)
        assert block(x).abs().max() == 0


def test_a_hook_on_the_module_itself_keeps_it_fused() -> None:
    block, x = module("separable"), image()
    block.register_forward_hook(lambda module, args, output: output * 0)
    with torch.no_grad():
        assert "separable_block_packed" in fused_ops(lambda: block(x))
        assert block(x).abs().max() == 0


def sync_batch_norm(block: Any) -> None:
    block.project.bn = nn.SyncBatchNorm.convert_sync_batchnorm(block.project.bn)


def group_norm(block: Any) -> None:
    block.project.bn = nn.GroupNorm(1, 12).eval()


def no_statistics(block: Any) -> None:
    block.depthwise.bn = nn.BatchNorm2d(36, track_running_stats=False).eval()


def training_child(block: Any) -> None:
    block.depthwise.bn.train()


def unknown_activation(block: Any) -> None:
    block.depthwise.act = nn.GELU()


def parametrized(block: Any) -> None:
    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    parametrize.register_parametrization(block.project.conv, "weight", Double())
    block.eval()


def own_forward(block: Any) -> None:
    block.expand.conv.forward = lambda x: nn.Conv2d.forward(block.expand.conv, x) + 1


def weight_norm(block: Any) -> None:
    nn.utils.parametrizations.weight_norm(block.depthwise.conv)
    block.eval()


def reflection(block: Any) -> None:
    block.depthwise.conv = nn.Conv2d(36, 36, 3, 1, 1, groups=36, padding_mode="reflect")


def strided_projection(block: Any) -> None:
    block.residual = False
    block.project.conv.stride = (2, 2)


class Doubling(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def other_class(block: Any) -> None:
    block.project.conv.__class__ = Doubling


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (sync_batch_norm, "SyncBatchNorm"),
        (group_norm, "GroupNorm"),
        (no_statistics, "no running statistics"),
        (training_child, "BatchNorm2d is in training mode"),
        (unknown_activation, "GELU"),
        (parametrized, "ParametrizedConv2d"),
        (own_forward, "forward of its own"),
        (other_class, "Doubling"),
        (weight_norm, "ParametrizedConv2d"),
        (reflection, "reflect"),
        (strided_projection, "stride"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_changed_children(change: Callable[[Any], None], reason: str, warm: bool) -> None:
    block, x = module("residual"), image()
    with torch.no_grad():
        if warm:
            block(x)
        change(block)
        statistics = {name: b.clone() for name, b in block.named_buffers()}
        y = block(x)
        assert reason in block._fastdw_reason
        assert not any("inverted_residual" in op for op in fused_ops(lambda: block(x)))
        for name, buffer in block.named_buffers():
            buffer.copy_(statistics[name])
        hidden = x
        for unit in (block.expand, block.depthwise, block.project):
            hidden = unit.act(unit.bn(unit.conv(hidden)))
        expected = x + hidden if block.residual else hidden
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_use_backend(name: str) -> None:
    block, x = module(name), image(name)
    with torch.no_grad():
        expected = block(x)
        with use_backend("torch"):
            assert fused_ops(lambda: block(x)) == {}
            torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
        with use_backend("cpp"):
            assert torch.equal(block(x), expected)
        with use_backend("triton"), pytest.raises(BackendRefused, match="triton"):
            block(x)


def test_environment_variable() -> None:
    code = (
        "import torch, fastdw.nn\n"
        "from torch.profiler import profile\n"
        "block = fastdw.nn.SeparableBlock(8, 8).eval()\n"
        "with torch.no_grad(), profile() as p: block(torch.zeros(1, 8, 4, 4))\n"
        "print(sum(e.key.startswith('fastdw::') for e in p.key_averages()))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTDW_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split()[-1] == "0"


def test_a_depth_multiplier_inside_a_block_runs_unfused_on_torch() -> None:
    block = fastdw.nn.SeparableBlock(4, 6)
    block.depthwise = fastdw.nn.DepthwiseConvBNAct(4, multiplier=2)
    block.pointwise = fastdw.nn.PointwiseConvBNAct(8, 6)
    block.eval()
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        expected = block.pointwise(block.depthwise(x))
        torch.testing.assert_close(block(x), expected)
        with use_backend("cpp"), pytest.raises(BackendRefused, match="multiplier"):
            block(x)
