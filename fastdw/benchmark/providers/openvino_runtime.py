"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

# What else stands in a compiled graph: the shapes of reshapes, and what has no precision.
NOT_ARITHMETIC = {"i32", "i64", "dynamic"}


def build(model: nn.Module, x: Tensor, threads: int) -> Contender:
    """One stream with all threads, tuned for latency; fp32 forced and read back."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(str(onnx_file(plain(model), x))),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()
    held: list[Any] = []  # a shared tensor has an address only

    def bind(x: Tensor) -> Callable[[], None]:
        held.append(x.contiguous().numpy())
        tensor = openvino.Tensor(held[-1], shared_memory=True)
        return lambda: request.set_input_tensor(tensor)

    def call() -> Tensor:
        request.start_async()  # infer() would make a dictionary of copied outputs
        request.wait()
        return y

    bind(x)()
    request.infer()
    y = torch.from_numpy(request.get_output_tensor().data)  # its memory, the same at every call
    return Contender(call, precision(compiled), bind)


def precision(compiled: Any) -> str:
    """What the layers of a compiled model compute in: "fp32", or all that they use."""
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    layers = compiled.get_runtime_model().get_ordered_ops()
    used = {str(layer.get_rt_info()["runtimePrecision"].value) for layer in layers}
    if hint == "f32" and used - NOT_ARITHMETIC == {"f32"}:
        return "fp32"
    return f"hint {hint}: " + ", ".join(sorted(used - NOT_ARITHMETIC))


def unavailable() -> str | None:
    return missing_packages("openvino", "onnx", "onnxscript")


OPENVINO = Provider("openvino", "OpenVINO", build, unavailable)
OPENVINO_BY_IMAGE = image_by_image(OPENVINO)
