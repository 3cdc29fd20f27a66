"""The calls that bench/test_bench_<op>.py times: the layers of MobileNet V1 and V2 at 224x224."""

from __future__ import annotations

from collections.abc import Iterator

from fastdw.benchmark.cases import OpCase, dense, depthwise
from fastdw.models.specs import (
    MOBILENET_V1_STEM,
    MOBILENET_V2_LAST,
    BlockSpec,
    mobilenet_v1_blocks,
    mobilenet_v2_blocks,
)

RESOLUTION, CLASSES = 224, 1000
V1, V2 = mobilenet_v1_blocks(), mobilenet_v2_blocks()


def network_cases(op: str, batch: int = 1) -> list[OpCase]:
    """The different calls of one op in the two networks, each once.

    Args:
        op: a name of `fastdw.ops`.
        batch: images a call.

    Raises:
        KeyError: no such op.
    """
    return list({case.label: case for case in _MAKERS[op](batch)}.values())


def _sized(blocks: list[BlockSpec]) -> Iterator[tuple[BlockSpec, int]]:
    """Each block with the height and width of its input."""
    size = RESOLUTION // 2  # after the stem
    for block in blocks:
        yield block, size
        size //= block.stride


def _label(size: int, channels_in: int, channels_out: int, stride: int = 1) -> str:
    return f"{size}x{size}, {channels_in} to {channels_out}" + f", stride {stride}" * (stride > 1)


def _depthwise(batch: int) -> Iterator[OpCase]:
    for blocks in (V1, V2):
        for block, size in _sized(blocks):
            channels = block.in_channels * block.expand_ratio
            label = _label(size, channels, channels, block.stride)
            options = {"stride": block.stride, "padding": 1}
            x = (batch, channels, size, size)
            yield OpCase("depthwise_conv", label, x, (depthwise(channels),), options)


def _pointwise(batch: int) -> Iterator[OpCase]:
    def case(size: int, channels_in: int, channels_out: int, activation: str) -> OpCase:
        label = f"{_label(size, channels_in, channels_out)}, {activation}"
        convs = (dense(channels_out, channels_in, activation),)
        return OpCase("pointwise_conv", label, (batch, channels_in, size, size), convs)

    for block, size in _sized(V1):
        yield case(size // block.stride, block.in_channels, block.out_channels, "relu6")
    for block, size in _sized(V2):
        hidden = block.in_channels * block.expand_ratio
        if block.expand_ratio > 1:
            yield case(size, block.in_channels, hidden, "relu6")
        yield case(size // block.stride, hidden, block.out_channels, "none")
    yield case(RESOLUTION // 32, V2[-1].out_channels, MOBILENET_V2_LAST, "relu6")


def _stem(batch: int) -> Iterator[OpCase]:
    x = (batch, 3, RESOLUTION, RESOLUTION)
    convs = (dense(MOBILENET_V1_STEM, 3, "relu6", kernel=3),)
    label = _label(RESOLUTION, 3, MOBILENET_V1_STEM, 2)
    yield OpCase("stem_conv", label, x, convs, {"stride": 2, "padding": 1})


def _separable(batch: int) -> Iterator[OpCase]:
    for block, size in _sized(V1):
        yield OpCase(
            "separable_block",
            _label(size, block.in_channels, block.out_channels, block.stride),
            (batch, block.in_channels, size, size),
            (
                depthwise(block.in_channels),
                dense(block.out_channels, block.in_channels, "relu6"),
            ),
            {"stride": block.stride, "padding": 1},
        )


def _inverted(batch: int) -> Iterator[OpCase]:
    for block, size in _sized(V2):
        hidden = block.in_channels * block.expand_ratio
        yield OpCase(
            "inverted_residual",
            _label(size, block.in_channels, block.out_channels, block.stride),
            (batch, block.in_channels, size, size),
            (
                dense(hidden, block.in_channels, "relu6") if block.expand_ratio > 1 else None,
                depthwise(hidden),
                dense(block.out_channels, hidden),
            ),
            {"stride": block.stride, "padding": 1},
        )


def _head(batch: int) -> Iterator[OpCase]:
    size = RESOLUTION // 32
    for channels in (V1[-1].out_channels, MOBILENET_V2_LAST):
        convs = (((CLASSES, channels), "none"),)
        label = _label(size, channels, CLASSES)
        yield OpCase("classifier_head", label, (batch, channels, size, size), convs)


_MAKERS = {
    "depthwise_conv": _depthwise,
    "pointwise_conv": _pointwise,
    "stem_conv": _stem,
    "separable_block": _separable,
    "inverted_residual": _inverted,
    "classifier_head": _head,
}
