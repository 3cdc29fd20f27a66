"""How a run is asked for, and what follows from it: networks, batches, dtypes, lengths of slots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastdw.convert.planning import RELATIVE_TOLERANCE

# tf32: fp32 tensors whose products torch may round to 10 bits on tensor cores.
DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "fp32": torch.float32,
}
TF32_EPS = 2.0**-10


@dataclass(frozen=True)
class Settings:
    """One run, as the command line asked for it; every child process gets a copy.

    Attributes:
        device: "cuda" or "cpu".
        quick: tiny shapes and few rounds: the code is exercised, the times mean nothing.
        run: names the files of this run.
        folder: where they lie.
    """

    device: str
    quick: bool
    run: str
    folder: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Settings:
        return Settings(**json.loads(text))

    def path(self, suffix: str) -> Path:
        """A file of this run alone: gpu_RUN.log, gpu_RUN.json, gpu_RUN_summary.txt."""
        return Path(self.folder) / f"gpu_{self.run}{suffix}"


@dataclass(frozen=True)
class Network:
    """A network of `fastdw.models` and the size of its images."""

    model: str
    resolution: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        width = self.options.get("width", 1.0)
        return f"{self.model.partition(':')[2]} {width:g}-{self.resolution}"


V2 = Network("fastdw:mobilenet_v2", 224)
V1 = Network("fastdw:mobilenet_v1", 224)
V2_SMALL = Network("fastdw:mobilenet_v2", 96, {"width": 0.35})
TINY = Network(
    "fastdw:mobilenet_v2", 32, {"width": 0.35, "settings": ((1, 16, 1, 1), (6, 24, 2, 2))}
)


@dataclass(frozen=True)
class Sizes:
    """What is measured, most valuable first.

    Attributes:
        distinct: images that a batch is put together of; the truth is computed for these.
        choice_batches: of the network whose planner's choices are compared with others.
        op_batches: images a call of one op.
        cases: how many shapes of each op at most.
        rounds, slot_seconds: see `fastdw.benchmark.timing`.
    """

    networks: tuple[Network, ...] = (V2, V1, V2_SMALL)
    batches: tuple[int, ...] = (1, 32, 256)
    precisions: tuple[str, ...] = ("fp16", "bf16", "tf32", "fp32")
    compiled_batches: tuple[int, ...] = (256, 1)
    choice_batches: tuple[int, ...] = (1, 32, 4)
    op_batches: tuple[int, ...] = (32, 1)
    training_batch: int = 64
    training_precisions: tuple[str, ...] = ("bf16", "tf32")
    distinct: int = 8
    cases: int | None = None
    rounds: int = 8
    slot_seconds: float = 0.02


def sizes(settings: Settings) -> Sizes:
    if settings.quick:
        return Sizes(
            networks=(TINY,),
            batches=(1, 3),
            precisions=("fp32",),
            compiled_batches=(3,),
            choice_batches=(3,),
            op_batches=(3,),
            training_batch=2,
            training_precisions=("fp32",),
            distinct=2,
            cases=1,
            rounds=2,
            slot_seconds=0.001,
        )
    if settings.device == "cpu":  # the planned networks of the CPU are fp32
        return Sizes(precisions=("fp32",), training_precisions=("fp32",))
    return Sizes()


def network_tolerance(precision: str) -> float:
    """Largest difference from float64 over the largest output, as `fastdw.optimize` allows it."""
    return RELATIVE_TOLERANCE[torch.float16 if precision == "tf32" else DTYPES[precision]]


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """torch's two switches for tf32, set for the precision; the former values come back."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
