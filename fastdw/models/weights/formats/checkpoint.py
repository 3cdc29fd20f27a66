"""``state_dict`` files of ``torch.save``: torchvision's, timm's, transformers' and our own."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

from fastdw.models.weights.formats.opening import damaged, existing_file


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a ``state_dict`` saved by ``torch.save``, with ``weights_only=True``.

    A dict around it under the key ``"state_dict"`` or ``"model"`` is taken off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or truncated, or holds something else.
    """
    path = existing_file(path)
    try:
        _check_sums(path)
        with warnings.catch_warnings():  # what they warn of is loaded, or refused in a sentence
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"path: {path} is no weights file ({_refused(error)})") from error
    except Exception as error:  # the unpickler follows whatever the bytes say
        if "TorchScript" in str(error):
            raise ValueError(f"path: {path} is a TorchScript program, no state_dict") from error
        raise damaged(path, error) from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"path: {path} holds a {type(found).__name__}, expected a state_dict")
    strange = [k for k, v in found.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if strange:
        raise ValueError(f"path: {path} holds {strange[0]!r}, which is no named tensor")
    return dict(found)


def _refused(error: pickle.UnpicklingError) -> str:
    """Why torch does not load it; its own message advises to run what is in the file."""
    found = re.search(r"[Uu]nsupported (?:global: )?GLOBAL ([\w.]+)", str(error))
    if found is None:
        return "nothing that torch.save writes of tensors alone"
    return f"it holds {found[1]}: to load that would run code, only tensors are loaded"


def _check_sums(path: Path) -> None:
    """Check what ``torch.load`` does not: the checksums of a zip (0: saved without one)."""
    if is_zipfile(path):
        with ZipFile(path) as archive:
            for member in archive.infolist():
                if member.CRC:
                    archive.read(member)
