"""TensorFlow Lite models: their convolutions in the order in which they run, dequantised.

Names in a ``.tflite`` cannot be relied on (the converter shares equal constants and joins names),
so what counts is the graph: the order of the operators, and what reads their results.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastdw.geometry import Padding
from fastdw.models.weights.convolution import Convolution
from fastdw.models.weights.formats.opening import damaged, existing_file

MAGIC = b"TFL3"
MAGIC_OFFSET = 4

# Numbers of the enums Padding and ActivationFunctionType in TensorFlow's schema.fbs.
_PADDINGS: dict[int, Padding] = {0: "same", 1: (0, 0, 0, 0)}
_ACTIVATIONS = {0: "none", 1: "relu", 2: "relu_n1_to_1", 3: "relu6", 4: "tanh", 5: "sign_bit"}


@dataclass(frozen=True)
class TfliteModel:
    """What a ``.tflite`` file holds.

    Attributes:
        convolutions: every convolution and linear layer, in the order in which they run.
        tensors: their weights and biases in fp32, by the file's names and in its layout.
        types: the types of the stored weights, such as ``{"FLOAT16"}`` or ``{"UINT8", "INT32"}``.
        input_shape: of the first input, ``[batch, height, width, channels]``.
    """

    convolutions: tuple[Convolution, ...]
    tensors: dict[str, Tensor]
    types: frozenset[str]
    input_shape: tuple[int, ...]


def read_tflite(source: str | Path | bytes) -> TfliteModel:
    """Read a ``.tflite`` file: fp32, fp16, uint8 or int8 (per tensor or per channel) weights.

    Quantised weights become ``(stored - zero_point) * scale``. Nothing in the file is run.

    Args:
        source: a path, or the bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or truncated, no TensorFlow Lite model, or has weights of
            another type.
        ImportError: the package ``tflite`` is not installed.
    """
    if isinstance(source, bytes):
        data, name = source, "the file"
    else:
        path = existing_file(source)
        data, name = path.read_bytes(), str(path)
    if data[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] != MAGIC:
        raise ValueError(f"path: {name} is no TensorFlow Lite model")
    try:
        import tflite
    except ImportError as error:
        raise ImportError(f".tflite files need the package tflite ({error})") from error
    try:
        return _Graph(tflite, data).model()
    except _Unsupported as error:
        raise ValueError(f"path: {name}: {error}") from None
    except Exception as error:  # a FlatBuffers reader follows whatever offsets the bytes hold
        raise damaged(name, error) from error


class _Unsupported(Exception):
    """The file is sound, but holds something that has no meaning here; the message says what."""


class _Graph:
    """The first subgraph of a model, with its constants."""

    def __init__(self, schema: ModuleType, data: bytes) -> None:
        self.schema: Any = schema
        self.flat = schema.Model.GetRootAsModel(data, 0)
        self.graph = self.flat.Subgraphs(0)
        self.tensors = [self.graph.Tensors(i) for i in range(self.graph.TensorsLength())]
        self.kinds = _names(schema.BuiltinOperator)
        self.types = _names(schema.TensorType)
        self.operators = [self.graph.Operators(i) for i in range(self.graph.OperatorsLength())]
        self.stored: set[str] = set()
        self.constants: dict[int, Tensor] = {}
        self.readers: dict[int, list[str]] = defaultdict(list)
        self.writers: dict[int, Any] = {}
        for operator in self.operators:
            for index in operator.InputsAsNumpy().tolist():
                self.readers[index].append(self.kind(operator))
            for index in operator.OutputsAsNumpy().tolist():
                self.writers[index] = operator

    def model(self) -> TfliteModel:
        convolutions = []
        for operator in self.operators:
            kind = self.kind(operator)
            if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
                convolutions.append(self.convolution(operator, kind == "DEPTHWISE_CONV_2D"))
            elif kind == "FULLY_CONNECTED":
                convolutions.append(self.linear(operator))
        constants = {self.name(index): tensor for index, tensor in self.constants.items()}
        first = self.tensors[self.graph.Inputs(0)]
        shape = tuple(first.ShapeAsNumpy().tolist())
        return TfliteModel(tuple(convolutions), constants, frozenset(self.stored), shape)

    def kind(self, operator: Any) -> str:
        """The name of the operator; files before schema 3a keep its number in another field."""
        code = self.flat.OperatorCodes(operator.OpcodeIndex())
        return self.kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]

    def name(self, index: int) -> str:
        return self.tensors[index].Name().decode()

    def constant(self, index: int) -> Tensor:
        """A constant tensor in fp32; one that is stored in fp16 and dequantised at run time too."""
        if index in self.constants:
            return self.constants[index]
        writer = self.writers.get(index)
        if writer is not None and self.kind(writer) == "DEQUANTIZE":
            index = int(writer.Inputs(0))
        elif writer is not None:
            raise _Unsupported(f"{self.name(index)!r} is computed at run time, not a weight")
        tensor = self.tensors[index]
        kind = self.types[tensor.Type()]
        if kind not in _NUMPY:
            raise _Unsupported(f"{self.name(index)!r} is {kind}, a type that is not read")
        if tensor.Sparsity() is not None:
            raise _Unsupported(f"{self.name(index)!r} is stored sparse")
        raw = self.flat.Buffers(tensor.Buffer()).DataAsNumpy()
        values = raw.view(_NUMPY[kind]).reshape(tensor.ShapeAsNumpy())
        dequantised = _dequantise(torch.from_numpy(values.copy()), tensor.Quantization())
        self.stored.add(kind)
        self.constants[index] = dequantised
        return dequantised

    def convolution(self, operator: Any, depthwise: bool) -> Convolution:
        options_type = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
        options = self.options(operator, options_type)
        x, weight_index = (int(operator.Inputs(i)) for i in range(2))
        weight = self.constant(weight_index)
        padding, x = self.padding(options, x)
        _, height, width, channels = self.tensors[x].ShapeAsNumpy().tolist()
        # [1, h, w, channels * multiplier] or [out, h, w, in / groups]: in torch both have the
        # filters first.
        weight = weight.permute(3, 0, 1, 2) if depthwise else weight.permute(0, 3, 1, 2)
        groups = channels // weight.shape[1]
        return Convolution(
            name=self.name(int(operator.Outputs(0))),
            weight=weight.contiguous(),
            bias=self.bias(operator, weight.shape[0]),
            stride=(options.StrideH(), options.StrideW()),
            dilation=(options.DilationHFactor(), options.DilationWFactor()),
            padding=padding,
            groups=groups,
            activation=_ACTIVATIONS[options.FusedActivationFunction()],
            input_size=(height, width),
            read_by=tuple(self.readers[int(operator.Outputs(0))]),
        )

    def linear(self, operator: Any) -> Convolution:
        options = self.options(operator, "FullyConnectedOptions")
        weight = self.constant(int(operator.Inputs(1)))
        return Convolution(
            name=self.name(int(operator.Outputs(0))),
            weight=weight[:, :, None, None],
            bias=self.bias(operator, weight.shape[0]),
            activation=_ACTIVATIONS[options.FusedActivationFunction()],
            read_by=tuple(self.readers[int(operator.Outputs(0))]),
        )

    def bias(self, operator: Any, channels: int) -> Tensor:
        index = int(operator.Inputs(2)) if operator.InputsLength() > 2 else -1
        return torch.zeros(channels) if index < 0 else self.constant(index)

    def padding(self, options: Any, x: int) -> tuple[Padding, int]:
        """The convolution's padding with that of a PAD before it, and what is padded."""
        padding = _PADDINGS[options.Padding()]
        writer = self.writers.get(x)
        if padding == "same" or writer is None or self.kind(writer) != "PAD":
            return padding, x
        sides = self.tensors[int(writer.Inputs(1))]
        pairs = self.flat.Buffers(sides.Buffer()).DataAsNumpy().view("<i4").reshape(4, 2).tolist()
        (top, bottom), (left, right) = pairs[1:3]
        return (left, right, top, bottom), int(writer.Inputs(0))

    def options(self, operator: Any, kind: str) -> Any:
        table, options = operator.BuiltinOptions(), getattr(self.schema, kind)()
        if table is None:
            raise ValueError(f"an operator has no {kind}")
        options.Init(table.Bytes, table.Pos)
        return options


_NUMPY = {
    "FLOAT32": "<f4",
    "FLOAT16": "<f2",
    "FLOAT64": "<f8",
    "UINT8": "u1",
    "INT8": "i1",
    "INT32": "<i4",
}
"""Types that are read, little endian as FlatBuffers are."""


def _dequantise(stored: Tensor, quantization: Any) -> Tensor:
    """``(stored - zero_point) * scale``, per tensor or along one axis; in fp64, rounded once."""
    if quantization is None or quantization.ScaleLength() == 0:
        return stored.float()
    scale = torch.from_numpy(quantization.ScaleAsNumpy().copy()).double()
    zero_point = torch.zeros_like(scale)
    if quantization.ZeroPointLength():
        zero_point = torch.from_numpy(quantization.ZeroPointAsNumpy().copy()).double()
    if not all(math.isfinite(value) and value > 0 for value in scale.tolist()):
        raise ValueError("a quantisation scale is not above 0")
    if len(scale) > 1:
        shape = [1] * stored.dim()
        shape[quantization.QuantizedDimension()] = -1
        scale, zero_point = scale.view(shape), zero_point.view(shape)
    return ((stored.double() - zero_point) * scale).float()


def _names(enum: type) -> dict[int, str]:
    """The names of a FlatBuffers enum by number."""
    return {number: name for name, number in vars(enum).items() if not name.startswith("_")}
