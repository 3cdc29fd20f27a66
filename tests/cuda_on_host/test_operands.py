"""What csrc/cuda does before a launch: dtypes, memory formats, addresses, refusals, empty batches.

The kernels run on the host; that they are right for their shapes is tested op by op elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from op_checks import convolution_strides, schema_arguments
from shapes import LAYOUTS, Case, arguments, small
from torch import Tensor
from torch.utils._pytree import tree_map

import fastdw.ops.registration as registration
from cuda_on_host import host_library
from cuda_on_host.host_checks import check_on_host, run_on_host

OPS = tuple(registration.OPS)
CONVS = tuple(op for op in OPS if op != "classifier_head")


def schema_call(case: Case, dtype: torch.dtype = torch.float32) -> list[Any]:
    return list(schema_arguments(case, *arguments(case, "normal", dtype)))


def changed_tensors(call: list[Any], change: Any) -> list[Any]:
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, call)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_every_memory_format_of_x(op: str, layout: str) -> None:
    case = replace(small(op), layout=layout)
    check_on_host(case)
    if op in CONVS:
        args, kwargs = arguments(case)
        assert run_on_host(case, args, kwargs).stride() == convolution_strides(case, args, kwargs)


@pytest.mark.parametrize("op", CONVS)
def test_a_channels_last_weight_makes_a_channels_last_result(op: str) -> None:
    case = replace(small(op), layout="contiguous")
    args, kwargs = arguments(case)
    plain = run_on_host(case, args, kwargs)

    def last(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    args = (
        args[0],
        *tree_map(lambda leaf: last(leaf) if isinstance(leaf, Tensor) else leaf, args[1:]),
    )
    y = run_on_host(case, args, kwargs)
    assert y.stride() == convolution_strides(case, args, kwargs)
    assert torch.equal(y, plain)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 1, 5, 1), (2, 5, 1, 1), (1, 1, 4, 4)])
@pytest.mark.parametrize("op", ("depthwise_conv", "pointwise_conv", "separable_block"))
def test_ambiguous_strides_are_torchs(op: str, shape: tuple[int, ...]) -> None:
    batch, channels, height, width = shape
    case = replace(
        small(op), batch=batch, channels=channels, channels_out=channels, height=height, width=width
    )
    for layout in ("channels_last", "contiguous"):
        args, kwargs = arguments(replace(case, layout=layout))
        assert run_on_host(case, args, kwargs).stride() == convolution_strides(case, args, kwargs)


@pytest.mark.parametrize("op", OPS)
def test_tensors_at_odd_addresses(op: str) -> None:
    """Kernels load 16 bytes at a time; torch hands out views that begin anywhere."""
    case = replace(small(op), channels=8, channels_out=8)

    def shifted(tensor: Tensor) -> Tensor:
        room = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)[1:]
        view = torch.as_strided(room, tensor.size(), tensor.stride(), 1)
        assert view.data_ptr() % 16
        return view.copy_(tensor)

    call = schema_call(replace(case, hidden=8 if op == "inverted_residual" else None))
    run = host_library.op(op)
    assert torch.equal(run(*changed_tensors(call, shifted)), run(*call))


@pytest.mark.parametrize("op", OPS)
def test_weights_with_holes_and_operands_of_other_dtypes(op: str) -> None:
    call, run = schema_call(small(op), torch.float16), host_library.op(op)
    expected = run(*call)
    x, *others = call

    def every_second(tensor: Tensor) -> Tensor:
        return torch.stack((tensor, tensor), dim=-1)[..., 0]

    def wide(tensor: Tensor) -> Tensor:  # fp32 weights, fp64 scale and bias
        weight_or_bias = tensor.dtype == torch.float16
        is_residual = tensor.dim() == 4 and tensor.shape[2:] == x.shape[2:]
        return tensor if is_residual else tensor.float() if weight_or_bias else tensor.double()

    assert torch.equal(run(x, *changed_tensors(others, every_second)), expected)
    assert torch.equal(run(x, *changed_tensors(others, wide)), expected)


@pytest.mark.parametrize("op", OPS)
def test_an_empty_batch_launches_nothing(op: str) -> None:
    case = replace(small(op), batch=0)
    args, kwargs = arguments(case)
    with host_library.counted() as launches:
        y = run_on_host(case, args, kwargs)
    assert y.shape[0] == 0 and launches == []


@pytest.mark.parametrize("op", OPS)
def test_fp64_goes_through_aten(op: str) -> None:
    case = small(op)
    with host_library.counted() as launches:
        check_on_host(case, dtype=torch.float64)
    assert launches == []


@pytest.mark.parametrize(
    "op", ("stem_conv", "pointwise_conv", "separable_block", "inverted_residual")
)
def test_tf32_follows_the_switch(op: str) -> None:
    case = replace(small(op), channels=32, channels_out=32, residual=False)
    if op == "inverted_residual":
        case = replace(case, hidden=32)
    call = schema_call(case)
    exact = host_library.op(op)(*call)
    with host_library.tf32():
        rounded = host_library.op(op)(*call)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)  # 10 bits, long sums


@pytest.mark.parametrize(
    "op,variable,value,channels",
    [
        ("depthwise_conv", "FASTDW_CUDA_DEPTHWISE", "walk", 8),
        ("stem_conv", "FASTDW_CUDA_STEM", "fma", 3),
        ("separable_block", "FASTDW_CUDA_BLOCKS", "fused", 8),
    ],
)
def test_another_kernel_on_request(
    op: str, variable: str, value: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(small(op), channels=channels, channels_out=8)
    kernels = []
    for wish in (None, value, "best"):
        if wish is not None:
            monkeypatch.setenv(variable, wish)
        if wish == "best":
            with pytest.raises(RuntimeError, match=f"{variable}: expected one of fastest"):
                host_library.op(op)(*schema_call(case, torch.float16))
            continue
        with host_library.counted() as launches:
            check_on_host(case, dtype=torch.float16, roundings=2)
        kernels.append([launch["kernel"] for launch in launches])
    assert len(kernels[0]) >= 1 and kernels[0] != kernels[1]


def test_early_launches_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    call = schema_call(small("stem_conv"))
    before = host_library.early_launches()
    host_library.op("stem_conv")(*call)
    early = host_library.early_launches()
    assert early == before + 1
    monkeypatch.setenv("FASTDW_CUDA_LAUNCHES", "late")
    host_library.op("stem_conv")(*call)
    assert host_library.early_launches() == early


@pytest.mark.parametrize("op", OPS)
def test_wrong_sizes_are_refused_by_name(op: str) -> None:
    call, run = schema_call(small(op)), host_library.op(op)
    with pytest.raises(RuntimeError, match="x: expected"):
        run(call[0][0], *call[1:])
    with pytest.raises(RuntimeError, match="weight: expected"):
        run(torch.randn(2, 6, 6, 5), *call[1:])
    index = next(
        i for i, value in enumerate(call) if isinstance(value, Tensor) and value.dim() == 1
    )
    with pytest.raises(RuntimeError, match=r"(scale|bias): expected \["):
        run(*call[:index], torch.ones(99), *call[index + 1 :])
    with pytest.raises(RuntimeError, match="weight: expected the dtype of x, Half, got Double"):
        run(call[0].half(), *changed_tensors(call[1:], torch.Tensor.double))


def test_a_residual_must_fit() -> None:
    call = schema_call(small("pointwise_conv"))
    with pytest.raises(RuntimeError, match="residual: expected"):
        host_library.op("pointwise_conv")(*call[:4], call[4][:1], *call[5:])
    call = schema_call(replace(small("inverted_residual"), stride=2, residual=False))
    at = next(i for i, value in enumerate(call) if value is False)
    call[at] = True
    with pytest.raises(RuntimeError, match="residual: x .* and the result .* differ in shape"):
        host_library.op("inverted_residual")(*call)
