"""The check behind `fastdw verify`: passes what is right, and catches what is wrong."""

import math

import pytest
import torch
from torch import Tensor

from fastdw import backends, reference
from fastdw.benchmark import verify
from fastdw.benchmark.cases import OP_CASES, OpCase
from fastdw.ops.registration import VARIANTS

ALL_CASES = [case for cases in OP_CASES.values() for case in cases]


def identity(case: OpCase) -> str:
    return f"{case.op}: {case.label}"


def test_every_op_has_cases_and_every_case_an_op() -> None:
    """Variants of an op with a further result are timed as that op."""
    assert set(OP_CASES) == {row["op"] for row in backends.support_table()} - set(VARIANTS)


@pytest.mark.parametrize("case", ALL_CASES, ids=identity)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_reference_keeps_its_own_budget(case: OpCase, dtype: str) -> None:
    truth = verify.truth_of(case, verify.DTYPES[dtype])
    out = case.call(getattr(reference, case.op), truth.tensors)
    assert verify.error_over_budget(out, truth) <= 1


@pytest.mark.parametrize("case", ALL_CASES, ids=identity)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_one_wrong_weight_is_beyond_the_budget(case: OpCase, dtype: str) -> None:
    """The middle tap of one channel, in each convolution in turn."""
    truth = verify.truth_of(case, verify.DTYPES[dtype])
    operands = truth.tensors
    for number, conv in enumerate(operands.convs):
        if conv is None:
            continue
        weight = conv[0].clone()
        taps = weight.view(weight.shape[0], -1)[weight.shape[0] // 2]
        taps[taps.numel() // 2] += 1
        convs = list(operands.convs)
        convs[number] = (weight, *conv[1:])
        wrong = type(operands)(operands.x, tuple(convs), operands.residual)
        out = case.call(getattr(reference, case.op), wrong)
        assert verify.error_over_budget(out, truth) > 1, f"convolution {number}"


def test_nan_shape_and_dtype_count_as_wrong() -> None:
    truth = verify.truth_of(ALL_CASES[0], torch.float32)
    right = truth.result.float()
    assert verify.error_over_budget(right, truth) <= 1
    for wrong in (right[..., :-1], right.half(), right.clone().fill_(math.nan)):
        assert math.isinf(verify.error_over_budget(wrong, truth))


def test_a_wrong_backend_gets_a_verdict_not_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    case = OP_CASES["stem_conv"][0]
    truths = [verify.truth_of(case, torch.float32) for case in OP_CASES["stem_conv"]]

    def off_by_a_bit(*args: object, backend: str, **options: object) -> Tensor:
        return getattr(reference, case.op)(*args, **options) + 1e-3

    def broken(*args: object, **options: object) -> Tensor:
        raise RuntimeError("no such kernel\nmore")

    def refused(*args: object, **options: object) -> Tensor:
        raise backends.BackendRefused("no kernel for fp32")

    for function, status in ((off_by_a_bit, "over"), (broken, "failed"), (refused, "refused")):
        monkeypatch.setattr("fastdw.ops.stem_conv", function)
        verdict = verify.check("stem_conv", "torch", "-", "fp32", truths)
        assert verdict.status == status
    assert verdict.reason == "no kernel for fp32"


def test_verify_covers_every_isa_and_dtype_of_this_machine() -> None:
    verdicts = list(verify.verify())
    seen = {(v.op, v.backend, v.isa, v.dtype) for v in verdicts}
    assert len(seen) == len(verdicts)
    from fastdw import native

    expected = {
        (op, "cpp", isa, dtype)
        for op in OP_CASES
        for isa in native.supported_isas()
        for dtype in verify.DTYPES
    }
    assert expected <= seen
    assert [v for v in verdicts if v.status in ("over", "failed")] == []
