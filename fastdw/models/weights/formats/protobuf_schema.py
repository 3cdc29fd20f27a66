"""Message classes from a few lines of schema: only the fields that are read, no generated code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdw.models.weights.formats.opening import damaged

Schema = Mapping[str, Mapping[str, tuple[int, str]]]
"""Message -> field -> (number, type): a scalar of protobuf or a message, ``*`` after a repeated
one, ``map<string, M>`` written as ``map M``. Fields of other numbers are skipped as protobuf does.
"""


def message_classes(package: str, schema: Schema) -> dict[str, Any]:
    """Return a class for each message of ``schema``.

    Raises:
        ImportError: the package ``protobuf`` is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise ImportError(f"this format needs the package protobuf ({error})") from error
    scalars = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package)
    file.syntax = "proto2"
    for message_name, fields in schema.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            repeated = kind.endswith("*") or kind.startswith("map ")
            field.label = scalars.LABEL_REPEATED if repeated else scalars.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            if kind.startswith("map "):
                entry = message.nested_type.add(name=f"{field_name.title().replace('_', '')}Entry")
                entry.options.map_entry = True
                entry.field.add(
                    name="key", number=1, type=scalars.TYPE_STRING, label=scalars.LABEL_OPTIONAL
                )
                entry.field.add(
                    name="value",
                    number=2,
                    type=scalars.TYPE_MESSAGE,
                    type_name=f".{package}.{kind.removeprefix('map ')}",
                    label=scalars.LABEL_OPTIONAL,
                )
                field.type = scalars.TYPE_MESSAGE
                field.type_name = f".{package}.{message_name}.{entry.name}"
            elif kind in schema:
                field.type, field.type_name = scalars.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = scalars.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in schema
    }


def parse_file(message: Any, path: Path) -> None:
    """Fill a message with a whole file.

    Raises:
        ValueError: the file is damaged or truncated.
    """
    try:
        message.ParseFromString(path.read_bytes())
    except Exception as error:  # DecodeError, whose class depends on protobuf's implementation
        raise damaged(path, error) from error
