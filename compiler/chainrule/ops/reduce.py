"""The largest and the smallest along axes."""

from __future__ import annotations

import numpy as np

from chainrule.ir.node import Node, apply
from chainrule.ir.types import DType
from chainrule.ops import build
from chainrule.ops.axes import Expand, Reduce, Sum
from chainrule.records import dataclass


class _Extremum(Reduce):
    """What the largest and the smallest share: equal elements share the cotangent equally."""

    needs_elements = True

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        (x,) = inputs
        back = Expand(x.type.shape, self.axes)
        attained = build.call("where", build.call("eq", x, apply(back, out)), 1, 0, like=x)
        share = build.call("div", ct, apply(Sum(self.axes), attained))
        return (build.call("mul", attained, apply(back, share)),)


@dataclass(frozen=True)
class Max(_Extremum):
    """The largest element over axes; a NaN anywhere gives NaN."""

    name = "max"
    combine = "maximum"
    symbol = ("max", r"\max")
    fold = staticmethod(np.max)

    def identity(self, dtype: DType) -> float | int:
        return -np.inf if dtype.is_float else dtype.bounds[0]


@dataclass(frozen=True)
class Min(_Extremum):
    """The smallest element over axes; a NaN anywhere gives NaN."""

    name = "min"
    combine = "minimum"
    symbol = ("min", r"\min")
    fold = staticmethod(np.min)

    def identity(self, dtype: DType) -> float | int:
        return np.inf if dtype.is_float else dtype.bounds[1]
