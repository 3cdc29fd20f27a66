"""The buffer that holds a planned network's weights: its header, and its two layouts.

On the CPU a blob holds fp32 panels of 16 output channels; on CUDA it holds every weight as torch
does, ``[channels_out, terms]`` in the network's dtype, batch norm's scale multiplied in, and its
bias (``csrc/cuda/packed_weights.h``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastdw.backends import DTYPE_NAMES
from fastdw.ops.program import ALIGNMENT_BYTES, CPU, TARGETS, Program, Step, parse_program

HEADER = struct.Struct("<4sIII")  # magic, version, target, steps; then zeros
HEADER_BYTES = 64
CHANNEL_BLOCK = 16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def target_name(dtype: torch.dtype) -> str:
    """Return what the program of a network on CUDA in ``dtype`` names as its target."""
    return f"cuda_{DTYPE_NAMES[dtype]}"


def to_cuda_layout(packed: Tensor, program: str, dtype: torch.dtype) -> tuple[Tensor, str]:
    """Rearrange the weights of a planned network for CUDA kernels.

    Args:
        packed: uint8 [bytes], the CPU's packed weights, on any device.
        program: the text that belongs to it.
        dtype: fp32, fp16 or bf16: of the weights, rounded once from fp32, and of the images.

    Returns:
        The new buffer, on the same device, and the program with the new places of the weights.

    Raises:
        ValueError: no kernels on CUDA run the program.
    """
    parsed, target = parse_program(program), target_name(dtype)
    if parsed.gpu_refusal is not None:
        raise ValueError(f"program: {parsed.gpu_refusal}")
    blobs = []
    for step in parsed.steps:
        bias_dtype = dtype if step.op == "classifier_head" else torch.float32
        parts = [
            _padded_bytes(values)
            for weight, bias in _from_panels(packed, step)
            for values in (weight.to(dtype), bias.to(bias_dtype))
        ]
        blobs.append(torch.cat(parts) if parts else None)
    return join(blobs, replace(parsed, target=target), packed.device)


def to_cpu_layout(packed: Tensor, program: str) -> tuple[Tensor, str]:
    """Undo `to_cuda_layout`, except for its rounding; the result is on the CPU."""
    parsed, packed = parse_program(program), packed.cpu()
    blobs = []
    for step in parsed.steps:
        tensors: list[Tensor | None] = []
        for weight, bias in step.cuda_weights(packed, parsed.cuda_dtype):
            scale = [] if step.op == "classifier_head" else [None]
            tensors += [weight.float(), *scale, bias.float()]
        if step.op == "inverted_residual" and not step.expand:
            tensors = [None, None, None, *tensors]
        pack = getattr(torch.ops.fastdw, f"pack_{step.op}").default if tensors else None
        blobs.append(None if pack is None else pack(*tensors))
    return join(blobs, replace(parsed, target=CPU), packed.device)


def join(
    blobs: Sequence[Tensor | None], program: Program, device: torch.device
) -> tuple[Tensor, str]:
    """Put a header and the steps' blobs, multiples of 64 bytes, into one buffer.

    Returns:
        The buffer and the text of `program` with the places of the blobs.
    """
    target = TARGETS.index(program.target)
    header = HEADER.pack(b"FDWP", 1, target, len(blobs)).ljust(HEADER_BYTES, b"\0")
    pieces = [torch.frombuffer(bytearray(header), dtype=torch.uint8).to(device)]
    steps, offset_bytes = [], HEADER_BYTES
    for step, blob in zip(program.steps, blobs, strict=True):
        steps.append(replace(step, weights=offset_bytes if blob is not None else 0))
        if blob is not None:
            pieces.append(blob)
            offset_bytes += blob.numel()
    return torch.cat(pieces), str(replace(program, steps=tuple(steps)))


def _from_panels(packed: Tensor, step: Step) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weight [channels_out, terms] and bias [channels_out] of each part, in fp32."""
    begin = step.weights + HEADER_BYTES  # of the blob
    for shape in step.weight_shapes():
        channels_out, terms = shape[0], math.prod(shape[1:])
        padded = -(-channels_out // CHANNEL_BLOCK) * CHANNEL_BLOCK
        end = begin + 4 * padded * terms
        panels = packed[begin:end].view(torch.float32).view(-1, terms, CHANNEL_BLOCK)
        weight = panels.transpose(1, 2).reshape(padded, terms)[:channels_out]
        begin, end = end, end + 4 * padded
        yield weight, packed[begin:end].view(torch.float32)[:channels_out]
        begin = end


def _padded_bytes(values: Tensor) -> Tensor:
    raw = values.contiguous().view(-1).view(torch.uint8)
    return pad(raw, (0, -raw.numel() % ALIGNMENT_BYTES))
