"""Read a weights file, translate its names, and load it into one of our models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fastdw.models.weights import caffe, keras, slim, timm, torchvision, transformers
from fastdw.models.weights.convolution import folded_state, layers_in_order
from fastdw.models.weights.files import WeightsFile, read_file
from fastdw.nn import ConvBNAct

StateDict = Mapping[str, Tensor]

OPTIONAL = ("num_batches_tracked", "anchors")
"""Buffers that a file may leave as they are."""


def read(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a file in any format, by its own names and in its own layout.

    A checkpoint of ``torch.save`` is read with ``weights_only=True``; a dict around its
    ``state_dict`` under the key ``"state_dict"`` or ``"model"`` is taken off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or truncated, or holds something else.
        ImportError: the package that reads this format is not installed.
    """
    return read_file(path).tensors


def translate(state_dict: StateDict) -> dict[str, Tensor]:
    """Return ``state_dict`` under our names and in torch's layout.

    Known are the MobileNets of torchvision (V2), timm, transformers, TF-slim and Keras, and the
    SSDs of TensorFlow, face-api and Caffe.

    Raises:
        ValueError: the names are none of these and not ours, or the weights under a source's names
            have other shapes than the source gives them.
    """
    for source in (torchvision, timm, transformers):
        if source.recognizes(state_dict):
            return {ours: state_dict[key] for key, ours in source.renamed(state_dict).items()}
    for origin in (slim, keras, caffe):
        if origin.recognizes(state_dict):
            try:
                return origin.translated(state_dict)
            except (RuntimeError, IndexError, ValueError) as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"state_dict: a weight has not the shape that its name says ({reason})"
                ) from error
    if any(name.endswith("stem.conv.weight") for name in state_dict):
        return dict(state_dict)
    shown = ", ".join(list(state_dict)[:3])
    raise ValueError(
        "state_dict: expected a MobileNet of torchvision, timm or fastdw, of transformers, "
        f"TF-slim, Keras or Caffe, got names such as {shown or 'none'}"
    )


def _check_conventions(model: nn.Module) -> None:
    """Raise ValueError unless ``model`` pads and normalizes as TensorFlow's networks do."""
    for name, module in model.named_modules():
        if not isinstance(module, ConvBNAct):
            continue
        pads_both_sides = module.padding is None and max(module.conv.stride) > 1
        if pads_both_sides or module.bn.eps != slim.EPS:
            raise ValueError(
                f"source: TensorFlow's weights want a model with eps={slim.EPS} and "
                f'padding="same" (Keras\' V1: "keras_v1"); {name} is built otherwise'
            )


def state_for(model: nn.Module, found: WeightsFile) -> dict[str, Tensor]:
    """Return the ``state_dict`` that a file has for ``model``.

    Where the file tells the order in which convolutions run, that counts, and names do not: see
    ``layers_in_order``.

    Raises:
        ValueError: the weights are those of another architecture, the names are unknown, or the
            model pads or normalizes in another way than the network of the weights.
    """
    if found.convolutions is not None:
        return folded_state(model, layers_in_order(model), found.convolutions)
    if any(origin.recognizes(found.tensors) for origin in (slim, keras, transformers)):
        _check_conventions(model)
    return translate(found.tensors)


def load(model: nn.Module, source: str | Path | StateDict) -> nn.Module:
    """Load weights into ``model`` and return it.

    Args:
        model: a ``fastdw.models`` model of the same architecture.
        source: the path of a file in a format that ``read_file`` knows, or a ``state_dict``; of our
            own models or of a source that ``translate`` knows. A ``.tflite`` file may be of any
            network whose convolutions run in the model's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, the names are unknown, or the weights are those of another
            architecture; the model is then unchanged.
        ImportError: the package that reads this format is not installed.
    """
    if isinstance(source, Mapping):
        source_file = WeightsFile("state_dict", dict(source))
    else:
        source_file = read_file(source)
    state_dict = state_for(model, source_file)
    check_state(model, state_dict)
    model.load_state_dict({**model.state_dict(), **state_dict})
    return model


def check_state(model: nn.Module, state_dict: StateDict) -> None:
    """Raise ValueError unless ``state_dict`` has every weight of ``model`` in its shape."""
    own = model.state_dict()
    optional = {name for name in own if name.endswith(OPTIONAL)}
    if missing := sorted(own.keys() - state_dict.keys() - optional):
        raise ValueError(f"source: {len(missing)} weights are missing, the first is {missing[0]!r}")
    if unknown := sorted(state_dict.keys() - own.keys()):
        raise ValueError(f"source: {len(unknown)} weights are unknown, the first is {unknown[0]!r}")
    for name, tensor in state_dict.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"source: {name}: expected {list(own[name].shape)}, got {list(tensor.shape)}"
            )
