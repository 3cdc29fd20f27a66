"""Packed weights are kept between eval calls and never outlive the weights they came from."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nn_checks import MODULES, OPS, fused_ops, image, module
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fastdw.nn import fused_module, weight_cache
from fastdw.nn.weight_cache import WeightCache


@torch.no_grad()
def fresh(block: nn.Module, x: Tensor) -> Tensor:
    """What ``block`` must give now: a copy has no packed weights."""
    return copy.deepcopy(block)(x)


def last_weight(block: Any) -> nn.Parameter:
    return [p for name, p in block.named_parameters() if name.endswith("weight") and p.dim() > 1][
        -1
    ]


@pytest.mark.parametrize("name", MODULES)
def test_packed_once(name: str) -> None:
    block, x = module(name), image(name)
    with torch.no_grad():
        first = fused_ops(lambda: block(x))
        second = fused_ops(lambda: block(x))
    assert first == {f"pack_{OPS[name]}": 1, f"{OPS[name]}_packed": 1}
    assert second == {f"{OPS[name]}_packed": 1}


def add(block: nn.Module) -> None:
    with torch.no_grad():
        last_weight(block).add_(0.1)


def add_in_inference_mode(block: nn.Module) -> None:
    with torch.inference_mode():
        last_weight(block).add_(0.1)


def assign_data(block: nn.Module) -> None:
    last_weight(block).data = last_weight(block).data * 2


def assign_data_twice(block: nn.Module) -> None:
    weight = last_weight(block)
    weight.data = torch.zeros_like(weight)
    weight.data = torch.ones_like(weight)  # may lie where the first weight was


def write_data_then_eval(block: nn.Module) -> None:
    last_weight(block).data.mul_(2)
    block.eval()


def write_data_then_train_and_eval(block: nn.Module) -> None:
    last_weight(block).data.mul_(2)
    block.train().eval()


def replace_parameter(block: nn.Module) -> None:
    weight = last_weight(block)
    owner = next(m for m in block.modules() if getattr(m, "weight", None) is weight)
    owner.weight = nn.Parameter(weight.detach() * 2)


def load(block: nn.Module) -> None:
    block.load_state_dict({k: v * 2 for k, v in block.state_dict().items()})


def load_with_assign(block: nn.Module) -> None:
    block.load_state_dict({k: v * 2 for k, v in block.state_dict().items()}, assign=True)


def load_into_children(block: nn.Module) -> None:
    for child in block.children():
        child.load_state_dict({k: v * 2 for k, v in child.state_dict().items()})


def swap_tensors(block: nn.Module) -> None:
    weight = last_weight(block)
    torch.utils.swap_tensors(weight, nn.Parameter(weight.detach() * 2))


def from_vector(block: nn.Module) -> None:
    vector_to_parameters(parameters_to_vector(block.parameters()) * 2, block.parameters())


def to_double(block: nn.Module) -> None:
    block.double().float()
    add(block)


def fused_adam_step(block: nn.Module) -> None:
    """A training step; the fused optimizer does not count its writes."""
    optimizer = torch.optim.Adam(block.parameters(), lr=0.1, fused=True)
    block.train()
    block(input_of(block)).square().sum().backward()
    optimizer.step()
    block.eval()


def fused_adam_step_in_eval_mode(block: nn.Module) -> None:
    """The same without ``train()`` or ``eval()``: frozen batch norms."""
    optimizer = torch.optim.Adam(block.parameters(), lr=0.1, fused=True)
    block(input_of(block)).square().sum().backward()
    optimizer.step()


def sgd_step_in_eval_mode(block: nn.Module) -> None:
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    block(input_of(block)).square().sum().backward()
    optimizer.step()


def input_of(block: nn.Module) -> Tensor:
    return image("stem" if next(block.parameters()).shape[1:2] == (3,) else "")


CHANGES = [
    add,
    add_in_inference_mode,
    assign_data,
    assign_data_twice,
    write_data_then_eval,
    write_data_then_train_and_eval,
    replace_parameter,
    load,
    load_with_assign,
    load_into_children,
    swap_tensors,
    from_vector,
    to_double,
    fused_adam_step,
    fused_adam_step_in_eval_mode,
    sgd_step_in_eval_mode,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", MODULES)
def test_weight_updates_are_seen(name: str, change: Callable[[nn.Module], None]) -> None:
    block, x = module(name), image(name)
    with torch.no_grad():
        before = block(x)
        assert isinstance(block._fastdw_cache, WeightCache)
    change(block)
    with torch.no_grad():
        after = block(x)
    assert torch.equal(after, fresh(block, x))
    assert not torch.equal(after, before)


def geometry(block: Any) -> None:
    block.depthwise.conv.dilation = (2, 2)
    block.depthwise.conv.padding = (2, 2)


def statistics(block: Any) -> None:
    block.project.bn.running_mean.add_(1)


def eps(block: Any) -> None:
    block.depthwise.bn.eps = 0.5


def other_norm(block: Any) -> None:
    block.expand.bn = nn.BatchNorm2d(36).eval()


def other_activation(block: Any) -> None:
    block.depthwise.act = nn.SiLU()


def other_unit(block: Any) -> None:
    block.expand = copy.deepcopy(block.expand)
    with torch.no_grad():
        block.expand.conv.weight.add_(1)


def no_residual(block: Any) -> None:
    block.residual = False


@pytest.mark.parametrize(
    "change",
    [geometry, statistics, eps, other_norm, other_activation, other_unit, no_residual],
    ids=lambda change: change.__name__,
)
def test_changes_of_structure_are_seen(change: Callable[[Any], None]) -> None:
    block, x = module("residual"), image()
    with torch.no_grad():
        before = block(x)
        change(block)
        after = block(x)
        assert torch.equal(after, fresh(block, x))
        assert not torch.equal(after, before)
        assert fused_ops(lambda: block(x)) == {"inverted_residual_packed": 1}


@pytest.mark.parametrize("name", MODULES)
def test_inference_mode_then_training(name: str) -> None:
    block, x = module(name), image(name)
    with torch.inference_mode():
        before = block(x)
    block.train()
    block(x).square().sum().backward()
    torch.optim.SGD(block.parameters(), lr=0.1).step()
    block.eval()
    with torch.no_grad():
        after = block(x)
    assert torch.equal(after, fresh(block, x))
    assert not torch.equal(after, before)
    block(x).square().sum().backward()  # nothing made in inference mode is left in the graph


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        block, x = module("residual"), image()
        first = block(x)
        assert fused_ops(lambda: block(x)) == {"inverted_residual_packed": 1}
        block.load_state_dict({k: v * 2 for k, v in block.state_dict().items()})
        assert not torch.equal(block(x), first)


def test_functional_call_sees_its_own_weights() -> None:
    block, x = module("residual"), image()
    with torch.no_grad():
        before = block(x)
        doubled = {name: p * 2 for name, p in block.named_parameters()}
        other = torch.func.functional_call(block, doubled, (x,))
        assert not torch.equal(other, before)
        assert torch.equal(block(x), before)


def test_vmap_over_weights() -> None:
    block, x = module("pointwise"), image()
    with torch.no_grad():
        block(x)
        stacked = {n: torch.stack([p, p * 2]) for n, p in block.named_parameters()}
        both = torch.vmap(lambda p: torch.func.functional_call(block, p, (x,)))(stacked)
        for i in range(2):
            one = {name: p[i] for name, p in stacked.items()}
            torch.testing.assert_close(both[i], torch.func.functional_call(block, one, (x,)))


def test_a_fork_while_another_thread_packs() -> None:
    """The child's only thread is not the one that holds the lock: it must not wait for it."""
    block, x = module("pointwise"), image()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with weight_cache.lock():
            held.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with torch.no_grad():
            block(x)
        os._exit(0)
    release.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


def test_transforms_of_the_input() -> None:
    """torch.func and forward-mode AD see the children: they cannot look into an op."""
    block, x = module("pointwise"), image()
    tangent = torch.randn_like(x)
    with torch.no_grad():
        block(x)  # weights are kept now
        got = torch.func.jvp(block, (x,), (tangent,))
        many = torch.vmap(block)(torch.stack([x, tangent]))
    plain = block._unfused_forward
    for a, b in zip(got, torch.func.jvp(plain, (x,), (tangent,)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(many, torch.stack([plain(x), plain(tangent)]))
    grad, wanted = (
        torch.func.grad(lambda q, run=run: run(q).square().sum())(x) for run in (block, plain)
    )
    torch.testing.assert_close(grad, wanted)


def test_a_data_parallel_replica_uses_its_own_weights() -> None:
    block, x = module("pointwise"), image()
    with torch.no_grad():
        before = block(x)
        replica = block._replicate_for_data_parallel()
        replica._modules = dict(copy.deepcopy(block)._modules)
        replica.conv.weight.mul_(2)
        assert not torch.equal(replica(x), before)
        assert torch.equal(block(x), before)


@pytest.mark.parametrize("name", MODULES)
def test_dropped_with_gradients_and_on_the_usual_calls(name: str) -> None:
    block, x = module(name), image(name)
    calls: list[Callable[[], Any]] = [
        block.train,
        block.eval,
        lambda: block.to(torch.float32),
        lambda: block.load_state_dict(block.state_dict()),
        lambda: block(x),
    ]
    for call in calls:
        block.eval()
        with torch.no_grad():
            block(x)
        assert block._fastdw_cache is not None
        call()
        assert block._fastdw_cache is None


def test_threads_pack_once_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = module("residual"), image()
    expected, packed = fresh(block, x), []
    pack = fused_module.pack_call
    monkeypatch.setattr(fused_module, "pack_call", lambda *args: packed.append(args) or pack(*args))
    outputs: list[Tensor] = []
    start = threading.Barrier(8)

    @torch.no_grad()
    def work() -> None:
        start.wait()
        outputs.extend(block(x) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 160
    assert all(torch.equal(output, expected) for output in outputs)
    assert len(packed) == 1


def test_a_drop_waits_for_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``.data`` write and ``eval()`` while another thread packs: the old pack must not stay."""
    block, x = module("pointwise"), image()
    packing, written = threading.Event(), threading.Event()
    pack = fused_module.pack_call

    def slow_pack(*args: Any) -> Any:
        call = pack(*args)
        packing.set()
        written.wait(10)
        return call

    monkeypatch.setattr(fused_module, "pack_call", slow_pack)

    @torch.no_grad()
    def work() -> None:
        block(x)

    thread = threading.Thread(target=work)
    thread.start()
    assert packing.wait(10)
    block.conv.weight.data.mul_(2)
    release = threading.Timer(0.2, written.set)  # while eval() below waits
    release.start()
    block.eval()
    thread.join()
    with torch.no_grad():
        assert torch.equal(block(x), fresh(block, x))
