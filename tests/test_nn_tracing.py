"""The modules under torch.compile, torch.export, AOTInductor, torch.jit.trace and torch.fx."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from nn_checks import OPS, fused_ops, image, module, small_network
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fastdw.models
import fastdw.nn

FUSED = ["stem_conv", "separable_block", "inverted_residual", "depthwise_conv", "pointwise_conv"]
FUSED.append("classifier_head")


def fastdw_targets(graph: torch.fx.Graph) -> list[str]:
    names = [str(node.target) for node in graph.nodes]
    return [n.split(".")[1] for n in names if n.startswith("fastdw.")]


def graph_of(network: nn.Module, x: Tensor) -> list[str]:
    """The fastdw ops in the graph that torch.compile takes from ``network``."""
    graphs: list[torch.fx.GraphModule] = []

    def capture(graph_module: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph_module)
        return graph_module

    torch._dynamo.reset()
    torch.compile(network, fullgraph=True, backend=capture)(x)
    assert len(graphs) == 1
    return fastdw_targets(graphs[0].graph)


def test_compile_without_gradients_packs_the_live_parameters() -> None:
    network, x = small_network(), image("stem", 16)
    with torch.no_grad():
        network(x)  # a warm cache must not be burnt into the graph
        found = graph_of(network, x)
    assert found == [name for op in FUSED for name in (f"pack_{op}", f"{op}_packed")]


def test_compile_with_gradients_keeps_the_differentiable_ops() -> None:
    assert graph_of(small_network(), image("stem", 16)) == FUSED


def test_compiled_once_follows_batch_size_and_weights() -> None:
    network = small_network()
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for batch, size in ((2, 16), (3, 16)):
            x = image("stem", size, batch)
            torch.testing.assert_close(compiled(x), network(x), rtol=1e-5, atol=1e-5)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for batch, size in ((4, 20), (5, 23)):
                x = image("stem", size, batch)
                before = compiled(x)
                torch.testing.assert_close(before, network(x), rtol=1e-5, atol=1e-5)
                network[2].depthwise.conv.weight.data.mul_(3)
                after = compiled(x)
                network.eval()
                torch.testing.assert_close(after, network(x), rtol=1e-5, atol=1e-5)
                assert not torch.allclose(after, before, rtol=1e-3)


def test_compiled_training_step_is_that_of_torch() -> None:
    network, x = small_network().train(), image("stem", 16)
    network[5].dropout.p = 0.0
    twin = copy.deepcopy(network)
    torch._dynamo.reset()
    torch.compile(network, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    twin(x).square().sum().backward()
    for (name, p), q in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=name)
    for (name, p), q in zip(network.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(p, q[1], msg=name)


def test_inductor() -> None:
    block, x = module("pointwise"), image()
    torch._dynamo.reset()
    with torch.no_grad():
        expected = block(x)
        actual = torch.compile(block, fullgraph=True)(x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_export_with_dynamic_batch_and_size(grad: bool, strict: bool) -> None:
    network, x = small_network(), image("stem", 16)
    height, width = torch.export.Dim("height", min=8), torch.export.Dim("width", min=8)
    dims = {0: torch.export.Dim("batch"), 2: height, 3: width}
    with torch.set_grad_enabled(grad):
        program = torch.export.export(network, (x,), dynamic_shapes=(dims,), strict=strict)
    packed = [name for op in FUSED for name in (f"pack_{op}", f"{op}_packed")]
    assert fastdw_targets(program.graph) == (FUSED if grad else packed)
    other = image("stem", 21, 3)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.no_grad():
        actual = torch.export.load(file).module()(other)
        torch.testing.assert_close(actual, network(other), rtol=1e-5, atol=1e-5)


def test_aot_inductor(tmp_path: Path) -> None:
    block, x = module("unexpanded"), image()
    with torch.no_grad():
        expected = block(x)
        program = torch.export.export(block, (x,))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "block.pt2")
        )
        actual = torch._inductor.aoti_load_package(path)(x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_jit_trace() -> None:
    network, x = small_network(), image("stem", 16)
    with torch.no_grad():
        network(x)
        traced = torch.jit.trace(network, x)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        for y in (x, image("stem", 21, 3)):
            torch.testing.assert_close(loaded(y), network(y), rtol=1e-5, atol=1e-5)
        ops = fused_ops(lambda: loaded(x))
    assert {"pack_inverted_residual", "inverted_residual_packed"} <= ops.keys()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_fx_keeps_the_modules(training: bool) -> None:
    model = fastdw.models.mobilenet_v2(width=0.25, dropout=0.0).train(training)
    graph_module = torch.fx.symbolic_trace(model)
    called = [node.target for node in graph_module.graph.nodes if node.op == "call_module"]
    assert called == ["stem", *(f"blocks.{i}" for i in range(17)), "last", "head"]
    x = image("stem", 32)
    with torch.no_grad():
        assert torch.equal(graph_module.eval()(x), model.eval()(x))
        assert fused_ops(lambda: graph_module(x))["inverted_residual_packed"] == 17
        model.blocks[3].project.conv.weight.mul_(2)
        assert torch.equal(graph_module(x), model(x))
        twin = copy.deepcopy(model).train()
        assert torch.equal(graph_module.train()(x), twin(x))


@pytest.mark.parametrize("name", OPS)
def test_fx_of_a_module_itself_shows_its_children(name: str) -> None:
    block, x = module(name), image(name)
    graph_module = torch.fx.symbolic_trace(block)
    with torch.no_grad():
        torch.testing.assert_close(graph_module(x), block(x), rtol=1e-5, atol=1e-5)


def test_feature_extraction() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model = fastdw.models.mobilenet_v2(width=0.25).eval()
    x = image("stem", 32)
    extractor = create_feature_extractor(model, {"blocks.6": "stride8", "last": "top"}).eval()
    with torch.no_grad():
        features = extractor(x)
        stride8 = model.blocks[:7](model.stem(x))
        assert torch.equal(features["stride8"], stride8)
        assert torch.equal(features["top"], model.last(model.blocks[7:](stride8)))
        assert fused_ops(lambda: extractor(x))["inverted_residual_packed"] == 17


def test_make_fx_sees_the_op_on_plain_weights() -> None:
    block, x = module("residual"), image()
    with torch.no_grad():
        block(x)
        graph_module = make_fx(block)(x)
        assert fastdw_targets(graph_module.graph) == ["inverted_residual"]
        torch.testing.assert_close(graph_module(x), block(x))


def test_flop_counter_counts_mult_adds() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network, x = small_network(), image("stem", 16)
    expected = 2 * 2 * fastdw.models.summarize(network, 16).multiply_adds
    for grad in (False, True):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            network(x)
        assert counter.get_total_flops() == expected
