"""Tensors of over 2^31 elements: the last programs of each kernel, on memory hardly touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from mapped_memory import zeros
from torch import Tensor
from triton.runtime import interpreter

from fastdw.ops import triton_backend
from fastdw.ops.registration import OPS, VARIANTS
from fastdw.triton_kernels import block_plan, classifier_head, launch
from fastdw.triton_kernels.depthwise_conv_weight_grad import plan_sum
from fastdw.triton_kernels.launch import KernelLaunch, Target
from fastdw.triton_kernels.pointwise_conv import plan_finish

TARGET = Target("interpreter")
LAST = 4  # pixels of the last row that are looked at


class Size(NamedTuple):
    """Of a tensor; sides are even, so that strides of 2 meet its end."""

    batch: int
    channels: int
    height: int
    width: int


SIZES = {
    "many images": Size(2**31 // (16 * 16 * 16) + 2, 16, 16, 16),
    "one large image": Size(1, 16, 2**13 + 2, 2**14 + 2),
    "large rows": Size(1, 16, 4, 2**28 + 2),
    "many pixels": Size(1, 1, 2**15 + 2, 2**16 + 2),
}


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> Size:
    return SIZES[request.param]


def image(size: Size, planes: bool = False) -> Tensor:
    if planes:
        return zeros(*size)
    return zeros(size.batch, size.height, size.width, size.channels).permute(0, 3, 1, 2)


def tail_of(x: Tensor, pixels: int = 16) -> Tensor:
    """The lower right corner of the last image; on the grid of strides of 2."""
    return x[-1:, :, -pixels:, -pixels:]


def fill(*tensors: Tensor) -> None:
    for tensor in tensors:
        tensor.copy_(torch.randn(tensor.shape))


def run_last(planned: KernelLaunch, programs: int = LAST) -> None:
    """Run the last programs along each axis of the grid, on the tensors themselves."""
    whole = (*planned.grid, 1, 1)[:3]
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    place, span = builder.set_grid_idx, builder.set_grid_dim

    def place_last(self: Any, *index: int) -> None:
        place(self, *(max(0, n - programs) + at for n, at in zip(whole, index, strict=True)))

    with pytest.MonkeyPatch.context() as patch:
        # As shipped, every tensor is copied from its device and back.
        patch.setattr(executor, "_init_args_hst", lambda self, args, kwargs: (args, kwargs))
        patch.setattr(executor, "_restore_args_dev", lambda self, *tensors: None)
        patch.setattr(builder, "set_grid_idx", place_last)
        patch.setattr(builder, "set_grid_dim", lambda self, *_: span(self, *whole))
        grid = tuple(min(count, programs) for count in planned.grid)
        launch.run([KernelLaunch(planned.kernel, grid, planned.arguments, 1, 1)])


def conv(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, scale and bias."""
    return torch.randn(shape).half() / 4, torch.rand(shape[0]) + 0.5, torch.randn(shape[0])


def arguments_of(op: str, channels: int, kernel: int) -> list[Any]:
    """The arguments behind x, in the order of the schema."""
    depthwise, dense = conv(channels, 1, kernel, kernel), conv(channels, channels, 1, 1)
    window = [[1, 1], [kernel // 2] * 4]
    if op == "stem_conv":
        return [*conv(channels, channels, kernel, kernel), *window, "relu6"]
    window.append([1, 1])
    if op.startswith("depthwise_conv"):
        return [*depthwise, *window, "relu6"]
    if op == "pointwise_conv":
        return [*dense, None, "relu6"]
    if op == "separable_block":
        return [*depthwise, *dense, *window, "relu6", "none"]
    expand = conv(channels, channels, 1, 1)
    return [*expand, *depthwise, *dense, *window, True, "relu6", "relu6", "none"]


@pytest.mark.parametrize(
    ("op", "kernel", "planes"),
    [
        ("depthwise_conv", 3, False),
        ("depthwise_conv", 9, False),  # by taps
        ("depthwise_conv_pooled", 3, False),
        ("depthwise_conv_pooled", 9, False),
        ("pointwise_conv", 1, False),
        ("stem_conv", 3, False),
        ("stem_conv", 3, True),
        ("separable_block", 3, False),
        ("inverted_residual", 3, False),
    ],
)
def test_forward(
    op: str, kernel: int, planes: bool, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(block_plan.VARIABLE, "fused")
    x, y, arguments = image(size, planes), image(size), arguments_of(op, size.channels, kernel)
    fill(tail_of(x))
    if op == "pointwise_conv":
        arguments[3] = image(size)
        fill(tail_of(arguments[3]))
    means = [zeros(size.batch, size.channels, dtype=torch.float32)] if op in VARIANTS else []
    planned = triton_backend.plan(op, TARGET, y, x, *arguments, *means)
    assert len(planned) == 1 + len(means)
    run_last(planned[0])
    wide = [
        tail_of(a).double() if isinstance(a, Tensor) and a.numel() > 2**31
        else a.double() if isinstance(a, Tensor) else a
        for a in (x, *arguments)
    ]  # fmt: skip
    results = {**OPS, **VARIANTS}[op].reference(*wide)
    truth = (results[0] if means else results)[..., -1, -LAST:]
    found = y[-1:, :, -1, -LAST:].double()
    torch.testing.assert_close(found, truth, rtol=1e-2, atol=1e-2 * truth.abs().max().item())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 3), (8, 1)], ids=str)
def test_gradients(kernel: tuple[int, int], stride: int, size: Size) -> None:
    """The gradient is 0 but for the last pixels, so the last chunks have all of the weights'."""
    small = size._replace(height=size.height // stride, width=size.width // stride)
    x, x_grad, grad = image(size), image(size), image(small)
    fill(tail_of(x, 32), grad[-1, :, -1, -LAST:])
    sides = [1] * 4 if kernel == (3, 3) else [0, 0, 4, 3]
    geometry = [stride] * 2, sides, [1, 1]
    weight = torch.randn(size.channels, 1, *kernel).half()
    [planned] = triton_backend.plan_input_grad(TARGET, x_grad, grad, weight, *geometry)
    run_last(planned)
    many = Target("interpreter", 2**30)  # so every block of pixels is a chunk
    weight_grad = torch.empty(weight.shape, device="meta")
    planned, _ = triton_backend.plan_weight_grad(many, weight_grad, grad, x, *geometry)
    chunks = zeros(*planned.arguments["partial_ptr"].shape, dtype=torch.float32)
    planned = replace(planned, arguments={**planned.arguments, "partial_ptr": chunks})
    run_last(planned, max(LAST, planned.grid[1]))
    partial = chunks[-LAST:].sum(0).view(weight.shape)

    wide = [tail_of(x, 32).double().requires_grad_(), weight.double().requires_grad_()]
    y = F.conv2d(F.pad(wide[0], sides), wide[1], None, stride, groups=size.channels)
    y.backward(tail_of(grad, 32 // stride).double())
    truth = wide[0].grad[..., -1, -LAST:]
    found = x_grad[-1:, :, -1, -LAST:].double()
    torch.testing.assert_close(found, truth, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(partial.double(), wide[1].grad, rtol=1e-3, atol=1e-3)


def test_classifier_head_of_many_images() -> None:
    x, weight = image(SIZES["many images"]), torch.randn(4100, 16).half()
    fill(x[-1])
    y, bias = zeros(len(x), len(weight)), torch.randn(len(weight))
    pool, linear = triton_backend.plan("classifier_head", TARGET, y, x, weight, bias)
    run_last(pool)
    run_last(linear)
    truth = x[-1].double().mean((1, 2)) @ weight.double().T + bias.double()
    torch.testing.assert_close(y[-1, -LAST:].double(), truth[-LAST:], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("sizes", [(2**27 + 8, 16, 40), (2, 2**11, 2**20 + 8)], ids=str)
def test_classifier_head_without_pixels(sizes: tuple[int, int, int]) -> None:
    """Many images' means; of two images a weight of more than 2^31 elements."""
    images, channels, outputs = sizes
    x, weight = zeros(images, channels), zeros(outputs, channels)
    fill(x[-1], weight[-LAST:])
    y = zeros(images, outputs)
    planned = classifier_head.plan_classifier_head(x[:, :, None, None], weight, None, y, TARGET)
    run_last(*planned)
    truth = x[-1].double() @ weight[-LAST:].double().T
    torch.testing.assert_close(y[-1, -LAST:].double(), truth, rtol=1e-2, atol=1e-2)


def test_sums_of_splits_and_of_chunks() -> None:
    pixels, scale, bias = 2**27 + 8, torch.rand(16), torch.randn(16)
    partial = zeros(2, pixels, 16, dtype=torch.float32)
    residual, y = zeros(pixels, 16), zeros(pixels, 16)
    fill(partial[:, -LAST:], residual[-LAST:])
    run_last(plan_finish(partial, scale, bias, residual, y, "none"))
    truth = partial[:, -LAST:].sum(0) * scale + bias + residual[-LAST:]
    torch.testing.assert_close(y[-LAST:].float(), truth, rtol=1e-2, atol=1e-2)

    elements = 2**30 + 8
    partial = zeros(3, elements, dtype=torch.float32)
    total = zeros(elements, dtype=torch.float32)
    fill(partial[:, -LAST:])
    run_last(plan_sum(partial, total, 3, elements))
    torch.testing.assert_close(total[-LAST:], partial[:, -LAST:].sum(0))
