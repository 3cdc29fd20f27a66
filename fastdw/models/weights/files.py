"""A weights file of any format, known by its first bytes, and what can be said about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastdw.models.weights.convolution import Convolution
from fastdw.models.weights.formats import tflite
from fastdw.models.weights.formats.caffe import read_caffe
from fastdw.models.weights.formats.checkpoint import read_checkpoint
from fastdw.models.weights.formats.graphdef import read_graphdef
from fastdw.models.weights.formats.keras import MAGIC as HDF5_MAGIC
from fastdw.models.weights.formats.keras import read_keras
from fastdw.models.weights.formats.opening import existing_file
from fastdw.models.weights.formats.safetensors_file import read_safetensors
from fastdw.models.weights.formats.tensorflow_checkpoint import SUFFIX as INDEX_SUFFIX
from fastdw.models.weights.formats.tensorflow_checkpoint import read_tensorflow_checkpoint
from fastdw.models.weights.formats.tfjs import read_tfjs

NOT_STATED = "not in the file"


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
        format: its name, for people.
        tensors: the weights by the file's own names and in its layout, fp32 but for torch's own.
        layout: of convolution kernels: ``"OIHW"`` (torch), ``"HWIO"`` (TensorFlow) or ``"OHWI"``.
        padding: of its convolutions, as the file says it.
        convolutions: of a format that tells their order, in torch's layout.
    """

    format: str
    tensors: dict[str, Tensor]
    layout: str = "OIHW"
    padding: str = NOT_STATED
    convolutions: tuple[Convolution, ...] | None = None


def read_file(path: str | Path) -> WeightsFile:
    """Read a weights file: torch checkpoint, safetensors, Keras, TensorFlow, TFLite, TF.js, Caffe.

    The format is told by the first bytes; where it has no such mark by the suffix: ``.pb`` (frozen
    graph), ``.index`` (checkpoint) or ``.caffemodel``. A TensorFlow.js model is given by its JSON
    file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or truncated, or of no format that is known.
        ImportError: the package that reads this format is not installed.
    """
    path = existing_file(path)
    with path.open("rb") as file:
        start = file.read(16)
    if start[tflite.MAGIC_OFFSET :].startswith(tflite.MAGIC):
        model = tflite.read_tflite(path)
        paddings = sorted({str(convolution.padding) for convolution in model.convolutions})
        return WeightsFile(
            f"TensorFlow Lite ({', '.join(sorted(model.types))})",
            model.tensors,
            "OHWI",
            ", ".join(paddings),
            model.convolutions,
        )
    if start.startswith(HDF5_MAGIC):
        keras = read_keras(path)
        return WeightsFile("Keras HDF5", keras.tensors, "HWIO", keras.padding or NOT_STATED)
    if start[8:9] == b"{":
        return WeightsFile("safetensors", read_safetensors(path))
    if start.lstrip()[:1] in (b"[", b"{"):
        return WeightsFile("TensorFlow.js", read_tfjs(path), "HWIO")
    if path.suffix == ".pb":
        graph = read_graphdef(path)
        padding = ", ".join(sorted(graph.paddings)) or NOT_STATED
        return WeightsFile("TensorFlow GraphDef", graph.tensors, "HWIO", padding)
    if path.suffix == INDEX_SUFFIX:
        return WeightsFile("TensorFlow checkpoint", read_tensorflow_checkpoint(path), "HWIO")
    if path.suffix == ".caffemodel":
        return WeightsFile("Caffe", read_caffe(path))
    return WeightsFile("torch checkpoint", read_checkpoint(path))
