"""Squeeze-excite inside a planned network: gates, sums of rows, and what the steps hand over."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarded_memory import Arena
from network_builder import NetworkBuilder, fastdw_ops
from torch import Tensor

from fastdw import activation, reference
from fastdw.ops.program import parse_program
from fastdw.plan import packed_layout

planned_network = fastdw_ops.planned_network.default
Threads = Callable[[int], None]
PADDED = {
    3: {"kernel": (3, 3), "padding": (1, 1, 1, 1)},
    5: {"kernel": (5, 5), "padding": (2, 2, 2, 2)},
}


def block(
    net: NetworkBuilder,
    source: str,
    hidden: int,
    act: str = "hardswish",
    kernel: int = 3,
    expand: bool = True,
    residual: bool = False,
    **window: Any,
) -> str:
    """An inverted residual with a squeeze-excite before its projection."""
    wide = net.pointwise(source, hidden, act) if expand else source
    filtered = net.depthwise(wide, act=act, **PADDED[kernel], **window)
    gate = net.squeeze_excite(filtered, max(hidden // 4, 1))
    channels = net.channels[source]
    return net.pointwise(filtered, channels, residual=source if residual else None, gate=gate)


def assert_near(outputs: list[Tensor], truths: list[Tensor]) -> None:
    assert len(outputs) == len(truths)
    for output, truth in zip(outputs, truths, strict=True):
        torch.testing.assert_close(output.double(), truth, rtol=2e-4, atol=2e-4)


def check(net: NetworkBuilder, x: Tensor) -> list[Tensor]:
    outputs = planned_network(x, net.packed(), net.program())
    assert_near(outputs, net.expected(x))
    return outputs


def kinds(net: NetworkBuilder, *call: int) -> list[str]:
    told = json.loads(fastdw_ops.explain_network(net.program(), *call))
    return [step["kind"] for step in told["steps"]]


def network(channels: int, kernel: int, stride: int, act: str, gate: str) -> NetworkBuilder:
    net = NetworkBuilder(channels=5, seed=channels)
    first = net.pointwise("x", 12, "relu6")
    wide = net.pointwise(first, channels, act)
    filtered = net.depthwise(wide, act=act, stride=(stride, stride), **PADDED[kernel])
    gates = net.squeeze_excite(filtered, max(channels // 4, 1), "silu", gate)
    net.outputs = [net.pointwise(filtered, 9, act, gate=gates), filtered]
    return net


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("channels", [1, 7, 17, 33, 100])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("act", ["relu", "hardswish", "silu", "none"])
def test_values(isa: str, channels: int, kernel: int, stride: int, act: str) -> None:
    gate = "sigmoid" if act == "silu" else "hardsigmoid"
    net = network(channels, kernel, stride, act, gate)
    for batch, height, width in ((1, 13, 9), (3, 1, 17), (2, 7, 1)):
        check(net, torch.randn(batch, 5, height, width))


@pytest.mark.parametrize("size", [(7, 7), (14, 11), (33, 40)])
def test_same_bits_at_every_number_of_threads(
    isa: str, size: tuple[int, int], threads: Threads
) -> None:
    net = NetworkBuilder(channels=3)
    value = net.stem("x", 24, "hardswish", stride=(1, 1))
    value = block(net, value, 24, "relu", expand=False)
    for kernel, act in ((3, "hardswish"), (5, "silu")):
        value = block(net, value, 200, act, kernel, residual=True)
    by_itself = net.depthwise(value, multiplier=2, act="silu")  # value has other readers
    last = net.pointwise(by_itself, 9, gate=net.squeeze_excite(by_itself, 7))
    net.outputs = [value, net.head(net.head(value, 300, "hardswish"), 10), last]
    for batch in (1, 5):
        x, results = torch.randn(batch, 3, *size), []
        for count in (1, 2, 3, 4):
            threads(count)
            results.append(check(net, x))
        for outputs in results[1:]:
            assert all(map(torch.equal, outputs, results[0]))


def test_an_image_does_not_change_another() -> None:
    net = network(33, 5, 1, "hardswish", "sigmoid")
    x = torch.randn(33, 5, 9, 9)
    together = planned_network(x, net.packed(), net.program())
    for index in (0, 17, 32):
        alone = planned_network(x[index : index + 1], net.packed(), net.program())
        assert all(map(torch.equal, (t[index : index + 1] for t in together), alone))


def test_which_steps_take_over_which() -> None:
    """Stem or expansion with the depthwise convolution; the pool reads sums of rows."""
    net = NetworkBuilder(channels=3)
    first = block(net, net.stem("x", 16), 16, expand=False)
    net.outputs = [block(net, first, 64)]
    gated = ["global_pool", "classifier_head", "classifier_head", "pointwise_conv"]
    assert kinds(net, 1, 32, 32, 1) == ["stem_block", *gated, "expand_depthwise", *gated]
    told = json.loads(fastdw_ops.explain_network(net.program(), 2, 32, 24, 1))
    pool = told["steps"][6]
    assert pool["input_shape"] == [2, 64, 16, 1] and pool["output_shape"] == [2, 64]
    program = parse_program(net.program())
    multiply_adds = sum(step["multiply_adds"] for step in told["steps"])
    assert multiply_adds == program.multiply_adds(2, 32, 24)
    weights = sum(step["bytes"]["weights"] for step in told["steps"])
    assert weights + 64 == net.packed().numel()
    check(net, torch.randn(2, 3, 32, 24))


@pytest.mark.parametrize("kept", ["output", "residual", "multiplied"])
def test_a_hidden_value_that_no_ring_can_hold_is_written(kept: str) -> None:
    """Something else reads it, or the depthwise convolution multiplies its channels."""
    net = NetworkBuilder(channels=6)
    wide = net.pointwise("x", 40, "relu")
    filtered = net.depthwise(wide, 2 if kept == "multiplied" else 1, act="hardswish")
    gate = net.squeeze_excite(filtered, 10)
    added = wide if kept == "residual" else None
    net.outputs = [net.pointwise(filtered, 40, residual=added, gate=gate)]
    net.outputs += [wide] if kept == "output" else []
    assert kinds(net, 1, 9, 9, 1)[:2] == ["pointwise_conv", "depthwise_conv"]
    check(net, torch.randn(2, 6, 9, 11))


def test_gates_from_elsewhere() -> None:
    """Of x, of another map, of one that no depthwise convolution writes; read twice; pooled too."""
    net = NetworkBuilder(channels=19)
    plain = net.pointwise("x", 19, "relu")
    gate = net.squeeze_excite("x", 3, "hardswish", "sigmoid")
    once = net.pointwise(plain, 21, gate=gate)
    twice = net.pointwise(plain, 21, residual=once, gate=gate)
    multiplied = net.depthwise(twice, multiplier=2, act="silu")
    own = net.squeeze_excite(multiplied, 8)
    last = net.pointwise(multiplied, 5, gate=own)
    pooled, hidden = net.pool(multiplied), net.head(multiplied, 7, "sigmoid")
    net.outputs = [last, pooled, hidden, own, gate]
    for batch in (1, 4):
        check(net, torch.randn(batch, 19, 10, 9))


@pytest.mark.parametrize("act", [*activation.ACTIVATIONS, *activation.GATES])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_linear_layer_ends_in_any_activation(isa: str, act: str, batch: int) -> None:
    net = NetworkBuilder(channels=33)
    net.outputs = [net.head(net.head("x", 150, act), 7, act)]
    check(net, 8 * torch.randn(batch, 33, 3, 5))


def test_extreme_and_strange_values_pass_as_in_torch(isa: str) -> None:
    net = network(17, 3, 1, "relu", "sigmoid")
    x = torch.randn(4, 5, 6, 6)
    x[0, 0, 2, 2], x[1, 1, 3, 3], x[2] = float("nan"), float("inf"), x[2] * 1e30
    outputs = planned_network(x, net.packed(), net.program())
    truths = net.expected(x)
    assert torch.equal(outputs[0][0].isnan(), truths[0][0].isnan())
    assert_near([y[3:] for y in outputs], [t[3:] for t in truths])
    assert outputs[1][2].isfinite().all()
    for gate in activation.GATES:
        net = NetworkBuilder(channels=1)
        net.outputs = [net.head("x", 20, gate)]
        x = torch.tensor([-1e30, -200.0, -88.0, -10.0, 0.0, 10.0, 88.0, 1e30]).view(8, 1, 1, 1)
        check(net, x)


@pytest.mark.parametrize("at_end", [False, True])
def test_reads_nothing_beyond_x_and_weights(isa: str, at_end: bool) -> None:
    net = NetworkBuilder(channels=7)
    filtered = net.depthwise("x", act="hardswish", **PADDED[5])
    gate = net.squeeze_excite(filtered, 2)
    both = net.pointwise("x", 33, gate=gate)
    net.outputs = [net.pointwise(both, 17, gate=net.squeeze_excite(both, 9)), filtered]
    x = torch.randn(2, 7, 9, 11).contiguous(memory_format=torch.channels_last)
    with Arena() as arena:
        guarded_x, guarded = arena.copy(x, at_end), arena.copy(net.packed(), at_end)
        assert_near(planned_network(guarded_x, guarded, net.program()), net.expected(x))
        del guarded_x, guarded


def test_the_reference() -> None:
    x = torch.randn(2, 6, 4, 5)
    reduce, expand = torch.randn(3, 6), torch.randn(6, 3)
    bias = torch.randn(3)
    gates = reference.squeeze_excite(x, (reduce, bias, "silu"), (expand, None, "hardsigmoid"))
    hidden = torch.nn.functional.silu(x.mean((2, 3)) @ reduce.T + bias)
    torch.testing.assert_close(gates, ((hidden @ expand.T + 3) / 6).clamp(0, 1))

    net = NetworkBuilder(channels=6)
    net.outputs = [net.squeeze_excite("x", 3)]
    net.blobs = [
        fastdw_ops.pack_classifier_head(reduce, bias),
        fastdw_ops.pack_classifier_head(expand, None),
    ]
    wanted = reference.squeeze_excite(x, (reduce, bias, "relu"), (expand, None, "hardsigmoid"))
    (ours,) = planned_network(x, net.packed(), net.program())
    torch.testing.assert_close(ours, wanted)


HEAD = "fastdw-program version=1 channels=16 outputs=1\n"
POOL = "global_pool in=x out=0 channels=16\n"
CONV = "pointwise_conv in=x out=1 channels_in=16 channels_out=16 residual=- activation=none "
LINEAR = "classifier_head in=0 out=1 channels_in=16 channels_out=16 "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (POOL + CONV + "gate=x weights=64", r"gate: expected \[batch, 16\]"),
        (POOL + CONV + "gate=7 weights=64", 'gate: no step before computes the value "7"'),
        (POOL + CONV + "gate=0 gate=0 weights=64", "gate stands twice"),
        (POOL + LINEAR + "gate=0 weights=64", "unknown key gate"),
        (POOL + LINEAR + "activation=gelu weights=64", 'got "gelu"'),
        (CONV.replace("=none", "=sigmoid") + "weights=64", 'silu, got "sigmoid"'),
    ],
)
def test_bad_programs_are_refused(text: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        planned_network(torch.ones(1, 16, 4, 4), torch.zeros(4096, dtype=torch.uint8), HEAD + text)


def test_a_gate_of_other_channels_is_refused() -> None:
    net = NetworkBuilder(channels=16)
    gate = net.head("x", 8)
    net.outputs = [net.pointwise("x", 16, gate=gate)]
    with pytest.raises(RuntimeError, match=r"gate: expected \[batch, 16\]"):
        planned_network(torch.ones(1, 16, 4, 4), net.packed(), net.program())
    with pytest.raises(ValueError, match="gate=0: expected a value of 16 channels, got 8"):
        parse_program(net.program())


def test_nothing_is_laid_out_for_cuda() -> None:
    net = network(17, 3, 1, "relu", "sigmoid")
    parsed = parse_program(net.program())
    assert str(parsed) == net.program() and "CPU alone" in (parsed.gpu_refusal or "")
    with pytest.raises(ValueError, match="planned on the CPU alone: .*with a gate"):
        packed_layout.to_cuda_layout(net.packed(), net.program(), torch.float16)
    plain = NetworkBuilder()
    plain.outputs = [plain.head(plain.stem("x", 8), 3)]
    assert parse_program(plain.program()).gpu_refusal is None
