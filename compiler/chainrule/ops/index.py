"""Operations that choose by integer values: one-hot codes, gathering, and its adjoint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.loop import Apply, IndexValue, Literal, Load, Store, Value
from chainrule.ir.node import (
    Array,
    Bound,
    FromEnd,
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
from chainrule.ir.notation import ATOM, Notation, call
from chainrule.ir.size import Dim, known, product
from chainrule.ir.types import DType, Kind, TensorType, bool_, float64, int64
from chainrule.ops import reading
from chainrule.records import dataclass


def bound_of(size: Dim, at: TensorType, from_end: bool = True) -> Bound:
    """What positions along an axis must stay within; `from_end`, those below 0 count from there."""
    return FromEnd(size) if from_end and at.dtype.kind is Kind.INT else size


def counted(at: Value, end: Dim | None) -> Value:
    """A position as a number from 0, where it may count from the end."""
    if end is None or at.dtype.kind is not Kind.INT:
        return at
    wide = at if at.dtype == int64 else Apply("cast", (at,), int64)
    later = Apply("add", (wide, IndexValue(end, int64)), int64)
    below = Apply("lt", (wide, Literal(0, int64)), bool_)
    return Apply("where", (below, later, wide), int64)


def _check_integer(name: str, what: str, t: TensorType) -> None:
    if not t.dtype.is_integer:
        hint = 'convert first: y.astype("int32")'
        raise DTypeError(f"{name} takes integer {what}, not {t}", hint)


@dataclass(frozen=True)
class OneHot(Op):
    """A new last axis of `n`, 1 (or true) at the operand's value and 0 elsewhere."""

    role = "view"
    indexed = True
    name = "one_hot"
    n: Dim
    dtype: DType

    def infer(self, *inputs: TensorType) -> TensorType:
        _check_integer("one_hot", "classes", inputs[0])
        return TensorType(self.dtype, (*inputs[0].shape, self.n))

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Dim], ...]:
        return ((0, self.n),)

    def ref(self, *inputs: Array) -> Array:
        (n,) = known((self.n,))
        return np.equal(inputs[0][..., None], np.arange(n)).astype(self.dtype.numpy)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (None,)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        chosen = inputs[0](index[:-1])
        hit = Apply("eq", (IndexValue(index[-1], chosen.dtype), chosen), bool_)
        if self.dtype.is_bool:
            return hit
        return Apply("where", (hit, Literal(1, self.dtype), Literal(0, self.dtype)), self.dtype)

    def notation(self, *inputs: Node) -> Notation:
        return call("onehot", 1)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(4, float64), [TensorType(int64, (3,))]
        yield cls(3, bool_), [TensorType(int64, (2, 2))]

    domain = (0.0, 3.0)


@dataclass(frozen=True)
class Take(Op):
    """Elements along `axis` of the first operand at the positions the second holds, of any rank.

    Given the axis' size as `end`, positions below 0 count from there.
    """

    name = "take"
    moves = True
    buffered = (0,)
    axis: int
    index_rank: int
    end: Dim | None = None

    def infer(self, *inputs: TensorType) -> TensorType:
        x, at = inputs
        _check_integer("take", "indices", at)
        if not 0 <= self.axis < x.rank or at.rank != self.index_rank:
            raise ShapeError(f"take along axis {self.axis} does not fit {x}")
        if self.end not in (None, x.shape[self.axis]):
            raise ShapeError(f"take along axis {self.axis} of {x} does not end at {self.end}")
        return x.with_shape(x.shape[: self.axis] + at.shape + x.shape[self.axis + 1 :])

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Bound], ...]:
        return ((1, bound_of(inputs[0].shape[self.axis], inputs[1], self.end is not None)),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        end = self.axis + self.index_rank
        at = counted(inputs[1](index[self.axis : end]), self.end)
        first, second = (inputs[0]((*index[: self.axis], i, *index[end:])) for i in (0, 1))
        assert isinstance(first, Load) and isinstance(second, Load)
        return Load(first.buffer, first.offset, at, second.offset - first.offset)

    def ref(self, *inputs: Array) -> Array:
        return np.take(inputs[0], inputs[1], axis=self.axis)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        x, at = inputs
        back = ScatterAdd(self.axis, x.type.shape[self.axis], self.end is not None)
        return (apply(back, ct, at), None)

    def notation(self, *inputs: Node) -> Notation:
        if self.axis == 0:
            return Notation("{0}[{1}]", r"{0}\left[{1}\right]", operands=(ATOM,))
        return Notation(
            f"take({{0}}, {{1}}, axis={self.axis})",
            rf"\operatorname{{{{take}}}}_{{{{{self.axis}}}}}\left({{0}}, {{1}}\right)",
        )

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def take(x: Node, at: Node, axis: int = 0) -> Node:
            place = reading.axis_of(axis, x)
            return apply(cls(place, at.type.rank, x.type.shape[place]), x, at)

        return {"take": take}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(0, 1), [TensorType(float64, (3, 2)), TensorType(int64, (4,))]
        yield cls(1, 2, 3), [TensorType(float64, (2, 3)), TensorType(int64, (2, 2))]

    domain = (0.0, 2.0)


@dataclass(frozen=True)
class ScatterAdd(Op):
    """Zeros of `n` along `axis`, to which the first operand is added at the second's positions.

    The adjoint of `Take`; where positions repeat, their elements add up in row-major order.
    """

    role = "nest"
    name = "scatter_add"
    axis: int
    n: Dim
    from_end: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        x, at = inputs
        _check_integer("scatter_add", "indices", at)
        if not self.axis >= 0 or x.shape[self.axis :][: at.rank] != at.shape:
            raise ShapeError(f"scatter_add along axis {self.axis} does not fit {x} at {at}")
        return x.with_shape((*x.shape[: self.axis], self.n, *x.shape[self.axis + at.rank :]))

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Bound], ...]:
        return ((1, bound_of(self.n, inputs[1], self.from_end)),)

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        return product(inputs[0].shape)

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        x, at = types
        shape = (*x.shape[: self.axis], self.n, *x.shape[self.axis + at.rank :])
        zero = Literal(0, x.dtype)

        def add(index: Index) -> Stmts:
            chosen = index[self.axis : self.axis + at.rank]
            before, after = index[: self.axis], index[self.axis + at.rank :]
            first, second = (result((*before, i, *after)) for i in (0, 1))
            assert isinstance(first, Load) and isinstance(second, Load)
            stride = second.offset - first.offset
            place = counted(inputs[1](chosen), self.n if self.from_end else None)
            old = Load(first.buffer, first.offset, place, stride)
            new = Apply("add", (old, inputs[0](index)), x.dtype)
            return (Store(first.buffer, first.offset, new, place, stride),)

        return (*for_each(shape, lambda index: (write(index, zero),)), *for_each(x.shape, add))

    def ref(self, *inputs: Array) -> Array:
        x, at = inputs
        after = self.axis + at.ndim
        out = np.zeros((*x.shape[: self.axis], *known((self.n,)), *x.shape[after:]), x.dtype)
        rows = np.moveaxis(out, self.axis, 0)
        parts = np.moveaxis(x, range(self.axis, after), range(at.ndim))
        np.add.at(rows, at, parts)
        return out

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        back = Take(self.axis, inputs[1].type.rank, self.n if self.from_end else None)
        return (apply(back, ct, inputs[1]), None)

    def notation(self, *inputs: Node) -> Notation:
        axis = f", axis={self.axis}" if self.axis else ""
        return Notation(
            f"scatter_add({{0}}, {{1}}, n={self.n}{axis})",
            r"\operatorname{{scatter}}\left({0}, {1}\right)",
        )

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {"scatter_add": lambda x, at, n, axis=0: apply(cls(axis, n, True), x, at)}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(0, 3), [TensorType(float64, (4, 2)), TensorType(int64, (4,))]
        yield cls(1, 3, True), [TensorType(float64, (2, 2, 2)), TensorType(int64, (2, 2))]

    domain = (0.0, 2.0)
