"""Builds fastdw/_C.so: one shared library against torch's stable ABI, without any Python symbol.

Each kernels/cpu/isa/<isa>/*.cpp is compiled with the flags of its instruction set, all else for the
baseline. CXX, CXXFLAGS and LDFLAGS are honoured; MAX_JOBS limits the compilers that run at once.
"""

import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools import __version__ as setuptools_version
from setuptools.command.build_ext import build_ext

if int(setuptools_version.split(".")[0]) < 77:
    raise SystemExit(
        f"fastdw: setuptools {setuptools_version} is too old to build with: "
        "run `python -m pip install --upgrade 'setuptools>=77'`, then install again."
    )
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402

ROOT = Path(__file__).resolve().parent
OBJECTS = ROOT / "build" / "objects"
OLDEST_TORCH = (2, 10)
COMMON_FLAGS = (
    "-O3 -std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math "
    "-Wall -Wextra -Wno-uninitialized -Wno-maybe-uninitialized"
).split()
ISA_FLAGS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = "-mavx2 -mfma -mf16c".split()
    ISA_FLAGS["avx512"] = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mavx2 -mf16c".split()


def compiler() -> list[str]:
    """The C++ compiler as a command, CXX first."""
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise SystemExit(
        "fastdw: no C++ compiler found: install one with `sudo apt-get install g++` "
        "(Fedora: `sudo dnf install gcc-c++`) or name one in CXX, then install again."
    )


def torch_flags() -> tuple[list[str], list[str]]:
    """Compiler and linker flags for the torch to build against."""
    try:
        import torch
    except ImportError:
        raise SystemExit(
            "fastdw: torch is not installed here, and fastdw builds against it: "
            "run `python -m pip install 'torch>=2.10'`, then install again."
        ) from None
    version = torch.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        raise SystemExit(
            f"fastdw: torch {version} is too old: "
            "run `python -m pip install --upgrade 'torch>=2.10'`, then install again."
        )
    target = (OLDEST_TORCH[0] << 56) + (OLDEST_TORCH[1] << 48)
    home = Path(torch.__file__).parent
    includes = ["-isystem", str(home / "include")]
    defines = [f"-DTORCH_TARGET_VERSION={target:#018x}", f'-DFASTDW_BUILT_WITH_TORCH="{version}"']
    return [*defines, *includes], [f"-L{home / 'lib'}", "-ltorch_cpu"]


def run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.stdout:
        print(done.stdout, flush=True)
    if done.returncode:
        raise SystemExit(f"fastdw: the build failed at: {shlex.join(command)}")


def is_current(object_file: Path, stamp: str) -> bool:
    """Whether the object was made by this command and is newer than every file it was made from."""
    stamp_file, dependencies = object_file.with_suffix(".cmd"), object_file.with_suffix(".d")
    if not all(file.exists() for file in (object_file, stamp_file, dependencies)):
        return False
    if stamp_file.read_text() != stamp:
        return False
    files = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    made = object_file.stat().st_mtime_ns
    return all(Path(name).exists() and Path(name).stat().st_mtime_ns <= made for name in files)


def compile_source(source: Path, command: list[str]) -> Path:
    relative = source.relative_to(ROOT)
    object_file = OBJECTS / relative.with_suffix(".o")
    object_file.parent.mkdir(parents=True, exist_ok=True)
    command = [*command, "-MMD", "-MF", str(object_file.with_suffix(".d")), "-c", str(relative)]
    command += ["-o", str(object_file)]
    stamp = shlex.join(command)
    if not is_current(object_file, stamp):
        print(f"fastdw: compiling {relative}", flush=True)
        run(command)
        object_file.with_suffix(".cmd").write_text(stamp)
    return object_file


class BuildLibrary(build_ext):
    """build_ext for a library that Python never imports: torch.ops.load_library opens it."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        os.chdir(ROOT)
        base = [*compiler(), *COMMON_FLAGS, f"-I{ROOT}", *shlex.split(os.getenv("CXXFLAGS", ""))]
        torch_compile, torch_link = torch_flags()
        jobs = [(path, [*base, *torch_compile]) for path in sorted(ROOT.glob("csrc/**/*.cpp"))]
        jobs += [(path, base) for path in sorted(ROOT.glob("kernels/cpu/*.cpp"))]
        for isa, flags in ISA_FLAGS.items():
            sources = sorted(ROOT.glob(f"kernels/cpu/isa/{isa}/*.cpp"))
            jobs += [(path, [*base, *flags]) for path in sources]
        with ThreadPoolExecutor(int(os.getenv("MAX_JOBS", os.cpu_count() or 1))) as pool:
            objects = list(pool.map(lambda job: compile_source(*job), jobs))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Linked beside the target and renamed: a process that has the old library open keeps it.
        unfinished = target.with_suffix(".so.new")
        link = [*compiler(), "-shared", *map(str, objects), "-o", str(unfinished)]
        link += ["-Wl,-z,defs", "-Wl,--as-needed", *torch_link]
        run([*link, *shlex.split(os.getenv("LDFLAGS", ""))])
        os.replace(unfinished, target)


class AnyPythonWheel(bdist_wheel):
    """The library holds no Python symbol, so one wheel serves every Python 3 of the platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("fastdw._C", sources=[])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPythonWheel},
)
