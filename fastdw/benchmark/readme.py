"""The generated parts of README.md: `python -m fastdw.benchmark.readme README.md` (make readme).

A part stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; a test compares the support
table with the backend rows.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fastdw.backends import support_table
from fastdw.benchmark.report import markdown_table, read_csv

PROOFS = (
    ("`cpp` on the CPU", "run, on every instruction set, by the tests", "-"),
    (
        "`cpp` on CUDA",
        "run unmodified on a host executor; compiled for 8.0 to 12.0, machine code read; in fp16 "
        "and tf32 an earlier stage ran on an H100",
        "today's kernels, bf16, fp32 and other GPUs on hardware",
    ),
    (
        "`triton`",
        "run in Triton's interpreter; compiled for sm_80 to sm_120 and gfx942, machine code read; "
        "in fp16 an earlier stage ran on an H100",
        "today's kernels, other dtypes, other GPUs and gradients on hardware",
    ),
    ("`torch`", "the definition of right", "-"),
)
"""What was executed where, and what was only compiled."""

NOT_MEASURED = "Not measured yet: `make bench` measures, `make readme` writes this table."


def support_markdown() -> str:
    """The backend rows, an op a line and a backend a column."""
    rows = support_table()
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    lines = ["| op | " + " | ".join(f"`{b}`" for b in backends) + " |"]
    lines.append("|---" * (len(backends) + 1) + "|")
    for op in dict.fromkeys(row["op"] for row in rows):
        cells = []
        for backend in backends:
            found = [r for r in rows if r["op"] == op and r["backend"] == backend]
            cells.append("; ".join(f"{r['devices']}: {r['dtypes']}" for r in found) or "-")
        lines.append(f"| `{op}` | " + " | ".join(cells) + " |")
    lines += ["", "| kernels | how they are known to be right | not shown yet |", "|---|---|---|"]
    lines += [f"| {' | '.join(proof)} |" for proof in PROOFS]
    return "\n".join(lines)


def measured_markdown(results: Path) -> str:
    rows = read_csv(sorted(results.glob("*/models*.csv")))
    return markdown_table(rows) if rows else NOT_MEASURED


def part_of(readme: str, name: str) -> str:
    """What stands between the markers of a part."""
    return _marked(name, readme).group(2).strip()


def replace_part(readme: str, name: str, text: str) -> str:
    """The README with another text between the markers of a part."""
    match = _marked(name, readme)
    return f"{readme[: match.end(1)]}\n{text}\n{readme[match.start(3) :]}"


def _marked(name: str, readme: str) -> re.Match[str]:
    begin, end = re.escape(f"<!-- {name}:begin -->"), re.escape(f"<!-- {name}:end -->")
    match = re.search(f"({begin})(.*?)({end})", readme, re.DOTALL)
    if match is None:
        raise ValueError(f"README: no <!-- {name}:begin --> ... <!-- {name}:end -->")
    return match


def main() -> None:
    path = Path(sys.argv[1])
    text = replace_part(path.read_text(), "support", support_markdown())
    measured = measured_markdown(path.parent / "bench" / "results")
    path.write_text(replace_part(text, "measured", measured))
    print(f"wrote the support table and the measured table of {path}")


if __name__ == "__main__":
    main()
