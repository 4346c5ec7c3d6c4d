"""Elements chosen row by row along one axis, and the adjoint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.loop import Apply, Literal, Load, Store, Value
from chainrule.ir.node import (
    Array,
    Bound,
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
from chainrule.ir.size import Dim, known, product
from chainrule.ir.types import TensorType, float64, int64
from chainrule.ops import reading
from chainrule.ops.index import bound_of, counted
from chainrule.records import dataclass


def _put(index: Index, axis: int, at: Dim) -> Index:
    return (*index[:axis], at, *index[axis + 1 :])


@dataclass(frozen=True)
class TakeAlong(Op):
    """Along `axis`, in each row of the first operand the elements that the second's row names.

    Given the axis' size as `end`, positions below 0 count from there.
    """

    name = "take_along_axis"
    moves = True
    buffered = (0,)
    axis: int
    end: Dim | None = None

    def infer(self, *inputs: TensorType) -> TensorType:
        out = _check_along(str(self.name), self.axis, *inputs)
        if self.end not in (None, inputs[0].shape[self.axis]):
            raise ShapeError(f"axis {self.axis} of {inputs[0]} does not end at {self.end}")
        return out

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Bound], ...]:
        return ((1, bound_of(inputs[0].shape[self.axis], inputs[1], self.end is not None)),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        first, second = (inputs[0](_put(index, self.axis, i)) for i in (0, 1))
        assert isinstance(first, Load) and isinstance(second, Load)
        at = counted(inputs[1](index), self.end)
        return Load(first.buffer, first.offset, at, second.offset - first.offset)

    def ref(self, *inputs: Array) -> Array:
        return np.take_along_axis(inputs[0], inputs[1], self.axis)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        x, at = inputs
        back = AddAlong(self.axis, x.type.shape[self.axis], self.end is not None)
        return (apply(back, ct, at), None)

    def notation(self, *inputs: Node) -> Notation:
        tex = rf"\operatorname{{{{take}}}}_{{{{{self.axis}}}}}\left({{0}}, {{1}}\right)"
        return Notation(f"take_along_axis({{0}}, {{1}}, axis={self.axis})", tex)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def take(x: Node, at: Node, axis: int) -> Node:
            place = reading.axis_of(axis, x)
            return apply(cls(place, x.type.shape[place]), x, at)

        return {"take_along_axis": take}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1), [TensorType(float64, (2, 3)), TensorType(int64, (2, 4))]
        yield cls(0, 2), [TensorType(float64, (2, 3)), TensorType(int64, (1, 3))]

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
    from_end: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        x, at = inputs
        _check_along(str(self.name), self.axis, x, at)
        if x.shape != at.shape:
            raise ShapeError(f"add_along_axis needs a position for each element: {x}, {at}")
        return x.with_shape(_put(x.shape, self.axis, self.n))

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Bound], ...]:
        return ((1, bound_of(self.n, inputs[1], self.from_end)),)

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        return product(inputs[0].shape)

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        x = types[0]
        zero = Literal(0, x.dtype)

        def add(index: Index) -> Stmts:
            first, second = (result(_put(index, self.axis, i)) for i in (0, 1))
            assert isinstance(first, Load) and isinstance(second, Load)
            stride = second.offset - first.offset
            at = counted(inputs[1](index), self.n if self.from_end else None)
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
        back = TakeAlong(self.axis, self.n if self.from_end else None)
        return (apply(back, ct, inputs[1]), None)

    def notation(self, *inputs: Node) -> Notation:
        tex = r"\operatorname{{scatter}}\left({0}, {1}\right)"
        return Notation(f"add_along_axis({{0}}, {{1}}, axis={self.axis}, n={self.n})", tex)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def add(x: Node, at: Node, axis: int, n: Dim) -> Node:
            return apply(cls(reading.axis_of(axis, x), n, True), x, at)

        return {"add_along_axis": add}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1, 3), [TensorType(float64, (2, 4)), TensorType(int64, (2, 4))]
        yield cls(0, 2, True), [TensorType(float64, (3, 2)), TensorType(int64, (3, 2))]

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
