"""What printed functions have in common when ops read them back: axes, and numbers for each axis.

An op's `words` are functions of nodes and of options by name; what they are given comes from a
text, so what does not fit is a FormulaError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chainrule.errors import FormulaError
from chainrule.ir.node import Node, Op, apply
from chainrule.ir.types import TensorType

Word = Callable[..., Node]
Ints = int | Sequence[int]


def axis_of(axis: Any, x: Node) -> int:
    """An axis of a node, counted from its front."""
    rank = x.type.rank
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise FormulaError(f"axis {axis} is out of range for {x.type}")
    return axis % rank


def axes_of(axes: Any, x: Node) -> tuple[int, ...]:
    """Axes of a node in order, all of them where none is named."""
    given = range(x.type.rank) if axes is None else several(axes)
    return tuple(sorted(axis_of(a, x) for a in given))


def several(value: Any) -> tuple[Any, ...]:
    """A tuple of what may stand alone."""
    return tuple(value) if isinstance(value, tuple) else (value,)


def each(value: Any, count: int) -> tuple[Any, ...]:
    """As many as there are axes, of what is written once where all are equal."""
    return tuple(value) if isinstance(value, tuple) else (value,) * count


def chosen(options: dict[str, Any], **usual: Any) -> dict[str, Any]:
    """The options with the usual values of those not given."""
    if unknown := sorted(options.keys() - usual.keys()):
        raise FormulaError(f"no option is called {unknown[0]!r}")
    return usual | options


def along(kind: Callable[[int], Op]) -> Word:
    """`f(x, axis=1)`, by default along the last."""
    return lambda x, axis=-1: apply(kind(axis_of(axis, x)), x)


def over(kind: Callable[[tuple[int, ...]], Op]) -> Word:
    """`f(x, axis=(0, 2))`, by default over all axes; x itself where it has none."""

    def word(x: Node, axis: Ints | None = None) -> Node:
        axes = axes_of(axis, x)
        return apply(kind(axes), x) if axes else x

    return word


def plain(op: Op) -> Word:
    """`f(x, y)` of an op without attributes."""
    return lambda *operands: apply(op, *operands)


def extents_of(x: TensorType, sizes: Sequence[Any]) -> tuple[Any, ...]:
    """The last sizes of a type, as many as there are."""
    return x.shape[x.rank - len(sizes) :]
