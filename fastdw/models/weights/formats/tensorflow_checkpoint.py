"""TensorFlow checkpoints (``model.ckpt.index`` beside ``model.ckpt.data-...``), as TF-slim's are.

The index is a sorted table in LevelDB's format, from a weight's name to where its bytes lie.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdw.models.weights.formats.opening import existing_file
from fastdw.models.weights.formats.protobuf_schema import Schema, message_classes
from fastdw.models.weights.formats.tensorflow_types import FLOATING, SHAPE_SCHEMA

SUFFIX = ".index"

# tensorflow/core/protobuf/tensor_bundle.proto
SCHEMA: Schema = {
    **SHAPE_SCHEMA,
    "BundleHeaderProto": {"num_shards": (1, "int32"), "endianness": (2, "int32")},
    "BundleEntryProto": {
        "dtype": (1, "int32"),
        "shape": (2, "TensorShapeProto"),
        "shard_id": (3, "int32"),
        "offset": (4, "int64"),
        "size": (5, "int64"),
    },
}

# tensorflow/core/lib/io/table_options.h and format.h
_FOOTER_BYTES, _TRAILER_BYTES = 48, 5
_MAGIC = 0xDB4775248B80FB57
_CRC_DELTA = 0xA282EAD8


def read_tensorflow_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the floating-point variables of a checkpoint: fp32, in TensorFlow's layout.

    The index is checked against its checksums, the weights only for their length.

    Args:
        path: the ``.index`` file; the data files lie beside it.

    Raises:
        FileNotFoundError: there is no such file, or a data file is missing.
        ValueError: a file is damaged or truncated, or something else.
        ImportError: the package ``protobuf`` is not installed.
    """
    path = existing_file(path)
    messages = message_classes("fastdw.bundle", SCHEMA)
    try:
        table = dict(_entries(path.read_bytes()))
        header = messages["BundleHeaderProto"].FromString(table.pop(b""))
        if header.endianness:
            raise ValueError("its numbers are big-endian")
        entries = {
            name.decode(): messages["BundleEntryProto"].FromString(value)
            for name, value in table.items()
        }
    except Exception as error:  # DecodeError, whose class depends on protobuf's implementation
        detail = str(error) or type(error).__name__
        raise ValueError(f"path: {path} is damaged or no checkpoint's index ({detail})") from error
    shards = _Shards(path, header.num_shards)
    stored = {name: shards.stored(name, entry) for name, entry in entries.items()}
    found = {
        name: shards.tensor(name, entry, stored[name])
        for name, entry in entries.items()
        if entry.dtype in FLOATING
    }
    if not found:
        raise ValueError(f"path: {path} holds no weights")
    return found


class _Shards:
    """The data files of a checkpoint, each read once."""

    def __init__(self, index: Path, count: int) -> None:
        self.index, self.count = index, count
        self.read: dict[int, bytes] = {}

    def stored(self, name: str, entry: Any) -> bytes:
        """The bytes of a variable of any type."""
        data = self.shard(entry.shard_id)[max(entry.offset, 0) : entry.offset + entry.size]
        if entry.offset < 0 or len(data) != entry.size:
            raise ValueError(f"path: {self.index}: the data of {name!r} is damaged or truncated")
        return data

    def tensor(self, name: str, entry: Any, data: bytes) -> Tensor:
        """The weight that an entry of the index describes."""
        shape, dtype = [dim.size for dim in entry.shape.dim], np.dtype(FLOATING[entry.dtype])
        if min(shape, default=0) < 0 or len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"path: {self.index}: {name!r} has {len(data)} bytes for {shape}")
        return torch.from_numpy(np.frombuffer(data, dtype).astype(np.float32).reshape(shape))

    def shard(self, number: int) -> bytes:
        if number not in self.read:
            stem = self.index.name.removesuffix(SUFFIX)
            path = self.index.with_name(f"{stem}.data-{number:05}-of-{self.count:05}")
            if not path.is_file():
                raise FileNotFoundError(f"path: no file {str(path)!r} beside {self.index.name}")
            self.read[number] = path.read_bytes()
        return self.read[number]


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of a sorted table."""
    footer = table[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError("its last bytes are not those of a table")
    _, after = _handle(footer, 0)  # of what describes the table itself
    index, _ = _handle(footer, after)
    for _, handle in _block(table, index):
        yield from _block(table, _handle(handle, 0)[0])


def _block(table: bytes, place: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block; a key repeats the start of the one before it."""
    offset, size = place
    block = table[offset : offset + size + _TRAILER_BYTES]
    if len(block) != size + _TRAILER_BYTES:
        raise ValueError("a block ends beyond the file")
    compression, masked = struct.unpack("<BI", block[size:])
    if _masked(_crc32c(block[: size + 1])) != masked:
        raise ValueError("a block has another checksum")
    if compression:
        raise ValueError("it is compressed, which TensorFlow's are not")
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    end, at, key = size - 4 - 4 * restarts, 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        at += own
        yield key, block[at : at + length]
        at += length


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """(offset, size) of a block, and where the handle ends."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _crc32c(data: bytes) -> int:
    """The CRC of Castagnoli's polynomial, reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _masked(crc: int) -> int:
    """As LevelDB stores it: a CRC of data that holds CRCs would be weak."""
    return ((crc >> 15 | crc << 17) + _CRC_DELTA) & 0xFFFFFFFF
