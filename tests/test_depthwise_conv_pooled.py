"""depthwise_conv_pooled: y is that of depthwise_conv, bit for bit; the means against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import guarded_memory
import pytest
import torch
from hypothesis import given, settings
from op_checks import expected, random_windows, schema_arguments
from pooled_checks import PLAIN, assert_means, check
from shapes import AWKWARD_CHANNELS, KINDS, LAYOUTS, Case, arguments, ids
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastdw import native, ops, reference

pytestmark = pytest.mark.usefixtures("nan_filled")

CASES = [
    *(Case(PLAIN, channels=c, height=5, width=9) for c in AWKWARD_CHANNELS),
    *(Case(PLAIN, channels=c, stride=2, height=9, width=7) for c in (1, 16, 33)),
    *(Case(PLAIN, channels=17, layout=layout) for layout in LAYOUTS),
    *(Case(PLAIN, channels=9, kernel=(k, k), padding="same", width=33) for k in (1, 2, 5, 7)),
    *(Case(PLAIN, channels=8, activation=a) for a in ("none", "relu", "hardswish", "silu")),
    *(Case(PLAIN, channels=c, multiplier=m) for c, m in ((1, 2), (5, 3), (16, 2))),
    *(Case(PLAIN, channels=20, height=h, width=w) for h, w in ((1, 9), (9, 1), (1, 1))),
    Case(PLAIN, channels=9, dilation=2, padding=(0, 2, 1, 3), stride=(1, 2)),
    Case(PLAIN, epilogue=False, activation="none"),
    Case(PLAIN, batch=0),
    Case(PLAIN, batch=33, channels=3),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values(case: Case, isa: str) -> None:
    check(case)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_data(kind: str, isa: str) -> None:
    for activation in ("none", "relu6", "hardswish", "silu"):
        check(Case(PLAIN, channels=19, height=11, width=9, activation=activation), kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype, isa: str) -> None:
    check(Case(PLAIN, channels=17, stride=2, activation="silu"), dtype=dtype)
    check(Case(PLAIN, channels=9, layout="contiguous"), dtype=dtype)
    check(Case(PLAIN, channels=9), dtype=dtype, backend="torch")


@settings(max_examples=40)
@given(case=random_windows(PLAIN))
def test_random_shapes(case: Case) -> None:
    for isa in native.supported_isas():
        with native.force_isa(isa):
            check(case)


@pytest.mark.parametrize("kernel", [3, 5])
def test_same_bits_at_every_number_of_threads(
    kernel: int, isa: str, threads: Callable[[int], None]
) -> None:
    case = Case(PLAIN, channels=203, height=41, width=37, kernel=(kernel, kernel), batch=3)
    args, kwargs = arguments(case)
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        results.append(ops.depthwise_conv_pooled(*args, **kwargs))
    for y, means in results[1:]:
        assert torch.equal(y, results[0][0]) and torch.equal(means, results[0][1])
    x, *weights = args
    for image in range(3):  # nor does an image change another
        _, alone = ops.depthwise_conv_pooled(x[image : image + 1], *weights, **kwargs)
        assert torch.equal(alone[0], results[0][1][image])


@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
@pytest.mark.parametrize("channels", [1, 15, 17, 33])
def test_reads_nothing_outside(channels: int, at_end: bool, isa: str) -> None:
    case = Case(PLAIN, channels=channels, height=5, width=4)
    args, kwargs, truth, magnitude = expected(case, "normal", torch.float32)
    with guarded_memory.Arena() as arena:
        guarded = [arena.copy(t, at_end) if isinstance(t, Tensor) else t for t in args]
        _, means = ops.depthwise_conv_pooled(*guarded, **kwargs)
        assert_means(means, case, truth, magnitude)
        del guarded


def _call(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """The arguments of `torch.ops.fastdw.depthwise_conv_pooled`, tensors requiring gradients."""
    call = schema_arguments(case, *arguments(case, dtype=dtype))
    return tuple(t.detach().requires_grad_() if isinstance(t, Tensor) else t for t in call)


@pytest.mark.parametrize("namespace", ["fastdw", "fastdw_triton"])
def test_gradients(namespace: str) -> None:
    """Of both results, of either alone, and of the gradients."""
    run = getattr(torch.ops, namespace).depthwise_conv_pooled.default
    case = Case(PLAIN, channels=3, height=4, width=5, batch=2, stride=(1, 2), activation="silu")
    call = _call(case)
    for part in (slice(None), slice(0, 1), slice(1, 2)):
        assert torch.autograd.gradcheck(lambda *c, part=part: run(*c)[part], call)
    assert torch.autograd.gradgradcheck(run, call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_those_of_the_formula(dtype: torch.dtype) -> None:
    case = Case(PLAIN, channels=9, height=8, width=7, stride=2, activation="hardswish")
    results = []
    for call in (ops.depthwise_conv_pooled, reference.depthwise_conv_pooled):
        args, kwargs = arguments(case, dtype=dtype)
        leaves = [t.detach().requires_grad_() for t in args]
        y, means = call(*leaves, **kwargs)
        (y.double().square().mean() + means.double().pow(3).sum()).backward()
        results.append([leaf.grad for leaf in leaves])
        assert all(leaf.grad.dtype == leaf.dtype for leaf in leaves)
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    for ours, theirs in zip(*results, strict=True):
        largest = theirs.double().abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    case = Case(PLAIN, channels=5, multiplier=2, height=6, padding="same")
    call = _call(case, dtype)
    torch.library.opcheck(torch.ops.fastdw.depthwise_conv_pooled.default, call)
    if dtype == torch.float64:
        return
    x, weight, scale, bias, *window = (t.detach() if isinstance(t, Tensor) else t for t in call)
    packed = torch.ops.fastdw.pack_depthwise_conv(weight, scale, bias)
    twin = torch.ops.fastdw.depthwise_conv_pooled_packed.default
    arguments_ = (x, packed, weight.shape[0], [3, 3], *window, False)
    torch.library.opcheck(twin, arguments_)
    assert all(map(torch.equal, twin(*arguments_), torch.ops.fastdw.depthwise_conv_pooled(*call)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    args, kwargs = arguments(Case(PLAIN, channels=9))
    with torch.autocast("cpu", dtype=dtype):
        y, means = ops.depthwise_conv_pooled(*args, **kwargs)
        raw = torch.ops.fastdw.depthwise_conv_pooled(
            *args, [1, 1], [1, 1, 1, 1], [1, 1], kwargs["activation"]
        )
    assert y.dtype == dtype and means.dtype == torch.float32
    assert torch.equal(raw[0], y) and torch.equal(raw[1], means)


def test_compiles_with_dynamic_shapes_and_exports() -> None:
    args, kwargs = arguments(Case(PLAIN, channels=9))

    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y, means = ops.depthwise_conv_pooled(x, *args[1:], **kwargs)
            return y * means[:, :, None, None]

    model = Model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, size in ((2, 7), (3, 9), (1, 4)):
        x = torch.randn(batch, 9, size, size + 1)
        assert torch.equal(compiled(x), model(x))
    assert torch.equal(torch.export.export(model, (args[0],)).module()(args[0]), model(args[0]))


def test_flops_and_meta() -> None:
    args, kwargs = arguments(Case(PLAIN, channels=9))
    with FlopCounterMode(display=False) as counter:
        y, _ = ops.depthwise_conv_pooled(*args, **kwargs)
    assert counter.get_total_flops() == 2 * y.numel() * 9
    y, means = ops.depthwise_conv_pooled(*(t.to("meta") for t in args), **kwargs)
    assert y.is_meta and means.is_meta and means.shape == (2, 9) and means.dtype == torch.float32


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match=r"weight: expected \[8, 1, 3, 3\]"):
        ops.depthwise_conv_pooled(torch.ones(2, 8, 5, 5), torch.ones(12, 1, 3, 3))
