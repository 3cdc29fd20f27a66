"""Branches on the image's size: what a forward asks of it, so that a plan knows for which it holds.

An expression is an int, or a tuple: an operator's name and the expressions it takes; "item", an
expression and the bounds of an index; or ("shape",), of the image.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

OPERATORS: dict[str, Any] = {
    name: getattr(operator, name)
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "mod", "floordiv")
}
"""What may be computed of a size."""

NAMES = {function: name for name, function in OPERATORS.items()}


@dataclass(frozen=True)
class Condition:
    """A branch that the forward took.

    Attributes:
        expression: what it asked.
        answer: whether that was true.
    """

    expression: Any
    answer: bool

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether a forward on an image of `shape` takes the same branch."""
        return bool(_value(self.expression, (None, *shape[1:]))) == self.answer


def condition_of(node: fx.Node, shape: Sequence[int]) -> Condition | None:
    """The branch on `node` for an image of `shape`; None if it asks something else than sizes.

    The size of the batch is nothing that a branch may go by.
    """
    expression = _expression(node)
    try:
        return Condition(expression, bool(_value(expression, (None, *shape[1:]))))
    except (ArithmeticError, IndexError, TypeError):
        return None


def drop_unused_sizes(graph: fx.Graph) -> None:
    """Leave out what only branches read."""
    for node in reversed(graph.nodes):
        if not node.users and node.op != "placeholder" and _expression(node) is not None:
            graph.erase_node(node)


def _expression(argument: Any) -> Any:
    """None if it is no expression."""
    if not isinstance(argument, fx.Node):
        return argument if isinstance(argument, int) else None
    is_of_image = bool(argument.args) and _is_image(argument.args[0])
    if argument.op == "call_method" and argument.target == "size" and is_of_image:
        axis = argument.args[1:]
        return ("item", ("shape",), axis) if axis else ("shape",)
    if argument.op != "call_function" or argument.kwargs:
        return None
    if argument.target is getattr:
        return ("shape",) if is_of_image and argument.args[1] == "shape" else None
    inner = [_expression(part) for part in argument.args[:2]]
    if argument.target is operator.getitem and inner[0] is not None:
        index = argument.args[1]
        bounds = (index.start, index.stop, index.step) if isinstance(index, slice) else (index,)
        known = all(bound is None or isinstance(bound, int) for bound in bounds)
        return ("item", inner[0], bounds) if known else None
    if argument.target in NAMES and None not in inner:
        return (NAMES[argument.target], *inner)
    return None


def _is_image(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "placeholder"


def _value(expression: Any, shape: tuple[Any, ...]) -> Any:
    if isinstance(expression, int):
        return expression
    if expression is None:
        raise TypeError("no expression of sizes")
    name, *operands = expression
    if name == "shape":
        return shape
    if name == "item":
        values, bounds = _value(operands[0], shape), operands[1]
        return values[slice(*bounds) if len(bounds) == 3 else bounds[0]]
    values = [_value(operand, shape) for operand in operands]
    if None in values:
        raise TypeError("a branch on the batch")
    return OPERATORS[name](*values)
