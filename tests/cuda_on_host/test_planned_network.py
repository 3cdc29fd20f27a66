"""The planned network on CUDA: csrc/cuda and all its kernels, run on the host."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from network_builder import NetworkBuilder, random_step, small_mobilenet
from torch import Tensor

from cuda_on_host import host_library
from fastdw.plan.packed_layout import DTYPES, to_cuda_layout

TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}


class Network:
    """A network of the builder, its weights laid out for CUDA."""

    def __init__(self, net: NetworkBuilder, dtype: torch.dtype = torch.float32) -> None:
        self.net, self.dtype = net, dtype
        self.weights = to_cuda_layout(net.packed(), net.program(), dtype)
        self.op = host_library.op("planned_network").default

    def __call__(self, x: Tensor) -> list[Tensor]:
        return self.op(x, *self.weights)

    def assert_right(self, x: Tensor) -> list[Tensor]:
        outputs, truths = self(x), self.net.expected(x)
        assert len(outputs) == len(truths)
        for output, truth in zip(outputs, truths, strict=True):
            assert output.dtype == x.dtype
            tolerance = TOLERANCE[self.dtype]
            torch.testing.assert_close(output.double(), truth, rtol=tolerance, atol=tolerance)
        return outputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 33, 40), (3, 3, 32, 24)], ids=str)
def test_values(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    outputs = Network(small_mobilenet(), dtype).assert_right(torch.randn(shape).to(dtype))
    assert outputs[1].is_contiguous(memory_format=torch.channels_last)
    assert [output.dim() for output in outputs] == [2, 4, 2]


def test_images_in_another_dtype_than_the_weights() -> None:
    Network(small_mobilenet(), torch.float16).assert_right(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "unaligned"])
def test_layouts_of_x(layout: str) -> None:
    x = {
        "channels_last": torch.randn(2, 3, 32, 24).to(memory_format=torch.channels_last),
        "sliced": torch.randn(2, 5, 40, 24)[:, 1:4, 4:36],
        "unaligned": torch.randn(2 * 3 * 32 * 24 + 1)[1:].view(2, 3, 32, 24),
    }[layout]
    Network(small_mobilenet()).assert_right(x)


def test_x_read_by_other_steps_than_stems() -> None:
    net = NetworkBuilder(channels=7)
    wide = net.stem("x", 7, stride=(1, 1))
    net.outputs = [net.pointwise(wide, 7, residual="x"), net.depthwise("x", multiplier=3)]
    for x in (torch.randn(2, 7, 9, 8), torch.randn(2, 9, 8, 7).permute(0, 3, 1, 2)):
        Network(net).assert_right(x)


@pytest.mark.parametrize("kept", ["nothing", "map", "pooled"])
def test_a_pool_between_a_convolution_and_a_linear_layer(kept: str) -> None:
    """It joins one of them only where nothing else reads what lies between."""
    net = NetworkBuilder()
    wide = net.pointwise(net.stem("x", 16), 40)
    pooled = net.pool(wide)
    net.outputs = [net.head(pooled, 9)]
    net.outputs += {"nothing": [], "map": [wide], "pooled": [pooled]}[kept]
    Network(net).assert_right(torch.randn(3, 3, 14, 14))


def test_head_of_a_map_that_no_convolution_gave() -> None:
    net = NetworkBuilder()
    net.outputs = [net.head(net.head(net.depthwise(net.stem("x", 20)), 33), 5)]
    Network(net).assert_right(torch.randn(3, 3, 12, 12))


@pytest.mark.parametrize("seed", range(4))
def test_random_chains(seed: int) -> None:
    """Long chains whose arenas reuse memory, with residuals that keep old values alive."""
    net, choice = NetworkBuilder(seed=seed), random.Random(seed)
    values = [net.stem("x", 12)]
    for _ in range(12):
        values.append(random_step(net, values, choice))
    net.outputs = [values[-1], values[6]]
    Network(net).assert_right(torch.randn(2, 3, 15, 14))


def test_a_graph_follows_what_moves() -> None:
    """Results are kept, so that outputs and arena lie elsewhere at every call."""
    network = Network(small_mobilenet())
    inputs = [torch.randn(2, 3, 32, 32) for _ in range(6)]
    kept = []
    for x in inputs:
        before = host_library.graphs_built()
        kept.append(network.assert_right(x))
        hole = torch.empty(1 << 16)  # noqa: F841  takes the place of the arena
    assert host_library.graphs_built() == before, "a graph is built once, then only changed"
    for x, outputs in zip(inputs, kept, strict=True):
        assert all(map(torch.equal, network(x), outputs))


def test_the_environment_changes_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wish has a graph of its own; nodes wait for one another where that is asked for."""
    network = Network(small_mobilenet())
    x = torch.randn(1, 3, 48, 40)  # of no other test: nothing is built yet
    early = host_library.early_launches()
    first = network.assert_right(x)
    built = host_library.graphs_built()
    assert host_library.early_launches() > early
    early = host_library.early_launches()
    for variable, value in (("LAUNCHES", "late"), ("DEPTHWISE", "walk"), ("STEM", "fma")):
        monkeypatch.setenv(f"FASTDW_CUDA_{variable}", value)
        network.assert_right(x)
        assert host_library.graphs_built() == built + 1
        built = host_library.graphs_built()
    assert host_library.early_launches() == early
    monkeypatch.undo()
    assert all(map(torch.equal, network(x), first))
    assert host_library.graphs_built() == built


def test_tf32_reaches_every_step_that_has_it() -> None:
    """The stem too: without the switch nothing is read by ldmatrix."""
    network, x = Network(small_mobilenet()), torch.randn(1, 3, 40, 48)
    for allowed in (False, True):
        with host_library.tf32() if allowed else nullcontext():
            network(x)
            with host_library.counted() as launches:
                network(x)
        stem = launches[0]
        assert any(site["access"] == "matrix" for site in stem["shared"]) == allowed


def test_weights_may_change_in_place() -> None:
    first, second = (Network(small_mobilenet(seed)) for seed in (1, 2))
    x = torch.randn(1, 3, 32, 32)
    first.assert_right(x)
    first.weights[0].copy_(second.weights[0])
    assert all(map(torch.equal, first(x), second(x)))


def test_while_the_stream_is_being_captured() -> None:
    network = Network(small_mobilenet())
    x = torch.randn(2, 3, 32, 32)
    with host_library.capturing():
        launches = host_library.graph_launches()
        captured = network.assert_right(x)
        assert host_library.graph_launches() == launches
    assert all(map(torch.equal, captured, network(x)))
    assert host_library.graph_launches() == launches + 1


def test_more_networks_than_the_cache_holds() -> None:
    net = NetworkBuilder()
    net.outputs = [net.stem("x", 4)]
    network = Network(net)
    for _ in range(2):
        for size in range(3, 40):
            assert network(torch.ones(1, 3, size, size))[0].shape[2] == (size + 1) // 2
    network.assert_right(torch.randn(1, 3, 30, 30))


def test_many_python_threads() -> None:
    networks = [Network(small_mobilenet(seed)) for seed in (1, 2)]
    calls = [(n, torch.randn(batch, 3, 16, 24)) for batch in (1, 2) for n in networks]
    wanted = [network(x) for network, x in calls]

    def call(index: int) -> bool:
        network, x = calls[index % 4]
        return all(map(torch.equal, network(x), wanted[index % 4]))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(24)))


def test_empty_batch() -> None:
    outputs = Network(small_mobilenet())(torch.randn(0, 3, 32, 32))
    assert [tuple(y.shape) for y in outputs] == [(0, 11), (0, 24, 16, 16), (0, 64)]


def test_refusals() -> None:
    net = small_mobilenet()
    packed, program = to_cuda_layout(net.packed(), net.program(), torch.float32)
    op, x = host_library.op("planned_network"), torch.ones(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match="the weights lie as cpu reads them"):
        op(x, net.packed(), net.program())
    with pytest.raises(RuntimeError, match=r"classifier_head: packed: expected \d+ bytes, got"):
        op(x, packed[:-64], program)
    with pytest.raises(RuntimeError, match="x: expected 3 channels"):
        op(torch.ones(1, 4, 32, 32), packed, program)
    with pytest.raises(RuntimeError, match="packed: expected one contiguous row of bytes"):
        op(x, packed.float(), program)


@pytest.mark.parametrize(
    ("plain", "more"),
    [("residual=- ", "residual=- gate=1 "), ("channels_out=9 ", "channels_out=9 activation=relu ")],
)
def test_squeeze_excite_is_refused(plain: str, more: str) -> None:
    net = NetworkBuilder()
    wide = net.stem("x", 16)
    pooled = net.pool(wide)
    net.outputs = [net.pointwise(wide, 40), net.head(pooled, 9)]
    network = Network(net)
    network.assert_right(x := torch.randn(2, 3, 14, 14))
    packed, program = network.weights
    assert plain in program
    with pytest.raises(RuntimeError, match="only the CPU runs this step"):
        network.op(x, packed, program.replace(plain, more))
