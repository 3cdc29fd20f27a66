"""What fastdw is timed against. Each provider makes one call that runs the network once."""

from fastdw.benchmark.providers.fastdw_planned import FASTDW
from fastdw.benchmark.providers.litert import LITERT, LITERT_BY_IMAGE
from fastdw.benchmark.providers.ncnn_runtime import NCNN
from fastdw.benchmark.providers.onnx_runtime import ONNX_RUNTIME, ONNX_RUNTIME_BY_IMAGE
from fastdw.benchmark.providers.openvino_runtime import OPENVINO, OPENVINO_BY_IMAGE
from fastdw.benchmark.providers.plain_torch import TORCH, TORCH_KEPT
from fastdw.benchmark.providers.provider import KEEP_MEMORY, Call, Contender, Provider

__all__ = ["KEEP_MEMORY", "PROVIDERS", "Call", "Contender", "Provider", "default_providers"]

_RUNTIMES = (LITERT, OPENVINO, ONNX_RUNTIME, NCNN)
_BY_IMAGE = (LITERT_BY_IMAGE, OPENVINO_BY_IMAGE, ONNX_RUNTIME_BY_IMAGE)

# In the order of the tables.
PROVIDERS: dict[str, Provider] = {
    provider.name: provider for provider in (FASTDW, *_RUNTIMES, *_BY_IMAGE, *TORCH, *TORCH_KEPT)
}


def default_providers(batch: int) -> list[Provider]:
    """All that make sense at this batch.

    From batch 2 on the runtimes image by image as well, and from batch 8 on torch with glibc's
    memory kept as well.
    """
    return [
        provider
        for provider in PROVIDERS.values()
        if (batch >= 2 or not provider.by_image) and (batch >= 8 or provider.allocator == "default")
    ]
