"""The checks that every op's tests share: values, layout, repeats, guarded buffers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import guarded_memory
import torch
from hypothesis import strategies as st
from shapes import Case, arguments, run, truth_of
from tolerances import assert_correct
from torch import Tensor
from torch.utils._pytree import tree_map

from fastdw import native, ops, reference


@cache
def expected(case: Case, kind: str, dtype: torch.dtype) -> tuple[Any, Any, Tensor, Tensor]:
    """Return (args, kwargs, truth, magnitude), made once for all instruction sets."""
    args, kwargs = arguments(case, kind, dtype)
    return args, kwargs, *truth_of(case, args, kwargs)


def check_case(case: Case, kind: str = "normal", dtype: torch.dtype = torch.float32) -> None:
    """Assert that the op's values are correct and that its strides are those of torch."""
    args, kwargs, truth, magnitude = expected(case, kind, dtype)
    y = run(case, args, kwargs)
    assert y.dtype == dtype
    if case.batch:  # of an empty output torch's own layout depends on the kind of convolution
        assert y.stride() == convolution_strides(case, args, kwargs)
    assert_correct(y, truth, magnitude, case.terms)


def check_case_on_every_isa(case: Case) -> None:
    """``check_case`` where the instruction set cannot be a fixture: under hypothesis."""
    for isa in native.supported_isas():
        with native.force_isa(isa):
            check_case(case)


def convolution_strides(case: Case, args: Any, kwargs: Any) -> tuple[int, ...]:
    """Return the strides of torch's conv2d, or chain of them, without epilogues."""
    bare: dict[str, Any] = dict(kwargs)
    if "activation" in bare:
        bare["activation"] = "none"
    if "residual" in bare:
        bare["residual"] = None if case.op == "pointwise_conv" else False
    if isinstance(args[1], Tensor):
        convs: Any = args[1:2]
    else:
        convs = [conv and (conv[0], None, None, "none") for conv in args[1:]]
    return getattr(reference, case.op)(args[0], *convs, **bare).stride()


def check_repeats(case: Case) -> None:
    """Assert that the same call gives the same bits."""
    args, kwargs = arguments(case)
    first = run(case, args, kwargs)
    for _ in range(3):
        assert torch.equal(first, run(case, args, kwargs))


def check_guarded(case: Case, at_end: bool) -> None:
    """Run the op with every tensor flush against an inaccessible page, at its start or its end.

    The op packs its weights inside, so the packed twin runs too, its blob guarded. A read beyond a
    buffer ends the process.
    """
    args, kwargs, truth, magnitude = expected(case, "normal", torch.float32)
    with guarded_memory.Arena() as arena:

        def guarded(leaf: Any) -> Any:
            return arena.copy(leaf, at_end) if isinstance(leaf, Tensor) else leaf

        guarded_args, guarded_kwargs = tree_map(guarded, (args, kwargs))
        y = run(case, guarded_args, guarded_kwargs)
        assert_correct(y, truth, magnitude, case.terms)
        call = schema_arguments(case, guarded_args, guarded_kwargs)
        _, _, twin, packed = packed_call(case, call, lambda blob: arena.copy(blob, at_end))
        assert_correct(twin(*packed), truth, magnitude, case.terms)
        del guarded_args, guarded_kwargs, call, packed


_WEIGHTS = {  # how many arguments of the op, after x, its pack_* takes
    "depthwise_conv": 3,
    "pointwise_conv": 3,
    "stem_conv": 3,
    "separable_block": 6,
    "inverted_residual": 9,
    "classifier_head": 2,
}


def packed_call(case: Case, call: tuple[Any, ...], hold: Any = None) -> tuple[Any, ...]:
    """Return (pack op, its arguments, packed twin, its arguments) of a call in schema form.

    ``hold`` takes the blob and returns the one to use.
    """
    x, *rest = call
    weights, rest = rest[: _WEIGHTS[case.op]], rest[_WEIGHTS[case.op] :]
    pack = getattr(torch.ops.fastdw, f"pack_{case.op}").default
    twin = getattr(torch.ops.fastdw, f"{case.op}_packed").default
    blob = pack(*weights) if hold is None else hold(pack(*weights))
    channels_out = next(w for w in reversed(weights) if w is not None and w.dim() > 1).shape[0]
    if case.op == "classifier_head":
        return pack, tuple(weights), twin, (x, blob, channels_out)
    kernel = [] if case.op == "pointwise_conv" else [list(case.kernel)]
    return pack, tuple(weights), twin, (x, blob, channels_out, *kernel, *rest, False)


def schema_arguments(case: Case, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Return what the public op passes to ``torch.ops.fastdw.<op>``."""
    seen: list[tuple[Any, ...]] = []
    rows = ops.registration.backends.ROWS[case.op]
    spy = replace(rows[0], run=lambda *arguments: seen.append(arguments) or arguments[0])
    original = rows[0]
    rows[0] = spy
    try:
        run(case, args, kwargs)
    finally:
        rows[0] = original
    return seen[0]


def random_windows(op: str) -> st.SearchStrategy[Case]:
    """Random small cases of the ops with a window; the dilated kernel fits the padded input."""
    heights, widths = st.integers(1, 12), st.integers(1, 33)

    @st.composite
    def cases(draw: st.DrawFn) -> Case:
        stem = op == "stem_conv"
        kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
        dilation = (1, 1) if stem else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        if draw(st.booleans()):
            padding: Any = "same"
        else:
            padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        extra = (0, 0) if padding == "same" else (sum(padding[2:]), sum(padding[:2]))
        return Case(
            op,
            batch=draw(st.integers(0, 3)),
            channels=draw(st.integers(1, 40)),
            channels_out=draw(st.integers(1, 40)),
            height=max(draw(heights), reach[0] - extra[0], 1),
            width=max(draw(widths), reach[1] - extra[1], 1),
            multiplier=draw(st.integers(1, 3)) if op == "depthwise_conv" else 1,
            hidden=draw(st.none() | st.integers(1, 50)) if op == "inverted_residual" else None,
            kernel=kernel,
            stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
            dilation=dilation,
            padding=padding,
            activation=draw(st.sampled_from(["none", "relu", "relu6", "hardswish", "silu"])),
            epilogue=draw(st.booleans()),
            layout=draw(st.sampled_from(["channels_last", "contiguous", "sliced", "transposed"])),
        )

    return cases()
