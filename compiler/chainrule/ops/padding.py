"""Padding as a view: what reads it lays it down itself, a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir.loop import Apply, IndexValue, Literal, Loop, Value
from chainrule.ir.node import (
    Array,
    Index,
    Node,
    Op,
    Reader,
    Sample,
    Stmts,
    apply,
    for_each,
)
from chainrule.ir.notation import Notation
from chainrule.ir.size import Size, product
from chainrule.ir.types import TensorType, bool_, float64, int64
from chainrule.ops import reading
from chainrule.ops.layout import Place, Slice
from chainrule.ops.windows import Ints, call_with
from chainrule.records import dataclass

#: what writes a value at an index
Put = Callable[[Index, Value], Stmts]


@dataclass(frozen=True)
class Padded(Op):
    """The operand with so many elements of value `fill` before and after it along each axis.

    What `Place` puts into memory: images whose windows a product reads become this one, so that
    none of them is written twice and each has its padding while it is near.
    """

    role = "view"
    indexed = True
    name = "padded"
    before: Ints
    after: Ints
    fill: float | int = 0

    @staticmethod
    def of(place: Node) -> Padded | None:
        """What a `Place` is as a view; None where it does more than pad."""
        op = place.op
        if not isinstance(op, Place) or set(op.steps) != {1}:
            return None
        shape = place.inputs[0].type.shape
        axes = zip(op.starts, shape, op.shape, strict=True)
        after = tuple(size - n - start for start, n, size in axes)
        ends = [d for d in (*op.starts, *after) if isinstance(d, int)]
        rank = len(shape)
        if len(ends) < 2 * rank:
            return None
        return Padded(tuple(ends[:rank]), tuple(ends[rank:]), op.fill)

    def begins_at(self, axis: int) -> bool:
        """Whether there is none along the axes before this one."""
        return not any((*self.before[:axis], *self.after[:axis]))

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if not len(self.before) == len(self.after) == x.rank:
            raise ShapeError(f"padding of {len(self.before)} axes does not fit {x}")
        if min(*self.before, *self.after, 0) < 0:
            raise ShapeError(f"padding of {self.before} and {self.after} elements takes some away")
        axes = zip(self.before, x.shape, self.after, strict=True)
        return x.with_shape(tuple(b + n + a for b, n, a in axes))

    def ref(self, *inputs: Array) -> Array:
        around = list(zip(self.before, self.after, strict=True))
        return np.pad(inputs[0], around, constant_values=self.fill)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Slice(self.before, inputs[0].type.shape, (1,) * len(self.before)), ct),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        """Around the operand another element of it is read, and not used."""
        place: Index = ()
        inside: list[Value] = []
        for i, before, size, after in zip(index, self.before, out.shape, self.after, strict=True):
            if not before and not after:
                place = (*place, i)
                continue
            n = size - before - after
            place = (*place, (i + before * n - before) % n)
            at, end = IndexValue(i, int64), IndexValue(size - after, int64)
            inside.append(Apply("ge", (at, Literal(before, int64)), bool_))
            inside.append(Apply("lt", (at, end), bool_))
        if not inside:
            return inputs[0](place)
        within = reduce(lambda a, b: Apply("and_", (a, b), bool_), inside)
        return Apply("where", (within, inputs[0](place), Literal(self.fill, out.dtype)), out.dtype)

    def lay(self, x: TensorType, write: Put, read: Reader, lead: Index) -> Stmts:
        """Loops that write the part at a place along the first axes, which have no padding."""
        out, fill = self.infer(x).shape, Literal(self.fill, x.dtype)
        padded = [i for i in range(x.rank) if self.before[i] or self.after[i]]
        whole = min(padded, default=x.rank - 1)  # up to this axis nothing is around
        flat = Size.symbol("f'")

        def part(at: Index) -> Stmts:
            first = (*lead, *at)

            def move(index: Index) -> Stmts:
                places = (a + i for a, i in zip(self.before[whole:], index, strict=True))
                return write((*first, *places), read((*first, *index)))

            around = write((*first, *(0 for _ in out[whole + 1 :]), flat), fill)
            return (
                Loop("f'", product(out[whole:]), around, "vector"),
                *for_each(x.shape[whole:], move, "p", "vector"),
            )

        return for_each(x.shape[len(lead) : whole], part, "w")

    def notation(self, *inputs: Node) -> Notation:
        fill = [f"fill={self.fill}"] if self.fill != 0 else []
        before, after = (", ".join(map(str, ends)) for ends in (self.before, self.after))
        return call_with("padded", 1, f"before=({before},)", f"after=({after},)", *fill)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def word(x: Node, before: Ints, after: Ints, fill: float | int = 0) -> Node:
            return apply(cls(reading.several(before), reading.several(after), fill), x)

        return {"padded": word}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((0, 2), (0, 1), 1.5), [TensorType(float64, (2, 3))]
        yield cls((1, 0, 4), (0, 0, 5)), [TensorType(float64, (2, 3, 2))]


def among_zeros(node: Node, axis: int) -> tuple[Node, Ints, Ints] | None:
    """What a node is with zeros around it, and how many are before and after it along each axis
    from this one on; itself where it is not padded, None where it is padded otherwise.
    """
    padding, none = node.op, (0,) * (node.type.rank - axis)
    if not isinstance(padding, Padded):
        return node, none, none
    if padding.fill != 0 or not padding.begins_at(axis):
        return None
    return node.inputs[0], padding.before[axis:], padding.after[axis:]
