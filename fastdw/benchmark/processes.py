"""Each provider in a process of its own, which blocks on a pipe while another one runs."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdw.benchmark.environment import use_cores
from fastdw.benchmark.providers import PROVIDERS, Provider
from fastdw.benchmark.timing import calls_per_slot, time_slot


class ProviderFailed(Exception):
    """The provider's process raised, or died."""


@dataclass(frozen=True)
class Work:
    """What a process is to build: all it needs, by name or by file."""

    model: str
    state_file: str
    input_file: str
    threads: int
    slot_seconds: float


def load_model(work: Work) -> nn.Module:
    import fastdw.models

    model = fastdw.models.create(work.model).eval()
    model.load_state_dict(torch.load(work.state_file, weights_only=True))
    return model


def serve(connection: Connection, provider_name: str, work: Work) -> None:
    """A provider's process: sends its output, then answers each "slot" until the pipe closes."""
    try:
        use_cores(work.threads)
        x = torch.load(work.input_file, weights_only=True)
        with torch.no_grad():
            built = PROVIDERS[provider_name].build(load_model(work), x, work.threads)
            connection.send(("output", (built.call().contiguous().numpy(), built.precision)))
            calls = calls_per_slot(built.call, work.slot_seconds)
            _answer_slots(connection, built.call, calls)
    except EOFError:
        pass  # the parent is done
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}".strip().splitlines()[0]))


def _answer_slots(connection: Connection, call: Any, calls: int) -> None:
    connection.send(("ready", calls))
    while True:
        wall, cpu = time.perf_counter(), time.process_time()
        connection.recv()
        idle_s, busy_s = time.perf_counter() - wall, time.process_time() - cpu
        connection.send(("slot", (time_slot(call, calls), busy_s, idle_s)))


class ProviderProcess:
    """The parent's end of one provider's process.

    Attributes:
        provider: whose it is; from `output` on with the precision that it says it really uses.
    """

    def __init__(self, provider: Provider, work: Work) -> None:
        self.provider = provider
        # Processor seconds that the process used while it should have been idle, of how many.
        self.idle_cpu_s, self.idle_wall_s = 0.0, 0.0
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, provider.name, work), daemon=True
        )
        with _environment(provider.environment):
            self._process.start()
        theirs.close()

    def output(self) -> np.ndarray:
        """The network's output; waits until the provider is built."""
        output, precision = self._receive("output")
        self.provider = replace(self.provider, precision=precision)
        return output

    def wait_until_ready(self) -> None:
        self._receive("ready")

    def slot(self) -> float:
        """Milliseconds a call in one slot."""
        self._connection.send("slot")
        time_ms, cpu_s, wall_s = self._receive("slot")
        self.idle_cpu_s += cpu_s
        self.idle_wall_s += wall_s
        return time_ms

    def idle_cpu_share(self) -> float | None:
        """Of a core, while others ran; None where nothing else ran for long enough to tell."""
        return self.idle_cpu_s / self.idle_wall_s if self.idle_wall_s > 0.01 else None

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, kind: str) -> Any:
        try:
            received, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(timeout=10)
            raise ProviderFailed(f"its process died, exit code {self._process.exitcode}") from None
        if received != kind:
            raise ProviderFailed(str(value))
        return value


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables stand in os.environ for as long as a process is being started."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
