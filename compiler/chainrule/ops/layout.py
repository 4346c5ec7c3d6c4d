"""Views: operations that move elements and compute nothing; each is an index map."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir.loop import Literal, Value
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
from chainrule.ir.notation import ATOM, POWER, Notation
from chainrule.ir.size import Dim, Shape, known, product
from chainrule.ir.types import TensorType, float64
from chainrule.ops import reading
from chainrule.records import dataclass


@dataclass(frozen=True)
class Permute(Op):
    """Axis i of the result is axis perm[i] of the operand."""

    role = "view"
    name = "permute"
    perm: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        if sorted(self.perm) != list(range(inputs[0].rank)):
            raise ShapeError(f"{self.perm} does not name each axis of {inputs[0]} once")
        return inputs[0].with_shape(tuple(inputs[0].shape[p] for p in self.perm))

    def ref(self, *inputs: Array) -> Array:
        return np.transpose(inputs[0], self.perm)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Permute(inverse(self.perm)), ct),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        return inputs[0](tuple(index[p] for p in inverse(self.perm)))

    def notation(self, *inputs: Node) -> Notation:
        swap = (*range(len(self.perm) - 2), len(self.perm) - 1, len(self.perm) - 2)
        if self.perm == swap:
            return Notation("{0}ᵀ", r"{0}^{{\top}}", POWER, (ATOM,))
        latex = rf"\pi_{{{{{self.perm}}}}}\left({{0}}\right)"
        return Notation(f"permute_dims({{0}}, {self.perm})", latex)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {"permute_dims": lambda x, axes: apply(cls(reading.several(axes)), x)}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((1, 0)), [TensorType(float64, (2, 3))]
        yield cls((2, 0, 1)), [TensorType(float64, (2, 3, 4))]


def inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes `perm`."""
    return tuple(perm.index(i) for i in range(len(perm)))


@dataclass(frozen=True)
class Reshape(Op):
    """The same elements in row-major order under another shape."""

    role = "alias"
    name = "reshape"
    shape: Shape

    def infer(self, *inputs: TensorType) -> TensorType:
        have, want = product(inputs[0].shape), product(self.shape)
        if have != want:
            shape = "(" + ", ".join(map(str, self.shape)) + ")"
            raise ShapeError(
                f"reshape keeps the number of elements: {inputs[0]} to {shape}",
                f"{have} elements != {want}",
            )
        return inputs[0].with_shape(self.shape)

    def ref(self, *inputs: Array) -> Array:
        return np.reshape(inputs[0], known(self.shape))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Reshape(inputs[0].type.shape), ct),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        raise ShapeError("a reshape is read through its operand's buffer")

    def notation(self, *inputs: Node) -> Notation:
        shape = "(" + ", ".join(map(str, self.shape)) + ("," if len(self.shape) == 1 else "") + ")"
        return Notation(
            f"reshape({{0}}, {shape})", rf"\operatorname{{{{reshape}}}}\left({{0}}, {shape}\right)"
        )

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {"reshape": lambda x, shape: apply(cls(reading.several(shape)), x)}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((3, 2)), [TensorType(float64, (2, 3))]
        yield cls((4, 1, 6)), [TensorType(float64, (2, 3, 4))]


def unravel(flat: Dim, shape: Shape) -> Index:
    """The index, under `shape`, of the element at row-major position `flat`."""
    index: list[Dim] = []
    for dim in reversed(shape):
        index.append(flat % dim if not (isinstance(dim, int) and dim == 1) else 0)
        flat = flat // dim
    return tuple(reversed(index))


def ravel(index: Index, shape: Shape) -> Dim:
    """The row-major position of an index under `shape`."""
    flat: Dim = 0
    for x, dim in zip(index, shape, strict=True):
        flat = flat * dim + x
    return flat


def merged(index: Index, shape: Shape, into: Shape) -> Index | None:
    """An index under `shape` as one under `into`, each axis of which is a run of neighbours there;
    None where it is not.
    """
    found: list[Dim] = []
    place = 0
    for dim in into:
        begin = place
        size: Dim = 1
        while size != dim and place < len(shape):
            size, place = size * shape[place], place + 1
        if size != dim:
            return None
        found.append(ravel(index[begin:place], shape[begin:place]))
    return tuple(found) if place == len(shape) else None


def _places(starts: Shape, counts: Shape, steps: tuple[int, ...]) -> tuple[Array, ...]:
    """The elements that a slice reads, as NumPy indexes them."""
    along = zip(known(starts), known(counts), steps, strict=True)
    return np.ix_(*(start + step * np.arange(count) for start, count, step in along))


def _within(starts: Shape, counts: Shape, steps: tuple[int, ...], whole: Shape) -> tuple[Dim, ...]:
    """What must be at least 1 for a slice to lie in `whole`, as far as it is not known."""
    parts = zip(starts, counts, steps, whole, strict=True)
    return tuple(d for part in parts for d in _inside(*part) if not isinstance(d, int))


def _inside(start: Dim, count: Dim, step: int, size: Dim) -> tuple[Dim, Dim, Dim]:
    """What must be at least 1 for a slice to lie in an axis; of a slice of nothing, the first."""
    last = start + (count - 1) * step
    low, high = (start, last) if step > 0 else (last, start)
    return count + 1, low + 1, size - high


def _check_within(starts: Shape, counts: Shape, steps: tuple[int, ...], whole: Shape) -> None:
    """Raise ShapeError for a slice that is known not to lie in `whole`."""
    if not len(starts) == len(counts) == len(steps) == len(whole) or 0 in steps:
        raise ShapeError(f"a slice of steps {steps} does not fit {len(whole)} axes")
    for start, count, step, size in zip(starts, counts, steps, whole, strict=True):
        demands = _inside(start, count, step, size)
        if count != 0 and any(isinstance(d, int) and d < 1 for d in demands):
            raise ShapeError(f"a slice of {count} from {start} by {step} does not lie in {size}")


@dataclass(frozen=True)
class Slice(Op):
    """Along each axis `count` elements from `start` in steps of `step`, which may be negative."""

    role = "view"
    name = "slice"
    starts: Shape
    counts: Shape
    steps: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        if len(self.starts) != inputs[0].rank:
            raise ShapeError(f"slice of {len(self.starts)} axes does not fit {inputs[0]}")
        _check_within(self.starts, self.counts, self.steps, inputs[0].shape)
        return inputs[0].with_shape(self.counts)

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        return _within(self.starts, self.counts, self.steps, inputs[0].shape)

    def ref(self, *inputs: Array) -> Array:
        return np.asarray(inputs[0][_places(self.starts, self.counts, self.steps)])

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Place(self.starts, inputs[0].type.shape, self.steps), ct),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        at = zip(self.starts, index, self.steps, strict=True)
        return inputs[0](tuple(a + i * s for a, i, s in at))

    def notation(self, *inputs: Node) -> Notation:
        shown = self.ranges(inputs[0].type.shape if inputs else self.counts)
        return Notation(f"{{0}}[{shown}]", rf"{{0}}\left[{shown}\right]", ATOM, (ATOM,))

    def ranges(self, whole: Shape) -> str:
        """The ranges as they print, of something of the shape `whole`."""
        parts = []
        for a, n, s, size in zip(self.starts, self.counts, self.steps, whole, strict=True):
            if s == 1 and a == 0 and n == size:
                parts.append(":")
            elif s > 0:
                parts.append(f"{a}:{a + n * s - (s - 1)}" + (f":{s}" if s != 1 else ""))
            else:
                stop = a + n * s
                parts.append(f"{a}:{stop if stop != -1 else ''}:{s}")
        return ", ".join(parts)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((1, 0), (2, 2), (1, 2)), [TensorType(float64, (3, 4))]
        yield cls((2,), (3,), (-1,)), [TensorType(float64, (4,))]


@dataclass(frozen=True)
class Place(Op):
    """The operand's elements put among `fill` where `Slice` would read them.

    With 0, its adjoint.
    """

    role = "nest"
    name = "place"
    moves = True
    starts: Shape
    shape: Shape
    steps: tuple[int, ...]
    fill: float | int = 0

    @property
    def is_plain(self) -> bool:
        """Whether it puts all side by side, among zeros."""
        return self.fill == 0 and all(step == 1 for step in self.steps)

    def infer(self, *inputs: TensorType) -> TensorType:
        _check_within(self.starts, inputs[0].shape, self.steps, self.shape)
        return inputs[0].with_shape(self.shape)

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        return _within(self.starts, inputs[0].shape, self.steps, self.shape)

    def ref(self, *inputs: Array) -> Array:
        out = np.full(known(self.shape), self.fill, inputs[0].dtype)
        out[_places(self.starts, inputs[0].shape, self.steps)] = inputs[0]
        return out

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Slice(self.starts, inputs[0].type.shape, self.steps), ct),)

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        def move(index: Index) -> Stmts:
            at = zip(self.starts, index, self.steps, strict=True)
            return (write(tuple(a + i * s for a, i, s in at), inputs[0](index)),)

        fill = Literal(self.fill, types[0].dtype)
        return (
            *for_each(self.shape, lambda index: (write(index, fill),), inner="vector"),
            *for_each(types[0].shape, move, inner="vector"),
        )

    def notation(self, *inputs: Node) -> Notation:
        counts = inputs[0].type.shape if inputs else self.shape
        ranges = Slice(self.starts, counts, self.steps).ranges(self.shape)
        shape = "(" + ", ".join(map(str, self.shape)) + ("," if len(self.shape) == 1 else "") + ")"
        among = f"zeros({shape})" if self.fill == 0 else f"full({shape}, {self.fill})"
        text = f"{among}[{ranges}].set({{0}})"
        return Notation(text, r"\operatorname{{place}}\left({0}\right)")

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((1, 0), (3, 4), (1, 2)), [TensorType(float64, (2, 2))]
        yield cls((2,), (4,), (-1,)), [TensorType(float64, (3,))]
        yield cls((1,), (4,), (1,), 2.5), [TensorType(float64, (2,))]
