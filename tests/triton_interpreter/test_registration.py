"""What torch wants of the ops on Triton's kernels: opcheck, compile, autocast, gradients."""

from __future__ import annotations

import pytest
import torch
from op_checks import schema_arguments
from shapes import arguments, run, small
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._pytree import tree_leaves, tree_map

from fastdw import ops, use_backend
from fastdw.ops.registration import OPS


def requiring_grad(tree):
    return tree_map(
        lambda leaf: leaf.clone().requires_grad_() if isinstance(leaf, Tensor) else leaf, tree
    )


def call_of(op: str, dtype: torch.dtype = torch.float32):
    return schema_arguments(small(op), *arguments(small(op), dtype=dtype))


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    overload = getattr(torch.ops.fastdw_triton, op).default
    torch.library.opcheck(overload, requiring_grad(call_of(op)), test_utils=checks)


@pytest.mark.parametrize("op", OPS)
def test_gradients_are_those_of_the_reference(op: str) -> None:
    args, kwargs = arguments(small(op))
    gradients = []
    for backend in ("triton", "torch"):
        leaves = requiring_grad((args, kwargs))
        run(small(op), *leaves, backend).square().sum().backward()
        tensors = [leaf for leaf in tree_leaves(leaves) if isinstance(leaf, Tensor)]
        gradients.append([tensor.grad for tensor in tensors])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_second_derivatives_of_the_depthwise_gradients() -> None:
    """The gradient ops are each other's derivatives: against torch's, in fp32."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 6, 5), torch.randn(8, 1, 3, 3)
    geometry = {"stride": 2, "padding": (0, 1, 1, 0)}
    found = []
    for backend in ("triton", "torch"):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        y = ops.depthwise_conv(*leaves, **geometry, backend=backend)
        first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        sum(grad.pow(2).sum() for grad in first).backward()
        found.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2 * theirs.abs().max().item())


def test_gradcheck_in_fp64() -> None:
    x, weight, *rest = requiring_grad(call_of("depthwise_conv", torch.float64))

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.fastdw_triton.depthwise_conv(x, weight, *rest)

    assert gradcheck(function, (x, weight), fast_mode=True)
    assert gradgradcheck(function, (x, weight), fast_mode=True)


def test_compiled() -> None:
    args, kwargs = arguments(small("depthwise_conv"))
    compiled = torch.compile(
        lambda x: ops.depthwise_conv(x, *args[1:], **kwargs) + 1,
        fullgraph=True,
        backend="aot_eager",
    )
    with use_backend("triton"), torch.no_grad():
        torch.testing.assert_close(
            compiled(args[0]), run(small("depthwise_conv"), args, kwargs, "torch") + 1
        )


@pytest.mark.parametrize("op", ["depthwise_conv", "inverted_residual"])
def test_autocast(op: str) -> None:
    args, kwargs = arguments(small(op))
    exact = run(small(op), args, kwargs, "torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = run(small(op), args, kwargs, "triton")
        through_op = getattr(torch.ops.fastdw_triton, op)(*call_of(op))
    assert y.dtype == through_op.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05 * exact.abs().max().item())
    assert torch.equal(y, through_op)


@pytest.mark.parametrize("op", OPS)
def test_layouts_and_same_bits(op: str) -> None:
    for layout in ("contiguous", "sliced", "transposed"):
        case = small(op, layout=layout)
        args, kwargs = arguments(case)
        y = run(case, args, kwargs, "triton")
        wanted = run(case, args, kwargs, "torch")
        assert y.stride() == wanted.stride()
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-3)
        assert torch.equal(y, run(case, args, kwargs, "triton"))
