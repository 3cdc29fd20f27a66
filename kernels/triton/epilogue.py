"""What follows every convolution, ``activation(scale * sum + bias)``, in fp32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clamp_below(value, bound):
    """max(value, bound); NaN passes."""
    return tl.maximum(value, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp(value, low, high):
    """min(max(value, low), high); NaN passes."""
    return tl.minimum(clamp_below(value, low), high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activate(value, ACTIVATION: tl.constexpr):
    """The activation of that name; the sums are fp32."""
    if ACTIVATION == "relu":
        value = clamp_below(value, 0.0)
    elif ACTIVATION == "relu6":
        value = clamp(value, 0.0, 6.0)
    elif ACTIVATION == "hardswish":
        value = value * clamp(value + 3.0, 0.0, 6.0) * (1.0 / 6.0)
    elif ACTIVATION == "silu":
        value = value / (1.0 + tl.exp(-value))
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return value


@triton.jit
def finish(total, scale_ptr, bias_ptr, channel, is_channel, ACTIVATION: tl.constexpr):
    """``activation(scale * total + bias)`` of fp32 sums ``[pixels, channels]``.

    ``channel`` and ``is_channel`` run along the last axis; a pointer that is None adds no code.
    """
    if scale_ptr is not None:
        total = total * tl.load(scale_ptr + channel, mask=is_channel, other=0.0)[None, :]
    if bias_ptr is not None:
        total = total + tl.load(bias_ptr + channel, mask=is_channel, other=0.0)[None, :]
    return activate(total, ACTIVATION)
