"""The planned network on Triton's kernels, in the interpreter; its graphs by a stand-in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from network_builder import NetworkBuilder, small_mobilenet
from torch import Tensor

import fastdw
from fastdw.models import registry
from fastdw.ops import triton_network
from fastdw.plan.packed_layout import DTYPES, to_cuda_layout

TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
OP = torch.ops.fastdw_triton.planned_network


def laid_out(net: NetworkBuilder, dtype: torch.dtype) -> tuple[Tensor, str]:
    return to_cuda_layout(net.packed(), net.program(), dtype)


def assert_right(net: NetworkBuilder, x: Tensor, dtype: torch.dtype) -> None:
    outputs, truths = OP(x, *laid_out(net, dtype)), net.expected(x)
    fakes = OP(x.to("meta"), *(laid_out(net, dtype)[0].to("meta"), laid_out(net, dtype)[1]))
    for output, truth, fake in zip(outputs, truths, fakes, strict=True):
        assert (output.dtype, output.shape, output.stride()) == (x.dtype, fake.shape, fake.stride())
        torch.testing.assert_close(
            output.double(), truth, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(dtype: torch.dtype) -> None:
    assert_right(small_mobilenet(), torch.randn(2, 3, 33, 24).to(dtype), dtype)


def test_images_in_another_dtype_than_the_weights() -> None:
    assert_right(small_mobilenet(), torch.randn(1, 3, 32, 32), torch.float16)


def test_residuals_of_earlier_values_and_pooled_ones() -> None:
    net = NetworkBuilder(channels=7)
    wide = net.stem("x", 7, stride=(1, 1))
    added = net.pointwise(wide, 7, residual="x")
    pooled = net.pool(added)
    net.outputs = [added, net.depthwise("x", multiplier=3), pooled, net.head(pooled, 9)]
    assert_right(net, torch.randn(2, 7, 9, 8), torch.float32)


def test_what_is_refused() -> None:
    net = small_mobilenet()
    packed, program = laid_out(net, torch.float32)
    with pytest.raises(ValueError, match="expected one with target=cuda_<dtype>"):
        OP(torch.randn(1, 3, 32, 32), net.packed(), net.program())
    assert "channels_out=11 " in program
    activated = program.replace("channels_out=11 ", "channels_out=11 activation=sigmoid ")
    with pytest.raises(RuntimeError, match="on the CPU alone: classifier_head"):
        OP(torch.randn(1, 3, 32, 32), packed, activated)
    with pytest.raises(ValueError, match="x: expected 3 channels"):
        OP(torch.randn(1, 4, 32, 32), packed, program)
    with pytest.raises(NotImplementedError, match="fastdw_triton::planned_network .*no gradient"):
        OP(torch.randn(1, 3, 32, 32, requires_grad=True), packed, program)[0].sum().backward()


def test_the_module_runs_it() -> None:
    torch.manual_seed(0)
    model = registry.create("fastdw:mobilenet_v2", width=0.35).eval()
    x = torch.randn(1, 3, 64, 64)
    fast = fastdw.optimize(model, x)
    wanted = fast(x)
    fast._rearrange(torch.float32)  # as .cuda() does
    with fastdw.use_backend("triton"):
        y = fast(x)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    fast.backend = "triton"
    assert torch.equal(fast(x), y)


class Replayed:
    """In the place of a captured graph."""

    def __init__(self, x: Tensor, packed: Tensor, program: Any) -> None:
        self.made_for = (x.shape, packed.data_ptr())


def test_graphs_are_kept_by_shape_and_network(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    stream = type("Stream", (), {"cuda_stream": 7})()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(
        triton_network, "_capture", lambda *given: made.append(Replayed(*given)) or made[-1]
    )
    triton_network._graphs.clear()
    packed, program = laid_out(small_mobilenet(), torch.float32)
    other = packed.clone()
    images = [torch.randn(1 + i, 3, 32, 32) for i in range(triton_network.MOST_GRAPHS)]
    first = triton_network._graph_of(images[0], packed, program)
    assert triton_network._graph_of(images[0] + 1, packed, program) is first
    assert triton_network._graph_of(images[0], other, program) is not first
    stream.cuda_stream = 8
    assert triton_network._graph_of(images[0], packed, program) is not first
    stream.cuda_stream = 7
    for image in images[1:]:
        triton_network._graph_of(image, packed, program)
    assert len(triton_network._graphs) == triton_network.MOST_GRAPHS
    assert triton_network._graph_of(images[0], packed, program) is not first  # the oldest went
    triton_network._graphs.clear()
