"""Folding a batch norm into scale and bias, and the activations that an epilogue knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastdw import activation, ops
from fastdw.folding import fold_batch_norm


def batch_norm(channels: int = 6, affine: bool = True, eps: float = 1e-3) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(channels, affine=affine, eps=eps).eval()
    assert bn.running_mean is not None and bn.running_var is not None
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.1, 3)
    if affine:
        nn.init.normal_(bn.weight)
        nn.init.normal_(bn.bias)
    return bn


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("conv_bias", [None, torch.linspace(-3, 3, 6)])
def test_folded_is_conv_and_batch_norm(affine: bool, conv_bias: Tensor | None) -> None:
    bn, x, weight = batch_norm(affine=affine), torch.randn(2, 6, 7, 7), torch.randn(6, 1, 3, 3)
    scale, bias = fold_batch_norm(bn, conv_bias)
    assert scale.dtype == bias.dtype == torch.float32
    wanted = nn.functional.relu6(
        bn(nn.functional.conv2d(x, weight, conv_bias, padding=1, groups=6))
    )
    y = ops.depthwise_conv(x, weight, scale, bias, padding=1, activation="relu6")
    torch.testing.assert_close(y, wanted)


def test_folding_half_precision_gives_fp32_and_fp64_stays() -> None:
    assert {t.dtype for t in fold_batch_norm(batch_norm().half())} == {torch.float32}
    assert {t.dtype for t in fold_batch_norm(batch_norm().double())} == {torch.float64}


def test_folding_is_differentiable() -> None:
    bn = batch_norm().double()
    conv_bias = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def fold(gamma: Tensor, beta: Tensor, conv_bias: Tensor) -> tuple[Tensor, Tensor]:
        bn.weight, bn.bias = gamma, beta
        return fold_batch_norm(bn, conv_bias)

    gamma, beta = bn.weight, bn.bias
    del bn.weight, bn.bias  # plain attributes, so that gradcheck's tensors can take their place
    assert torch.autograd.gradcheck(fold, (gamma, beta, conv_bias))


def test_folding_refuses_what_it_cannot_fold() -> None:
    with pytest.raises(ValueError, match="bn: .*running statistics"):
        fold_batch_norm(nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match=r"conv_bias: expected \[6\], got \[1\]"):
        fold_batch_norm(batch_norm(), torch.ones(1))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (None, "none"),
        (nn.Identity(), "none"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(0.0, 6.0), "relu6"),
        (nn.Hardtanh(0.0, 1.0), None),
        (nn.Hardswish(), "hardswish"),
        (nn.SiLU(), "silu"),
        (nn.GELU(), None),
        (type("Subclass", (nn.ReLU,), {})(), None),
    ],
)
def test_name_of_an_activation_module(module: nn.Module | None, name: str | None) -> None:
    assert activation.name_of(module) == name
    if module is not None and name is not None:
        x = torch.linspace(-8, 8, 33)
        torch.testing.assert_close(activation.apply(name, x), module(x.clone()))


@pytest.mark.parametrize("name", activation.ACTIVATIONS)
def test_activation_gradient_is_that_of_torch(name: str) -> None:
    x = torch.tensor([-torch.inf, -7, -3, -1, 0, 1, 3, 6, 7, torch.nan], requires_grad=True)
    (wanted,) = torch.autograd.grad(activation.apply(name, x).sum(), x)
    ours = activation.gradient(name, torch.ones_like(x), x.detach())
    torch.testing.assert_close(ours, wanted, equal_nan=True)


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="activation: expected one of none, relu, .* got 'gelu'"):
        activation.apply("gelu", torch.ones(1))
