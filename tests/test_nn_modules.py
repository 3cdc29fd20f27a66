"""The modules compute what torch's own layers compute, in training and in eval mode."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nn_checks import (
    MODULES,
    OPS,
    assert_as_accurate_as_torch,
    fused_ops,
    image,
    module,
    ops_of,
    randomize,
)
from torch import Tensor, nn

import fastdw.nn
from fastdw import reference

ACTIVATION = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
}


def torch_conv_bn_act(unit: Any, activation: str, sides: Sequence[int]) -> Callable[..., Tensor]:
    """conv, batch norm and activation of ``unit`` by torch.nn.functional; padding spelt out."""
    conv, bn = unit.conv, unit.bn

    def forward(x: Tensor, training: bool) -> Tensor:
        x = F.pad(x, tuple(sides))
        x = F.conv2d(x, conv.weight, None, conv.stride, 0, conv.dilation, conv.groups)
        x = F.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, training, bn.momentum, bn.eps
        )
        return ACTIVATION[activation](x)

    return forward


def torch_forward(name: str, block: Any) -> Callable[..., Tensor]:
    """The forward of the module called ``name`` written with torch.nn.functional."""
    one = [1, 1, 1, 1]
    none = [0, 0, 0, 0]
    if name == "stem":
        return torch_conv_bn_act(block, "relu6", one)
    if name == "depthwise":
        return torch_conv_bn_act(block, "relu6", [2, 2, 2, 2])
    if name == "pointwise":
        return torch_conv_bn_act(block, "hardswish", none)
    if name == "head":
        return lambda x, training: F.linear(
            F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), block.dropout.p, training),
            block.linear.weight,
            block.linear.bias,
        )
    if name == "separable":
        steps = [
            torch_conv_bn_act(block.depthwise, "relu6", one),
            torch_conv_bn_act(block.pointwise, "relu6", none),
        ]
    else:
        sides = [2, 2, 2, 2] if name == "unexpanded" else one
        steps = [] if block.expand is None else [torch_conv_bn_act(block.expand, "relu6", none)]
        steps.append(torch_conv_bn_act(block.depthwise, "relu6", sides))
        steps.append(torch_conv_bn_act(block.project, "none", none))

    def forward(x: Tensor, training: bool) -> Tensor:
        y = x
        for step in steps:
            y = step(y, training)
        return x + y if name == "residual" else y

    return forward


@pytest.mark.parametrize("name", MODULES)
def test_training_is_exactly_torch(name: str) -> None:
    ours, theirs = module(name).train(), module(name).train()
    x, y = image(name).requires_grad_(), image(name).requires_grad_()
    torch.manual_seed(3)
    a = ours(x)
    torch.manual_seed(3)
    b = torch_forward(name, theirs)(y, True)
    assert torch.equal(a, b)
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(2))
    (a * direction).sum().backward()
    (b * direction).sum().backward()
    assert torch.equal(x.grad, y.grad)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), key
    for (key, p), q in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(p, q), key
        else:
            assert p.item() == 1
    assert not any(op in OPS.values() for op in fused_ops(lambda: ours(x)))


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", MODULES)
def test_eval_is_one_fused_op(name: str, grad: bool) -> None:
    block, x = module(name), image(name)
    stock = torch_forward(name, block)(x, False)
    truth = torch_forward(name, copy.deepcopy(block).double())(x.double(), False)
    with torch.set_grad_enabled(grad):
        assert_as_accurate_as_torch(block(x), stock, truth)
        ops = ops_of(lambda: block(x))
    op = OPS[name] if grad else f"{OPS[name]}_packed"
    assert ops[f"fastdw::{op}"] == 1
    assert sum(count for key, count in ops.items() if key.startswith("fastdw::")) == 1
    assert not {"aten::conv2d", "aten::batch_norm", "aten::hardtanh"} & ops.keys()
    assert block._fastdw_reason is None


@pytest.mark.parametrize("name", MODULES)
def test_eval_gradients(name: str) -> None:
    block, x = module(name).double(), image(name, size=7).double().requires_grad_()
    (block(x) ** 2).sum().backward()
    ours = [x.grad, *(p.grad for p in block.parameters())]
    x.grad = None
    block.zero_grad()
    (torch_forward(name, block)(x, False) ** 2).sum().backward()
    for a, p in zip(ours, [x, *block.parameters()], strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", MODULES)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    block, x = module(name).to(dtype), image(name).to(dtype)
    with torch.no_grad():
        truth = torch_forward(name, copy.deepcopy(block).double())(x.double(), False)
        stock = torch_forward(name, block)(x, False)
        assert_as_accurate_as_torch(block(x), stock, truth)


@pytest.mark.parametrize("padding", [0, 2, (1, 2), (0, 1, 2, 0), "same", "keras_v1"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_padding(padding: Any, stride: int, training: bool) -> None:
    block = fastdw.nn.DepthwiseConvBNAct(5, 3, stride, padding, 2, activation="silu")
    randomize(block).train(training)
    x = torch.randn(2, 5, 10, 13, generator=torch.Generator().manual_seed(0))
    sides = reference.resolve_padding(padding, [3, 3], stride, 2, x.shape[2:])
    expected = torch_conv_bn_act(copy.deepcopy(block), "silu", sides)(x, training)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "dilation", "symmetric"), [(3, 1, True), (5, 2, True), (4, 1, False)]
)
def test_same_at_stride_1_is_left_to_torch_where_it_is_symmetric(
    kernel: int, dilation: int, symmetric: bool
) -> None:
    block = fastdw.nn.ConvBNAct(3, 4, kernel, padding="same", dilation=dilation)
    assert (block.padding is None) == symmetric
    assert block.conv.padding == (((kernel - 1) * dilation // 2,) * 2 if symmetric else (0, 0))
    assert fastdw.nn.ConvBNAct(3, 4, kernel, 2, padding="same").padding == "same"


def test_tensorflow_same_at_stride_2_is_asymmetric() -> None:
    block = fastdw.nn.ConvBNAct(3, 4, stride=2, padding="same", activation="none").eval()
    x = torch.zeros(1, 3, 6, 6)
    x[:, :, 0, 0] = 1  # with padding 1 before, the centre tap would see it; here the first does
    nn.init.zeros_(block.conv.weight)
    with torch.no_grad():
        block.conv.weight[:, :, 0, 0] = 1
    expected = torch.full((4,), 3 / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(block(x)[0, :, 0, 0].detach(), expected)


def test_dense_convolutions_over_many_channels_stay_with_torch() -> None:
    block = randomize(fastdw.nn.ConvBNAct(8, 4)).eval()
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        assert fused_ops(lambda: block(x)) == {}
    assert "8 channels" in block._fastdw_reason


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save", "state_dict"])
def test_copies_run_alike_and_carry_no_packed_weights(name: str, how: str) -> None:
    block, x = module(name), image(name)
    with torch.no_grad():
        expected = block(x)
        assert block._fastdw_cache is not None
        if how == "deepcopy":
            twin = copy.deepcopy(block)
        elif how == "pickle":
            twin = pickle.loads(pickle.dumps(block))
        elif how == "save":
            file = io.BytesIO()
            torch.save(block, file)
            file.seek(0)
            twin = torch.load(file, weights_only=False)
        else:
            torch.manual_seed(99)
            twin = MODULES[name]().eval()
            assert not torch.equal(twin(x), expected)
            twin.load_state_dict(block.state_dict())
        assert twin._fastdw_cache is None
        assert torch.equal(twin(x), expected)
        for parameter in twin.parameters():
            parameter.mul_(2)
        assert not torch.equal(twin(x), expected)
        assert torch.equal(block(x), expected)


def test_state_dict_holds_conv_and_batch_norm_only() -> None:
    block = module("residual")
    with torch.no_grad():
        block(image())
    leaves = {key.rsplit(".", 2)[-2] for key in block.state_dict()}
    assert leaves == {"conv", "bn"}


@pytest.mark.parametrize("name", MODULES)
def test_channels_last_in_channels_last_out(name: str) -> None:
    block, x = module(name), image(name)
    with torch.no_grad():
        plain, last = block(x), block(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last)
    if name != "head":
        assert plain.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("head", "residual")])
def test_channels_last_weights_give_channels_last_as_in_torch(name: str) -> None:
    block = module(name).to(memory_format=torch.channels_last)
    with torch.no_grad():
        stock, fused = block._unfused_forward(image(name)), block(image(name))
    assert stock.is_contiguous(memory_format=torch.channels_last)
    assert fused.stride() == stock.stride()


def test_autocast() -> None:
    block, x = module("residual"), image()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(y.float(), block(x), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fastdw.nn.ConvBNAct(0, 4), "in_channels: expected at least 1, got 0"),
        (lambda: fastdw.nn.ConvBNAct(3, 4, activation="gelu"), "expected one of none, relu"),
        (lambda: fastdw.nn.ConvBNAct(3, 4, padding="valid"), '"same" or "keras_v1"'),
        (lambda: fastdw.nn.ConvBNAct(3, 4, stride=0), "stride: expected at least 1"),
        (lambda: fastdw.nn.InvertedResidual(3, 4, expand_ratio=-1), "expand_ratio: expected above"),
        (lambda: fastdw.nn.ClassifierHead(3, 0), "num_classes: expected at least 1, got 0"),
    ],
)
def test_bad_arguments(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("warm", [False, True])
def test_bad_input_names_the_argument(warm: bool) -> None:
    block = module("residual")
    with torch.no_grad():
        if warm:
            block(image())
        with pytest.raises(ValueError, match=r"x|weight"):
            block(torch.zeros(1, 13, 5, 5))
        with pytest.raises(ValueError, match=r"x: expected \[batch, channels, height, width\]"):
            block(torch.zeros(12, 5, 5))
        with pytest.raises(TypeError, match="expected torch.float64 as x, got torch.float32"):
            block(torch.zeros(1, 12, 5, 5, dtype=torch.float64))
