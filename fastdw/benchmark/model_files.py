"""The peers' model files, written from a torch model: ONNX, TensorFlow Lite, ncnn.

A file is written once for its weights, input shape and writer, and kept in the user's cache folder.
TensorFlow and pnnx live in an environment of their own, made by `make bench-env`: torch and
TensorFlow need not agree about what they depend on.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdw.benchmark.layer_list import list_layers
from fastdw.models.weights.fetch import default_cache_dir

MAKE_ENVIRONMENT = "run `make bench-env`"
_HERE = Path(__file__).resolve().parent
_KERAS_WRITER = _HERE / "keras_writer.py"
_SOURCES = (Path(__file__), _HERE / "layer_list.py", _KERAS_WRITER)


class WriterFailed(Exception):
    """A model file could not be written; the message says by whom and why."""


def environment_folder() -> Path:
    """Where `make bench-env` puts the writers: $FASTDW_BENCH_ENV, or beside the sources."""
    chosen = os.environ.get("FASTDW_BENCH_ENV")
    return Path(chosen) if chosen else _HERE.parents[1] / ".venv-bench"


def tflite_writer_missing() -> str | None:
    """Why no `.tflite` file can be written here, or None."""
    return None if _installed("tensorflow*") else f"TensorFlow is not installed: {MAKE_ENVIRONMENT}"


def ncnn_writer_missing() -> str | None:
    """Why no ncnn file can be written here, or None."""
    return None if _installed("pnnx") else f"pnnx is not installed: {MAKE_ENVIRONMENT}"


def onnx_file(model: nn.Module, x: Tensor) -> Path:
    """The network as ONNX for input of x's shape, in fp32, batch norm folded by the exporter."""
    versions = [f"torch {torch.__version__}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in ("onnx", "onnxscript")]
    return _cached(model, x, "onnx", versions, lambda folder: _write_onnx(model, x, folder))


def tflite_file(model: nn.Module, x: Tensor) -> Path:
    """The network as TensorFlow Lite, fp32, NHWC input with x's batch and size."""
    versions = _installed("tensorflow*", "keras")
    return _cached(model, x, "tflite", versions, lambda folder: _write_tflite(model, x, folder))


def ncnn_files(model: nn.Module, x: Tensor) -> tuple[Path, Path]:
    """The network for ncnn: its parameters (text) and its weights (fp32), for input like x."""
    versions = [f"torch {torch.__version__}", *_installed("pnnx")]
    path = _cached(model, x, "ncnn.param", versions, lambda folder: _write_ncnn(model, x, folder))
    return path, path.with_suffix(".bin")


def _write_onnx(model: nn.Module, x: Tensor, folder: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(folder / "model.onnx")


def _write_tflite(model: nn.Module, x: Tensor, folder: Path) -> None:
    layers, weights = list_layers(model, x)
    (folder / "layers.json").write_text(json.dumps(layers))
    arrays: dict[str, Any] = dict(weights)
    np.savez(folder / "weights.npz", **arrays)
    # Isolated: the folder of the script, with names like "models", stays out of the search path.
    command = [str(environment_folder() / "bin" / "python"), "-I", str(_KERAS_WRITER), str(folder)]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    _run("the Keras writer", command, folder, quiet)


def _write_ncnn(model: nn.Module, x: Tensor, folder: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and what pnnx reads
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes become constants: wanted
        torch.jit.trace(model, x).save(str(folder / "model.pt"))
    shape = ",".join(map(str, x.shape))
    (pnnx,) = environment_folder().glob("lib/python*/site-packages/pnnx/pnnx")
    command = [str(pnnx), "model.pt", f"inputshape=[{shape}]", "fp16=0"]
    _run("pnnx", command, folder, {})


def _run(writer: str, command: list[str], folder: Path, variables: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise WriterFailed(f"{writer} failed, exit code {done.returncode}: {reason}")


def _cached(
    model: nn.Module,
    x: Tensor,
    suffix: str,
    versions: list[str],
    write: Callable[[Path], None],
) -> Path:
    """The file `<key>.<suffix>`; where it is not there yet, all `model.*` that `write` leaves."""
    kept = default_cache_dir() / "bench"
    key = _key(model, x, [suffix, *versions])
    path = kept / f"{key}.{suffix}"
    if path.exists():
        return path
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as scratch:
        write(Path(scratch))
        wanted = Path(scratch) / f"model.{suffix}"
        if not wanted.exists():
            raise WriterFailed(f"{suffix}: the writer left no model.{suffix}")
        # All or nothing, the named file last: another process takes it as the sign that all is
        # there.
        for part in (wanted.with_suffix(".bin"), wanted):
            if part.exists():
                os.replace(part, kept / f"{key}{part.name.removeprefix('model')}")
    return path


def _key(model: nn.Module, x: Tensor, versions: list[str]) -> str:
    """Equal for equal weights, structure, input shape, writers and sources of this code."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for text in (str(model), str(list(x.shape)), *versions):
        digest.update(f"{text}\0".encode())
    for source in _SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _installed(*names: str) -> list[str]:
    """ "name-version" of the packages of the writers' environment that match."""
    folders = environment_folder().glob("lib/python*/site-packages/*.dist-info")
    found = sorted(folder.stem for folder in folders)
    return [f for name in names for f in found if fnmatch(f.rpartition("-")[0], name)]
