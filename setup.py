"""Builds fastdw/_C.so, and fastdw/_C_cuda.so where there is an nvcc of the CUDA that torch is built
for: shared libraries against torch's stable ABI, without any Python symbol.

Each kernels/cpu/isa/<isa>/*.cpp is compiled with the flags of its instruction set, all else for the
baseline. CXX, CXXFLAGS and LDFLAGS are honoured; MAX_JOBS limits the compilers that run at once.
FASTDW_CUDA=0 forbids the CUDA library, FASTDW_CUDA=1 requires it; FASTDW_CUDA_ARCH="8.0 9.0" names
the GPUs to compile for (more take longer); CUDA_HOME names a toolkit. No GPU is needed.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools import __version__ as setuptools_version
from setuptools.command.build_ext import build_ext

if int(setuptools_version.split(".")[0]) < 77:
    raise SystemExit(
        f"fastdw: setuptools {setuptools_version} is too old to build with: "
        "run `python -m pip install --upgrade 'setuptools>=77'`, then install again."
    )
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))
import cuda_toolkit  # noqa: E402

OBJECTS = ROOT / "build" / "objects"
CUDA_OBJECTS = ROOT / "build" / "cuda_objects"
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


def find_cuda() -> cuda_toolkit.Toolkit | None:
    """The toolkit to build the CUDA library with; None with a line that says why."""
    wish = os.getenv("FASTDW_CUDA", "")
    if wish == "0":
        return None
    torch_flags()  # tells what to do where there is no torch
    import torch

    try:
        return cuda_toolkit.toolkit_for(torch.version.cuda)
    except cuda_toolkit.ToolkitError as reason:
        if wish:
            raise SystemExit(f"fastdw: FASTDW_CUDA={wish}, but {reason}") from None
        print(f"fastdw: no CUDA kernels: {reason}", flush=True)
        return None


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


def compile_source(source: Path, command: list[str], folder: Path) -> Path:
    relative = source.relative_to(ROOT)
    object_file = folder / relative.with_suffix(".o")
    object_file.parent.mkdir(parents=True, exist_ok=True)
    command = [*command, "-MMD", "-MF", str(object_file.with_suffix(".d")), "-c", str(relative)]
    command += ["-o", str(object_file)]
    stamp = shlex.join(command)
    if not is_current(object_file, stamp):
        print(f"fastdw: compiling {relative}", flush=True)
        run(command)
        object_file.with_suffix(".cmd").write_text(stamp)
    return object_file


def compile_all(jobs: list[tuple[Path, list[str], Path]]) -> list[Path]:
    with ThreadPoolExecutor(int(os.getenv("MAX_JOBS", os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda job: compile_source(*job), jobs))


def link(target: Path, objects: list[Path], libraries: list[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Linked beside the target and renamed: a process that has the old library open keeps it.
    unfinished = target.with_suffix(".so.new")
    command = [*compiler(), "-shared", *map(str, objects), "-o", str(unfinished)]
    command += ["-Wl,-z,defs", "-Wl,--as-needed", "-Wl,--exclude-libs,ALL", *libraries]
    run([*command, *shlex.split(os.getenv("LDFLAGS", ""))])
    os.replace(unfinished, target)


class BuildLibraries(build_ext):
    """build_ext for libraries that Python never imports: torch.ops.load_library opens them."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def finalize_options(self) -> None:
        super().finalize_options()
        self.toolkit = find_cuda()
        if self.toolkit is None:
            self.extensions = [ext for ext in self.extensions if ext.name != "fastdw._C_cuda"]
            (ROOT / "fastdw" / "_C_cuda.so").unlink(missing_ok=True)  # it would not fit the new _C

    def build_extension(self, ext: Extension) -> None:
        os.chdir(ROOT)
        self.base = [*compiler(), *COMMON_FLAGS, f"-I{ROOT}"]
        self.base += shlex.split(os.getenv("CXXFLAGS", ""))
        if ext.name == "fastdw._C":
            self.build_cpu(Path(self.get_ext_fullpath(ext.name)))
        else:
            self.build_cuda(Path(self.get_ext_fullpath(ext.name)))

    def build_cpu(self, target: Path) -> None:
        torch_compile, torch_link = torch_flags()
        sources = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
        jobs = [(path, [*self.base, *torch_compile], OBJECTS) for path in sorted(sources)]
        jobs += [(path, self.base, OBJECTS) for path in sorted(ROOT.glob("kernels/cpu/*.cpp"))]
        for isa, flags in ISA_FLAGS.items():
            sources = sorted(ROOT.glob(f"kernels/cpu/isa/{isa}/*.cpp"))
            jobs += [(path, [*self.base, *flags], OBJECTS) for path in sources]
        link(target, compile_all(jobs), torch_link)

    def build_cuda(self, target: Path) -> None:
        toolkit = self.toolkit
        try:
            targets = cuda_toolkit.choose_targets(toolkit, os.getenv("FASTDW_CUDA_ARCH"))
        except cuda_toolkit.ToolkitError as error:
            raise SystemExit(f"fastdw: {error}") from None
        torch_compile, torch_link = torch_flags()
        device = [toolkit.nvcc, *cuda_toolkit.NVCC_FLAGS, *cuda_toolkit.target_flags(targets)]
        device += ["-Xfatbin=-compress-all", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{ROOT}"]
        host = [*self.base, *torch_compile, *toolkit.include_flags, "-DUSE_CUDA"]
        host += ["-DFASTDW_TENSORS_ON_CUDA", f'-DFASTDW_CUDA_TARGETS="{" ".join(targets)}"']
        shared = [ROOT / "csrc" / name for name in ("aten_fallback.cpp", "network_program.cpp")]
        sources = [*shared, *sorted(ROOT.glob("csrc/cuda/*.cpp"))]
        jobs = [(path, device, CUDA_OBJECTS) for path in cuda_toolkit.kernel_sources(ROOT)]
        jobs += [(path, host, CUDA_OBJECTS) for path in sources]
        runtime = [*toolkit.library_flags, "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        link(target, compile_all(jobs), [*torch_link, "-ltorch_cuda", *runtime])


class AnyPythonWheel(bdist_wheel):
    """The library holds no Python symbol, so one wheel serves every Python 3 of the platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    packages=[*find_packages(include=["fastdw*"]), "fastdw.triton_kernels"],
    package_dir={"fastdw.triton_kernels": "kernels/triton"},
    ext_modules=[Extension("fastdw._C", sources=[]), Extension("fastdw._C_cuda", sources=[])],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPythonWheel},
)
