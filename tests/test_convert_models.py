"""What convert finds in each model, and that the model stays the same model."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from convert_models import ALL, FULLY_FUSED, assert_same_answer, build, outputs, photo
from nn_checks import fused_ops, ops_of
from torch import nn

import fastdw


def depthwise_convs(model: nn.Module) -> int:
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return sum(conv.groups == conv.in_channels > 1 for conv in convs)


@pytest.mark.parametrize("name", ALL)
def test_finds_every_site(name: str) -> None:
    expected, model = ALL[name], build(name)
    assert depthwise_convs(model) == expected.depthwise, "the number in the table is wrong"
    totals = fastdw.convert(model).totals
    assert totals["depthwise_fused"] == expected.depthwise
    assert totals["blocks_fused"] == expected.blocks
    assert totals["reasons_left"] == (expected.left or {})


@pytest.mark.parametrize("name", ALL)
def test_gives_the_same_answer_and_reverts(name: str) -> None:
    original = build(name)
    model = copy.deepcopy(original)
    types = [type(module) for module in model.modules()]
    parameters = list(model.parameters())
    state = {key: value.clone() for key, value in model.state_dict().items()}

    fastdw.convert(model)
    for x in (photo(1), photo(3, 96, 64)):
        assert_same_answer(model, original, x)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert all(
        isinstance(m, kind) or name.startswith("fastdw")
        for m, kind in zip(model.modules(), types, strict=True)
    )
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], state[key]) for key in state)

    fastdw.revert(model)
    assert [type(module) for module in model.modules()] == types
    x = photo(1)
    stock = outputs(original, x)
    assert all(map(torch.equal, outputs(model, x), stock))


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "timm:pad_same", "timm:lcnet_050"])
def test_copies_and_pickles(name: str) -> None:
    model = build(name)
    fastdw.convert(model)
    x = photo(1, 32, 32)
    expected = outputs(model, x)  # fills the caches of packed weights
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    )
    for other in copies:
        assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
        assert all(map(torch.equal, outputs(other, x), expected))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not any(map(torch.equal, outputs(other, x), expected)), "shares memory"
    assert all(map(torch.equal, outputs(model, x), expected))


@pytest.mark.parametrize("name", FULLY_FUSED)
def test_every_site_runs_as_one_op(name: str) -> None:
    """Sites are counted where they run: so many fastdw ops, and none of torch's in their place."""
    model = build(name)
    report = fastdw.convert(model)
    x = photo(1, 32, 32)
    outputs(model, x)
    calls = ops_of(lambda: outputs(model, x))
    fused = {key: count for key, count in calls.items() if key.startswith("fastdw::")}
    assert sum(fused.values()) == len(report.fused)
    assert not [key for key in calls if key.startswith("aten::") and _computes(key)]


def _computes(op: str) -> bool:
    return any(part in op for part in ("batch_norm", "relu", "hardtanh", "clamp", "conv"))


def test_sites_in_a_partly_fused_model_run_as_one_op() -> None:
    model = build("torchvision:mobilenet_v3_small")
    report = fastdw.convert(model)
    x = photo(1, 32, 32)
    outputs(model, x)
    calls = ops_of(lambda: outputs(model, x))
    assert sum(n for op, n in calls.items() if op.startswith("fastdw::")) == len(report.fused)
    assert "aten::batch_norm" not in calls
    assert calls["aten::hardswish_"] == 1  # the classifier's own


def test_training_computes_what_it_computed() -> None:
    """Gradients and running statistics are those of the original, bit for bit."""
    for name in ("torchvision:mobilenet_v2", "timm:drop_path", "timm:lcnet_050"):
        original = build(name)
        model = copy.deepcopy(original)
        fastdw.convert(model)
        results = []
        for net in (original, model):
            net.train()
            torch.manual_seed(1)  # dropout and drop path
            net(photo(4, 32, 32)).square().mean().backward()
            results.append(
                {
                    **{key: p.grad for key, p in net.named_parameters()},
                    **{key: value.clone() for key, value in net.named_buffers()},
                }
            )
            net.eval()
        assert results[0].keys() == results[1].keys()
        assert all(torch.equal(results[0][key], results[1][key]) for key in results[0]), name
        assert_same_answer(model, original, photo(1, 32, 32))  # eval sees the new statistics


def test_gradients_in_eval_mode() -> None:
    """Fine-tuning with frozen statistics runs fused and gives the gradients of the original."""
    original = build("torchvision:mobilenet_v2")
    model = copy.deepcopy(original)
    fastdw.convert(model)
    gradients = []
    for net in (original.double(), model.double()):
        x = photo(2, 32, 32).double().requires_grad_()
        net(x).square().mean().backward()
        gradients.append([x.grad, *(p.grad for p in net.parameters())])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-12)


def test_weights_after_an_optimizer_step_are_seen() -> None:
    original = build("torchvision:mobilenet_v2")
    fastdw.convert(model := copy.deepcopy(original))
    x = photo(2, 32, 32)
    before = outputs(model, x)
    for net in (original, model):
        torch.manual_seed(2)
        optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-2, fused=True)
        net(x).square().mean().backward()
        optimizer.step()
        net.eval()
    assert not torch.equal(outputs(model, x)[0], before[0])
    assert_same_answer(model, original, x)


def test_geometry_is_read_at_call_time() -> None:
    """segmentation_models_pytorch changes stride and dilation of a network that exists already."""
    original = build("torchvision:mobilenet_v2")
    fastdw.convert(model := copy.deepcopy(original))
    outputs(model, photo(1, 64, 64))
    for net in (original, model):
        for conv in net.features[14:].modules():
            if isinstance(conv, nn.Conv2d) and conv.groups > 1:
                conv.stride, conv.dilation, conv.padding = (1, 1), (2, 2), (2, 2)
    assert_same_answer(model, original, photo(1, 64, 64))
    assert fused_ops(lambda: outputs(model, photo(1, 64, 64)))["inverted_residual_packed"] == 17


def test_hooks_on_a_block_still_run() -> None:
    model = build("torchvision:mobilenet_v2")
    seen: list[torch.Size] = []
    model.features[3].register_forward_hook(lambda module, args, y: seen.append(y.shape))
    report = fastdw.convert(model)
    outputs(model, photo(1, 32, 32))
    assert seen == [torch.Size([1, 24, 8, 8])]
    assert report.totals["blocks_fused"] == 17


def test_backend_of_the_converted_modules() -> None:
    model = build("torchvision:mobilenet_v2")
    fastdw.convert(model, backend="torch")
    assert not fused_ops(lambda: outputs(model, photo(1, 32, 32)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
def test_compiles_exports_and_traces() -> None:
    model = build("timm:lcnet_050")  # blocks, and siblings around squeeze-excites
    fastdw.convert(model)
    x = photo(2, 32, 32)
    expected = outputs(model, x)[0]
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        for fast in (
            torch.compile(model, fullgraph=True, backend="aot_eager"),
            exported,
            torch.jit.trace(model, x),
            torch.fx.symbolic_trace(model),
        ):
            torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
