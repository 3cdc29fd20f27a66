"""Networks with squeeze-excite, or by timm, planned as a whole: the models that people have, and
somebody's own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convert_models import assert_same_answer, build, calibrate, outputs, photo
from nn_checks import fused_ops, randomize
from test_convert_tables import TIMM, TIMM_SETTINGS, TORCHVISION, Row, built
from torch import Tensor, nn

import fastdw
from fastdw.ops.program import Step, parse_program
from fastdw.plan import PlannedNetwork
from fastdw.plan.network import check_device
from fastdw.plan.record import NotPlannable, record

WHOLE: dict[str, Row] = {
    "torchvision:mobilenet_v3_large": TORCHVISION["mobilenet_v3_large"],
    "torchvision:lraspp": TORCHVISION["lraspp_mobilenet_v3_large"],
    "torchvision:deeplabv3": TORCHVISION["deeplabv3_mobilenet_v3_large"],
    "timm:mobilenetv3_large_100": TIMM["mobilenetv3_large_100"],
    "timm:tf_mobilenetv3_large_100": TIMM["tf_mobilenetv3_large_100"],
    "timm:lcnet_100": TIMM["lcnet_100"],
    "timm:mobilenetv4_conv_small": TIMM["mobilenetv4_conv_small"],  # norms that end in ReLU
    "timm:v3_features_stride_16": TIMM_SETTINGS["v3_features_stride_16"],
    "timm:lcnet_features_silu": TIMM_SETTINGS["lcnet_features_silu"],
}
"""Beside the models of `convert_models.SQUEEZE_EXCITE`."""

PARTS = {
    "ssdlite320": ["detector.backbone"],
}


@pytest.mark.parametrize("name", WHOLE)
def test_planned_as_a_whole(name: str) -> None:
    original = built(WHOLE[name])
    fast = fastdw.optimize(original, photo(1), strict=True)
    assert isinstance(fast, PlannedNetwork)
    gated = [step for step in parse_program(fast.program).steps if step.gate != "-"]
    assert len(gated) == sum(
        type(module).__name__.startswith(("SqueezeExcit", "LRASPPHead"))
        for module in original.modules()
    )
    for x in (photo(1, 64, 64), photo(3, 64, 96)):
        assert_same_answer(fast, original, x)
    assert list(fast.state_dict()) == list(original.state_dict())


@pytest.mark.parametrize("name", PARTS)
def test_planned_in_parts(name: str) -> None:
    original = built(TORCHVISION[name])
    fast = fastdw.optimize(original, photo(1))
    assert fast.report.planned_parts == PARTS[name]
    assert_same_answer(fast, original, photo(2, 64, 96))
    assert fused_ops(lambda: outputs(fast, photo(1)))["planned_network"] == 1


def test_copies_pickles_compiles_and_exports() -> None:
    original = build("torchvision:mobilenet_v3_small")
    fast = fastdw.optimize(original, photo(1))
    x = photo(2, 64, 64)
    expected = outputs(fast, x)[0]
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(outputs(again, x)[0], expected)
    bare = fastdw.optimize(original, photo(1), keep_weights=False)
    assert torch.equal(outputs(bare, x)[0], expected) and list(bare.state_dict()) == ["packed"]
    with torch.no_grad():
        exported = torch.export.export(fast, (x,)).module()
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        assert torch.equal(exported(x), expected) and torch.equal(compiled(x), expected)
    other = calibrate(randomize(copy.deepcopy(original), seed=3))
    fast.load_state_dict(other.state_dict())
    assert_same_answer(fast, other, x)


class Gated(nn.Module):
    """A squeeze-excite by hand, in the way that `form` names."""

    def __init__(self, form: str = "functions") -> None:
        super().__init__()
        self.form = form
        self.stem = fastdw.nn.ConvBNAct(3, 24, stride=2, activation="hardswish")
        self.depthwise = nn.Conv2d(24, 24, 5, 1, 2, groups=24)
        self.reduce, self.expand = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.narrow = nn.Conv2d(6, 1, 1)
        self.norm = nn.BatchNorm2d(6)
        self.linear = nn.Linear(24, 24)
        self.project = nn.Conv2d(24, 24, 1)

    def gates(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.reduce(x.mean((2, 3), keepdim=True)))
        return torch.sigmoid(self.expand(hidden))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = F.silu(self.depthwise(x))
        return FORMS[self.form](self, x, y)


FORMS: dict[str, Callable[[Gated, Tensor, Tensor], Any]] = {
    "functions": lambda m, x, y: x + m.project(y * m.gates(y)),
    "gate first": lambda m, x, y: m.project(torch.mul(m.gates(y), y)),
    "in place": lambda m, x, y: m.project(y.mul_(m.gates(y))),
    "norm": lambda m, x, y: m.project(
        y * F.hardsigmoid(m.expand(F.relu(m.norm(m.reduce(F.adaptive_avg_pool2d(y, 1))))))
    ),
    "one layer": lambda m, x, y: m.project(y * F.hardsigmoid(m.project(y.mean((2, 3), True)))),
    "of another map": lambda m, x, y: m.project(y * m.gates(x)),
    "head": lambda m, x, y: m.linear(
        F.dropout(F.hardswish(m.linear(m.project(y).mean((2, 3)))), training=False)
    ),
    "pixel head": lambda m, x, y: m.linear(
        F.hardswish(m.project(m.project(y).mean((2, 3), keepdim=True))).flatten(1)
    ),
    # what has no step
    "output": lambda m, x, y: y * m.gates(y),
    "output of gates": lambda m, x, y: m.gates(y),
    "depthwise": lambda m, x, y: m.depthwise(y * m.gates(y)),
    "pooled": lambda m, x, y: (y * m.gates(y)).mean((2, 3)),
    "activated": lambda m, x, y: m.project(F.relu(y * m.gates(y))),
    "added": lambda m, x, y: m.project(x + y * m.gates(y)),
    "narrow": lambda m, x, y: m.project(y * m.narrow(m.reduce(y.mean((2, 3), keepdim=True)))),
    "two maps": lambda m, x, y: m.project(y * torch.sigmoid(x)),
    "not computed": lambda m, x, y: m.project(y * y.mean((2, 3), keepdim=True)),
    "twice gated": lambda m, x, y: m.project(y * m.gates(y) * m.gates(x)),
    "number": lambda m, x, y: m.project(y * 0.5),
    "overwritten": lambda m, x, y: m.project(y.mul_(m.gates(y))) + m.project(y),
    "gate on a map": lambda m, x, y: torch.sigmoid(m.project(y)),
}
PLANNED = list(FORMS)[: list(FORMS).index("output")]


def gated(form: str) -> nn.Module:
    torch.manual_seed(0)
    return randomize(Gated(form)).eval()


@pytest.mark.parametrize("form", PLANNED)
def test_somebodys_own_squeeze_excite(form: str) -> None:
    original = gated(form)
    fast = fastdw.optimize(original, photo(1), strict=True)
    for x in (photo(1, 20, 30), photo(3)):
        assert_same_answer(fast, original, x)
    steps = parse_program(fast.program).steps
    assert any(step.gate != "-" for step in steps) != form.endswith("head")


@pytest.mark.parametrize("form", [form for form in FORMS if form not in PLANNED])
def test_what_has_no_step_still_runs(form: str) -> None:
    original = gated(form)
    fast = fastdw.optimize(original, photo(1))
    assert not fast.report.planned and fast.report.plan_reason
    assert_same_answer(fast, original, photo(2, 20, 30))


def test_steps_of_a_gated_block() -> None:
    fast = fastdw.optimize(gated("functions"), photo(1))
    steps = parse_program(fast.program).steps
    assert [step.op for step in steps] == [
        *("stem_conv", "depthwise_conv", "classifier_head", "classifier_head", "pointwise_conv")
    ]
    stem, depthwise, reduce, expand, project = steps
    assert (reduce.activation, expand.activation) == ("silu", "sigmoid")
    assert project.reads == (depthwise.output, stem.output, expand.output)
    assert reduce.input == depthwise.output and expand.input == reduce.output


def test_no_block_swallows_a_gate() -> None:
    """The gate is of another map: depthwise and projection follow each other all the same."""
    steps = parse_program(fastdw.optimize(gated("of another map"), photo(1)).program).steps
    assert [step.op for step in steps][-1] == "pointwise_conv" and steps[-1].gate != "-"


def test_not_planned_on_cuda() -> None:
    recording = record(gated("functions"))
    check_device(recording, torch.device("cpu"))
    with pytest.raises(NotPlannable, match="planned on the CPU alone"):
        check_device(recording, torch.device("cuda"))
    assert not Step("pointwise_conv", "x", "0").is_for_cpu_alone
    assert Step("pointwise_conv", "x", "0", gate="1").is_for_cpu_alone
    assert Step("classifier_head", "x", "0", activation="relu").is_for_cpu_alone
