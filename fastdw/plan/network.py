"""The module that runs a whole network as one op call."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastdw import backends
from fastdw.nn.fused_module import is_transformed, op_tensors
from fastdw.plan.record import Recording, record

HEADER_BYTES = 64
HEADER = struct.Struct("<4sIII")


def pack(recording: Recording) -> tuple[Tensor, str]:
    """Pack the weights of a recording.

    Returns:
        The uint8 buffer (a header of 64 bytes, then one blob a step) and the program's text with
        the places of the blobs.
    """
    header = HEADER.pack(b"FDWP", 1, 0, len(recording.program.steps)).ljust(HEADER_BYTES, b"\0")
    blobs = [torch.frombuffer(bytearray(header), dtype=torch.uint8)]
    steps, offset_bytes = [], HEADER_BYTES
    for step, units in zip(recording.program.steps, recording.units, strict=True):
        steps.append(replace(step, weights=offset_bytes if units else 0))
        if units:
            tensors = [None if t is None else t.float() for t in op_tensors(step.op, units)]
            blobs.append(getattr(torch.ops.fastdw, f"pack_{step.op}").default(*tensors))
            offset_bytes += blobs[-1].numel()
    return torch.cat(blobs), str(replace(recording.program, steps=tuple(steps)))


def share_state(wrapper: nn.Module, model: nn.Module) -> None:
    """Give `wrapper` the parameters, buffers and children of `model`, which stands in `_model`."""
    # The same dicts, not copies: what `.to()` or a new child does to one holds for both.
    wrapper._parameters, wrapper._buffers = model._parameters, model._buffers
    wrapper._modules = model._modules
    wrapper._non_persistent_buffers_set = model._non_persistent_buffers_set
    wrapper.__dict__["_model"] = (model,)  # in a tuple it is no child: its keys would appear twice


class PlannedNetwork(nn.Module):
    """A network in eval mode as one `fastdw::planned_network` call, at any batch and resolution.

    With `keep_weights` it has the children and parameters of the converted network, and
    `state_dict` holds their keys; the packed buffer is made from them, here and after
    `load_state_dict`. Other changes do not reach it: of parameters (`functional_call` included), of
    children or their hooks. Inputs that the op cannot take (not fp32 on the CPU, requiring a
    gradient, under a transform of `torch.func`, forward-mode gradients or `use_backend("torch")`)
    then run through those children, block by block.

    Without them, `state_dict` is the packed buffer only, such inputs are refused, and so is a
    change of dtype or device.

    Args:
        model: the converted network.
        recording: what it computes.
        keep_weights: see above.

    Attributes:
        packed: uint8 [bytes], all weights.
        program: the steps as text.
    """

    packed: Tensor
    program: str

    def __init__(self, model: nn.Module, recording: Recording, keep_weights: bool = True) -> None:
        super().__init__()
        packed, self.program = pack(recording)
        self.structure: pytree.TreeSpec = recording.structure
        self._model: tuple[nn.Module, ...] = ()
        if keep_weights:
            share_state(self, model)
            self.register_load_state_dict_post_hook(_repack)
        self.register_buffer("packed", packed, persistent=not keep_weights)
        super().train(False)

    def forward(self, x: Tensor) -> Any:
        """Run the network.

        Args:
            x: fp32 image [batch, channels, height, width], any memory format.

        Returns:
            What the network returned: feature maps are channels_last.

        Raises:
            TypeError, BackendRefused: the op cannot take `x` and the weights were not kept.
        """
        packed = self.packed
        reason = self._refusal(x, packed)
        if reason is None:
            outputs = torch.ops.fastdw.planned_network.default(x, packed, self.program)
            if self.structure.is_leaf():
                return outputs[0]
            return pytree.tree_unflatten(outputs, self.structure)
        if self._model:
            return self._model[0](x)
        error = backends.BackendRefused if reason.startswith("backend") else TypeError
        raise error(f"{reason}; optimize(..., keep_weights=True) would run it block by block")

    def _refusal(self, x: Tensor, packed: Tensor) -> str | None:
        """Why the op cannot take `x`, or None; wrong shapes are the op's to refuse."""
        if not isinstance(x, Tensor):
            return f"x: expected a Tensor, got {type(x).__name__}"
        if is_transformed():
            return "x: expected no torch.func transform or forward-mode gradient around the call"
        if x.dtype is not torch.float32:
            return f"x: expected fp32, got {backends.DTYPE_NAMES.get(x.dtype, str(x.dtype))}"
        if not (x.is_cpu and packed.is_cpu):
            return f"x: expected a tensor on the CPU, got one on {x.device}"
        if x.requires_grad and torch.is_grad_enabled():
            return "x: expected no requires_grad, a planned network has no gradient"
        backend = backends.current_backend()
        return None if backend in ("auto", "cpp") else f"backend: {backend} has no planned network"

    def train(self, mode: bool = True) -> PlannedNetwork:
        """Stay in eval mode; raise RuntimeError for `mode=True`."""
        if mode:
            raise RuntimeError("a planned network cannot train: train the model, optimize it again")
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PlannedNetwork:
        if not self._model:
            probe = fn(torch.empty(0))
            if probe.dtype is not torch.float32 or probe.device.type != "cpu":
                raise RuntimeError(
                    f"the packed weights are fp32 on the CPU and stay so, got {probe.dtype} on "
                    f"{probe.device}: optimize(..., keep_weights=True) keeps weights that can move"
                )
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"planned: {self.program.count(chr(10)) - 1} steps, {self.packed.numel():,} bytes"


def _repack(network: PlannedNetwork, _: Any) -> None:
    """Pack the weights that `load_state_dict` brought."""
    with torch.no_grad():
        packed, network.program = pack(record(network._model[0]))
    network.packed.copy_(packed)
