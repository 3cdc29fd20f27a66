"""Which launches a call of an op was planned as."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastdw.triton_kernels import launch
from fastdw.triton_kernels.launch import KernelLaunch


@contextmanager
def recorded() -> Iterator[list[KernelLaunch]]:
    """Collect the launches that run inside."""
    launches: list[KernelLaunch] = []
    run = launch.run

    def recording_run(planned: list[KernelLaunch]) -> None:
        launches.extend(planned)
        run(planned)

    launch.run = recording_run
    try:
        yield launches
    finally:
        launch.run = run
