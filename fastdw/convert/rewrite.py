"""`convert`, `revert` and `explain`: swap fused classes into a living model, and back."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, Literal, cast

import torch
from torch import nn

from fastdw import backends
from fastdw.convert.blocks import BLOCKS, ConvertedModule, FusedBlock
from fastdw.convert.handover import (
    READERS,
    Handover,
    ReadsMeans,
    find_handovers,
    handover_of,
)
from fastdw.convert.proof import Proof, prove, site_of
from fastdw.convert.report import Reason, Report, Row
from fastdw.convert.rules import Refused, check_untouched, pattern_of_conv
from fastdw.convert.shape_run import ShapeRun, run_on_shapes
from fastdw.convert.siblings import SIBLINGS, FusedSibling, Passed, Site
from fastdw.nn.fused_module import POOLED_OP, FusedModule, NotFusable
from fastdw.nn.units import check_units

Level = Literal["block", "depthwise"]
Filter = Callable[[str, nn.Module], bool]
RULES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers.models.mobilenet_v1.modeling_mobilenet_v1": "transformers",
    "transformers.models.mobilenet_v2.modeling_mobilenet_v2": "transformers",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
}
"""The module of a library that has been imported if its classes are in use, and its rule file."""


class NothingConverted(RuntimeError):
    """`strict=True` and nothing could be fused; `.report` says why."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def convert(
    model: nn.Module,
    *,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    filter_fn: Filter | None = None,
    level: Level = "block",
    backend: str = "auto",
    strict: bool = False,
    dry_run: bool = False,
) -> Report:
    """Swap fused classes into `model`, in place: eval runs fused, training computes as before.

    Sets `module.__class__` of blocks and convolutions to importable subclasses of what they were.
    The children, the parameters (the same objects) and the keys and values of `state_dict` stay,
    so optimizers, hooks, `deepcopy`, `pickle` and `isinstance` go on working; `revert` sets the
    old classes again. Where something changes later (a hook, a SyncBatchNorm) the original forward
    runs.

    Layers that follow each other in somebody's own forward are fused where a torch.fx trace proves
    it, for each module that can be traced, and nothing else shows in a run on shapes (one image of
    224x224). Where the model does not run on that, the proof assumes that each traced module is
    used through its forward, and that the forward does not ask whether it is traced, as by
    `isinstance(x, Tensor)` or by catching the tracer's errors. A convolution fused with the batch
    norm behind it gives, called on its own in eval mode, the result of both.

    Args:
        model: any module, in training or eval mode.
        include: fnmatch patterns of qualified names; only what they match, and what is inside
            it, is converted. Default: everything.
        exclude: the same for what to leave.
        filter_fn: `filter_fn(name, module)` is asked for each candidate; False leaves it.
        level: `"block"` fuses whole blocks where it can, else single convolutions with batch
            norm and activation; `"depthwise"` only depthwise convolutions with both.
        backend: backend of the converted modules, see `fastdw.use_backend`.
        strict: raise, not only warn, if nothing can be fused.
        dry_run: only report.

    Returns:
        Report: a row per candidate: fused or left, and why.

    Raises:
        TypeError: `model` is no module.
        ValueError: unknown `level` or `backend`.
        NothingConverted: `strict=True`, see above.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if level not in ("block", "depthwise"):
        raise ValueError(f'level: expected "block" or "depthwise", got {level!r}')
    backends.check_name(backend, "backend")
    _import_rules()
    wanted = _Wanted(_patterns(include), _patterns(exclude), filter_fn)
    candidates = _find(model, wanted, level)
    report = _report(candidates, _run(model, candidates), backend)
    if not report.fused:
        message = f"fastdw can fuse nothing in {type(model).__name__}: {_summary(report)}"
        if strict:
            raise NothingConverted(message, report)
        if not dry_run:
            warnings.warn(message, stacklevel=2)
    if not dry_run:
        for candidate in candidates:
            candidate.swap(backend)
    return report


def _summary(report: Report) -> str:
    reasons = report.totals["reasons_left"]
    listed = ", ".join(f"{count} {code}" for code, count in reasons.items())
    return listed or "it has no convolution"


def explain(
    model: nn.Module,
    *,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    filter_fn: Filter | None = None,
    level: Level = "block",
) -> Report:
    """Report what `convert` would do with `model`, and why, without changing it."""
    return convert(
        model, include=include, exclude=exclude, filter_fn=filter_fn, level=level, dry_run=True
    )


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert`: every module gets its old class; parameters and values stay as they are."""
    for module in model.modules():
        if isinstance(module, (ConvertedModule, Passed, ReadsMeans)):
            original: Any = type(module)._fastdw_original
            for name in [n for n in module.__dict__ if n.startswith("_fastdw_")]:
                del module.__dict__[name]
            module.__dict__.pop("_fused_pattern", None)
            module.__class__ = original
    return model


@dataclass
class Candidate:
    """A module that might be fused; `names` are its own and those of the layers it swallows."""

    name: str
    module: nn.Module
    pattern: str
    reason: Reason = Reason.FUSED
    fused_class: type[FusedBlock] | None = None
    site: Site | None = None
    handover: Handover | None = None
    reader: nn.Module | None = None

    def swap(self, backend: str) -> None:
        """Set the fused classes."""
        if self.reason is not Reason.FUSED:
            return
        members = [self.module]
        if self.site is not None:
            members = self.site.members()
            for member in members:
                member.__dict__["_fastdw_site"] = self.site
                member.__class__ = SIBLINGS[type(member)]
        elif self.fused_class is not None:
            self.module.__class__ = self.fused_class
        self.module.__dict__["_fused_pattern"] = self.pattern
        if self.reader is not None:
            self.module.__dict__["_fastdw_handover"] = self.handover
            self.reader.__class__ = READERS[type(self.reader)]
        if backend != "auto":
            self.module.__dict__["_fastdw_backend"] = backend


@dataclass(frozen=True)
class _Wanted:
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    filter_fn: Filter | None

    def accepts(self, name: str, module: nn.Module) -> bool:
        if self.include and not _matches(name, self.include):
            return False
        if _matches(name, self.exclude):
            return False
        return self.filter_fn is None or bool(self.filter_fn(name, module))


def _patterns(patterns: Sequence[str] | str | None) -> tuple[str, ...]:
    if patterns is None:
        return ()
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Say whether a pattern matches the name or a module above it."""
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(above, pattern) for above in names for pattern in patterns)


def _import_rules() -> None:
    """Know a library's classes once somebody has imported it; fastdw itself imports none."""
    for module, rules in RULES.items():
        if module in sys.modules:
            try:
                import_module(f"fastdw.convert.{rules}")
            except ImportError as error:
                warnings.warn(f"fastdw cannot read this {rules}: {error}", stacklevel=3)


def _find(model: nn.Module, wanted: _Wanted, level: Level) -> list[Candidate]:
    """All candidates: blocks from the top down, then the convolutions that no block takes."""
    candidates, closed = _find_blocks(model, wanted, level)
    proof = prove(model, closed)
    order = {id(module): index for index, module in enumerate(model.modules())}
    by_name = dict(model.named_modules())
    for name, names in proof.sites.items():
        conv = cast(nn.Conv2d, by_name[name])
        candidate = Candidate(name, conv, pattern_of_conv(conv))
        if level == "depthwise" and candidate.pattern != "depthwise_conv":
            candidate.reason = Reason.LEVEL
        elif not wanted.accepts(name, conv):
            candidate.reason = Reason.EXCLUDED
        else:
            candidate.site = site_of(model, names)
        candidates.append(candidate)
    for name, reason in proof.refused.items():
        candidates.append(Candidate(name, by_name[name], _left_pattern(by_name[name]), reason))
    _pair(model, candidates, proof, wanted)
    return sorted(candidates, key=lambda candidate: order[id(candidate.module)])


def _pair(model: nn.Module, candidates: list[Candidate], proof: Proof, wanted: _Wanted) -> None:
    """Let depthwise convolutions hand their means to the poolings that read them."""
    by_name = {c.name: c for c in candidates}
    givers = {
        proof.sites[name][-1] if candidate.site else name: name
        for name, candidate in by_name.items()
        if candidate.reason is Reason.FUSED and candidate.pattern == "depthwise_conv"
    }
    for name, way in find_handovers(model, proof.graphs, givers).items():
        reader = model.get_submodule(way[-1])
        if wanted.accepts(way[-1], reader):
            by_name[name].reader = reader
            by_name[name].handover = handover_of(model, name, way)


def _find_blocks(
    model: nn.Module, wanted: _Wanted, level: Level
) -> tuple[list[Candidate], list[nn.Module]]:
    """Walk down to the blocks; returns candidates and the modules that must not be looked into."""
    candidates: list[Candidate] = []
    closed: list[nn.Module] = []
    seen: set[int] = set()

    def walk(name: str, module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        untouchable = _untouchable(module)
        if untouchable is not None:
            pattern = getattr(module, "_fused_pattern", "-")
            if not isinstance(module, Passed):
                candidates.append(Candidate(name, module, pattern, untouchable))
                closed.append(module)
            return
        block = BLOCKS.get(type(module))
        if block is not None:
            candidate = _block_candidate(name, module, block, wanted, level)
            if candidate.reason is Reason.FUSED:
                candidates.append(candidate)
                closed.append(module)
                return
            if not block.is_container and candidate.reason is not Reason.LEVEL:
                candidate.fused_class = None
                candidates.append(candidate)
        for child_name, child in module.named_children():
            walk(f"{name}.{child_name}" if name else child_name, child)

    walk("", model)
    return candidates, closed


def _block_candidate(
    name: str, module: nn.Module, block: type[FusedBlock], wanted: _Wanted, level: Level
) -> Candidate:
    candidate = Candidate(name, module, "-", fused_class=block)
    try:
        candidate.pattern, _ = block.describe(module)
        if "forward" in module.__dict__:
            check_untouched(module)
    except Refused as refused:
        candidate.reason = refused.reason
        return candidate
    if level == "depthwise" and candidate.pattern != "depthwise_conv":
        candidate.reason = Reason.LEVEL
    elif any(isinstance(inner, (FusedModule, Passed)) for inner in module.modules()):
        candidate.reason = Reason.PARTLY_CONVERTED
    elif not wanted.accepts(name, module):
        candidate.reason = Reason.EXCLUDED
    return candidate


def _untouchable(module: nn.Module) -> Reason | None:
    """Why the walk must not go into `module`, or None."""
    if isinstance(module, FusedModule):
        return _reason_of_fused(module)
    if isinstance(module, Passed):
        return Reason.ALREADY_FUSED
    if isinstance(module, torch.jit.ScriptModule):
        return Reason.SCRIPTED
    if hasattr(module, "_orig_mod") and hasattr(module, "dynamo_ctx"):
        return Reason.COMPILED
    if any("torch.distributed.fsdp" in kind.__module__ for kind in type(module).__mro__):
        return Reason.SHARDED
    return None


def _reason_of_fused(module: FusedModule) -> Reason:
    """A fastdw module runs fused, unless it is a convolution that no kernel is for."""
    try:
        units = module._fused_units()
        conv_types, norm_types = module._fused_conv_types, module._fused_norm_types
        check_units(module._fused_pattern, units, conv_types, norm_types)
    except NotFusable:
        conv = getattr(module, "conv", None)
        if isinstance(conv, nn.Conv2d) and module._fused_pattern != "depthwise_conv":
            return Reason.DENSE_CONVOLUTION
        if isinstance(conv, nn.Conv2d) and conv.groups not in (1, conv.in_channels):
            return Reason.GROUPED_CONVOLUTION
    return Reason.ALREADY_FUSED


def _left_pattern(module: nn.Module) -> str:
    try:
        return pattern_of_conv(cast(nn.Conv2d, module))
    except Refused:
        return "-"


def _run(model: nn.Module, candidates: list[Candidate]) -> ShapeRun:
    """Run on shapes, and leave the sites of which the trace did not tell the truth."""
    run = run_on_shapes(model, [c.site.members() for c in candidates if c.site], revert)
    for candidate in candidates:
        if id(candidate.module) in run.disproved:
            candidate.reason, candidate.site = Reason.TRACE_DIFFERS, None
    return run


def _report(candidates: list[Candidate], run: ShapeRun, backend: str) -> Report:
    rows = []
    for candidate in candidates:
        module = candidate.module
        fused = candidate.reason in (Reason.FUSED, Reason.ALREADY_FUSED)
        members = candidate.site.members() if candidate.site else [module]
        if isinstance(module, FusedSibling):
            members = module._fastdw_site.members()
        convs = [inner for inner in module.modules() if isinstance(inner, nn.Conv2d)]
        known = [run.multiply_adds.get(id(conv)) for conv in convs]
        rows.append(
            Row(
                name=candidate.name,
                class_name=getattr(type(module), "_fastdw_original", type(module)).__name__,
                pattern=POOLED_OP if candidate.reader is not None and fused else candidate.pattern,
                reason=candidate.reason,
                backend=backend if fused else "torch",
                parameters=sum(p.numel() for member in members for p in _parameters(member)),
                multiply_adds=None if None in known else sum(cast(list[int], known)),
            )
        )
    return Report(rows, run.input_size)


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    lazy = nn.parameter.UninitializedParameter
    return [p for p in module.parameters() if not isinstance(p, lazy)]
