"""Whether the steps of a program fit together: which values there are, and how wide they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdw.ops.program import Step


def check_values(step: Step, widths: dict[str, int], is_weightless: bool, number: int) -> None:
    """Check the values that a step reads and the one that it writes.

    Args:
        step: the step.
        widths: the channels of the values that there are before it.
        is_weightless: whether it has no weights, and so one number of channels.
        number: of its line.

    Raises:
        ValueError: a value is missing, exists already or has other channels.
    """
    where = f"program: line {number}: {step.op}"
    wanted = step.channels if is_weightless else step.channels_in
    parts = step.input.split(",") if step.op == "concat" else [step.input]
    unknown = [part for part in parts if part not in widths]
    got = "none" if unknown else sum(widths[part] for part in parts)
    if step.op == "concat" and isinstance(got, int):
        _check_shuffle(step, got, where)
    elif got != wanted:
        raise ValueError(
            f"{where}: in={step.input}: expected a value of {wanted} channels, got {got}"
        )
    for key in ("bias", "like"):
        if getattr(step, key) not in ("-", *widths):
            raise ValueError(f"{where}: {key}={getattr(step, key)}: no step before computes it")
    if step.output in widths:
        raise ValueError(f"{where}: out={step.output}: this value exists already")
    if step.op == "pointwise_conv" and step.residual not in ("-", *widths):
        raise ValueError(f"{where}: residual={step.residual}: no step before computes it")
    if step.gate != "-" and widths.get(step.gate) != step.channels_in:
        raise ValueError(
            f"{where}: gate={step.gate}: expected a value of {step.channels_in} channels, "
            f"got {widths.get(step.gate, 'none')}"
        )


def _check_shuffle(step: Step, channels: int, where: str) -> None:
    if step.groups < 1 or channels % step.groups:
        raise ValueError(f"{where}: groups: expected a divisor of {channels}, got {step.groups}")
    if not 1 <= step.channels <= channels - step.first:
        raise ValueError(
            f"{where}: channels: expected 1 to {channels - step.first} from {step.first}, "
            f"got {step.channels}"
        )
