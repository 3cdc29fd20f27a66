"""LiteRT (TensorFlow Lite) with its XNNPACK delegate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fastdw.benchmark.model_files import tflite_file, tflite_writer_missing
from fastdw.benchmark.providers.plain_torch import plain
from fastdw.benchmark.providers.provider import (
    Contender,
    Provider,
    image_by_image,
    missing_packages,
)


def build(model: nn.Module, x: Tensor, threads: int) -> Contender:
    """An interpreter for x's shape; the NHWC input is copied into its memory once, and stays."""
    from ai_edge_litert.interpreter import Interpreter

    path = tflite_file(plain(model), x)
    with _without_stderr():  # it greets there, from C++, in the middle of the progress bar
        interpreter = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def bind(x: Tensor) -> Callable[[], None]:
        array = x.permute(0, 2, 3, 1).contiguous().numpy()
        return lambda: interpreter.set_tensor(source["index"], array)

    def call() -> Tensor:
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(result["index"]))

    bind(x)()
    types = {np.dtype(tensor["dtype"]).name for tensor in interpreter.get_tensor_details()}
    types -= {"int32", "int64"}  # shapes and paddings
    return Contender(call, "fp32" if types == {"float32"} else ", ".join(sorted(types)), bind)


@contextmanager
def _without_stderr() -> Iterator[None]:
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def unavailable() -> str | None:
    return missing_packages("ai_edge_litert") or tflite_writer_missing()


LITERT = Provider("litert", "LiteRT (XNNPACK)", build, unavailable)
LITERT_BY_IMAGE = image_by_image(LITERT)
