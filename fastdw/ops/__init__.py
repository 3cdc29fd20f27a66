"""The functional ops. Each computes ``activation(scale * conv(x) + bias) + residual`` in one call.

Importing this package loads the native library if it is built and registers ``torch.ops.fastdw``.
"""

from fastdw.backends import BackendRefused, current_backend, use_backend
from fastdw.ops import registration
from fastdw.ops.classifier_head import classifier_head
from fastdw.ops.depthwise_conv import depthwise_conv
from fastdw.ops.depthwise_conv_pooled import depthwise_conv_pooled
from fastdw.ops.inverted_residual import inverted_residual
from fastdw.ops.pointwise_conv import pointwise_conv
from fastdw.ops.separable_block import separable_block
from fastdw.ops.stem_conv import stem_conv
from fastdw.reference import Conv

registration.load()

__all__ = [
    "BackendRefused",
    "Conv",
    "classifier_head",
    "current_backend",
    "depthwise_conv",
    "depthwise_conv_pooled",
    "inverted_residual",
    "pointwise_conv",
    "separable_block",
    "stem_conv",
    "use_backend",
]
