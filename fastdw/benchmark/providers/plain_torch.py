"""The torch providers: the network as plain torch modules, in four ways to run them."""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastdw.benchmark.providers.provider import KEEP_MEMORY, Contender, Provider
from fastdw.nn.fused_module import FusedModule


def plain(model: nn.Module) -> nn.Module:
    """A copy of the model that runs no op of fastdw: each fused module runs its torch children."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, FusedModule):
            module.forward = module._unfused_forward  # type: ignore[method-assign]
    return model


def precision() -> str:
    """What torch and oneDNN may use for fp32 convolutions and products: "fp32" unless told so."""
    mkldnn: Any = torch.backends.mkldnn
    lower = {
        "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "mkldnn.conv.fp32_precision": mkldnn.conv.fp32_precision,
        "mkldnn.matmul.fp32_precision": mkldnn.matmul.fp32_precision,
        "ONEDNN_DEFAULT_FPMATH_MODE": os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT"),
    }
    exact = ("highest", "none", "ieee", "STRICT")
    found = [f"{name}={value}" for name, value in lower.items() if value not in exact]
    return " ".join(["fp32 or lower:", *found]) if found else "fp32"


def eager(model: nn.Module, x: Tensor, threads: int) -> Contender:
    model = plain(model)
    return Contender(lambda: model(x), precision())


def eager_channels_last(model: nn.Module, x: Tensor, threads: int) -> Contender:
    model, x = _channels_last(model, x)
    return Contender(lambda: model(x), precision())


def jit_frozen(model: nn.Module, x: Tensor, threads: int) -> Contender:
    model, x = _channels_last(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still a fast baseline
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes become constants: wanted
        frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, x)))
    return Contender(lambda: frozen(x), precision())


def compile_frozen(model: nn.Module, x: Tensor, threads: int) -> Contender:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    model, x = _channels_last(model, x)
    compiled = torch.compile(model)
    return Contender(lambda: compiled(x), precision())


def compile_unavailable() -> str | None:
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        return None
    return "torch.compile needs a C++ compiler: sudo apt-get install g++"


def _channels_last(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    layout = torch.channels_last
    return plain(model).to(memory_format=layout), x.contiguous(memory_format=layout)


def _with_kept_memory(provider: Provider) -> Provider:
    return replace(
        provider,
        name=f"{provider.name}-kept",
        label=f"{provider.label}, memory kept",
        environment=KEEP_MEMORY,
    )


TORCH = (
    Provider("torch-eager", "torch eager, NCHW", eager),
    Provider("torch-eager-channels-last", "torch eager, channels_last", eager_channels_last),
    Provider("torch-jit-frozen", "torch.jit, frozen", jit_frozen),
    Provider(
        "torch-compile-frozen", "torch.compile, freezing", compile_frozen, compile_unavailable
    ),
)
TORCH_KEPT = tuple(_with_kept_memory(provider) for provider in TORCH)
