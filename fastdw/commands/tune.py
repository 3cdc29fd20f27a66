"""`fastdw tune`: find tiles of the Triton kernels for this machine's GPU."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from fastdw.commands.output import AsJson, InputError, emit, progress


def tune(
    op: Annotated[list[str] | None, typer.Option(help="Only these ops; default: all.")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp16, bf16, tf32, fp32; default: fp16 and tf32.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Images a call; default: 1 and 32.")
    ] = None,
    tiles: Annotated[int, typer.Option(min=1, help="Tiles tried for a shape class.")] = 40,
    dry_run: Annotated[bool, typer.Option(help="Measure, but store nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure tiles of the Triton kernels on this GPU and keep the best for later processes.

    The table is kept in the user's cache folder; without one the shipped tiles are used.
    """
    from fastdw.benchmark.gpu.device import open_device
    from fastdw.benchmark.gpu.settings import DTYPES
    from fastdw.ops import triton_backend
    from fastdw.ops.registration import OPS

    kind = "cpu" if triton_backend.interpreting() else "cuda"
    reason = triton_backend.reason(kind)
    if reason is not None:
        raise InputError(f"the Triton kernels cannot run here: {reason}")
    try:
        device = open_device(kind)
    except RuntimeError as error:
        raise InputError(str(error)) from None
    from fastdw.benchmark.tuning import GRADIENTS, tune
    from fastdw.triton_kernels import tuning

    _check("--op", op, [*OPS, *GRADIENTS])
    _check("--precision", precision, list(DTYPES))
    found = []
    path = tuning.table_path(device.name())
    with progress() as bar:
        task = bar.add_task("tuning", total=None)

        def on_key(key: tuple[str, str], number: int, count: int) -> None:
            bar.update(task, description=" ".join(key), completed=number, total=count)

        chosen = (op or (*OPS, *GRADIENTS), precision or ("fp16", "tf32"), batch or (1, 32))
        for result in tune(device, *chosen, tiles, on_key):
            found.append(result)
            if not dry_run:
                tuning.save(path, {result.op: {result.shape_class: result.tile}})
    table = Table("op", "shape class", "layers", "shipped ms", "found ms", "tile")
    for row in found:
        times = (f"{row.shipped_ms:.4f}", f"{row.tile_ms:.4f}")
        table.add_row(row.op, row.shape_class, str(row.layers), *times, _text(row.tile))
    where = "nothing stored" if dry_run else f"stored in {path}"
    table.caption = f"{device.name()}; times are sums over the layers; {where}"
    payload: dict[str, Any] = {"device": device.name(), "found": [asdict(row) for row in found]}
    payload["stored"] = None if dry_run else str(path)
    emit(payload, table, as_json=as_json)


def _check(argument: str, given: list[str] | None, known: list[str]) -> None:
    for name in given or ():
        if name not in known:
            raise InputError(f"{argument}: expected one of {', '.join(known)}, got {name!r}")


def _text(tile: Any) -> str:
    sizes = " ".join(f"{name}={size}" for name, size in tile.sizes.items())
    return f"{sizes}, {tile.num_warps} warps, {tile.num_stages} stages"
