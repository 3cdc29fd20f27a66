"""`fastdw verify`: the kernels against the float64 reference, on this machine."""

from __future__ import annotations

import typer
from rich.table import Table

from fastdw.commands.output import AsJson, emit, stderr


def verify(as_json: AsJson = False) -> None:
    """Check each op x backend x ISA x dtype; exit code 1 if an error is beyond its budget."""
    from fastdw.benchmark import environment
    from fastdw.benchmark.verify import Verdict
    from fastdw.benchmark.verify import verify as verdicts_of

    with stderr.status("checking") as status:
        verdicts = list(verdicts_of(lambda op: status.update(f"checking {op}")))
    wrong = [v for v in verdicts if v.status in ("over", "failed")]

    def row(verdict: Verdict) -> tuple[str, ...]:
        color = {"ok": "green", "refused": "yellow"}.get(verdict.status, "bold red")
        worst = "-" if verdict.worst is None else f"{verdict.worst:.3f}"
        remark = verdict.reason or verdict.worst_case or ""
        status = f"[{color}]{verdict.status}"
        where = (verdict.op, verdict.backend, verdict.isa, verdict.dtype)
        return (*where, str(verdict.cases), worst, status, remark)

    table = Table(
        *("op", "backend", "isa", "dtype", "cases", "worst error / budget", "", "worst case"),
        title="every kernel against the float64 reference",
        caption=f"{len(verdicts)} checks, {len(wrong)} wrong; above 1 is wrong",
    )
    for verdict in verdicts:
        table.add_row(*row(verdict))
    payload = {
        "environment": environment.describe(),
        "verdicts": [verdict.to_dict() for verdict in verdicts],
        "wrong": len(wrong),
    }
    emit(payload, table, as_json=as_json)
    if wrong or not any(verdict.status == "ok" for verdict in verdicts):
        raise typer.Exit(1)
