"""What the tests of the block kernel share: how far rounded hidden values may lead, and what a
launch moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from op_checks import expected, schema_arguments
from shapes import Case, arguments
from torch import Tensor

from cuda_on_host import host_library
from cuda_on_host.host_checks import check_on_host, run_on_host

SECTOR = 32
ROUNDINGS = 3  # of hidden values: after expand, after depthwise, and what smooth activations add


# Assert that the block's values are correct, its hidden values rounded to the dtype.
check_block = partial(check_on_host, roundings=ROUNDINGS)


def eager_in_steps(case: Case, args: Any, kwargs: Any) -> Tensor:
    """Return what torch gives where every step of the block is rounded to the dtype."""
    x, *convs = args
    if case.op == "separable_block":
        convs = [None, *convs]
    y = x
    for conv, sliding in zip(convs, (False, True, False), strict=True):
        if conv is None:
            continue
        weight, scale, bias, activation = conv
        window = {k: kwargs[k] for k in ("stride", "padding", "dilation")} if sliding else {}
        groups = y.shape[1] if sliding else 1
        y = torch.nn.functional.conv2d(y, weight, None, groups=groups, **window)
        y = y * scale.to(y.dtype)[:, None, None] + bias.to(y.dtype)[:, None, None]
        y = {"relu6": torch.nn.functional.relu6, "none": lambda value: value}[activation](y)
    return y + x if kwargs.get("residual") else y


def check_error_against_eager(cases: Sequence[Case], dtype: torch.dtype) -> None:
    """Assert that the root-mean-square error is at most twice that of eager torch in ``dtype``."""
    for case in cases:
        args, kwargs, truth, _ = expected(case, "normal", dtype)
        ours = (run_on_host(case, args, kwargs) - truth).square().mean()
        eager = (eager_in_steps(case, args, kwargs) - truth).square().mean()
        assert ours.sqrt() <= 2 * eager.sqrt(), case


@dataclass
class Launch:
    """What one launch of a block moved, in bytes of distinct 32-byte sectors and as requested."""

    counts: dict[str, Any]
    ideal: dict[str, int]
    y_element: int

    def distinct(self, buffer: str, way: str = "read") -> int:
        """Return the bytes of the sectors that were touched."""
        return SECTOR * self.counts["buffers"].get(buffer, {}).get(way, {}).get(
            "distinct_sectors", 0
        )

    def requested(self, buffer: str, way: str = "read") -> int:
        """Return the bytes of the sectors of all requests."""
        return SECTOR * self.counts["buffers"].get(buffer, {}).get(way, {}).get(
            "request_sectors", 0
        )

    @property
    def splits(self) -> int:
        """How many thread blocks share the hidden channels of a tile: all but one write sums."""
        elements = self.ideal["y"] // self.y_element
        sums = self.distinct("other", "written") - self.ideal["y"]
        return 1 + round(sums / (4 * elements))

    @property
    def conflicts(self) -> dict[str, int]:
        """Wavefronts beyond one a request, by kind of access to shared memory."""
        kinds: dict[str, int] = {}
        for site in self.counts["shared"]:
            kinds[site["access"]] = kinds.get(site["access"], 0) + site["conflicts"]
        return kinds


def counted(case: Case, dtype: torch.dtype, device: str = "A100") -> list[Launch]:
    """Run the block once and return its launches. Buffers: x, and each convolution's weight."""
    call = schema_arguments(case, *arguments(case, "normal", dtype))
    weights = [value for value in call[1:] if isinstance(value, Tensor) and value.dim() == 4]
    names = ["expand", "depthwise", "project"][-len(weights) :]
    buffers = {"x": call[0], **dict(zip(names, weights, strict=True))}
    ideal = {name: tensor.nbytes for name, tensor in buffers.items()}
    with host_library.device(device), host_library.counted(**buffers) as launches:
        y = host_library.op(case.op)(*call)
    ideal["y"] = y.nbytes
    return [Launch(counts, ideal, y.element_size()) for counts in launches]
