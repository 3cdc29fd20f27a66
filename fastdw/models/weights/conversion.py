"""Any weights file as a ``state_dict`` in torch's layout, and what was found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fastdw.models.weights import caffe, keras, slim, timm, torchvision, transformers
from fastdw.models.weights.files import NOT_STATED, WeightsFile
from fastdw.models.weights.load import check_state, state_for, translate
from fastdw.models.weights.slim import depthwise_kernel, kernel

_USUAL_PADDINGS = (
    (slim, "TensorFlow's SAME"),
    (keras, "0 before and 1 after at stride 2"),
    (transformers, "TensorFlow's SAME"),
    (torchvision, "1 all round"),
    (timm, "1 all round (TensorFlow's SAME in its tf_ models)"),
    (caffe, "1 all round"),
)
"""Whose names weights have -> how the networks of that source pad."""

BACKGROUND_HEADS = (1001, 21, 91)
"""Numbers of classes that say that class 0 is background: ImageNet's, Pascal VOC's and COCO's."""

_VARIANCES = ("moving_variance", "running_var", "/bn/1")
"""What the weights of a batch norm that is kept apart end with: TensorFlow's, torch's, Caffe's."""

_HEADS = ("head.linear.weight", "classifier.weight", "classifier.1.weight", "fc.weight")


@dataclass(frozen=True)
class Conversion:
    """Weights in torch's layout, and what the file they came from was like.

    Attributes:
        tensors: the ``state_dict``.
        names: whose names they have.
        format, layout, padding: of the file, see ``WeightsFile``.
        batch_norm: whether batch norms are folded into the convolutions.
        classes: outputs of the classifier, if one is found.
        class_offset: 1 if class 0 is background, 0 if not, None if that cannot be told.
    """

    tensors: dict[str, Tensor]
    names: str
    format: str
    layout: str
    padding: str
    batch_norm: str
    classes: int | None
    class_offset: int | None

    def about(self) -> dict[str, str]:
        """Everything but the tensors, for people and for the file's metadata."""
        offset = {
            None: "not known",
            0: "0",
            1: "1: class 0 is background",
        }
        return {
            "source format": self.format,
            "kernel layout": f"{self.layout} in the file, OIHW now",
            "batch norm": self.batch_norm,
            "padding": self.padding,
            "classes": "no classifier found" if self.classes is None else str(self.classes),
            "class offset": offset[self.class_offset],
            "names": self.names,
        }


def converted(found: WeightsFile, model: nn.Module | None = None) -> Conversion:
    """Bring the weights of a file into torch's layout, and under the names of a model if one fits.

    Args:
        found: what ``read_file`` gives.
        model: a model of ours that these weights are for. Without it, MobileNets get our names too,
            and everything else keeps the file's, or numbers where the file's say nothing.

    Raises:
        ValueError: the weights are not those of ``model``.
    """
    if model is not None:
        loaded = state_for(model, found)
        check_state(model, loaded)
        state, names = {**model.state_dict(), **loaded}, type(model).__name__
    elif found.convolutions is not None:
        state, names = _numbered(found), "numbers, in the order in which the convolutions run"
    else:
        try:
            state, names = translate(found.tensors), "fastdw's"
        except ValueError:
            state, names = _in_torch_layout(found), "the file's"
    classes = _classes(state)
    offset = None if classes is None else int(classes in BACKGROUND_HEADS or _is_detector(state))
    return Conversion(
        {name: tensor.contiguous() for name, tensor in state.items()},
        names,
        found.format,
        found.layout,
        _padding(found),
        _batch_norm(found),
        classes,
        offset,
    )


def save(conversion: Conversion, path: str | Path) -> None:
    """Write the weights as safetensors; what is known about them stands in the metadata.

    Raises:
        ImportError: the package ``safetensors`` is not installed.
        OSError: the file cannot be written.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(f"writing needs the package safetensors ({error})") from error
    try:
        save_file(conversion.tensors, path, {**conversion.about(), "format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _numbered(found: WeightsFile) -> dict[str, Tensor]:
    state = {}
    for index, convolution in enumerate(found.convolutions or ()):
        state[f"convolutions.{index}.weight"] = convolution.weight
        state[f"convolutions.{index}.bias"] = convolution.bias
    return state


def _in_torch_layout(found: WeightsFile) -> dict[str, Tensor]:
    if found.layout != "HWIO":
        return dict(found.tensors)
    return {name: _turned(name, tensor) for name, tensor in found.tensors.items()}


def _turned(name: str, tensor: Tensor) -> Tensor:
    if tensor.dim() == 4:
        return depthwise_kernel(tensor) if "depthwise" in name else kernel(tensor)
    return tensor.T if tensor.dim() == 2 else tensor


def _padding(found: WeightsFile) -> str:
    """What the file says, or else what networks with such names do."""
    if found.padding != NOT_STATED:
        return found.padding
    usual = (hint for source, hint in _USUAL_PADDINGS if source.recognizes(found.tensors))
    return f"{NOT_STATED}; by its names {next(usual, 'not known')}"


def _batch_norm(found: WeightsFile) -> str:
    """Count the statistics against the kernels; an optimizer's slots stand below their weight."""
    if found.convolutions is not None:
        return "folded into the convolutions"
    kernels = sum(
        tensor.dim() == 4 and name.rpartition("/")[0] not in found.tensors
        for name, tensor in found.tensors.items()
    )
    norms = sum(name.endswith(_VARIANCES) for name in found.tensors)
    if not norms:
        return "folded into the convolutions, or none"
    if norms >= kernels - 1:  # a last 1x1 convolution that stands for a linear layer has none
        return f"kept apart: {norms} beside {kernels} convolutions"
    return f"{norms} kept apart, {kernels} convolutions: folded, or none, in the others"


def _classes(state: Mapping[str, Tensor]) -> int | None:
    heads = [state[name] for name in _HEADS if name in state and state[name].dim()]
    if heads:
        return len(heads[0])
    if _is_detector(state) and (boxes := state["box_heads.0.bias"].numel() // 4):
        return state["class_heads.0.bias"].numel() // boxes
    return None


def _is_detector(state: Mapping[str, Tensor]) -> bool:
    return {"class_heads.0.bias", "box_heads.0.bias"} <= state.keys()
