"""Fixtures of all tests: instruction sets, threads, outputs that start as NaN, the command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings

from fastdw import native

settings.register_profile("fastdw", deadline=None, derandomize=True, database=None)
settings.load_profile("fastdw")


@pytest.fixture(params=native.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on every instruction set that this machine has."""
    with native.force_isa(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """What sets the number of threads; the former number comes back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def nan_filled() -> Iterator[None]:
    """Let ``empty`` return NaN, so that an output element nobody writes is seen."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `fastdw` in this process: (exit code, stdout, stderr)."""
    from fastdw.cli import main

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastdw", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        code = exit_.value.code
        out, err = capsys.readouterr()
        return int(code or 0), out, err

    return command
