"""What a provider is: how it is built, why it cannot be, what it computes in."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

Call = Callable[[], Tensor]

# glibc gives large blocks back to the system and pays page faults for them again at every call;
# with these two it keeps them, which is the honest baseline for torch at batch 8 and more.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}


@dataclass(frozen=True)
class Contender:
    """A provider, built: ready to be timed.

    Attributes:
        call: runs the network once on the input that it was built with.
        precision: what it computes in, read back from the runtime where that can be asked.
        bind: takes another input of the same shape and prepares it; what it gives back makes it
            the input of the next calls, which is timed where images follow each other.
    """

    call: Call
    precision: str = "fp32"
    bind: Callable[[Tensor], Callable[[], None]] | None = None


def always() -> str | None:
    return None


@dataclass(frozen=True)
class Provider:
    """One contender's recipe.

    Attributes:
        name: as in the CSV.
        label: as in tables.
        build: takes the model in eval mode, the input (NCHW) and the number of threads. All that is
            done once, converting and binding the input included, is done here.
        unavailable: why it cannot run here, or None.
        precision: what it is to compute in.
        environment: variables its process starts with.
        by_image: whether it runs the images of a batch one after another.
    """

    name: str
    label: str
    build: Callable[[nn.Module, Tensor, int], Contender]
    unavailable: Callable[[], str | None] = always
    precision: str = "fp32"
    environment: dict[str, str] = field(default_factory=dict)
    by_image: bool = False

    @property
    def allocator(self) -> str:
        return "kept" if self.environment else "default"


def image_by_image(provider: Provider) -> Provider:
    """The provider with a batch as so many calls of batch 1.

    A batch of activations falls out of the caches that those of one image fit in, so that this is
    often the faster way.
    """

    def build(model: nn.Module, x: Tensor, threads: int) -> Contender:
        single = provider.build(model, x[:1], threads)
        assert single.bind is not None
        binds = [single.bind(image) for image in x.split(1)]

        def call_each() -> Iterator[Tensor]:
            for bind in binds:
                bind()
                yield single.call().clone()

        return replace(single, call=lambda: torch.cat(list(call_each())), bind=None)

    name, label = f"{provider.name}-by-image", f"{provider.label}, image by image"
    return replace(provider, name=name, label=label, build=build, by_image=True)


def missing_packages(*modules: str) -> str | None:
    """Why the modules of a peer cannot be imported, or None."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install 'fastdw[bench]'"
    return None
