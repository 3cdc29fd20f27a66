"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fastdw.benchmark.model_files import onnx_file
from fastdw.benchmark.providers.plain_torch import plain
from fastdw.benchmark.providers.provider import (
    Contender,
    Provider,
    image_by_image,
    missing_packages,
)


def build(model: nn.Module, x: Tensor, threads: int) -> Contender:
    """A session with all graph optimizations; input and output bound to torch's memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its threads wait spinning for the next layer, which is fastest, and sleep between calls:
    # otherwise they go on for long after the last one, and disturb whoever is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        str(onnx_file(plain(model), x)), options, providers=["CPUExecutionProvider"]
    )
    (source,), (result,) = session.get_inputs(), session.get_outputs()
    y = torch.empty(result.shape)
    binding = session.io_binding()
    binding.bind_output(result.name, "cpu", 0, np.float32, list(y.shape), y.data_ptr())

    held: list[Tensor] = []  # a binding has an address only

    def bind(x: Tensor) -> Callable[[], None]:
        held.append(x.contiguous())
        place = (source.name, "cpu", 0, np.float32, list(x.shape), held[-1].data_ptr())
        return lambda: binding.bind_input(*place)

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return y

    bind(x)()
    types = {value.type for value in (source, result)}
    used = "fp32" if types == {"tensor(float)"} else ", ".join(sorted(types))
    return Contender(call, used, bind)


def unavailable() -> str | None:
    return missing_packages("onnxruntime", "onnx", "onnxscript")


ONNX_RUNTIME = Provider("onnxruntime", "ONNX Runtime", build, unavailable)
ONNX_RUNTIME_BY_IMAGE = image_by_image(ONNX_RUNTIME)
