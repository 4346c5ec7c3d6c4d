"""The product along axes."""

from __future__ import annotations

import numpy as np

from chainrule.ir.node import Node, apply
from chainrule.ir.types import DType
from chainrule.ops import build
from chainrule.ops.axes import Expand, Reduce
from chainrule.ops.running import product_of_others
from chainrule.records import dataclass


@dataclass(frozen=True)
class Prod(Reduce):
    """The product over axes; of no elements 1.

    The derivative by a factor is the product of the others, found without dividing: it is right
    where factors are 0, and so are further derivatives.
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
            ct = build.call(
                "mul", product_of_others(x, axis), apply(Expand(x.type.shape, (axis,)), ct)
            )
        return (ct,)
