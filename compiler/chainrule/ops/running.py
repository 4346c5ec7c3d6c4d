"""What runs along one axis, each element made from the one before: sums, products, recurrences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.loop import Apply, Get, IndexValue, Literal, Local, Loop, Set, Value
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
from chainrule.ir.size import Dim, Size, product
from chainrule.ir.types import TensorType, bool_, float64, int64
from chainrule.ops import build, reading
from chainrule.ops.assemble import Roll
from chainrule.ops.source import Iota, size_of
from chainrule.records import dataclass


@dataclass(frozen=True)
class Running(Op):
    """An element from those before it along an axis, or in `reverse` from those after it."""

    role = "nest"
    letter = "z"
    axis: int
    reverse: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        x = inputs[0]
        if not 0 <= self.axis < x.rank:
            raise ShapeError(f"{self.name} along axis {self.axis} does not fit {x}")
        if any(other != x for other in inputs):
            raise ShapeError(f"{self.name} needs one type: {', '.join(map(str, inputs))}")
        if x.dtype.is_bool:
            raise DTypeError(f"{self.name} is defined for numbers, not for bool")
        return x

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        return product(out.shape)

    def start(self, *here: Value) -> Value:
        """The first element, from the operands' elements there."""
        return here[0]

    def following(self, before: Value, *here: Value) -> Value:
        """The element after the one `before`."""
        raise NotImplementedError

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        last = self.axis == types[0].rank - 1
        loops = self._by_rows if last else self._by_steps
        return loops(types[0], write, result, *inputs)

    def _place(self, nth: Dim, size: Dim) -> Dim:
        return size - 1 - nth if self.reverse else nth

    def _by_rows(self, x: TensorType, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        """Along the last axis: one row after another, the element before in a register."""
        size, step = x.shape[-1], Size.symbol("step'")
        before = Local("before", x.dtype)
        is_first = Apply("eq", (IndexValue(step, int64), Literal(0, int64)), bool_)

        def row(lead: Index) -> Stmts:
            at = (*lead, self._place(step, size))
            here = [read(at) for read in inputs]
            value = self.following(Get(before), *here)
            value = Apply("where", (is_first, self.start(*here), value), x.dtype)
            body = (Set(before, (), value), write(at, Get(before)))
            return (before, Loop("step'", size, body))

        return for_each(x.shape[:-1], row)

    def _by_steps(self, x: TensorType, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        """Along another axis: one step after another, each for all that lies beside."""
        size, step = x.shape[self.axis], Size.symbol("step'")
        lead, beside = x.shape[: self.axis], x.shape[self.axis + 1 :]

        def at(nth: Dim, outer: Index, inner: Index) -> Index:
            return (*outer, self._place(nth, size), *inner)

        def first(outer: Index, inner: Index) -> Stmts:
            place = at(0, outer, inner)
            return (write(place, self.start(*[read(place) for read in inputs])),)

        def later(outer: Index, inner: Index) -> Stmts:
            place, before = at(step + 1, outer, inner), at(step, outer, inner)
            here = [read(place) for read in inputs]
            return (write(place, self.following(result(before), *here)),)

        def block(outer: Index) -> Stmts:
            heads = for_each(beside, lambda inner: first(outer, inner), "j", "vector")
            rest = for_each(beside, lambda inner: later(outer, inner), "j", "vector")
            some = 1 - 1 // (size + 1)  # 0 where the axis is empty
            return (Loop("head'", some, heads), Loop("step'", size - 1, rest))

        return for_each(lead, block)

    def notation(self, *inputs: Node) -> Notation:
        word = f"reverse_{self.name}" if self.reverse else str(self.name)
        tex = rf"\operatorname{{{{{self._short()}}}}}_{{{{{self.axis}}}}}"
        holes = ", ".join(f"{{{i}}}" for i in range(max(len(inputs), 1)))
        return Notation(f"{word}({holes}, axis={self.axis})", rf"{tex}\left({holes}\right)")

    def _short(self) -> str:
        return ("r" if self.reverse else "") + self.short

    short: ClassVar[str]

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        back = reading.along(lambda axis: cls(axis, True))
        return {str(cls.name): reading.along(cls), f"reverse_{cls.name}": back}

    def _way(self) -> tuple[slice, ...]:
        """The subscript that turns the axis into the direction of running."""
        return (slice(None),) * self.axis + (slice(None, None, -1 if self.reverse else 1),)


@dataclass(frozen=True)
class CumulativeSum(Running):
    """The sum of an element and all before it along an axis, or of all after it in `reverse`."""

    name = "cumulative_sum"
    short = "cumsum"

    def following(self, before: Value, *here: Value) -> Value:
        return Apply("add", (before, *here), before.dtype)

    def ref(self, *inputs: Array) -> Array:
        way = self._way()
        return np.cumsum(inputs[0][way], self.axis, inputs[0].dtype)[way]

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(CumulativeSum(self.axis, not self.reverse), ct),)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1), [TensorType(float64, (2, 4))]
        yield cls(0, True), [TensorType(float64, (3, 2))]
        yield cls(0), [TensorType(int64, (5,))]


@dataclass(frozen=True)
class CumulativeProd(Running):
    """The product of an element and all before it along an axis, or of all after it in `reverse`.

    Its derivative does not divide, so it is right beside zeros, and so are further ones.
    """

    name = "cumulative_prod"
    short = "cumprod"

    def following(self, before: Value, *here: Value) -> Value:
        return Apply("mul", (before, *here), before.dtype)

    def ref(self, *inputs: Array) -> Array:
        way = self._way()
        return np.cumprod(inputs[0][way], self.axis, inputs[0].dtype)[way]

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        """With x_j out of a product up to i, those before j are left and those between.

        So dx_j = (the product before j) * s_j, where s_j = ct_j + x_{j+1} s_{j+1}.
        """
        (x,) = inputs
        rest = apply(Recurrence(self.axis, not self.reverse), _next(x, self), ct)
        return (build.call("mul", _before(out, self, 1), rest),)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1), [TensorType(float64, (2, 4))]
        yield cls(0, True), [TensorType(float64, (3, 2))]
        yield cls(0), [TensorType(int64, (5,))]


@dataclass(frozen=True)
class Recurrence(Running):
    """z_i = a_i * z_{i-1} + b_i along an axis, from z_0 = b_0; the other way round in `reverse`."""

    name = "recurrence"
    short = "recurrence"

    def start(self, *here: Value) -> Value:
        return here[1]

    def following(self, before: Value, *here: Value) -> Value:
        of = before.dtype
        return Apply("add", (Apply("mul", (here[0], before), of), here[1]), of)

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        return 2 * product(out.shape)

    def ref(self, *inputs: Array) -> Array:
        a, b = (np.moveaxis(x[self._way()], self.axis, 0) for x in inputs)
        out = b.copy()
        with np.errstate(all="ignore"):
            for i in range(1, len(out)):
                out[i] = a[i] * out[i - 1] + b[i]
        return np.moveaxis(out, 0, self.axis)[self._way()]

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        """The adjoint runs back: l_i = ct_i + a_{i+1} l_{i+1}."""
        adjoint = apply(Recurrence(self.axis, not self.reverse), _next(inputs[0], self), ct)
        return build.call("mul", adjoint, _before(out, self, 0)), adjoint

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def run(reverse: bool) -> reading.Word:
            return lambda a, b, axis=-1: apply(cls(reading.axis_of(axis, a), reverse), a, b)

        return {"recurrence": run(False), "reverse_recurrence": run(True)}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1), [TensorType(float64, (2, 4))] * 2
        yield cls(0, True), [TensorType(float64, (3, 2))] * 2
        yield cls(0), [TensorType(float64, (5,))] * 2


def product_of_others(x: Node, axis: int) -> Node:
    """For each element the product of the others along an axis, in time linear in their number.

    It does not divide: the product of those before, times that of those after.
    """
    ways = (CumulativeProd(axis), CumulativeProd(axis, True))
    before, after = (_before(apply(way, x), way, 1) for way in ways)
    return build.call("mul", before, after)


def _next(x: Node, along: Running) -> Node:
    """At each place the element that follows; at the last one, which none follows, any."""
    return apply(Roll(along.axis, 1 if along.reverse else -1), x)


def _before(x: Node, along: Running, start: int) -> Node:
    """At each place the element before; at the first `start`."""
    size = x.type.shape[along.axis]
    moved = apply(Roll(along.axis, -1 if along.reverse else 1), x)
    index = apply(Iota(x.type.shape, along.axis, int64))
    end = size_of(size - 1 if along.reverse else 0, int64)
    first = build.call("eq", index, build.broadcast(end, x.type.shape))
    return build.call("where", first, start, moved)
