"""From a name to a model: ours, torchvision's, timm's, or any callable's."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from fastdw.models.deeplab import deeplab_v3, deeplab_v3_plus
from fastdw.models.mobilenet_v1 import mobilenet_v1
from fastdw.models.mobilenet_v2 import mobilenet_v2
from fastdw.models.mobilenet_v2_forms import mobilenet_v2_keras, mobilenet_v2_slim
from fastdw.models.ssd import FORMS, ssd

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v2_keras": mobilenet_v2_keras,
    "mobilenet_v2_slim": mobilenet_v2_slim,
    "deeplab_v3": deeplab_v3,
    "deeplab_v3_plus": deeplab_v3_plus,
    **{form: partial(ssd, form) for form in FORMS},
}


def create(name: str, **settings: Any) -> nn.Module:
    """Build the model called ``name``, untrained, in training mode as torch does.

    Args:
        name: ``"fastdw:mobilenet_v1"``, ``"torchvision:mobilenet_v2"``,
            ``"timm:mobilenetv1_100"`` or ``"package.module:callable"``; in place of the callable
            a module that stands there, as it is.
        settings: keyword arguments of the model's constructor.

    Raises:
        ValueError: no such model; the message suggests near ones.
        ImportError: the library of the model is not installed.
        TypeError: the callable gives no ``nn.Module``, or does not take ``settings``.
    """
    source, colon, model = name.partition(":")
    if not colon or not source or not model:
        raise ValueError(
            f"name: expected fastdw:NAME, torchvision:NAME, timm:NAME or package.module:callable, "
            f"got {name!r}{_did_you_mean(name, [f'fastdw:{known}' for known in MODELS])}"
        )
    if source == "fastdw":
        if model not in MODELS:
            raise ValueError(_unknown(source, model, MODELS))
        return MODELS[model](**settings)
    if source == "torchvision":
        return _from_torchvision(model, settings)
    if source == "timm":
        return _from_timm(model, settings)
    return _from_callable(source, model, settings)


def _from_torchvision(name: str, settings: dict[str, Any]) -> nn.Module:
    models = _import("torchvision.models", "torchvision")
    if name not in models.list_models():
        raise ValueError(_unknown("torchvision", name, models.list_models()))
    builder = models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(builder).parameters:
        settings = {"weights_backbone": None, **settings}  # its default would download
    return builder(**settings)


def _from_timm(name: str, settings: dict[str, Any]) -> nn.Module:
    timm = _import("timm", "timm")
    if not timm.is_model(name):
        raise ValueError(_unknown("timm", name, timm.list_models()))
    return timm.create_model(name, **settings)


def _from_callable(module_name: str, path: str, settings: dict[str, Any]) -> nn.Module:
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there and misses something itself
        near = _did_you_mean(module_name, ("fastdw", "torchvision", "timm"))
        raise ValueError(f"name: no module called {module_name!r}{near}") from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(_unknown(module_name, path, dir(found)))
        found = getattr(found, part)
    if isinstance(found, nn.Module) and not settings:
        return found
    if not callable(found) or isinstance(found, nn.Module):
        wanted = "a callable that builds a model"
        raise TypeError(f"name: {module_name}:{path} is a {type(found).__name__}, not {wanted}")
    model = found(**settings)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"name: {module_name}:{path} returned a {type(model).__name__}, not an nn.Module"
        )
    return model


def _import(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{package} cannot be imported ({error}): pip install {package}"
        ) from error


def _unknown(source: str, name: str, known: Iterable[str]) -> str:
    return f"name: {source} has no model called {name!r}{_did_you_mean(name, known)}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
