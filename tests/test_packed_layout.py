"""The packed weights of a planned network, laid out for CUDA and back."""

from __future__ import annotations

import pytest
import torch
from network_builder import NetworkBuilder, fastdw_ops, small_mobilenet

from fastdw.ops.program import parse_program
from fastdw.plan.packed_layout import DTYPES, to_cpu_layout, to_cuda_layout


def network_of_all_steps() -> NetworkBuilder:
    net = NetworkBuilder()
    value = net.depthwise(net.stem("x", 9, kernel=(5, 3)), multiplier=2)
    value = net.inverted_residual(net.separable(value, 24), 17)
    value = net.inverted_residual(net.pointwise(value, 33), 16, expansion=1)
    net.outputs = [net.head(value, 7), net.pool(value)]
    return net


@pytest.mark.parametrize("make", [small_mobilenet, network_of_all_steps])
def test_fp32_goes_to_the_layout_of_cuda_and_back(make) -> None:  # type: ignore[no-untyped-def]
    net = make()
    packed, program = net.packed(), net.program()
    there, cuda_program = to_cuda_layout(packed, program, torch.float32)
    assert parse_program(cuda_program).target == "cuda_fp32"
    back, cpu_program = to_cpu_layout(there, cuda_program)
    assert cpu_program == str(parse_program(program))
    assert torch.equal(back, packed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_lies_as_torch_holds_it(dtype: torch.dtype) -> None:
    net = NetworkBuilder()
    weight, scale, bias = torch.randn(20, 3, 3, 3), torch.rand(20), torch.randn(20)
    net.weights = lambda *shape: weight if len(shape) == 4 else bias  # type: ignore[method-assign]
    net.outputs = [net.stem("x", 20)]
    net.blobs = [fastdw_ops.pack_stem_conv(weight, scale, bias)]
    packed, program = to_cuda_layout(net.packed(), net.program(), dtype)
    at = parse_program(program).steps[0].weights
    assert at == 64
    folded = (weight * scale.view(-1, 1, 1, 1)).to(dtype).flatten()
    end = at + folded.numel() * dtype.itemsize
    assert torch.equal(packed[at:end].view(dtype), folded)
    end += -end % 64
    assert torch.equal(packed[end : end + 80].view(torch.float32), bias)
    assert len(packed) == end + 128


def test_the_cpu_refuses_weights_that_lie_as_cuda_reads_them() -> None:
    net = small_mobilenet()
    packed, program = to_cuda_layout(net.packed(), net.program(), torch.float16)
    with pytest.raises(RuntimeError, match="the weights lie as cuda_fp16 reads them"):
        fastdw_ops.planned_network(torch.ones(1, 3, 32, 32), packed, program)


def test_an_unknown_target_is_refused() -> None:
    net = small_mobilenet()
    program = net.program().replace("outputs=", "target=tpu outputs=", 1)
    with pytest.raises(ValueError, match="target: expected one of .*, got 'tpu'"):
        parse_program(program)
    with pytest.raises(RuntimeError, match="the weights lie as tpu"):
        fastdw_ops.planned_network(torch.ones(1, 3, 32, 32), net.packed(), program)
