"""Axes that come and axes that go: repeating along new axes, and folding axes away.

`Expand` and `Sum` are each other's adjoint, so they stand together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.loop import Value
from chainrule.ir.node import Array, Index, Node, Op, Reader, Sample, apply
from chainrule.ir.notation import ATOM, MATMUL, MULTIPLY, Notation
from chainrule.ir.size import Dim, Shape, known, product
from chainrule.ir.types import DType, TensorType, float32, float64, int64
from chainrule.ops import reading
from chainrule.ops.source import size_of
from chainrule.records import dataclass


@dataclass(frozen=True)
class Expand(Op):
    """New axes, along which the operand repeats. `axes` are their places in the result's `shape`.

    The adjoint of a sum over the same axes, and the other way round. It prints as its operand does:
    mathematics broadcasts without saying so; `x[:, None]` only where a reader would guess others.
    """

    role = "view"
    name = "expand"
    shape: Shape
    axes: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        kept = tuple(d for i, d in enumerate(self.shape) if i not in self.axes)
        if kept != inputs[0].shape or any(not 0 <= a < len(self.shape) for a in self.axes):
            raise ShapeError(f"expand to {self.shape} at axes {self.axes} does not fit {inputs[0]}")
        return inputs[0].with_shape(self.shape)

    def repeats(self) -> tuple[int, ...]:
        return self.axes

    def ref(self, *inputs: Array) -> Array:
        return np.broadcast_to(np.expand_dims(inputs[0], self.axes), known(self.shape))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Sum(self.axes), ct),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        return inputs[0](tuple(x for i, x in enumerate(index) if i not in self.axes))

    def notation(self, *inputs: Node) -> Notation:
        if not inputs:
            return Notation("{0}", "{0}")
        (x,) = inputs
        if x.op.role == "alias" and x.inputs[0].shape == self.ones():  # as NumPy stretches a 1
            return Notation("{0}", "{0}", shown=x.inputs)
        implied = implied_axes(x, self.shape) == self.axes
        return Notation("{0}", "{0}") if implied else self.explicit()

    def in_full(self) -> str:
        """A text that says the sizes too, where they are others than 1."""
        if self.shape == self.ones():
            return self.explicit().text
        shape = ", ".join(map(str, self.shape)) + ("," if len(self.shape) == 1 else "")
        return f"broadcast_to({{0}}, ({shape}), axes={self.axes})"

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def word(x: Node | Dim, shape: Any, axes: Any) -> Node:
            x = x if isinstance(x, Node) else size_of(x, float32)
            return apply(cls(reading.several(shape), reading.several(axes)), x)

        return {"broadcast_to": word}

    def ones(self) -> Shape:
        """The shape with 1 where the operand repeats."""
        return tuple(1 if i in self.axes else d for i, d in enumerate(self.shape))

    def explicit(self) -> Notation:
        """`x[:, None]`, which says where the new axes are."""
        parts = ", ".join("None" if i in self.axes else ":" for i in range(len(self.shape)))
        return Notation(f"{{0}}[{parts}]", rf"{{0}}_{{{{[{parts}]}}}}", ATOM, (ATOM,))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((2, 4, 3), (1,)), [TensorType(float64, (2, 3))]
        yield cls((5,), (0,)), [TensorType(int64, ())]


#: Elementwise functions through which a reader still sees the fold.
FAR = 16


def folded_axes(x: Node) -> tuple[int, tuple[int, ...]] | None:
    """Of a fold over axes, or an elementwise function of one and of numbers: how many axes there
    were and which went.
    """
    for _ in range(FAR):
        folded = x.op.folds(x.inputs[0].type) if x.inputs else ()
        if folded:
            return x.inputs[0].type.rank, folded
        wide = [i for i in x.inputs if i.type.rank and i.op.name != "full"]
        if x.op.role not in ("pointwise", "light") or len(wide) != 1:
            return None
        (x,) = wide
    return None


def implied_axes(x: Node, shape: Shape) -> tuple[int, ...] | None:
    """The axes along which a reader takes `x` to repeat beside something of a shape.

    Those that a fold took; else the first, as NumPy does; else where alone it fits. None where it
    fits nowhere, or in several ways.
    """
    rank, every = len(shape), range(len(shape))
    gone = folded_axes(x)
    if gone and gone[0] == rank and _fits(x, shape, tuple(i for i in every if i not in gone[1])):
        return gone[1]
    if _fits(x, shape, every[rank - x.type.rank :]):
        return tuple(range(rank - x.type.rank))
    first, last = _first_places(x, shape), _first_places(x, shape, -1)
    unique = first is not None and first == last
    return tuple(i for i in every if first and i not in first) if unique else None


def _first_places(x: Node, shape: Shape, step: int = 1) -> tuple[int, ...] | None:
    """The first axes of a shape, in order, that the axes of `x` fit; with -1 the last."""
    places: list[int] = []
    open_axes = iter(range(len(shape))[::step])
    for d in x.type.shape[::step]:
        place = next((i for i in open_axes if d == 1 or shape[i] in (1, d)), None)
        if place is None:
            return None
        places.append(place)
    return tuple(places[::step])


def _fits(x: Node, shape: Shape, places: Sequence[int]) -> bool:
    along = zip(x.type.shape, places, strict=True)
    return all(d == 1 or shape[p] == 1 or d == shape[p] for d, p in along)


@dataclass(frozen=True)
class Reduce(Op):
    """The axes named are folded by `combine`, an elementwise op, starting from `identity`.

    `by_lanes` is a fold of axes that are not the last in the order in which the last are folded.
    """

    role = "reduce"

    axes: tuple[int, ...]
    by_lanes: bool = False
    combine: ClassVar[str]
    symbol: ClassVar[tuple[str, str]]
    fold: ClassVar[Any]
    needs_elements: ClassVar[bool] = False

    def identity(self, dtype: DType) -> float | int:
        """The value that changes nothing."""
        raise NotImplementedError

    def infer(self, *inputs: TensorType) -> TensorType:
        shape = inputs[0].shape
        if any(not 0 <= a < len(shape) for a in self.axes):
            raise ShapeError(f"{self.name} over axes {self.axes} does not fit {inputs[0]}")
        if inputs[0].dtype.is_bool:
            raise DTypeError(f"{self.name} is defined for numbers, not for bool")
        if self.needs_elements and any(shape[a] == 0 for a in self.axes):
            raise ShapeError(f"the {self.name} of no elements is not defined: {inputs[0]}")
        return inputs[0].with_shape(tuple(d for i, d in enumerate(shape) if i not in self.axes))

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        folded = tuple(inputs[0].shape[a] for a in self.axes)
        return tuple(d for d in folded if not isinstance(d, int)) if self.needs_elements else ()

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        return product(inputs[0].shape)

    def ref(self, *inputs: Array) -> Array:
        return np.asarray(self.fold(inputs[0], axis=self.axes), inputs[0].dtype)

    def notation(self, *inputs: Node) -> Notation:
        text, latex = self.symbol
        rank = inputs[0].type.rank if inputs else len(self.axes)
        if len(self.axes) == rank:
            return Notation(f"{text}({{0}})", rf"{latex} {{0}}", ATOM, (), MATMUL, (MULTIPLY,))
        axes = self.axes[0] if len(self.axes) == 1 else self.axes
        shown = ",".join(str(a) for a in self.axes)
        latex = rf"{latex}_{{{{{shown}}}}} {{0}}"
        return Notation(f"{text}({{0}}, axis={axes})", latex, ATOM, (), MATMUL, (MULTIPLY,))

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {cls.symbol[0]: reading.over(cls)}

    def folds(self, x: TensorType) -> tuple[int, ...]:
        return self.axes

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((1,)), [TensorType(float64, (2, 3))]
        yield cls((0,)), [TensorType(float64, (4, 3))]
        yield cls((0, 2)), [TensorType(float64, (2, 3, 4))]
        yield cls((0, 1)), [TensorType(int64, (2, 3))]


@dataclass(frozen=True)
class Sum(Reduce):
    """The sum over axes. Its adjoint repeats along them."""

    name = "sum"
    combine = "add"
    symbol = ("sum", r"\sum")
    fold = staticmethod(np.sum)

    def identity(self, dtype: DType) -> float | int:
        return 0

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Expand(inputs[0].type.shape, self.axes), ct),)
