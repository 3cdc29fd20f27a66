"""What fastdw's CUDA planners choose against what they could have chosen: the environment asks for
the other kernels, one variable at a time (csrc/cuda/device.h)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from fastdw.benchmark.gpu import networks, ops
from fastdw.benchmark.gpu.bench import Bench, Item
from fastdw.benchmark.gpu.contenders import Contender
from fastdw.benchmark.gpu.launches import Run
from fastdw.benchmark.network_cases import network_cases

TABLE = "choices"
WISHES = {
    "blocks=fused": ("FASTDW_CUDA_BLOCKS", "fused"),
    "blocks=separate": ("FASTDW_CUDA_BLOCKS", "separate"),
    "blocks=fewest_bytes": ("FASTDW_CUDA_BLOCKS", "fewest_bytes"),
    "launches=late": ("FASTDW_CUDA_LAUNCHES", "late"),
    "depthwise=walk": ("FASTDW_CUDA_DEPTHWISE", "walk"),
    "stem=fma": ("FASTDW_CUDA_STEM", "fma"),
}
OF_BLOCK = tuple(wish for wish in WISHES if wish.startswith("blocks="))
OF_OP = {
    "depthwise_conv": ("depthwise=walk",),
    "stem_conv": ("stem=fma",),
    "inverted_residual": OF_BLOCK,
    "separable_block": OF_BLOCK,
}


def items(bench: Bench) -> Iterator[Item]:
    """The whole network at every batch first, then single shapes."""
    sizes = bench.sizes
    network, precision = sizes.networks[0], sizes.precisions[0]
    builders: dict[str, Callable[[networks.Trial], Run]] = {"fastdw-planned": networks.planned}
    for wish in WISHES:
        builders[f"fastdw-planned {wish}"] = partial(planned_under, wish)
    for batch in sizes.choice_batches:
        race = partial(networks.race, bench, network, precision, batch, builders, TABLE)
        yield Item(f"{network.label} {precision} batch {batch}", race)
    for batch in sizes.op_batches:
        for op, wishes in OF_OP.items():
            cases = network_cases(op, ops.DISTINCT)
            for case in cases if sizes.cases is None else cases[-sizes.cases :]:
                for asked in precisions_of(op, sizes.precisions):
                    key = f"{op} {case.label} {asked} batch {batch}"
                    change = partial(with_wishes, wishes)
                    yield Item(key, partial(ops.race, bench, case, asked, batch, TABLE, change))


def precisions_of(op: str, precisions: tuple[str, ...]) -> tuple[str, ...]:
    """The first; and tf32 where that has a kernel of its own that no network was timed with."""
    more = ("tf32",) if op == "stem_conv" and "tf32" in precisions[1:] else ()
    return (precisions[0], *more)


def with_wishes(wishes: tuple[str, ...], contenders: list[Contender]) -> list[Contender]:
    """The library's own kernels as chosen, and as every wish wants them."""
    chosen = next(one for one in contenders if one.name == "fastdw-cpp")

    def build(wish: str) -> Run:
        return under(wish, chosen.build())

    others = (Contender(f"{chosen.name} {w}", partial(build, w), is_fused=True) for w in wishes)
    return [chosen, *others]


def planned_under(wish: str, trial: networks.Trial) -> Run:
    with wishing(wish):
        return under(wish, networks.planned(trial))


def under(wish: str, run: Run) -> Run:
    """The same function, called with the wish in the environment."""

    def call(x: Tensor) -> object:
        with wishing(wish):
            return run(x)

    return call


@contextmanager
def wishing(wish: str) -> Iterator[None]:
    """Set a wish's variable; its former value comes back."""
    name, value = WISHES[wish]
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
