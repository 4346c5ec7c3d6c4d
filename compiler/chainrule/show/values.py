"""Values of a text that is read: what stands for a node until what is beside it says more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, FormulaError
from chainrule.ir.node import Node
from chainrule.ir.size import Dim, Shape
from chainrule.ir.types import DType
from chainrule.ops import build
from chainrule.ops.contract import transpose
from chainrule.ops.elementwise import TABLE
from chainrule.ops.source import Constant, Full
from chainrule.records import dataclass
from chainrule.show.grammar import Range


@dataclass(frozen=True)
class Indicator:
    """`[c]`: 1 where a condition holds; beside ⊙ a choice, so that 0 stands whatever is lost."""

    condition: Node


@dataclass(frozen=True)
class Code:
    """What is made of `onehot(y)` while the number of classes is not known."""

    of: Node
    make: Callable[[Dim, DType], Node]


@dataclass(frozen=True)
class Filled:
    """`zeros((3, 4))`, of which `[1:3, :]` chooses a part for `.set(x)` to fill."""

    shape: Shape
    fill: float | int
    ranges: tuple[tuple[Dim, Dim, int], ...] = ()


def is_open(node: Node) -> bool:
    """Whether a node is more than an array of numbers."""
    return not isinstance(node.op, (Constant, Full))


def numbers(items: Sequence[Any]) -> list[Any]:
    """Nested numbers; rows are constants already."""
    if not items or any(isinstance(i, Node) and is_open(i) for i in items):
        raise TypeError
    return [i.op.ref().tolist() if isinstance(i, Node) else i for i in items]


def number_of(fn: str, args: Sequence[Any]) -> Any:
    """An elementwise op of numbers alone."""
    if fn in ("div", "pow") or any(isinstance(a, float) for a in args):
        args = [np.float64(a) for a in args]
    try:
        return TABLE[fn].ref(*map(np.asarray, args)).item()
    except (TypeError, ValueError, OverflowError):
        raise FormulaError(f"{fn} does not take these numbers") from None


def fitted(
    fn: str, function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    """What a function makes of its operands and options, or FormulaError where they are others."""
    try:
        return function(*args, **options)
    except ChainruleError:
        raise
    except (TypeError, AttributeError, IndexError, ValueError):
        raise FormulaError(f"{fn} does not take these operands and options") from None


def with_axes(x: Node, parts: Sequence[Any]) -> Node:
    """`x[:, None]`: new axes of size 1."""
    axes = [i for i, p in enumerate(parts) if p is None]
    whole = [p for p in parts if p == Range(None, None, None)]
    if len(whole) != x.type.rank or len(whole) + len(axes) != len(parts):
        raise FormulaError(f"beside None an index of {x.type} has ':' for each axis")
    return build.keep_axes(x, axes)


def transposed(x: Node) -> Node:
    """`xᵀ`."""
    if x.type.rank < 2:
        raise FormulaError(f"ᵀ swaps the last two axes: {x.type}")
    rank = x.type.rank
    return transpose(x, (*range(rank - 2), rank - 1, rank - 2))
