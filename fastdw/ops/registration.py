"""Attaches to every ``fastdw::<op>`` of the native library what torch wants of an op.

Each op module describes its op once, as an ``Op``; from these descriptions come the rows of the
backend table and, when the library is loaded, fakes, gradients, autocast kernels and FLOP formulas.
Schemas stand in ``csrc`` only; the twins ``fastdw_triton::<op>`` take everything else from the same
descriptions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fastdw import backends, native
from fastdw.geometry import Padding, Pair
from fastdw.geometry import normalize_padding as normalize_padding
from fastdw.geometry import normalize_pair as normalize_pair
from fastdw.ops import depthwise_conv_train, triton_backend
from fastdw.reference import Conv

AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
ALL_DTYPES = tuple(backends.DTYPE_NAMES.values())


@dataclass(frozen=True)
class Op:
    """One op. Every function takes the arguments in the order of the schema.

    Of an op with several results ``out_shape`` and the gradient's first argument are tuples.
    """

    name: str
    fake: Callable[..., Any]  # checks, then an empty output
    gradient: Callable[..., Sequence[Tensor | None]]  # (grad, needs_input_grad, *arguments)
    flops: Callable[..., int]  # shapes instead of tensors, and out_shape=
    reference: Callable[..., Any]
    autocast: tuple[str, ...]  # arguments that go to the autocast dtype
    pack_fake: Callable[..., Tensor]
    packed_fake: Callable[..., Any]
    packed_flops: Callable[..., int]
    packed_autocast: tuple[str, ...] = ("x",)
    native_limits: Callable[[backends.Call], str | None] | None = None
    native_devices: tuple[str, ...] = ("cpu", "cuda", "meta")
    variant_of: str | None = None  # the op that it is with a further result, on the same weights


OPS: dict[str, Op] = {}
"""The ops, by name."""

VARIANTS: dict[str, Op] = {}
"""Those that are another op with a further result."""

_namespace: torch.library.Library | None = None  # holds the autocast kernels alive
_twins: torch.library.Library | None = None  # holds the ops on Triton kernels alive
_missing: ImportError | None = None


def define(op: Op) -> Op:
    """Enter ``op`` into the table of ops and its rows into that of the backends."""
    (VARIANTS if op.variant_of else OPS)[op.name] = op

    def run_native(*arguments: object) -> Any:
        if _missing is not None:
            raise ImportError(str(_missing))
        return getattr(torch.ops.fastdw, op.name)(*arguments)

    def limits(call: backends.Call) -> str | None:
        if call.device == "cuda":
            [x, *_] = call.arguments
            assert isinstance(x, Tensor)
            reason = native.cuda_reason(x.device.index)
            if reason is not None:
                return reason
        return None if op.native_limits is None else op.native_limits(call)

    def run_triton(*arguments: object) -> Any:
        return getattr(torch.ops.fastdw_triton, op.name)(*arguments)

    def triton_limits(call: backends.Call) -> str | None:
        [x, *_] = call.arguments
        assert isinstance(x, Tensor)
        reason = triton_backend.reason(call.device, x.device.index)
        return str(_missing) if reason is None and _missing is not None else reason

    def run_reference(x: Tensor, *arguments: object) -> Any:
        with without_autocast(x.device.type):
            return op.reference(x, *arguments)

    backends.ROWS[op.name] = [
        backends.BackendRow(op.name, "cpp", op.native_devices, ALL_DTYPES, run_native, limits),
        backends.BackendRow(
            op.name,
            "triton",
            triton_backend.devices(),
            triton_backend.DTYPES,
            run_triton,
            triton_limits,
        ),
        backends.BackendRow(op.name, "torch", (), ALL_DTYPES, run_reference),
    ]
    return op


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return the dtype that autocast wants on ``device`` now, or None if it is off."""
    if device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which aten ops keep the dtypes they are given."""
    enabled = autocast_dtype(device) is not None
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast x and the tensors that must have its dtype as autocast does; fp64 stays as it is."""
    if not isinstance(tensors[0], Tensor):  # left to the checks
        return tensors
    dtype = autocast_dtype(tensors[0].device.type)
    return tensors if dtype is None else tuple(_cast(tensor, dtype) for tensor in tensors)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    eligible = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if eligible and value.dtype != torch.float64 else value


def epilogue_dtype(tensor: Tensor | None) -> Tensor | None:
    """Return a scale or bias in fp32 where it is fp16 or bf16 (a model after ``.half()``)."""
    if isinstance(tensor, Tensor) and tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor


def window(
    kernel_size: Sequence[int], stride: Pair, padding: Padding, dilation: Pair
) -> tuple[list[int], list[int], list[int]]:
    """Return (stride, padding, dilation) in schema form."""
    stride, dilation = normalize_pair(stride, "stride"), normalize_pair(dilation, "dilation")
    return stride, normalize_padding(padding, kernel_size, stride, dilation), dilation


def block_conv(conv: Conv | None, name: str, x: Tensor) -> tuple[Any, ...]:
    """Return (weight, scale, bias, activation) of a block's convolution as the schema wants it."""
    if conv is None:
        return (None, None, None, "none")
    if not isinstance(conv, tuple) or len(conv) != 4:
        raise TypeError(f"{name}: expected (weight, scale, bias, activation), got {conv!r:.80}")
    weight, scale, bias, activation = conv
    dtype = autocast_dtype(x.device.type)
    weight = weight if dtype is None else _cast(weight, dtype)
    return (weight, epilogue_dtype(scale), epilogue_dtype(bias), activation)


def load() -> None:
    """Load the native library, once, and register everything; without it, remember why not."""
    global _namespace, _twins, _missing
    if _namespace is not None:
        return
    try:
        native.load()
    except ImportError as error:
        _missing = error
        return
    from fastdw.ops import program

    _missing = None
    _namespace = torch.library.Library("fastdw", "IMPL")
    ops = (*OPS.values(), *VARIANTS.values())
    for op in ops:
        torch.library.register_fake(f"fastdw::{op.name}", op.fake)
        if op.variant_of is None:
            torch.library.register_fake(f"fastdw::pack_{op.name}", op.pack_fake)
        torch.library.register_fake(f"fastdw::{op.name}_packed", op.packed_fake)
        _register_gradient("fastdw", op)
        _register_no_gradient(f"{op.name}_packed")
        _register_autocast(_namespace, "fastdw", op.name, op.autocast)
        _register_autocast(_namespace, "fastdw", f"{op.name}_packed", op.packed_autocast)
        register_flop_formula(getattr(torch.ops.fastdw, op.name))(op.flops)
        register_flop_formula(getattr(torch.ops.fastdw, f"{op.name}_packed"))(op.packed_flops)
    torch.library.register_fake("fastdw::planned_network", program.fake)
    _register_no_gradient("planned_network")
    _register_autocast(_namespace, "fastdw", "planned_network", ("x",))
    register_flop_formula(torch.ops.fastdw.planned_network)(program.flops)
    _twins = torch.library.Library("fastdw_triton", "IMPL")
    for op in ops:
        _register_twin(_twins, op)
    _register_network_twin(_twins)
    depthwise_conv_train.register(_twins)


def _register_twin(twins: torch.library.Library, op: Op) -> None:
    """Give ``fastdw_triton::<op>`` what ``fastdw::<op>`` has, and Triton's kernels."""

    def run(x: Tensor, *arguments: Any) -> Any:
        if x.dtype == torch.float64:
            return op.reference(x, *arguments)
        refusal = triton_backend.reason(x.device.type, x.device.index)
        if refusal is not None:
            raise RuntimeError(f"fastdw_triton::{op.name}: {refusal}")
        return triton_backend.run(op.name, op.fake(x, *arguments), x, *arguments)

    for device in ("CPU", "CUDA"):
        twins.impl(op.name, run, device)
    torch.library.register_fake(f"fastdw_triton::{op.name}", op.fake, lib=twins)
    _register_gradient("fastdw_triton", op)
    _register_autocast(twins, "fastdw_triton", op.name, op.autocast)
    register_flop_formula(getattr(torch.ops.fastdw_triton, op.name))(op.flops)


def _register_network_twin(twins: torch.library.Library) -> None:
    from fastdw.ops import program, triton_network

    for device in ("CPU", "CUDA"):
        twins.impl("planned_network", triton_network.run, device)
    name = "fastdw_triton::planned_network"
    torch.library.register_fake(name, program.fake, lib=twins)
    _register_no_gradient("planned_network", "fastdw_triton")
    _register_autocast(twins, "fastdw_triton", "planned_network", ("x",))
    register_flop_formula(torch.ops.fastdw_triton.planned_network)(program.flops)


def _register_gradient(namespace: str, op: Op) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tensors_at = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.save_for_backward(*(inputs[i] for i in ctx.tensors_at))
        ctx.settings = [None if isinstance(value, Tensor) else value for value in inputs]

    def backward(ctx: Any, *grads_out: Tensor) -> tuple[Tensor | None, ...]:
        arguments = list(ctx.settings)
        for i, tensor in zip(ctx.tensors_at, ctx.saved_tensors, strict=True):
            arguments[i] = tensor
        grad: Any = grads_out if len(grads_out) > 1 else grads_out[0]
        device = grads_out[0].device.type
        with without_autocast(device):  # torch.compile traces this inside the forward's
            grads = op.gradient(grad, ctx.needs_input_grad, *arguments)
        return (*grads, *[None] * (len(arguments) - len(grads)))

    name = f"{namespace}::{op.name}"
    torch.library.register_autograd(name, backward, setup_context=setup_context)


def _register_no_gradient(name: str, namespace: str = "fastdw") -> None:
    def backward(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(
            f"{namespace}::{name} runs on packed weights and has no gradient; call the module in "
            "train() mode, or the op on unpacked weights"
        )

    torch.library.register_autograd(f"{namespace}::{name}", backward)


def _register_autocast(
    library: torch.library.Library, namespace: str, name: str, cast: tuple[str, ...]
) -> None:
    overload = getattr(getattr(torch.ops, namespace), name).default
    names = [argument.name for argument in overload._schema.arguments]
    for device, key in AUTOCAST_DEVICES.items():
        excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(
            *args: Any,
            _device: str = device,
            _excluded: torch._C.DispatchKeySet = excluded,
            **kwargs: Any,
        ) -> Any:
            dtype = torch.get_autocast_dtype(_device)
            given = dict(zip(names, args, strict=False)) | kwargs
            for argument in cast:
                given[argument] = _cast(given.get(argument), dtype)
            with torch._C._ExcludeDispatchKeyGuard(_excluded):
                return overload(**given)

        library.impl(name, kernel, key)
