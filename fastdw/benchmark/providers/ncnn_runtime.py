"""ncnn on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdw.benchmark.model_files import ncnn_files, ncnn_writer_missing
from fastdw.benchmark.providers.plain_torch import plain
from fastdw.benchmark.providers.provider import Contender, Provider, missing_packages

# Its options to compute or store in less than fp32; fp16 storage is on by default.
LOWER = ("fp16", "bf16", "int8")


def build(model: nn.Module, x: Tensor, threads: int) -> Contender:
    """One image after another with all threads: faster than its own batch (measured at 8)."""
    import ncnn

    parameters, weights = ncnn_files(plain(model), x[:1])
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for name in lower_options(net.opt):
        setattr(net.opt, name, False)
    if net.load_param(str(parameters)) or net.load_model(str(weights)):
        raise RuntimeError(f"ncnn cannot load {parameters.name}")
    (source,), (result,) = net.input_names(), net.output_names()
    # A Mat of an array neither copies nor holds it: the clone, made while x lives, owns its memory.
    x = x.contiguous()
    images = [ncnn.Mat(image.numpy()).clone() for image in x]

    def run(image: Any) -> Any:
        extractor = net.create_extractor()
        extractor.input(source, image)
        status, output = extractor.extract(result)
        if status:
            raise RuntimeError(f"ncnn: extract gave {status}")
        return np.array(output)

    left = [name for name in lower_options(net.opt) if getattr(net.opt, name)]
    return Contender(
        lambda: torch.from_numpy(np.stack([run(image) for image in images])),
        "fp32" if not left else "fp32 or lower: " + ", ".join(left),
    )


def lower_options(options: Any) -> list[str]:
    """The names of all options that allow less than fp32."""
    return [name for name in dir(options) if any(word in name for word in LOWER)]


def unavailable() -> str | None:
    return missing_packages("ncnn") or ncnn_writer_missing()


NCNN = Provider("ncnn", "ncnn", build, unavailable)
