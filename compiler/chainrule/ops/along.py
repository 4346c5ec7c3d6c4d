"""Operations along one axis: running sums, and elements chosen row by row, with the adjoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.loop import Apply, Literal, Load, Loop, Store, Value
from chainrule.ir.node import (
    Array,
    Index,
    Node,
    Op,
    Reader,
    Sample,
    Stmts,
    Types,
    Writer,
    apply,
    for_each,
)
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Size, known, product
from chainrule.ir.types import TensorType, float64, int64


def _put(index: Index, axis: int, at: Dim) -> Index:
    return (*index[:axis], at, *index[axis + 1 :])


@dataclass(frozen=True)
class CumulativeSum(Op):
    """The sum of an element and all before it along an axis, or of all after it in `reverse`."""

    role = "nest"
    name = "cumulative_sum"
    letter = "z"
    axis: int
    reverse: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if not 0 <= self.axis < x.rank:
            raise ShapeError(f"cumulative_sum along axis {self.axis} does not fit {x}")
        if x.dtype.is_bool:
            raise DTypeError("cumulative_sum is defined for numbers, not for bool")
        return x

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        size = inputs[0].shape[self.axis]
        return () if isinstance(size, int) else (size,)

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        return product(out.shape)

    def ref(self, *inputs: Array) -> Array:
        way = (slice(None),) * self.axis + (slice(None, None, -1 if self.reverse else 1),)
        return np.cumsum(inputs[0][way], self.axis, inputs[0].dtype)[way]

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(CumulativeSum(self.axis, not self.reverse), ct),)

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        (x,) = types
        size = x.shape[self.axis]
        if isinstance(size, int) and size == 0:
            return ()
        step = Size.symbol("step")

        def place(nth: Dim) -> Dim:
            return size - 1 - nth if self.reverse else nth

        def first(index: Index) -> Stmts:
            at = _put(index, self.axis, place(0))
            return (write(at, inputs[0](at)),)

        def following(index: Index) -> Stmts:
            at, before = (_put(index, self.axis, place(n)) for n in (step + 1, step))
            return (write(at, Apply("add", (result(before), inputs[0](at)), x.dtype)),)

        others = _put(x.shape, self.axis, 1)
        return (
            *for_each(others, first),
            Loop("step", size - 1, for_each(others, following)),
        )

    def notation(self, *inputs: Node) -> Notation:
        word = "reverse_cumulative_sum" if self.reverse else "cumulative_sum"
        tex = rf"\operatorname{{{{{'rcumsum' if self.reverse else 'cumsum'}}}}}_{{{{{self.axis}}}}}"
        return Notation(f"{word}({{0}}, axis={self.axis})", rf"{tex}\left({{0}}\right)")

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1), [TensorType(float64, (2, 4))]
        yield cls(0, True), [TensorType(float64, (3, 2))]
        yield cls(0), [TensorType(int64, (5,))]


@dataclass(frozen=True)
class TakeAlong(Op):
    """Along `axis`, in each row of the first operand the elements that the second's row names."""

    name = "take_along_axis"
    buffered = (0,)
    axis: int

    def infer(self, *inputs: TensorType) -> TensorType:
        return _check_along(str(self.name), self.axis, *inputs)

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Dim], ...]:
        return ((1, inputs[0].shape[self.axis]),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        first, second = (inputs[0](_put(index, self.axis, i)) for i in (0, 1))
        assert isinstance(first, Load) and isinstance(second, Load)
        return Load(first.buffer, first.offset, inputs[1](index), second.offset - first.offset)

    def ref(self, *inputs: Array) -> Array:
        return np.take_along_axis(inputs[0], inputs[1], self.axis)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        x, at = inputs
        return (apply(AddAlong(self.axis, x.type.shape[self.axis]), ct, at), None)

    def notation(self, *inputs: Node) -> Notation:
        tex = rf"\operatorname{{{{take}}}}_{{{{{self.axis}}}}}\left({{0}}, {{1}}\right)"
        return Notation(f"take_along_axis({{0}}, {{1}}, axis={self.axis})", tex)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1), [TensorType(float64, (2, 3)), TensorType(int64, (2, 4))]
        yield cls(0), [TensorType(float64, (2, 3)), TensorType(int64, (1, 3))]

    domain = (0.0, 2.0)


@dataclass(frozen=True)
class AddAlong(Op):
    """Zeros of `n` along `axis`, to whose rows the first operand's elements are added.

    The second's rows say where: the adjoint of `TakeAlong`.
    """

    role = "nest"
    name = "add_along_axis"
    axis: int
    n: Dim

    def infer(self, *inputs: TensorType) -> TensorType:
        x, at = inputs
        _check_along(str(self.name), self.axis, x, at)
        if x.shape != at.shape:
            raise ShapeError(f"add_along_axis needs a position for each element: {x}, {at}")
        return x.with_shape(_put(x.shape, self.axis, self.n))

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Dim], ...]:
        return ((1, self.n),)

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        return product(inputs[0].shape)

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        x = types[0]
        zero = Literal(0, x.dtype)

        def add(index: Index) -> Stmts:
            first, second = (result(_put(index, self.axis, i)) for i in (0, 1))
            assert isinstance(first, Load) and isinstance(second, Load)
            stride = second.offset - first.offset
            at = inputs[1](index)
            old = Load(first.buffer, first.offset, at, stride)
            new = Apply("add", (old, inputs[0](index)), x.dtype)
            return (Store(first.buffer, first.offset, new, at, stride),)

        shape = _put(x.shape, self.axis, self.n)
        return (*for_each(shape, lambda index: (write(index, zero),)), *for_each(x.shape, add))

    def ref(self, *inputs: Array) -> Array:
        x, at = inputs
        (n,) = known((self.n,))
        out = np.zeros((*x.shape[: self.axis], n, *x.shape[self.axis + 1 :]), x.dtype)
        places: list[Array] = list(np.indices(x.shape, sparse=True))
        places[self.axis] = at
        np.add.at(out, tuple(places), x)
        return out

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(TakeAlong(self.axis), ct, inputs[1]), None)

    def notation(self, *inputs: Node) -> Notation:
        tex = r"\operatorname{{scatter}}\left({0}, {1}\right)"
        return Notation(f"add_along_axis({{0}}, {{1}}, axis={self.axis}, n={self.n})", tex)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1, 3), [TensorType(float64, (2, 4)), TensorType(int64, (2, 4))]
        yield cls(0, 2), [TensorType(float64, (3, 2)), TensorType(int64, (3, 2))]

    domain = (0.0, 2.0)


def _check_along(name: str, axis: int, x: TensorType, at: TensorType) -> TensorType:
    """The type of elements of x at positions that have its shape, but for one axis."""
    if not at.dtype.is_integer:
        raise DTypeError(f"{name} takes integer positions, not {at}", 'convert: y.astype("int32")')
    if not 0 <= axis < x.rank or at.rank != x.rank:
        raise ShapeError(f"{name} along axis {axis} does not fit {x}, {at}")
    if _put(at.shape, axis, 1) != _put(x.shape, axis, 1):
        raise ShapeError(f"{name} needs shapes that differ at axis {axis} alone: {x}, {at}")
    return x.with_shape(at.shape)
