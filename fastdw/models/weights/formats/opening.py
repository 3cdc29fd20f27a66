"""What all readers do alike: look whether there is a file, and say that it is damaged."""

from __future__ import annotations

from pathlib import Path


def existing_file(path: str | Path) -> Path:
    """Return ``path`` if a file is there, else raise FileNotFoundError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no file {str(path)!r}")
    return path


def damaged(path: str | Path, error: Exception) -> ValueError:
    """What to raise where a library's reader fails: one sentence, whatever the library says."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"path: {path} is damaged or truncated ({lines[0].rstrip('.')})")
