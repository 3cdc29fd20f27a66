"""Safetensors files, as transformers and timm publish."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fastdw.models.weights.formats.opening import damaged, existing_file


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a ``.safetensors`` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or truncated, or something else.
        ImportError: the package ``safetensors`` is not installed.
    """
    path = existing_file(path)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f".safetensors files need the package safetensors ({error})") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error
