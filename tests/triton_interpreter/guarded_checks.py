"""A kernel run on tensors flush against inaccessible pages: no mask may let it beyond a buffer."""

from __future__ import annotations

from typing import Any

import guarded_memory
import torch
from op_checks import expected, schema_arguments
from shapes import Case
from tolerances import assert_correct
from torch import Tensor
from torch.utils._pytree import tree_map

from fastdw.ops import triton_backend


def check_guarded(case: Case, dtype: torch.dtype = torch.float32) -> None:
    """Assert that the values are right with every tensor guarded, at its start and at its end.

    A read or write beyond a buffer ends the process.
    """
    args, kwargs, truth, magnitude = expected(case, "normal", dtype)
    call = schema_arguments(case, args, kwargs)
    empty = torch.full(truth.shape, torch.nan, dtype=dtype)
    if empty.dim() == 4:
        empty = empty.to(memory_format=torch.channels_last)
    for at_end in (False, True):
        with guarded_memory.Arena() as arena:

            def guarded(leaf: Any, arena: Any = arena, at_end: bool = at_end) -> Any:
                return arena.copy(leaf, at_end) if isinstance(leaf, Tensor) else leaf

            y, guarded_call = guarded(empty), tree_map(guarded, call)
            triton_backend.run(case.op, y, *guarded_call)
            assert_correct(y, truth, magnitude, case.terms)
            del y, guarded_call
