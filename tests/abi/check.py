"""Runs the installed fastdw against plain torch and looks at the symbols of its library."""

from __future__ import annotations

import subprocess
from typing import Any

import torch
from torch import Tensor

import fastdw
from fastdw import native, ops, reference


def check_symbols() -> None:
    """The library asks nothing of Python, so it serves every Python."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", native.library_path()],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = [line.split()[-1] for line in listing.splitlines()]
    python = [name for name in names if name.startswith(("Py", "_Py"))]
    assert names and not python, python


def calls(dtype: torch.dtype) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of each op."""
    torch.manual_seed(0)

    def conv(channels_out: int, *fan: int) -> tuple[Tensor, Tensor, Tensor, str]:
        weight = torch.randn(channels_out, *fan, dtype=dtype) / 5
        return weight, torch.rand(channels_out), torch.randn(channels_out), "relu6"

    x, image = torch.randn(2, 17, 12, 11, dtype=dtype), torch.randn(1, 3, 15, 16, dtype=dtype)
    expand, depthwise = conv(40, 17, 1, 1), conv(40, 1, 3, 3)
    separable = conv(17, 1, 5, 5), conv(33, 17, 1, 1)
    return {
        "depthwise_conv": ((x, *conv(17, 1, 3, 3)[:3]), {"stride": 2, "padding": "same"}),
        "pointwise_conv": ((x, *conv(33, 17, 1, 1)[:3]), {"activation": "hardswish"}),
        "stem_conv": ((image, *conv(8, 3, 3, 3)[:3]), {"activation": "silu"}),
        "separable_block": ((x, *separable), {"padding": 2}),
        "inverted_residual": ((x, expand, depthwise, conv(17, 40, 1, 1)), {}),
        "classifier_head": ((x, torch.randn(9, 17, dtype=dtype), torch.randn(9)), {}),
    }


def check_ops() -> int:
    checked = 0
    for isa in native.supported_isas():
        with native.force_isa(isa):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
                for name, (args, kwargs) in calls(dtype).items():
                    if name == "classifier_head" and dtype != torch.float32:
                        args = (*args[:2], args[2].to(dtype))
                    actual = getattr(ops, name)(*args, **kwargs)
                    expected = getattr(reference, name)(*args, **kwargs)
                    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
                    checked += 1
    return checked


def check_network() -> None:
    """A whole network: the planned op, its program and its packed weights."""
    torch.manual_seed(0)
    model = fastdw.models.mobilenet_v2(width=0.35).eval()
    x = torch.randn(3, 3, 96, 96)
    with torch.no_grad():
        with fastdw.use_backend("torch"):
            expected = model(x)
        actual = fastdw.optimize(model, x)(x)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert actual.abs().max() > 0


def check_errors() -> None:
    try:
        torch.ops.fastdw.classifier_head_packed(torch.ones(1, 2, 3, 3), torch.ones(4), 2)
    except RuntimeError as error:
        assert "packed: expected one contiguous row of bytes" in str(error), error
    else:
        raise AssertionError("a wrong blob was taken")


if __name__ == "__main__":
    native.load()
    check_symbols()
    checked = check_ops()
    check_errors()
    check_network()
    print(
        f"torch {torch.__version__} runs fastdw built with torch {native.built_with_torch()}: "
        f"{checked} op calls on {', '.join(native.supported_isas())} and a network are right"
    )
