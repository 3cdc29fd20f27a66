"""Every op once on small shapes, for compute-sanitizer to watch: no check, no time."""

from __future__ import annotations

import sys

import torch

import fastdw.ops
from fastdw.benchmark.cases import OP_CASES
from fastdw.benchmark.gpu.settings import DTYPES


def main(device: str, backend: str) -> None:
    """Run all cases in fp16, bf16 and fp32; prints how many calls there were."""
    calls = 0
    with torch.no_grad():
        for precision in ("fp16", "bf16", "fp32"):
            for op, cases in OP_CASES.items():
                for case in cases:
                    tensors = case.tensors(DTYPES[precision]).map(lambda t: t.to(device))
                    case.call(getattr(fastdw.ops, op), tensors, backend=backend)
                    calls += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"all ops: {calls} calls", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
