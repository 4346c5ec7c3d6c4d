"""Putting tensors together along an axis, and turning one round along it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.loop import Value
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
from chainrule.ir.size import Dim
from chainrule.ir.types import TensorType, float64, int64
from chainrule.ops import reading
from chainrule.ops.layout import Slice
from chainrule.records import dataclass


@dataclass(frozen=True)
class Concat(Op):
    """Operands of one type, one after another along `axis`; their other sizes agree."""

    role = "nest"
    name = "concat"
    moves = True
    joins = True
    axis: int

    def infer(self, *inputs: TensorType) -> TensorType:
        first = inputs[0]
        shown = ", ".join(map(str, inputs))
        if any(t.dtype != first.dtype for t in inputs):
            raise DTypeError(f"concat needs one element type: {shown}")
        if not 0 <= self.axis < first.rank or any(t.rank != first.rank for t in inputs):
            raise ShapeError(f"concat along axis {self.axis} needs operands of one rank: {shown}")
        if len({self._others(t) for t in inputs}) > 1:
            hint = f"the sizes may differ at axis {self.axis} alone"
            raise ShapeError(f"concat along axis {self.axis} does not fit {shown}", hint)
        return first.with_shape(self._with(first, self._starts(inputs)[-1]))

    def _others(self, t: TensorType) -> tuple[Dim, ...]:
        return t.shape[: self.axis] + t.shape[self.axis + 1 :]

    def _with(self, t: TensorType, size: Dim) -> tuple[Dim, ...]:
        return (*t.shape[: self.axis], size, *t.shape[self.axis + 1 :])

    def _starts(self, types: Types) -> list[Dim]:
        """Where each operand begins, and the end."""
        starts: list[Dim] = [0]
        for t in types:
            starts.append(starts[-1] + t.shape[self.axis])
        return starts

    def ref(self, *inputs: Array) -> Array:
        return np.concatenate(inputs, axis=self.axis)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        types = [n.type for n in inputs]
        return tuple(
            apply(Slice(self._with(t.with_shape((0,) * t.rank), start), t.shape, (1,) * t.rank), ct)
            for t, start in zip(types, self._starts(types)[:-1], strict=True)
        )

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        def move(operand: int, index: Index) -> Stmts:
            return (write(self.stands(types, operand, index), inputs[operand](index)),)

        each = enumerate(types)
        nests = (for_each(t.shape, partial(move, i), inner="vector") for i, t in each)
        return tuple(s for nest in nests for s in nest)

    def stands(self, types: Types, operand: int, index: Index) -> Index:
        at = index[self.axis] + self._starts(types)[operand]
        return (*index[: self.axis], at, *index[self.axis + 1 :])

    def notation(self, *inputs: Node) -> Notation:
        holes = ", ".join(f"{{{i}}}" for i in range(max(len(inputs), 1)))
        axis = f", axis={self.axis}" if self.axis else ""
        tex = rf"\operatorname{{{{concat}}}}_{{{{{self.axis}}}}}\left({holes}\right)"
        return Notation(f"concat([{holes}]{axis})", tex)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def concat(parts: tuple[Node, ...] | Node, axis: int = 0) -> Node:
            nodes = reading.several(parts)
            return apply(cls(reading.axis_of(axis, nodes[0])), *nodes)

        return {"concat": concat}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(0), [TensorType(float64, (2, 3)), TensorType(float64, (1, 3))]
        yield cls(1), [TensorType(int64, (2, n)) for n in (1, 2, 3)]


@dataclass(frozen=True)
class Roll(Op):
    """Elements moved `by` places up along an axis; those pushed over its end come in at its start.

    As numpy.roll.
    """

    role = "view"
    indexed = True
    name = "roll"
    axis: int
    by: int

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if not 0 <= self.axis < x.rank:
            raise ShapeError(f"roll along axis {self.axis} needs more axes than {x} has")
        return x

    def ref(self, *inputs: Array) -> Array:
        return np.roll(inputs[0], self.by, self.axis)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Roll(self.axis, -self.by), ct),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        size = out.shape[self.axis]
        source = 0 if size == 0 else (index[self.axis] + (-self.by) % size) % size
        return inputs[0]((*index[: self.axis], source, *index[self.axis + 1 :]))

    def notation(self, *inputs: Node) -> Notation:
        tex = rf"\operatorname{{{{roll}}}}_{{{{{self.by}}}}}\left({{0}}\right)"
        return Notation(f"roll({{0}}, {self.by}, axis={self.axis})", tex)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {"roll": lambda x, by, axis: apply(cls(reading.axis_of(axis, x), by), x)}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1, 1), [TensorType(float64, (2, 5))]
        yield cls(0, -2), [TensorType(float64, (3,))]
