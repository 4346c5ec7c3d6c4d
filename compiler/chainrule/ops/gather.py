"""Elements at positions along several axes at once, `x[i, j]`, and its adjoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.loop import Apply, IndexValue, Literal, Load, Store, Value
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
from chainrule.ir.notation import ATOM, Notation
from chainrule.ir.size import Dim, Shape, known, product
from chainrule.ir.types import TensorType, float64, int64
from chainrule.ops import reading
from chainrule.ops.index import bound_of, counted
from chainrule.records import dataclass


def _check(name: str, types: Sequence[TensorType]) -> None:
    if any(not t.dtype.is_integer for t in types):
        raise DTypeError(f"{name} takes integer positions, not {', '.join(map(str, types))}")
    if len({t.shape for t in types}) > 1:
        raise ShapeError(f"{name} needs positions of one shape: {', '.join(map(str, types))}")


def _place(element: Reader, rest: Index, axes: Sequence[int], at: Sequence[Value]) -> Load:
    """The element at positions along `axes` and an index along the others."""

    def moved(along: int | None) -> Load:
        index = list(rest)
        for axis in axes:
            index.insert(axis, 1 if axis == along else 0)
        load = element(tuple(index))
        assert isinstance(load, Load)
        return load

    first = moved(None)
    total: Value | None = None
    for axis, position in zip(axes, at, strict=True):
        stride = IndexValue(moved(axis).offset - first.offset, int64)
        wide = position if position.dtype == int64 else Apply("cast", (position,), int64)
        step = Apply("mul", (wide, stride), int64)
        total = step if total is None else Apply("add", (total, step), int64)
    return Load(first.buffer, first.offset, total, 1)


def _ascend(axes: tuple[int, ...], rank: int) -> bool:
    """Whether axes are such of a tensor, in order."""
    return all(a < b for a, b in zip((-1, *axes), (*axes, rank), strict=True))


@dataclass(frozen=True)
class Gather(Op):
    """Elements of the first operand at positions along `axes`, ascending, which the others hold.

    The positions have one shape, whose axes come first in the result; those below 0 count from the
    end. `sizes` are those of the axes.
    """

    name = "gather"
    moves = True
    buffered = (0,)
    domain = (0.0, 2.0)
    axes: tuple[int, ...]
    sizes: Shape
    index_rank: int

    def infer(self, *inputs: TensorType) -> TensorType:
        x, *at = inputs
        _check("gather", at)
        if (
            len(at) != len(self.axes)
            or not _ascend(self.axes, x.rank)
            or at[0].rank != self.index_rank
        ):
            raise ShapeError(f"gather along axes {self.axes} does not fit {x}")
        if tuple(x.shape[a] for a in self.axes) != self.sizes:
            raise ShapeError(f"gather along axes of sizes {self.sizes} does not fit {x}")
        rest = tuple(d for i, d in enumerate(x.shape) if i not in self.axes)
        return x.with_shape((*at[0].shape, *rest))

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Bound], ...]:
        return tuple((i, bound_of(n, inputs[i])) for i, n in enumerate(self.sizes, start=1))

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        x, *positions = inputs
        lead, rest = index[: self.index_rank], index[self.index_rank :]
        at = [counted(read(lead), n) for read, n in zip(positions, self.sizes, strict=True)]
        return _place(x, rest, self.axes, at)

    def ref(self, *inputs: Array) -> Array:
        x, *at = inputs
        return np.asarray(np.moveaxis(x, self.axes, range(len(self.axes)))[tuple(at)])

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        back = GatherAdd(self.axes, self.sizes)
        return (apply(back, ct, *inputs[1:]), *[None] * len(self.axes))

    def notation(self, *inputs: Node) -> Notation:
        holes = ", ".join(f"{{{i}}}" for i in range(1, len(self.axes) + 1))
        if self.axes == tuple(range(len(self.axes))):
            return Notation(f"{{0}}[{holes}]", rf"{{0}}\left[{holes}\right]", operands=(ATOM,))
        tex = rf"\operatorname{{{{gather}}}}_{{{{{self.axes}}}}}\left({{0}}, {holes}\right)"
        return Notation(f"gather({{0}}, {holes}, axes={self.axes})", tex)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def gather(x: Node, *at: Node, axes: tuple[int, ...]) -> Node:
            sizes = tuple(x.type.shape[a] for a in axes)
            return apply(cls(axes, sizes, at[0].type.rank), x, *at)

        return {"gather": gather}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x, at = TensorType(float64, (3, 2, 4)), TensorType(int64, (2, 2))
        yield cls((0, 1), (3, 2), 2), [x, at, at]
        yield cls((0, 2), (3, 4), 1), [x, TensorType(int64, (3,)), TensorType(int64, (3,))]


@dataclass(frozen=True)
class GatherAdd(Op):
    """Zeros of `sizes` along `axes`, to which the first operand is added at positions.

    The adjoint of `Gather`; where positions repeat, their elements add up in row-major order.
    """

    role = "nest"
    name = "gather_add"
    domain = (0.0, 2.0)
    axes: tuple[int, ...]
    sizes: Shape

    def infer(self, *inputs: TensorType) -> TensorType:
        x, *at = inputs
        _check("gather_add", at)
        if len(at) != len(self.axes) or x.shape[: at[0].rank] != at[0].shape:
            raise ShapeError(f"gather_add needs positions for each element: {x}, {at[0]}")
        if len(self.sizes) != len(self.axes) or not _ascend(
            self.axes, x.rank - at[0].rank + len(self.axes)
        ):
            raise ShapeError(f"gather_add along axes {self.axes} does not fit {x}")
        return x.with_shape(self._shape(x, at[0]))

    def _shape(self, x: TensorType, at: TensorType) -> Shape:
        shape = list(x.shape[at.rank :])
        for axis, size in zip(self.axes, self.sizes, strict=True):
            shape.insert(axis, size)
        return tuple(shape)

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Bound], ...]:
        return tuple((i, bound_of(n, inputs[i])) for i, n in enumerate(self.sizes, start=1))

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        return product(inputs[0].shape)

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        x, first = types[0], types[1]
        zero = Literal(0, x.dtype)

        def add(index: Index) -> Stmts:
            lead, rest = index[: first.rank], index[first.rank :]
            at = [counted(read(lead), n) for read, n in zip(inputs[1:], self.sizes, strict=True)]
            old = _place(result, rest, self.axes, at)
            new = Apply("add", (old, inputs[0](index)), x.dtype)
            return (Store(old.buffer, old.offset, new, old.index, old.stride),)

        shape = self._shape(x, first)
        return (*for_each(shape, lambda index: (write(index, zero),)), *for_each(x.shape, add))

    def ref(self, *inputs: Array) -> Array:
        x, *at = inputs
        shape = [*x.shape[at[0].ndim :]]
        for axis, size in zip(self.axes, known(self.sizes), strict=True):
            shape.insert(axis, size)
        out = np.zeros(shape, x.dtype)
        np.add.at(np.moveaxis(out, self.axes, range(len(self.axes))), tuple(at), x)
        return out

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        back = Gather(self.axes, self.sizes, inputs[1].type.rank)
        return (apply(back, ct, *inputs[1:]), *[None] * len(self.axes))

    def notation(self, *inputs: Node) -> Notation:
        holes = ", ".join(f"{{{i}}}" for i in range(len(self.axes) + 1))
        sizes = ", ".join(map(str, self.sizes))
        return Notation(
            f"gather_add({holes}, axes={self.axes}, sizes=({sizes}))",
            rf"\operatorname{{{{scatter}}}}\left({holes}\right)",
        )

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def add(x: Node, *at: Node, axes: tuple[int, ...], sizes: Any) -> Node:
            return apply(cls(axes, reading.several(sizes)), x, *at)

        return {"gather_add": add}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x, at = TensorType(float64, (2, 2, 4)), TensorType(int64, (2, 2))
        yield cls((0, 1), (3, 2)), [x, at, at]
        at = TensorType(int64, (3,))
        yield cls((0, 2), (3, 4)), [TensorType(float64, (3, 5)), at, at]
