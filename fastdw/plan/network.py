"""The module that runs a whole network as one op call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastdw import backends, native
from fastdw.nn.fused_module import is_transformed, op_tensors
from fastdw.nn.units import Unit
from fastdw.ops import triton_backend
from fastdw.ops.program import CPU, CPU_STEPS, Step, parse_program
from fastdw.plan import packed_layout
from fastdw.plan.record import NotPlannable, Recording, record


def pack(recording: Recording) -> tuple[Tensor, str]:
    """Pack the weights of a recording for the CPU.

    Returns:
        The uint8 buffer (a header of 64 bytes, then one blob a step) and the program's text with
        the places of the blobs.
    """
    blobs: list[Tensor | None] = []
    for step, units in zip(recording.program.steps, recording.units, strict=True):
        blobs.append(_blob(step, units) if units else None)
    return packed_layout.join(blobs, recording.program, torch.device("cpu"))


def _blob(step: Step, units: Sequence[Unit]) -> Tensor:
    tensors = [None if t is None else t.float().cpu() for t in op_tensors(step.op, units)]
    name = "pointwise_conv" if step.op in CPU_STEPS else step.op
    if step.op == "dense_conv":  # as a 1x1 convolution, the taps one after another
        weight = tensors[0]
        assert weight is not None
        tensors[0] = weight.permute(0, 2, 3, 1).reshape(step.channels_out, -1, 1, 1)
    blob: Tensor = getattr(torch.ops.fastdw, f"pack_{name}").default(*tensors)
    return blob


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the first floating-point parameter of `model` lies, and its dtype."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def gpu_reason(backend: str = "auto") -> str | None:
    """Why no planned network runs on the current GPU, with kernels of `backend`; None: one does."""
    reasons = {}
    if backend in ("auto", "cpp"):
        reasons["cpp"] = native.cuda_reason()
    if backend in ("auto", "triton"):
        reasons["triton"] = triton_backend.reason("cuda")
    if None in reasons.values():
        return None
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def check_device(recording: Recording, device: torch.device) -> None:
    """Raise `NotPlannable` where the kernels of `device` lack a step."""
    refusal = None if device.type == "cpu" else recording.program.gpu_refusal
    if refusal is not None:
        raise NotPlannable(refusal)


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

    Without them, `state_dict` is the packed buffer only, such inputs are refused, and so is another
    dtype on the CPU.

    A network that branches on the image's height and width is planned for one way through it;
    images that take another run as such inputs do.

    Moved to CUDA, the packed weights are rearranged and take the network's dtype (fp32, fp16 or
    bf16), and a call is one launch of a CUDA graph: of the C++ kernels, else of Triton's.

    Args:
        model: the converted network.
        recording: what it computes.
        keep_weights: see above.
        backend: `"cpp"` or `"triton"`: the kernels to use on CUDA; `"auto"`: what is in use then.

    Attributes:
        packed: uint8 [bytes], all weights.
        program: the steps as text.
        image: name of the argument that the network takes the image by.
        conditions: the branches on the image's size that were planned.
        dtype: of the images that the op takes: fp32 on the CPU.
    """

    packed: Tensor
    program: str
    dtype: torch.dtype

    def __init__(
        self,
        model: nn.Module,
        recording: Recording,
        keep_weights: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.backend = backend
        device, dtype = placement(model)
        check_device(recording, device)
        packed, self.program = pack(recording)
        self.structure: pytree.TreeSpec = recording.structure
        self._returns_tensor = self.structure.is_leaf()
        self.places = recording.places
        self.image = recording.image
        self.recorded_shape, self.conditions = recording.shape, recording.conditions
        self._model: tuple[nn.Module, ...] = ()
        if keep_weights:
            share_state(self, model)
            self.register_load_state_dict_post_hook(_repack)
        self.register_buffer("packed", packed.to(device), persistent=not keep_weights)
        self._rearrange(None if device.type == "cpu" else dtype)
        super().train(False)

    def forward(self, x: Tensor | None = None, *more: Any, **settings: Any) -> Any:
        """Run the network.

        Args:
            x: image [batch, channels, height, width] in `dtype`, any memory format.
            more, settings: the image under the name that the network has for it; with anything
                else, the kept weights run block by block.

        Returns:
            What the network returned: feature maps are channels_last.

        Raises:
            TypeError, BackendRefused: the op cannot take `x` and the weights were not kept.
        """
        if x is None:
            x = settings.pop(self.image, None)
        packed: Any = self._buffers["packed"]  # at once: self.packed goes by __getattr__
        reason = self._refusal(x, packed)
        if more or settings:
            reason = "expected the image and nothing else"
        if reason is None:
            op = self._gpu_op(x) if self._on_gpu else torch.ops.fastdw.planned_network.default
            outputs = op(x, packed, self.program)
            if self._returns_tensor:
                return outputs[0]
            return pytree.tree_unflatten([outputs[i] for i in self.places], self.structure)
        if self._model:
            return self._model[0](x, *more, **settings)
        error = backends.BackendRefused if reason.startswith("backend") else TypeError
        raise error(f"{reason}; optimize(..., keep_weights=True) would run it block by block")

    def _refusal(self, x: Tensor | None, packed: Tensor) -> str | None:
        """Why the op cannot take `x`, or None; wrong shapes are the op's to refuse.

        The weights of a call push this code out of the caches: each function that it enters costs
        the next call a microsecond, so the usual call enters few.
        """
        if not isinstance(x, Tensor):
            return f"x: expected a Tensor, got {type(x).__name__}"
        if is_transformed():
            return "x: expected no torch.func transform or forward-mode gradient around the call"
        if x.dtype is not self.dtype:
            wanted, got = (backends.DTYPE_NAMES.get(d, str(d)) for d in (self.dtype, x.dtype))
            return f"x: expected {wanted}, got {got}"
        if not (x.is_cpu and packed.is_cpu) and x.device != packed.device:
            return f"x: expected a tensor on {packed.device}, got one on {x.device}"
        if not x.is_cpu and not self._on_gpu:
            return f"x: no planned network runs on {x.device}: {self._gpu_reason()}"
        if self.conditions and x.dim() == 4 and not all(c.holds(x.shape) for c in self.conditions):
            height, width = x.shape[2:]
            return f"x: the network takes another way at {height}x{width} than the planned one"
        if x.requires_grad and torch.is_grad_enabled():
            return "x: expected no requires_grad, a planned network has no gradient"
        backend = self._backend_in_use()
        if backend in ("auto", "cpp") or (backend == "triton" and self._on_gpu):
            return None
        return f"backend: {backend} has no planned network" + " on the CPU" * (backend == "triton")

    def _gpu_reason(self) -> str | None:
        return parse_program(self.program).gpu_refusal or gpu_reason(self.backend)

    def _backend_in_use(self) -> str:
        return backends.current_backend() if self.backend == "auto" else self.backend

    def _gpu_op(self, x: Tensor) -> Any:
        """The op that runs packed weights that are laid out for CUDA."""
        backend = self._backend_in_use()
        if backend == "auto" and x.is_cuda and native.cuda_reason(x.device.index) is not None:
            backend = "triton"
        namespace = torch.ops.fastdw_triton if backend == "triton" else torch.ops.fastdw
        return namespace.planned_network.default

    def train(self, mode: bool = True) -> PlannedNetwork:
        """Stay in eval mode; raise RuntimeError for `mode=True`."""
        if mode:
            raise RuntimeError("a planned network cannot train: train the model, optimize it again")
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PlannedNetwork:
        probe = fn(torch.empty(0, dtype=self.dtype))
        goes_to_cuda = probe.is_cuda and probe.dtype in packed_layout.DTYPES
        refusal = parse_program(self.program).gpu_refusal
        if not self._model and probe.is_cuda and refusal is not None:
            raise RuntimeError(f"{refusal}: optimize(..., keep_weights=True) would run its blocks")
        if not self._model and not goes_to_cuda:
            if probe.dtype is not torch.float32 or probe.device.type != "cpu":
                raise RuntimeError(
                    f"the packed weights run in fp32 on the CPU or on CUDA, got {probe.dtype} on "
                    f"{probe.device}: optimize(..., keep_weights=True) keeps weights that can move"
                )
        super()._apply(fn, recurse)
        loaded = goes_to_cuda and self._gpu_reason() is None
        self._rearrange(probe.dtype if loaded else None)
        return self

    def _rearrange(self, dtype: torch.dtype | None) -> None:
        """Lay the packed weights out for CUDA in `dtype`, or for the CPU if it is None."""
        now = parse_program(self.program).target
        target = CPU if dtype is None else packed_layout.target_name(dtype)
        self.dtype = torch.float32 if dtype is None else dtype
        self._on_gpu = dtype is not None
        if now == target:
            return
        device, packed = self.packed.device, self.packed
        if now != CPU:
            packed, self.program = packed_layout.to_cpu_layout(packed, self.program)
        if dtype is not None:
            packed, self.program = packed_layout.to_cuda_layout(packed, self.program, dtype)
        self.packed = packed.to(device)

    def extra_repr(self) -> str:
        return f"planned: {self.program.count(chr(10)) - 1} steps, {self.packed.numel():,} bytes"


def _repack(network: PlannedNetwork, _: Any) -> None:
    """Pack the weights that `load_state_dict` brought."""
    with torch.no_grad():
        packed, program = pack(record(network._model[0], network.recorded_shape))
        if parse_program(network.program).target != CPU:
            packed, program = packed_layout.to_cuda_layout(packed, program, network.dtype)
    network.program = program
    network.packed.copy_(packed)
