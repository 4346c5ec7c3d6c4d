"""The product along axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chainrule.ir.node import Node, apply
from chainrule.ir.types import DType, int64
from chainrule.ops import build
from chainrule.ops.axes import Expand, Reduce, Sum
from chainrule.ops.source import Iota

#: Up to so many factors the product of all others is taken for each, right where some are 0.
_FEW = 256


@dataclass(frozen=True)
class Prod(Reduce):
    """The product over axes; of no elements 1.

    The derivative by a factor is the product of the others. Of more than 256 factors, or of a
    number not known, it is found by division, or among zeros by leaving one out: then a second
    derivative is right where no factor is 0.
    """

    name = "prod"
    combine = "mul"
    symbol = ("prod", r"\prod")
    fold = staticmethod(np.prod)

    def identity(self, dtype: DType) -> float | int:
        return 1

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        partial = [inputs[0]]
        for axis in reversed(self.axes):
            partial.append(apply(Prod((axis,)), partial[-1]))
        for axis, x in zip(self.axes, reversed(partial[:-1]), strict=True):
            ct = build.call("mul", _others(x, axis), apply(Expand(x.type.shape, (axis,)), ct))
        return (ct,)


def _others(x: Node, axis: int) -> Node:
    """For each element the product of the others along an axis."""
    size = x.type.shape[axis]
    back = Expand(x.type.shape, (axis,))
    if isinstance(size, int) and size <= _FEW:
        square = (*x.type.shape[:axis], size, *x.type.shape[axis:])
        itself = build.call(
            "eq", apply(Iota(square, axis, int64)), apply(Iota(square, axis + 1, int64))
        )
        return apply(
            Prod((axis + 1,)), build.call("where", itself, 1, apply(Expand(square, (axis,)), x))
        )
    zero = build.call("eq", x, 0)
    safe = build.call("where", zero, 1, x)
    rest = apply(back, apply(Prod((axis,)), safe))
    zeros = apply(back, apply(Sum((axis,)), build.call("where", zero, 1, 0, like=x)))
    alone = build.call("where", build.call("eq", zeros, 1), rest, 0)
    divided = build.call("where", build.call("eq", zeros, 0), build.call("div", rest, safe), 0)
    return build.call("where", zero, alone, divided)
