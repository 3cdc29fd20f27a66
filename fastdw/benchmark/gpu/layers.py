"""The calls of an op as torch's own layers: what cuDNN makes of them at its best, and as users
write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdw.benchmark.cases import Conv, OpCase, OpTensors
from fastdw.nn.conv_bn_act import activation_module
from fastdw.reference import adds_residual


class TorchLayers(nn.Module):
    """The convolutions of a case one after another.

    Args:
        case: with padding as an int, and no residual tensor.
        tensors: its operands; the module has their dtype and device.
        folded: batch norm in the convolutions' weights and biases; else as layers of its own.
    """

    def __init__(self, case: OpCase, tensors: OpTensors, folded: bool) -> None:
        super().__init__()
        self.is_head = case.op == "classifier_head"
        convs = [conv for conv in tensors.convs if conv is not None]
        if self.is_head:
            [(weight, _, bias, _)] = convs
            layers: list[nn.Module] = [_linear(weight, bias)]
        else:
            layers = [layer for conv in convs for layer in _unit(case, conv, folded)]
        self.layers = nn.Sequential(*layers)
        self.adds_input = case.op == "inverted_residual" and adds_residual(
            tensors.x,
            convs[-2][0],
            convs[-1][0],
            case.options["stride"],
            case.options["padding"],
            case.options.get("dilation", 1),
        )
        self.to(device=tensors.x.device, dtype=tensors.x.dtype).eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.is_head:
            return self.layers(F.adaptive_avg_pool2d(x, 1).flatten(1))
        y = self.layers(x)
        return x + y if self.adds_input else y


def _unit(case: OpCase, conv: Conv, folded: bool) -> list[nn.Module]:
    weight, scale, bias, activation = conv
    assert scale is not None and bias is not None
    channels, in_per_group, height, width = weight.shape
    window = case.options if (height, width) != (1, 1) else {}
    grouped = in_per_group == 1 and height * width > 1
    layer = nn.Conv2d(
        channels if grouped else in_per_group,
        channels,
        (height, width),
        stride=window.get("stride", 1),
        padding=window.get("padding", 0),
        groups=channels if grouped else 1,
        bias=folded,
    )
    layers: list[nn.Module] = [layer, activation_module(activation)]
    with torch.no_grad():
        if folded:
            layer.weight.copy_(weight.float() * scale.float()[:, None, None, None])
            assert layer.bias is not None
            layer.bias.copy_(bias)
        else:
            layer.weight.copy_(weight)
            layers.insert(1, _batch_norm(scale, bias))
    return layers


def _batch_norm(scale: Tensor, bias: Tensor) -> nn.Module:
    """Running statistics that leave ``scale * x + bias``."""
    norm = nn.BatchNorm2d(len(scale))
    norm.weight.copy_(scale)
    norm.bias.copy_(bias)
    assert norm.running_var is not None
    norm.running_var.fill_(1 - norm.eps)
    return norm


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear
