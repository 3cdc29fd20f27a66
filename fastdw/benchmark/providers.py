"""What fastdw is timed against. Each provider makes one call that runs the network once."""

from __future__ import annotations

import math
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], Tensor]

# glibc gives large blocks back to the system and pays page faults for them again at every call;
# with these two it keeps them, which is the honest baseline for torch at batch 8 and more.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}


def always() -> str | None:
    return None


@dataclass(frozen=True)
class Provider:
    """One contender.

    Attributes:
        name: as in the CSV.
        label: as in tables.
        build: takes the model in eval mode and the input (NCHW), and gives the call to time.
        unavailable: why it cannot run here, or None.
        precision: what it computes in.
        environment: variables its process starts with.
    """

    name: str
    label: str
    build: Callable[[nn.Module, Tensor], Call]
    unavailable: Callable[[], str | None] = always
    precision: str = "fp32"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def allocator(self) -> str:
        return "kept" if self.environment else "default"


def fastdw_planned(model: nn.Module, x: Tensor) -> Call:
    import fastdw

    # The benchmark compares by itself: optimize is not to fall back to torch where it differs.
    fast = fastdw.optimize(model, x[:1], tolerance=math.inf)
    report: Any = fast.report
    if not report.planned and not report.fused:
        raise RuntimeError(f"fastdw.optimize fuses nothing: {report.plan_reason}")
    if not report.planned:
        print(f"fastdw.optimize: not planned: {report.plan_reason}", file=sys.stderr)
    return lambda: fast(x)


def torch_eager(model: nn.Module, x: Tensor) -> Call:
    return lambda: model(x)


def torch_eager_channels_last(model: nn.Module, x: Tensor) -> Call:
    model, x = _channels_last(model, x)
    return lambda: model(x)


def torch_jit_frozen(model: nn.Module, x: Tensor) -> Call:
    model, x = _channels_last(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still a fast baseline
        frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, x)))
    return lambda: frozen(x)


def torch_compile_frozen(model: nn.Module, x: Tensor) -> Call:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    model, x = _channels_last(model, x)
    compiled = torch.compile(model)
    return lambda: compiled(x)


def compile_unavailable() -> str | None:
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        return None
    return "torch.compile needs a C++ compiler: sudo apt-get install g++"


def _channels_last(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    layout = torch.channels_last
    return model.to(memory_format=layout), x.contiguous(memory_format=layout)


def _with_kept_memory(provider: Provider) -> Provider:
    return Provider(
        name=f"{provider.name}-kept",
        label=f"{provider.label}, memory kept",
        build=provider.build,
        unavailable=provider.unavailable,
        precision=provider.precision,
        environment=KEEP_MEMORY,
    )


_TORCH = (
    Provider("torch-eager", "torch eager, NCHW", torch_eager),
    Provider("torch-eager-channels-last", "torch eager, channels_last", torch_eager_channels_last),
    Provider("torch-jit-frozen", "torch.jit, frozen", torch_jit_frozen),
    Provider(
        "torch-compile-frozen",
        "torch.compile, freezing",
        torch_compile_frozen,
        compile_unavailable,
    ),
)
PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("fastdw", "fastdw.optimize", fastdw_planned),
        *_TORCH,
        *map(_with_kept_memory, _TORCH),
    )
}


def default_providers(batch: int) -> list[Provider]:
    """All of them; from batch 8 on those of torch with glibc's memory kept as well."""
    return [p for p in PROVIDERS.values() if p.allocator == "default" or batch >= 8]
