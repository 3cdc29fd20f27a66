"""Values on the host executor: matrix products, shuffles, conversions of 2-byte floats."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from cuda_on_host import build, host_library

KINDS = ("exact", "tf32", "fp16", "bf16")
DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16)


def pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def rounded_to_tf32(values: Tensor) -> Tensor:
    """Nearest with 10 bits of mantissa, ties away from zero."""
    bits = values.view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("order", range(len(host_library.ORDERS)), ids=host_library.ORDERS)
@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_products(kind: int, order: int) -> None:
    library = ctypes.CDLL(str(build.planted_bugs_library()))
    generator = torch.Generator().manual_seed(kind)
    a, b = (torch.randn(16, 64, generator=generator).to(DTYPES[kind]) for _ in range(2))
    y = torch.full((16, 16), torch.nan)
    library.fastdw_host_set_order(order, ctypes.c_uint64(7))
    assert library.fastdw_product_run(kind, *pointers(a, b, y)) == 0
    library.fastdw_host_set_order(0, ctypes.c_uint64(0))
    if KINDS[kind] == "tf32":
        a, b = rounded_to_tf32(a), rounded_to_tf32(b)
    truth = a.double() @ b.double().T
    magnitude = a.double().abs() @ b.double().abs().T
    assert ((y - truth).abs() <= 64 * 2**-24 * magnitude).all()


def test_shuffles_and_votes() -> None:
    library = ctypes.CDLL(str(build.planted_bugs_library()))
    results = torch.empty(5, 32, dtype=torch.int32)
    assert library.fastdw_shuffle_run(*pointers(results)) == 0
    lanes = torch.arange(32)
    votes = sum(1 << lane for lane in range(0, 32, 3))
    expected = [
        torch.full((32,), 5),
        torch.where(lanes % 8 >= 3, lanes - 3, lanes),
        torch.where(lanes % 16 < 13, lanes + 3, lanes),
        lanes ^ 9,
        torch.full((32,), votes),
    ]
    for result, row in zip(results, expected, strict=True):
        assert torch.equal(result, row.int())


def interesting_floats() -> Tensor:
    """All 2-byte floats, what lies halfway between two of them and beside that, and random bits."""
    near = [
        torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).float()
        for dtype in (torch.float16, torch.bfloat16)
    ]
    halves = near[0][:31743].double()
    near.append(((halves[1:] + halves[:-1]) / 2).float())
    values = torch.cat([*near, -near[-1]])
    bits = values.view(torch.int32)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-(2**31), 2**31, (100000,), generator=generator).to(torch.int32)
    return torch.cat([values, (bits + 1).view(torch.float32), noise.view(torch.float32)])


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert torch.equal(actual.isnan(), expected.isnan())
    known = ~expected.isnan()
    bits = torch.int32 if expected.dtype == torch.float32 else torch.int16
    assert torch.equal(actual[known].view(bits), expected[known].view(bits))


@pytest.mark.parametrize("kind", ["native", "portable"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_conversions(dtype: torch.dtype, kind: str) -> None:
    job = (build.HERE / f"{kind}_conversions.cpp", [])
    library = ctypes.CDLL(str(build.Build().shared_library(f"{kind}_conversions.so", [job], [])))
    known = "half" if dtype == torch.float16 else "bfloat16"

    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    wide = torch.empty(65536)
    getattr(library, f"fastdw_from_{known}")(*pointers(every, wide), ctypes.c_size_t(65536))
    assert_same(wide, every.float())

    values = interesting_floats()
    narrow = torch.empty(len(values), dtype=dtype)
    getattr(library, f"fastdw_to_{known}")(*pointers(values, narrow), ctypes.c_size_t(len(values)))
    assert_same(narrow, values.to(dtype))
