"""CUDA graphs in the stub of the runtime: dependencies, changed parameters, errors."""

from __future__ import annotations

import ctypes

import pytest

from cuda_on_host import build, host_library

ADDED_FIRST, MULTIPLIED_FIRST = [2.0, 20.0], [1.0, 10.0]
INVALID_VALUE, CAPTURE_UNSUPPORTED = 1, 900


def load() -> ctypes.CDLL:
    return host_library.with_types(ctypes.CDLL(str(build.planted_bugs_library())))


def run(ordered: bool, order: str) -> tuple[int, list[float]]:
    library, values = load(), (ctypes.c_float * 2)()
    library.fastdw_host_set_order(host_library.ORDERS.index(order), 1)
    error = library.fastdw_graph_run(int(ordered), values)
    library.fastdw_host_set_order(0, 0)
    return error, list(values)


@pytest.mark.parametrize("order", host_library.ORDERS)
def test_dependencies_are_kept_and_parameters_changed(order: str) -> None:
    library = load()
    built, launched = library.fastdw_host_graphs_built(), library.fastdw_host_graph_launches()
    assert run(True, order) == (0, ADDED_FIRST)
    assert library.fastdw_host_graphs_built() == built + 1
    assert library.fastdw_host_graph_launches() == launched + 2


def test_a_missing_dependency_is_seen() -> None:
    assert run(False, "forward") == (0, ADDED_FIRST)
    assert run(False, "reverse") == (0, MULTIPLIED_FIRST)


def test_nodes_and_kernels_must_be_known() -> None:
    assert load().fastdw_graph_mistake(0) == INVALID_VALUE
    assert load().fastdw_graph_mistake(1) == INVALID_VALUE


def test_no_graph_is_launched_while_the_stream_is_captured() -> None:
    load().fastdw_host_set_capturing(1)
    try:
        assert run(True, "forward")[0] == CAPTURE_UNSUPPORTED
    finally:
        load().fastdw_host_set_capturing(0)
