"""What TensorFlow's graphs and checkpoints have in common."""

from __future__ import annotations

from fastdw.models.weights.formats.protobuf_schema import Schema

FLOATING = {1: "<f4", 2: "<f8", 19: "<f2"}
"""Number of a dtype in tensorflow/core/framework/types.proto -> how numpy reads its bytes."""

SHAPE_SCHEMA: Schema = {
    "Dim": {"size": (1, "int64")},
    "TensorShapeProto": {"dim": (2, "Dim*")},
}
"""From tensorflow/core/framework/tensor_shape.proto."""
