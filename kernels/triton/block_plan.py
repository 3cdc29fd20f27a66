"""Whether the convolutions of a block are one kernel or one each.

One kernel keeps the hidden tensors on the chip, but has few programs and shifts and masks every tap
of every slab; apart, the hidden tensors go through the L2. On an H100 this library's CUDA kernels
were faster apart for every block without an expansion, and for the others up to some 8 MB of
expanded pixels (bench/results); nobody has timed Triton's.
"""

from __future__ import annotations

import os

VARIABLE = "FASTDW_TRITON_BLOCKS"
"""In the environment: ``fused`` or ``separate`` for all blocks, or ``fastest``: by the rule."""

MOST_EXPANDED_BYTES = 8 << 20
"""What an expansion may write and still be a launch of its own."""


def in_one_kernel(expanded_bytes: int) -> bool:
    """Say whether to fuse a block that expands its input to so many bytes (0: does not expand).

    Raises:
        ValueError: the variable has another value.
    """
    wish = os.environ.get(VARIABLE, "fastest")
    if wish not in ("fastest", "fused", "separate"):
        raise ValueError(f"{VARIABLE}: expected fastest, fused or separate, got {wish!r}")
    if wish == "fastest":
        return expanded_bytes > MOST_EXPANDED_BYTES
    return wish == "fused"
