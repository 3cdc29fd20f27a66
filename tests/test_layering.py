"""The laws of the code that can be checked by reading files."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("*.py", "*.cpp", "*.h", "*.inc", "*.cu", "*.cuh")
# From the top down; a layer may import only those below it. fastdw/__init__.py opens all doors.
LAYERS = (
    ("cli", "commands"),
    ("benchmark",),
    ("convert", "models"),
    ("plan",),
    ("nn",),
    ("ops", "backends"),
    ("reference", "activation", "folding", "geometry", "native"),
)


def files(folder: str, *patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in (ROOT / folder).rglob(pattern))


def own_files() -> list[Path]:
    """Every file of the repository: what git knows or would add."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.splitlines() if (path := ROOT / name).is_file()]


def test_kernels_include_no_torch_header() -> None:
    sources = files("kernels", *SOURCES)
    assert sources
    torch_include = re.compile(r"#\s*include\s*[<\"](torch|ATen|c10)\b")
    assert not [path for path in sources if torch_include.search(path.read_text())]


def test_kernels_is_no_python_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("upper", range(len(LAYERS)))
def test_layers_import_only_what_is_below(upper: int) -> None:
    """No module imports from a layer above its own."""
    forbidden = [name for layer in LAYERS[:upper] for name in layer]
    if not forbidden:
        return
    pattern = re.compile(
        rf"^\s*(?:from|import) fastdw\.({'|'.join(forbidden)})\b"
        rf"|^\s*from fastdw import .*\b({'|'.join(forbidden)})\b",
        re.MULTILINE,
    )
    for name in LAYERS[upper]:
        module = ROOT / "fastdw" / f"{name}.py"
        for path in [module] if module.exists() else files(f"fastdw/{name}", "*.py"):
            match = pattern.search(path.read_text())
            assert match is None, f"{path.relative_to(ROOT)}: {match and match.group().strip()}"


def test_names_of_files_say_what_is_in_them() -> None:
    vague = {"utils", "common", "helpers", "misc"}
    sources = [path for top in ("fastdw", "csrc", "kernels", "tests") for path in files(top, "*")]
    assert sources
    assert not [path for path in sources if path.stem in vague]


def test_sources_stay_short() -> None:
    tops = ("fastdw", "csrc", "kernels", "tests", "bench")
    sources = [path for top in tops for path in files(top, *SOURCES)]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources}
    assert {name: length for name, length in lengths.items() if length > 420} == {}


def test_no_file_names_a_machine_or_a_registry_host() -> None:
    # Spelled in pieces, so that this file passes its own test.
    hosts = (
        "pypi" + r"\.org",
        "pythonhosted" + r"\.org",
        "registry" + r"\.npmjs",
        "npmjs" + r"\.com",
    )
    paths = ("/wo" + "rk/", "/ro" + "ot/", "/ho" + r"me/\w", "/Us" + "ers/", r"\.py" + "env")
    pattern = re.compile("|".join((*hosts, *paths, r"\b(?:10|192\.168)(?:\.\d{1,3}){2,3}:\d")))
    found = []
    for path in own_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in pattern.finditer(text)]
    assert not found


def test_the_pinned_torch_stands_in_one_place() -> None:
    pin = re.compile(r"\btorch(?:vision)?==\d")
    pinned = [path.name for path in own_files() if pin.search(path.read_text(errors="ignore"))]
    assert pinned == ["pyproject.toml"]
