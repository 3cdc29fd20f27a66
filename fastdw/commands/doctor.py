"""`fastdw doctor`: versions, processor, threads, which backends loaded and why not."""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table

from fastdw.commands.output import AsJson, emit, one_line


def doctor(as_json: AsJson = False) -> None:
    """Show what fastdw found here; exit code 1 if the C++ kernels cannot be loaded."""
    from fastdw.backends import current_backend, support_table
    from fastdw.benchmark import environment

    loaded = backends()
    found = {
        "environment": environment.describe(),
        "backend": current_backend(),
        "backends": loaded,
        "support": support_table(),
    }
    emit(found, *tables(found), as_json=as_json)
    if not loaded["cpp"]["loaded"]:
        raise typer.Exit(1)


def backends() -> dict[str, dict[str, Any]]:
    """Each backend: whether it is loaded, and details, or the reason why it is not."""
    return {
        "cpp": _cpp(),
        "cpp on cuda": _cuda(),
        "triton": _triton(),
        "torch": {"loaded": True, "details": "reference"},
    }


def _cpp() -> dict[str, Any]:
    from fastdw import native

    try:
        native.load()
        active = native.active_isa()
    except (ImportError, RuntimeError) as error:  # not built; FASTDW_CPU_ISA names none
        return {"loaded": False, "reason": one_line(error)}
    return {
        "loaded": True,
        "details": f"{active} in use, of {', '.join(native.supported_isas())}",
        "isa": active,
        "supported_isas": native.supported_isas(),
        "library": native.library_path(),
    }


def _cuda() -> dict[str, Any]:
    from fastdw import native

    reason = native.cuda_reason()
    if reason is not None:
        return {"loaded": False, "reason": one_line(reason)}
    targets = native.cuda_targets()
    details = f"machine code for {', '.join(targets)}, PTX for others"
    return {"loaded": True, "details": details, "targets": targets}


def _triton() -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    from fastdw.ops import triton_backend

    reason = triton_backend.missing()
    if reason is None and not torch.cuda.is_available():
        reason = f"Triton {version('triton')} is there, torch finds no GPU"
    elif reason is None:
        reason = triton_backend.reason("cuda")
    if reason is not None:
        return {"loaded": False, "reason": reason}
    return {"loaded": True, "details": f"Triton {version('triton')}"}


def tables(found: dict[str, Any]) -> list[Table]:
    about = Table(title="environment", show_header=False)
    for name, value in found["environment"].items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if name == "caches" else str(value)
        about.add_row(name, text)

    loaded = Table("backend", "loaded", "details", title=f"backends ({found['backend']} in use)")
    for name, row in found["backends"].items():
        details = row["details"] if row["loaded"] else row["reason"]
        loaded.add_row(name, "[green]yes" if row["loaded"] else "[red]no", details)

    support = Table("op", "backend", "devices", "dtypes", title="kernels")
    for row in found["support"]:
        support.add_row(row["op"], row["backend"], row["devices"], row["dtypes"])
    return [about, loaded, support]
