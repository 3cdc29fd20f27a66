"""torch.compile beside fastdw, in a process of its own: compiling may take all the time it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from fastdw.benchmark.gpu import networks
from fastdw.benchmark.gpu.bench import Bench, Item
from fastdw.benchmark.gpu.launches import Run

# The graphs are captured by the benchmark, as for everybody else.
MODES = {"torch-compile": "default", "torch-compile-max-autotune": "max-autotune-no-cudagraphs"}


def items(bench: Bench) -> Iterator[Item]:
    """The largest batch first; the quick mode first, so that one of them has a time."""
    sizes, quick = bench.sizes, bench.settings.quick
    precision = sizes.precisions[0]
    for network in sizes.networks:
        for batch in sizes.compiled_batches:
            for name in list(MODES)[: 1 if quick else None]:
                build_compiled = partial(build, quick, MODES[name])
                builders: dict[str, Callable[[networks.Trial], Run]] = {
                    "fastdw-planned": networks.planned,
                    name: build_compiled,
                }
                key = f"{network.label} {precision} batch {batch} {name}"
                race = partial(networks.race, bench, network, precision, batch, builders)
                yield Item(key, race, limit_s=600.0)


def build(quick: bool, mode: str, trial: networks.Trial) -> Run:
    """Compile with the weights frozen, so that batch norm is folded into the convolutions."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    settings: dict[str, Any] = {"backend": "aot_eager"} if quick else {"mode": mode}
    return torch.compile(networks.eager(trial.model), dynamic=False, **settings)
