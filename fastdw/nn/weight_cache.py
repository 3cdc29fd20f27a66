"""The packed weights of one module, kept between eval calls, and how a change is noticed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from operator import is_
from typing import Any

from torch import Tensor, nn

from fastdw.backends import current_backend

PackedCall = Callable[[Tensor], Tensor]
"""``call(x)`` runs a fused op on weights that were packed before."""

_lock = threading.Lock()

_READ_BY_UNITS: dict[type, tuple[str, ...]] = {
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
    nn.BatchNorm2d: ("eps",),
}


def lock() -> threading.Lock:
    """The lock under which caches are built and dropped."""
    return _lock


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)  # another thread of the parent may have held it


class WeightCache:
    """A packed call and the fingerprint of everything that went into it.

    ``is_current`` sees replaced modules, parameters, buffers and geometry (by identity), in-place
    updates (``_version``), ``.data`` assignments (``data_ptr``), hooks and train/eval of children.
    It cannot see in-place writes through ``.data``, by fused optimizers or to inference tensors:
    for those the owner drops the cache on ``train()``, ``eval()`` and on a forward with gradients.

    Never copied nor pickled: a copy is None.
    """

    __slots__ = (
        "aliases",
        "backend",
        "call",
        "channels_in",
        "device",
        "dtype",
        "hands_means",
        "hooks",
        "lengths",
        "modules",
        "names",
        "holders",
        "owner_children",
        "pointers",
        "sized",
        "tensors",
        "types",
        "values",
        "versioned",
        "versions",
    )

    def __init__(
        self,
        owner: nn.Module,
        modules: Sequence[nn.Module],
        x: Tensor,
        settings: Iterable[tuple[dict[str, Any], str]] = (),
    ) -> None:
        """Take the fingerprint of ``owner`` and the modules it swallows; pack afterwards.

        ``settings``: entries of other dicts that were read too.
        """
        self.call: PackedCall
        self.hands_means = False
        self.backend = current_backend()
        self.channels_in, self.dtype, self.device = x.shape[1], x.dtype, x.device
        self.owner_children = owner._modules
        self.modules = list(modules)
        self.types = [type(module) for module in self.modules]
        self.hooks = [
            hooks for m in self.modules for hooks in (m._forward_hooks, m._forward_pre_hooks)
        ]
        self.holders: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.values: list[Any] = []
        for module in (owner, *self.modules):
            self._watch(module.__dict__, _attributes(module))
            self._watch(module._modules, module._modules)
            self._watch(module._parameters, module._parameters)
            self._watch(module._buffers, module._buffers)
        for holder, name in settings:
            self._watch(holder, (name,))
        # A new attribute, say a forward bound to the instance, shows in the length of the dict.
        self.sized = [d for m in self.modules for d in (m.__dict__, m._modules)]
        self.lengths = [len(d) for d in self.sized]
        self.tensors = [value for value in self.values if isinstance(value, Tensor)]
        self.versioned = [t for t in self.tensors if not t.is_inference()]
        self.versions = [t._version for t in self.versioned]
        self.pointers = [t.data_ptr() for t in self.tensors]
        # While the old storage is alive, no new one can come to lie at its address.
        self.aliases = [t.detach() for t in self.tensors]

    def _watch(self, holder: Any, names: Any) -> None:
        for name in names:
            self.holders.append(holder)
            self.names.append(name)
            self.values.append(holder[name])

    def accepts(self, x: Tensor) -> bool:
        """Say whether the packed call can take ``x``; if not, the plain op explains why."""
        return (
            x.dtype is self.dtype
            and x.device == self.device
            and x.dim() == 4
            and x.shape[1] == self.channels_in
            and current_backend() == self.backend
        )

    def is_current(self, owner: nn.Module) -> bool:
        """Say whether a fresh fingerprint of ``owner`` would be the same."""
        return (
            owner._modules is self.owner_children  # false in a DataParallel replica
            and all(map(is_, map(dict.get, self.holders, self.names), self.values))
            and not any(self.hooks)
            and [t._version for t in self.versioned] == self.versions
            and [t.data_ptr() for t in self.tensors] == self.pointers
            and list(map(len, self.sized)) == self.lengths
            and list(map(type, self.modules)) == self.types
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def _attributes(module: nn.Module) -> tuple[str, ...]:
    for kind, names in _READ_BY_UNITS.items():
        if isinstance(module, kind):
            return ("training", *names)
    return tuple(name for name in module.__dict__ if not name.startswith("_"))
