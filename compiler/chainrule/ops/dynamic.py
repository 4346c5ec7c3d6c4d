"""Slices whose start is known only at run time, and writing one: each the other's adjoint.

A start below 0 counts from the end; then it is moved to where the whole slice fits, as XLA does. So
no start is out of range, and nothing is to be checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.loop import Apply, IndexValue, Literal, Load, Store, Value
from chainrule.ir.node import (
    Array,
    Index,
    Node,
    Op,
    Reader,
    Sample,
    Stmts,
    Types,
    apply,
    for_each,
)
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Shape, known
from chainrule.ir.types import TensorType, bool_, float64, int32, int64
from chainrule.ops.reading import Word, several
from chainrule.ops.source import Full, escape, full
from chainrule.records import dataclass

_ZERO = Literal(0, int64)
_START = TensorType(int32, ())


def _check(name: str, x: TensorType, part: Shape, starts: Sequence[TensorType]) -> None:
    """Refuse a part that does not fit into x, and starts that are no integers."""
    if len(part) != x.rank or len(starts) != x.rank:
        raise ShapeError(f"{name} needs a size and a start for each axis of {x}")
    for axis, (size, dim) in enumerate(zip(part, x.shape, strict=True)):
        room = dim - size
        if isinstance(room, int) and room < 0:
            shown = ", ".join(map(str, part))
            raise ShapeError(f"{name}: ({shown}) does not fit into {x}: see axis {axis}")
    for start in starts:
        if start.rank:
            raise ShapeError(f"{name} takes scalar starts, not {start}")
        if not start.dtype.is_integer:
            raise DTypeError(f"{name} takes integer starts, not {start}", "floor, then astype")


def _room(x: TensorType, part: Shape) -> tuple[Dim, ...]:
    """What must be at least 1 for the part to fit, as far as it is not known."""
    rooms = [d - n + 1 for d, n in zip(x.shape, part, strict=True)]
    return tuple(r for r in rooms if not isinstance(r, int))


def _starts(x: Shape, part: Shape, starts: Sequence[Reader]) -> list[Value]:
    """Where the part begins along each axis, as int64; 0 where it is the whole axis."""
    found: list[Value] = []
    for dim, size, read in zip(x, part, starts, strict=True):
        if dim == size:
            found.append(_ZERO)
            continue
        given = Apply("cast", (read(()),), int64)
        from_end = Apply("add", (given, IndexValue(dim, int64)), int64)
        start = _where(Apply("lt", (given, _ZERO), bool_), from_end, given)
        last = IndexValue(dim - size, int64)
        start = _where(Apply("gt", (start, last), bool_), last, start)
        found.append(_where(Apply("lt", (start, _ZERO), bool_), _ZERO, start))
    return found


def _within(i: Dim, start: Value, n: Dim) -> tuple[Value, list[Value]]:
    """Where the index i of the whole lies in a part of size n, and the tests that it does.

    Where it does not, an element that is there is named, to be read and not used.
    """
    place: Value = Apply("sub", (IndexValue(i, int64), start), int64)
    last = IndexValue(n - 1, int64)
    tests: list[Value] = [
        Apply("ge", (place, _ZERO), bool_),
        Apply("le", (place, last), bool_),
    ]
    if n == 1:
        return _ZERO, tests
    return _where(tests[0], _where(tests[1], place, last), _ZERO), tests


def _where(condition: Value, x: Value, y: Value) -> Value:
    return Apply("where", (condition, x, y), int64)


def _moved(read: Reader, at: Index, by: Sequence[Value]) -> Load:
    """The element that stands, from the index `at`, along each axis as far as `by` says."""
    first = read(at)
    assert isinstance(first, Load)
    steps: list[Value] = []
    for axis, distance in enumerate(by):
        if distance is not _ZERO:
            next_one = read((*at[:axis], at[axis] + 1, *at[axis + 1 :]))
            assert isinstance(next_one, Load)
            stride = IndexValue(next_one.offset - first.offset, int64)
            steps.append(Apply("mul", (distance, stride), int64))
    if not steps:
        return first
    total = reduce(lambda a, b: Apply("add", (a, b), int64), steps)
    return Load(first.buffer, first.offset, total, 1)


def _places(
    x: tuple[int, ...], part: tuple[int, ...], starts: Sequence[Array]
) -> tuple[slice, ...]:
    """The part as NumPy indexes it."""
    found = []
    for dim, size, start in zip(x, part, map(int, starts), strict=True):
        at = max(0, min(start + dim if start < 0 else start, dim - size))
        found.append(slice(at, at + size))
    return tuple(found)


@dataclass(frozen=True)
class DynamicSlice(Op):
    """`sizes` of the first operand, of shape `whole`, from where the others, scalars, say."""

    name = "dynamic_slice"
    moves = True
    buffered = (0,)
    whole: Shape
    sizes: Shape
    domain = (-4.0, 4.0)

    def infer(self, *inputs: TensorType) -> TensorType:
        x, *starts = inputs
        _check("dynamic_slice", x, self.sizes, starts)
        if x.shape != self.whole:
            raise ShapeError(f"dynamic_slice of ({', '.join(map(str, self.whole))}) is given {x}")
        return x.with_shape(self.sizes)

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        return _room(inputs[0], self.sizes)

    def ref(self, *inputs: Array) -> Array:
        x, *starts = inputs
        return x[_places(x.shape, known(self.sizes), starts)]

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        x, *starts = inputs
        zeros = full(0, x.type.dtype, x.type.shape)
        return (apply(DynamicUpdateSlice(self.sizes), zeros, ct, *starts), *(None for _ in starts))

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        x, *starts = inputs
        return _moved(x, index, _starts(self.whole, self.sizes, starts))

    def notation(self, *inputs: Node) -> Notation:
        starts, sizes = _holes(1, len(self.sizes)), escape(_tuple(map(str, self.sizes)))
        tex = rf"\operatorname{{{{slice}}}}_{{{{{sizes}}}}}\left({{0}}, {starts}\right)"
        return Notation(f"dynamic_slice({{0}}, {starts}, {sizes})", tex)

    @classmethod
    def words(cls) -> dict[str, Word]:
        def word(x: Node, starts: Any, sizes: Any) -> Node:
            return apply(cls(x.type.shape, several(sizes)), x, *map(_start, several(starts)))

        return {"dynamic_slice": word}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((4, 3), (2, 3)), [TensorType(float64, (4, 3)), _START, _START]
        yield cls((5,), (2,)), [TensorType(int64, (5,)), TensorType(int64, ())]


@dataclass(frozen=True)
class DynamicUpdateSlice(Op):
    """The first operand with the second, of shape `part`, put where the others, scalars, say.

    Where the first is a leaf that this updates, or what a loop carries, the part alone is written.
    """

    name = "dynamic_update_slice"
    moves = True
    buffered = (1,)
    patches = 1
    part: Shape
    domain = (-4.0, 4.0)

    def infer(self, *inputs: TensorType) -> TensorType:
        x, update, *starts = inputs
        _check("dynamic_update_slice", x, update.shape, starts)
        if update.shape != self.part:
            part = ", ".join(map(str, self.part))
            raise ShapeError(f"dynamic_update_slice by ({part}) is given {update}")
        if update.dtype != x.dtype:
            raise DTypeError(f"dynamic_update_slice needs one element type: {x}, {update}")
        return x

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        sizes = (n for n in self.part if not isinstance(n, int))
        return (*_room(inputs[0], self.part), *sizes)

    def ref(self, *inputs: Array) -> Array:
        x, update, *starts = inputs
        out = np.array(x)
        out[_places(x.shape, update.shape, starts)] = update
        return out

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        x, update, *starts = inputs
        zeros = full(0, update.type.dtype, update.type.shape)
        return (
            apply(DynamicUpdateSlice(self.part), ct, zeros, *starts),
            apply(DynamicSlice(x.type.shape, self.part), ct, *starts),
            *(None for _ in starts),
        )

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        x, update, *starts = inputs
        old = x(index)
        if any(n == 0 for n in self.part):
            return old
        at: list[Dim] = []
        moves: list[Value] = []
        inside: list[Value] = []
        for i, start, dim, n in zip(
            index, _starts(out.shape, self.part, starts), out.shape, self.part, strict=True
        ):
            at.append(i if dim == n else 0)
            place, tests = (_ZERO, []) if dim == n else _within(i, start, n)
            moves.append(place)
            inside += tests
        new = _moved(update, tuple(at), moves)
        if not inside:
            return new
        hit = reduce(lambda a, b: Apply("and_", (a, b), bool_), inside)
        return Apply("where", (hit, new, old), out.dtype)

    def patch(self, types: Types, result: Reader, *inputs: Reader) -> Stmts:
        _, update, *starts = inputs
        moves = _starts(types[0].shape, self.part, starts)

        def put(index: Index) -> Stmts:
            to = _moved(result, index, moves)
            return (Store(to.buffer, to.offset, update(index), to.index, to.stride),)

        return for_each(self.part, put)

    def notation(self, *inputs: Node) -> Notation:
        # zeros are written with their shape, which nothing beside them says
        first, second = (_zeros(x) or f"{{{i}}}" for i, x in enumerate(inputs[:2]))
        starts = _holes(2, len(self.part))
        tex = rf"\operatorname{{{{update}}}}\left({{0}}, {{1}}, {starts}\right)"
        return Notation(f"dynamic_update_slice({first}, {second}, {starts})", tex)

    @classmethod
    def words(cls) -> dict[str, Word]:
        def word(x: Node, update: Node, starts: Any) -> Node:
            return apply(cls(update.type.shape), x, update, *map(_start, several(starts)))

        return {"dynamic_update_slice": word}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        x = TensorType(float64, (4, 3))
        yield cls((2, 3)), [x, TensorType(float64, (2, 3)), _START, _START]
        yield cls((1, 2)), [x, TensorType(float64, (1, 2)), _START, _START]
        yield cls((2,)), [TensorType(int64, (5,)), TensorType(int64, (2,)), TensorType(int64, ())]


def _zeros(x: Node) -> str:
    if not isinstance(x.op, Full) or x.op.value != 0:
        return ""
    return escape(f"zeros({_tuple(map(str, x.type.shape))})")


def _start(start: Any) -> Node:
    """A start as it is read back: a node, or a number."""
    return full(start, int64, ()) if isinstance(start, int) else start


def _holes(first: int, count: int) -> str:
    return _tuple(f"{{{first + i}}}" for i in range(count))


def _tuple(parts: Iterable[str]) -> str:
    shown = list(parts)
    return "(" + ", ".join(shown) + ("," if len(shown) == 1 else "") + ")"
