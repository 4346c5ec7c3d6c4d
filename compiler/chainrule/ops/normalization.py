"""Normalization: mean and variance over axes, and what divides by them: layer norm and RMS norm.

Composites: derivations and printing see the name, `expand` is what it stands for. Both norms are
written without scale and shift, which are a product and a sum like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir.node import Array, Node, Op, Sample, apply
from chainrule.ir.notation import Notation
from chainrule.ir.size import product
from chainrule.ir.types import TensorType, float64
from chainrule.ops import reading
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.build import call as op
from chainrule.ops.elementwise import check_accepts, factors_of, times
from chainrule.ops.source import Leaf, size_of
from chainrule.records import dataclass

#: What is added under the root where nothing else is said, as in PyTorch's layer norm.
EPS = 1e-5


@dataclass(frozen=True)
class _OverAxes(Op):
    """A function of the floats that lie along some axes."""

    axes: tuple[int, ...]
    composite = True

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        check_accepts(str(self.name), "float", x.dtype)
        if not self.axes or any(not 0 <= a < x.rank for a in self.axes):
            raise ShapeError(f"{self.name} over axes {self.axes} does not fit {x}")
        return x

    def along(self, x: Node) -> Node:
        """The mean over the axes, repeated along them."""
        return self.back(mean(x, self.axes), x)

    def back(self, folded: Node, x: Node) -> Node:
        """What was folded, repeated along the axes again."""
        return apply(Expand(x.type.shape, self.axes), folded)

    def count(self, x: Node) -> Node:
        """How many elements lie along the axes, as a number."""
        return size_of(product(tuple(x.type.shape[a] for a in self.axes)), x.type.dtype)

    def options(self, inputs: tuple[Node, ...]) -> list[str]:
        """What is printed behind the operand."""
        rank = inputs[0].type.rank if inputs else len(self.axes)
        if len(self.axes) == rank:
            return []
        return [f"axis={self.axes[0] if len(self.axes) == 1 else self.axes}"]

    def notation(self, *inputs: Node) -> Notation:
        shown = ", ".join(["{0}", *self.options(inputs)])
        tex = str(self.name).replace("_", r"\_")
        return Notation(f"{self.name}({shown})", rf"\operatorname{{{{{tex}}}}}\left({shown}\right)")

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((1,)), [TensorType(float64, (3, 4))]
        yield cls((0, 2)), [TensorType(float64, (2, 3, 2))]


@dataclass(frozen=True)
class _Moment(_OverAxes):
    """A mean of something over axes, which go."""

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {str(cls.name): lambda x, axis=None: apply(cls(reading.axes_of(axis, x)), x)}

    def folds(self, x: TensorType) -> tuple[int, ...]:
        return self.axes

    def infer(self, *inputs: TensorType) -> TensorType:
        shape = super().infer(*inputs).shape
        return inputs[0].with_shape(tuple(d for i, d in enumerate(shape) if i not in self.axes))


@dataclass(frozen=True)
class Mean(_Moment):
    """sum(x) / n over axes."""

    name = "mean"

    def ref(self, *inputs: Array) -> Array:
        return np.asarray(inputs[0].mean(axis=self.axes), inputs[0].dtype)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        (x,) = inputs
        return (self.back(op("div", ct, self.count(x)), x),)

    def expand(self, *inputs: Node) -> Node:
        return op("div", apply(Sum(self.axes), inputs[0]), self.count(inputs[0]))


@dataclass(frozen=True)
class Var(_Moment):
    """The mean of (x - mean(x))² over axes, in two passes: E[x²] - E[x]² would cancel."""

    name = "var"

    def ref(self, *inputs: Array) -> Array:
        return np.asarray(inputs[0].var(axis=self.axes), inputs[0].dtype)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        (x,) = inputs
        each = self.back(op("div", op("mul", ct, 2.0), self.count(x)), x)
        return (op("mul", op("sub", x, self.along(x)), each),)

    def expand(self, *inputs: Node) -> Node:
        (x,) = inputs
        return _mean(op("square", op("sub", x, self.back(_mean(x, self.axes), x))), self.axes)


@dataclass(frozen=True)
class _Norm(_OverAxes):
    """`x` brought to a like spread along axes: d / s with s the root of eps plus a mean square."""

    eps: float = EPS
    letter = "h"

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def norm(x: Node, axis: Any = -1, eps: float = EPS) -> Node:
            return apply(cls(reading.axes_of(axis, x), eps), x)

        return {str(cls.name): norm}

    def options(self, inputs: tuple[Node, ...]) -> list[str]:
        last = inputs and self.axes == (inputs[0].type.rank - 1,)
        shown = [] if last else [f"axis={self.axes[0] if len(self.axes) == 1 else self.axes}"]
        return shown if self.eps == EPS else [*shown, f"eps={self.eps!r}"]

    def spread(self, square: Node, x: Node) -> Node:
        """sqrt(square + eps), repeated along the axes."""
        return self.back(op("sqrt", op("add", square, self.eps)), x)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((1,)), [TensorType(float64, (3, 4))]
        yield cls((0,), 0.25), [TensorType(float64, (3, 2))]
        yield cls((0, 2), 0.125), [TensorType(float64, (2, 3, 2))]


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """(x - mean(x)) / sqrt(var(x) + eps) over axes (Ba et al., arXiv:1607.06450).

    Its derivative is (dy - mean(dy) - y * mean(dy * y)) / sqrt(var(x) + eps). A parameter that is a
    factor of dy and the same along the axes, as batch norm's scale is, is a factor of all of it.
    """

    name = "layer_norm"

    def ref(self, *inputs: Array) -> Array:
        (x,) = inputs
        d = x - x.mean(axis=self.axes, keepdims=True)
        square = np.square(d).mean(axis=self.axes, keepdims=True)
        return np.asarray(d / np.sqrt(square + x.dtype.type(self.eps)))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        (x,) = inputs
        ct, scale = next(filter(self._is_alike, factors_of(ct)), (ct, None))
        centred = op("sub", ct, self.along(ct))
        inward = op("sub", centred, op("mul", out, self.along(times(ct, out))))
        if scale is not None:
            inward = op("mul", inward, scale)
        return (op("div", inward, self.spread(apply(Var(self.axes), x), x)),)

    def _is_alike(self, factors: tuple[Node, Node]) -> bool:
        """Whether the second is a parameter, and the same along the axes. Another factor may well
        be infinite where the first is 0 by choice.
        """
        view = factors[1].op
        if not isinstance(view, Expand) or not set(self.axes) <= set(view.axes):
            return False
        (node,) = factors[1].inputs
        while node.op.role == "alias":
            (node,) = node.inputs
        return isinstance(node.op, Leaf) and node.op.name == "parameter"

    def expand(self, *inputs: Node) -> Node:
        (x,) = inputs
        d = op("sub", x, self.back(_mean(x, self.axes), x))
        return op("div", d, self.spread(_mean(op("square", d), self.axes), x))


@dataclass(frozen=True)
class RmsNorm(_Norm):
    """x / sqrt(mean(x²) + eps) over axes (Zhang and Sennrich, arXiv:1910.07467).

    Its derivative is (dy - y * mean(dy * y)) / sqrt(mean(x²) + eps).
    """

    name = "rms_norm"

    def ref(self, *inputs: Array) -> Array:
        (x,) = inputs
        square = np.square(x).mean(axis=self.axes, keepdims=True)
        return np.asarray(x / np.sqrt(square + x.dtype.type(self.eps)))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        (x,) = inputs
        inward = op("sub", ct, op("mul", out, self.along(op("mul", ct, out))))
        return (op("div", inward, self.spread(mean(op("square", x), self.axes), x)),)

    def expand(self, *inputs: Node) -> Node:
        (x,) = inputs
        return op("div", x, self.spread(_mean(op("square", x), self.axes), x))


@dataclass(frozen=True)
class Norm(_Moment):
    """The Euclidean length sqrt(sum(x²)) over axes; at 0 its derivative is 0, as in PyTorch."""

    name = "norm"

    def ref(self, *inputs: Array) -> Array:
        square = np.square(inputs[0]).sum(axis=self.axes)
        return np.asarray(np.sqrt(square), inputs[0].dtype)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        (x,) = inputs
        length = self.back(op("where", op("eq", out, 0.0), 1.0, out), x)  # x is 0 there
        return (op("mul", self.back(ct, x), op("div", x, length)),)

    def expand(self, *inputs: Node) -> Node:
        return op("sqrt", apply(Sum(self.axes), op("square", inputs[0])))


def mean(x: Node, axes: tuple[int, ...]) -> Node:
    """The mean over axes, by name."""
    return apply(Mean(axes), x)


def _mean(x: Node, axes: tuple[int, ...]) -> Node:
    """The mean over axes, as a sum and a division."""
    return Mean(axes).expand(x)
