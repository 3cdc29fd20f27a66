"""Read a weights file, translate its names, and load it into one of our models."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor, nn

from fastdw.models.weights import timm, torchvision

StateDict = Mapping[str, Tensor]


def read(path: str | Path) -> dict[str, Tensor]:
    """Read a ``state_dict`` saved by ``torch.save``, with ``weights_only=True``.

    A dict around it under the key ``"state_dict"`` or ``"model"`` is taken off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or truncated, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no file {str(path)!r}")
    try:
        _check_sums(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"path: {path} is damaged or truncated ({_first_line(error)})") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"path: {path} is no weights file ({_first_line(error)})") from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"path: {path} holds a {type(found).__name__}, expected a state_dict")
    strange = [k for k, v in found.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if strange:
        raise ValueError(f"path: {path} holds {strange[0]!r}, which is no named tensor")
    return dict(found)


def translate(state_dict: StateDict) -> dict[str, Tensor]:
    """Return ``state_dict`` under our names: torchvision's and timm's MobileNets are renamed.

    Raises:
        ValueError: the names are none of torchvision's, timm's or ours.
    """
    for source in (torchvision, timm):
        if source.recognizes(state_dict):
            return {ours: state_dict[key] for key, ours in source.renamed(state_dict).items()}
    if "stem.conv.weight" in state_dict:
        return dict(state_dict)
    shown = ", ".join(list(state_dict)[:3])
    raise ValueError(
        "state_dict: expected a MobileNet of torchvision, timm or fastdw, got names such as "
        f"{shown or 'none'}"
    )


def load(model: nn.Module, source: str | Path | StateDict) -> nn.Module:
    """Load weights into ``model`` and return it.

    Args:
        model: a ``fastdw.models`` model of the same architecture.
        source: the path of a file, or a ``state_dict``; of torchvision's ``mobilenet_v2``, timm's
            ``mobilenetv1_*`` or ``mobilenetv2_*``, or of our own models.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, the names are unknown, or the weights are those of another
            architecture; the model is then unchanged.
    """
    state_dict = translate(source if isinstance(source, Mapping) else read(source))
    own = model.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    if missing := sorted(own.keys() - state_dict.keys() - optional):
        raise ValueError(f"source: {len(missing)} weights are missing, the first is {missing[0]!r}")
    if unknown := sorted(state_dict.keys() - own.keys()):
        raise ValueError(f"source: {len(unknown)} weights are unknown, the first is {unknown[0]!r}")
    for name, tensor in state_dict.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"source: {name}: expected {list(own[name].shape)}, got {list(tensor.shape)}"
            )
    model.load_state_dict({**own, **state_dict})
    return model


def _check_sums(path: Path) -> None:
    """Check what ``torch.load`` does not: the checksums of a zip (0: saved without one)."""
    if is_zipfile(path):
        with ZipFile(path) as archive:
            for member in archive.infolist():
                if member.CRC:
                    archive.read(member)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
