"""What torch asks of an op (fake, gradient, autocast, tracing, FLOPs), for every op."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_checks import expected, packed_call, schema_arguments
from shapes import Case, arguments, run, small, truth_of, weights_of
from tolerances import assert_correct
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from fastdw import activation, ops, reference
from fastdw.ops import registration

OPS = list(registration.OPS)
VARIANTS = [
    *(small(op) for op in OPS),
    *(small(op, activation="relu6", layout="contiguous") for op in OPS),
    small("depthwise_conv", stride=2, padding="same", multiplier=2, activation="hardswish"),
    small("depthwise_conv", padding=(0, 1, 2, 0), dilation=2, epilogue=False, activation="relu"),
    small("pointwise_conv", residual=False, epilogue=False, activation="none"),
    small("stem_conv", stride=2, padding="same"),
    small("separable_block", stride=2, padding="same", epilogue=False),
    small("inverted_residual", hidden=None, channels_out=3, residual=False, stride=2),
    small("inverted_residual", padding=2, dilation=2, epilogue=False),
    small("classifier_head", epilogue=False),
]


def name(case: Case) -> str:
    return f"{case.op}-{case}"


def schema_call(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    args, kwargs = arguments(case, dtype=dtype)
    return schema_arguments(case, args, kwargs)


def requiring_grad(tree: Any) -> Any:
    """Copy the tensors of a tree, strides kept, as leaves that require a gradient."""

    def leaf(value: Any) -> Any:
        return value.detach().clone().requires_grad_() if isinstance(value, Tensor) else value

    return tree_map(leaf, tree)


def function_of_tensors(op: Callable[..., Tensor], args: tuple[Any, ...]) -> tuple[Any, list]:
    """Return (function of the tensors only, those tensors), for gradcheck."""
    positions = [i for i, value in enumerate(args) if isinstance(value, Tensor)]

    def function(*tensors: Tensor) -> Tensor:
        full = list(args)
        for position, tensor in zip(positions, tensors, strict=True):
            full[position] = tensor
        return op(*full)

    return function, [args[i] for i in positions]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, torch.float32) for case in VARIANTS),
        *((small(op), dtype) for op in OPS for dtype in (torch.float64, torch.bfloat16)),
    ],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else name(value),
)
def test_opcheck(case: Case, dtype: torch.dtype) -> None:
    args = requiring_grad(schema_call(case, dtype))
    torch.library.opcheck(getattr(torch.ops.fastdw, case.op).default, args)


@pytest.mark.parametrize("case", VARIANTS, ids=name)
def test_opcheck_of_packing(case: Case) -> None:
    pack, weights, twin, packed = packed_call(case, schema_call(case))
    torch.library.opcheck(pack, weights)
    torch.library.opcheck(twin, packed)


@pytest.mark.parametrize("case", VARIANTS, ids=name)
def test_gradcheck(case: Case) -> None:
    op = getattr(torch.ops.fastdw, case.op)
    function, tensors = function_of_tensors(op, requiring_grad(schema_call(case, torch.float64)))
    assert gradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("op", OPS)
def test_double_backward(op: str) -> None:
    case = small(op, height=4, width=3, channels=2, channels_out=2)
    args = requiring_grad(schema_call(case, torch.float64))
    function, tensors = function_of_tensors(getattr(torch.ops.fastdw, op), args)
    assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("op", OPS)
def test_gradcheck_sees_a_wrong_gradient(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "gradient", lambda name, grad, pre_activation: grad)
    head = sys.modules["fastdw.ops.classifier_head"]  # it has no activation
    monkeypatch.setattr(head, "strided_like", lambda grad, parameter: 1.01 * grad)
    args = requiring_grad(schema_call(small(op), torch.float64))
    function, tensors = function_of_tensors(getattr(torch.ops.fastdw, op), args)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("case", VARIANTS, ids=name)
def test_fp32_gradients_are_those_of_the_reference(case: Case) -> None:
    """And the gradient of a weight has the weight's strides (DDP warns if it has not)."""
    args, kwargs = arguments(case)
    gradients = []
    for backend in ("cpp", "torch"):
        leaves = requiring_grad((args, kwargs))
        run(case, *leaves, backend).square().sum().backward()
        tensors = [leaf for leaf in tree_leaves(leaves) if isinstance(leaf, Tensor)]
        gradients.append([tensor.grad for tensor in tensors])
        if backend == "cpp":
            for weight in weights_of(leaves[0]):
                assert weight.grad is not None and weight.grad.stride() == weight.stride()
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_gradient_of_a_channels_last_weight_is_channels_last() -> None:
    x = torch.randn(2, 8, 6, 6)
    weight = torch.randn(8, 1, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    ops.depthwise_conv(x, weight, padding=1).sum().backward()
    assert weight.grad is not None and weight.grad.stride() == weight.stride()


@pytest.mark.parametrize("op", OPS)
def test_only_wanted_gradients_are_computed(op: str) -> None:
    args, kwargs = arguments(small(op, layout="contiguous"))
    x = args[0].clone().requires_grad_()
    run(small(op), (x, *args[1:]), kwargs).sum().backward()
    assert x.grad is not None
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    assert all(leaf.grad is None for leaf in leaves)
    weight = requiring_grad(args[1:])
    y = run(small(op), (args[0], *weight), kwargs)
    y.sum().backward()
    assert all(leaf.grad is not None for leaf in tree_leaves(weight) if isinstance(leaf, Tensor))


@pytest.mark.parametrize("op", OPS)
def test_half_precision_gradients(op: str) -> None:
    case = small(op)
    args, kwargs = arguments(case, dtype=torch.bfloat16)
    leaves = requiring_grad((args, kwargs))
    run(case, *leaves).float().sum().backward()
    wide = requiring_grad(
        tree_map(lambda v: v.float() if isinstance(v, Tensor) else v, (args, kwargs))
    )
    run(case, *wide).sum().backward()
    for half, single in zip(tree_leaves(leaves), tree_leaves(wide), strict=True):
        if isinstance(half, Tensor):
            assert half.grad is not None and half.grad.dtype == half.dtype
            torch.testing.assert_close(half.grad.float(), single.grad, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_autocast(op: str, backend: str) -> None:
    """x, weights and residual are rounded to the autocast dtype; scale and bias stay fp32."""
    case = small(op)
    args, kwargs = arguments(case)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(case, args, kwargs, backend)
    assert y.dtype == torch.bfloat16
    rounded = tree_map(
        lambda v: v.bfloat16() if isinstance(v, Tensor) and v.dim() > 1 else v, (args, kwargs)
    )
    assert_correct(y, *truth_of(case, *rounded), case.terms)


@pytest.mark.parametrize("op", OPS)
def test_autocast_of_the_registered_op_and_its_twin(op: str) -> None:
    case = small(op)
    call = schema_call(case)
    packed_twin, packed = packed_call(case, call)[2:]
    with torch.autocast("cpu", torch.bfloat16):
        assert getattr(torch.ops.fastdw, op)(*call).dtype == torch.bfloat16
        assert packed_twin(*packed).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):  # fp64 is left alone, as torch does
        assert (
            getattr(torch.ops.fastdw, op)(*schema_call(case, torch.float64)).dtype == torch.float64
        )


class Net(nn.Module):
    """A module around one public op, its tensors being parameters."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        (_, *self.rest), self.kwargs = arguments(case)
        self.adds_x = isinstance(self.kwargs.get("residual"), Tensor)
        self.kwargs.pop("residual", None)
        tensors = [leaf for leaf in tree_leaves(self.rest) if isinstance(leaf, Tensor)]
        self.tensors = nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)

    def forward(self, x: Tensor) -> Tensor:
        parameters = iter(self.tensors)
        rest = tree_map(lambda v: next(parameters) if isinstance(v, Tensor) else v, self.rest)
        residual = {"residual": x} if self.adds_x else {}
        return getattr(ops, self.case.op)(x, *rest, **self.kwargs, **residual)


def calls_in(graph: torch.fx.Graph) -> list[str]:
    """Return the names of the fastdw ops in a graph."""
    targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    return [target.removesuffix(".default") for target in targets if target.startswith("fastdw")]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_compile_fullgraph(op: str, dynamic: bool) -> None:
    net = Net(small(op))
    graphs: list[list[str]] = []

    def backend(module: torch.fx.GraphModule, example: Any) -> Any:
        graphs.append(calls_in(module.graph))
        return module.forward

    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend=backend)
    for size in ((4, 5, 6, 9), (3, 5, 8, 11)):  # no size twice: equal ones share a symbol
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x), net(x))
    assert graphs == [[f"fastdw.{op}"]] * (1 if dynamic else 2)


@pytest.mark.parametrize("mixed_precision", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_compile_trains(op: str, mixed_precision: bool) -> None:
    """Forward and backward through AOTAutograd, with symbolic sizes."""
    net, x = Net(small(op)), torch.randn(2, 5, 6, 5)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
        compiled(x).float().square().sum().backward()
        gradients = [parameter.grad for parameter in net.parameters()]
        net.zero_grad()
        net(x).float().square().sum().backward()
    for compiled_gradient, parameter in zip(gradients, net.parameters(), strict=True):
        torch.testing.assert_close(compiled_gradient, parameter.grad)


def test_compile_with_inductor() -> None:
    torch.compiler.reset()
    net, x = Net(small("inverted_residual")), torch.randn(2, 5, 6, 5)
    compiled = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("op", OPS)
def test_export_with_dynamic_shapes(op: str) -> None:
    net = Net(small(op))
    dim = torch.export.Dim
    sizes = {
        0: dim("batch", max=64),
        2: dim("height", min=3, max=99),
        3: dim("width", min=3, max=99),
    }
    with torch.no_grad():
        exported = torch.export.export(net, (torch.randn(2, 5, 6, 7),), dynamic_shapes=(sizes,))
        assert calls_in(exported.graph) == [f"fastdw.{op}"]
        x = torch.randn(3, 5, 9, 4)
        torch.testing.assert_close(exported.module()(x), net(x))


@pytest.mark.parametrize("op", OPS)
def test_make_fx(op: str) -> None:
    net, x = Net(small(op)), torch.randn(2, 5, 6, 5)
    with torch.no_grad():
        traced = make_fx(net, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
    assert calls_in(traced.graph) == [f"fastdw.{op}"]


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors_have_the_shape_and_layout_of_the_result(op: str) -> None:
    args, kwargs = arguments(small(op))
    y = run(small(op), args, kwargs)
    meta_args, meta_kwargs = tree_map(
        lambda v: v.to("meta") if isinstance(v, Tensor) else v, (args, kwargs)
    )
    meta = run(small(op), meta_args, meta_kwargs, "auto")
    assert (meta.device.type, meta.shape, meta.stride()) == ("meta", y.shape, y.stride())


@pytest.mark.parametrize("case", VARIANTS, ids=name)
def test_flops_are_those_of_the_convolutions(case: Case) -> None:
    args, kwargs = arguments(case)
    counts = []
    for backend in ("cpp", "torch"):
        with FlopCounterMode(display=False) as counter:
            run(case, args, kwargs, backend)
        counts.append(counter.get_total_flops())
    _, _, twin, packed = packed_call(case, schema_call(case))
    with FlopCounterMode(display=False) as counter:
        twin(*packed)
    assert counts[0] == counts[1] == counter.get_total_flops() > 0


def test_packed_ops_refuse_to_run_backward() -> None:
    _, _, twin, (x, *rest) = packed_call(small("stem_conv"), schema_call(small("stem_conv")))
    y = twin(x.clone().requires_grad_(), *rest)
    with pytest.raises(NotImplementedError, match="stem_conv_packed .* has no gradient"):
        y.sum().backward()


def test_packed_ops_refuse_weights_on_another_device() -> None:
    _, _, twin, (x, packed, *rest) = packed_call(
        small("stem_conv"), schema_call(small("stem_conv"))
    )
    with pytest.raises(ValueError, match="packed: expected device cpu as x, got meta"):
        twin(x, packed.to("meta"), *rest)


@pytest.mark.parametrize("op", OPS)
def test_packed_twin_computes_the_same(op: str, isa: str) -> None:
    case = small(op)
    args, kwargs, truth, magnitude = expected(case, "normal", torch.float32)
    _, _, twin, packed = packed_call(case, schema_arguments(case, args, kwargs))
    assert_correct(twin(*packed), truth, magnitude, case.terms)


def test_ops_raise_value_errors_in_a_trace_too() -> None:
    with pytest.raises(ValueError, match="weight: .*not a depthwise filter"):
        torch.ops.fastdw.depthwise_conv(
            torch.ones(1, 4, 5, 5, device="meta"),
            torch.ones(4, 4, 3, 3, device="meta"),
            *(None, None, [1, 1], [1, 1, 1, 1], [1, 1], "none"),
        )


def test_every_public_signature_is_that_of_the_reference_and_backend() -> None:
    import inspect

    for op in OPS:
        public = inspect.signature(getattr(ops, op)).parameters
        meaning = inspect.signature(getattr(reference, op)).parameters
        assert [*meaning, "backend"] == list(public)
        assert all(public[key].default == meaning[key].default for key in meaning)
