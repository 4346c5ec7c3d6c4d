"""Max pooling: the largest of each window.

Of equal elements the first (row-major in the window) is the one a maximum is taken from, and of
NaNs the last, so that it alone gets the cotangent, as PyTorch has it. `at_max` and `unpool` are
what that choice gives: linear in their first operand and each other's adjoint; where the second is
largest has no derivative.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial, reduce

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.node import Array, Node, Sample, apply
from chainrule.ir.size import Shape, known
from chainrule.ir.types import DType, TensorType, dtype, int32
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.build import call as op
from chainrule.ops.layout import Slice
from chainrule.ops.pooling import Pool, cases
from chainrule.ops.reduce import Max, Min
from chainrule.ops.source import Iota, constant
from chainrule.ops.windows import Upsample
from chainrule.records import dataclass

#: elements of a window that are few: they are compared with each other where they stand
FEW = 16


def _lowest(of: DType) -> float | int:
    """What no element is below."""
    return -np.inf if of.is_float else of.bounds[0]


def _check_numbers(name: object, *types: TensorType) -> None:
    if any(t.dtype.is_bool or t.dtype != types[0].dtype for t in types):
        raise DTypeError(
            f"{name} is defined for numbers of one type, not for {', '.join(map(str, types))}"
        )


class _Largest(Pool):
    """Windows and the largest of each."""

    def places(self, x: Node, fill: float | int) -> list[Node]:
        """For each place in a window, row-major, what stands there in every window."""
        lead, shape = x.type.rank - self.spatial, self.pooled(x.type).shape
        steps, x = (*(1,) * lead, *self.strides), self.around(x, fill)
        starts = ((*(0,) * lead, *offset) for offset in np.ndindex(*self.sizes))
        return [apply(Slice(start, shape, steps), x) for start in starts]

    def largest(self, x: Node) -> Node:
        """The largest of each window."""
        fill = _lowest(x.type.dtype)
        if self.count > FEW:
            return apply(Max(self.offsets(x.type.rank)), self.windows(x, fill))
        return reduce(partial(op, "maximum"), self.places(x, fill))


@dataclass(frozen=True)
class MaxPool(_Largest):
    """The largest element of each window; what is padded never is."""

    name = "max_pool"

    def infer(self, *inputs: TensorType) -> TensorType:
        _check_numbers(self.name, *inputs)
        return self.pooled(inputs[0])

    def ref(self, *inputs: Array) -> Array:
        (x,) = inputs
        return np.asarray(self.windows_of(x, _lowest(dtype(x.dtype))).max(axis=0))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Unpool(self.sizes, self.strides, self.padding), ct, inputs[0]),)

    def expand(self, *inputs: Node) -> Node:
        return self.largest(inputs[0])

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from ((cls(*a), [x]) for a, x in cases())


class _Chosen(_Largest):
    """What the second operand's largest elements choose."""

    operands = 2

    def reaches(self, operand: int) -> bool:
        return operand == 0

    @property
    def numbers(self) -> Array:
        """The elements of a window, numbered."""
        return np.arange(self.count, dtype=np.int32).reshape(self.sizes)

    def number(self, x: Node) -> Node:
        """The number of each element in its window."""
        shape, axes = (
            self.window(x.type.rank).infer(self.around(x, 0).type).shape,
            self.offsets(x.type.rank),
        )
        kept = tuple(i for i in range(len(shape)) if i not in axes)
        numbers = constant(self.numbers, int32)
        return apply(Expand(shape, kept), numbers) if kept else numbers

    def first(self, x: Node) -> Node:
        """For each window the number of the first of the largest or, if any is NaN, of the last."""
        axes, fill, largest = self.offsets(x.type.rank), _lowest(x.type.dtype), self.largest(x)
        real = x.type.dtype.is_float
        if self.count > FEW:
            w, number = self.windows(x, fill), self.number(x)
            same = op("eq", w, apply(Expand(w.type.shape, axes), largest))
            found = op("where", same, number, self.count)
            if real:  # where some are NaN none is the same, and the least is of the last of them
                found = op("where", op("isnan", w), op("neg", number), found)
            found = op("abs", apply(Min(axes), found))
        else:
            places = [*enumerate(self.places(x, fill))]
            found = constant(np.array(0), int32)
            for i, place in places[1:] if real else ():
                found = op("where", op("isnan", place), i, found)
            for i, place in reversed(places):
                found = op("where", op("eq", place, largest), i, found)
        if not any(self.padding):
            return found
        return op("where", op("eq", largest, fill), self.inside(largest.type.shape), found)

    def inside(self, shape: Shape) -> Node:
        """For each window the number of the first element that is not padded."""
        lead, found = len(shape) - self.spatial, constant(np.array(0), int32)
        for axis, (k, s, p) in enumerate(zip(self.sizes, self.strides, self.padding, strict=True)):
            place = apply(Iota(shape, lead + axis, int32))
            outside = op("maximum", op("sub", p, op("mul", place, s)), 0)
            found = op("add", op("mul", found, k), outside)
        return found

    def chosen(self, x: Node) -> Node:
        """For each element of each window of x whether it is the first of the largest."""
        number, axes = self.number(x), self.offsets(x.type.rank)
        return op("eq", number, apply(Expand(number.type.shape, axes), self.first(x)))

    def tiles(self, x: Node) -> bool:
        """Whether every element stands in one window."""
        extents = x.type.shape[-self.spatial :]
        pairs = zip(extents, self.sizes, strict=True)
        whole = all(isinstance(n, int) and n % k == 0 for n, k in pairs)
        return whole and self.sizes == self.strides and not any(self.padding)

    def choice(self, x: Array) -> Array:
        """What `first` gives, in NumPy."""
        w = self.windows_of(x, _lowest(dtype(x.dtype)))
        inside = self.windows_of(np.ones(x.shape, bool), False)
        first, nan = ((w == w.max(axis=0)) & inside).argmax(axis=0), np.isnan(w)
        return np.asarray(
            np.where(nan.any(axis=0), self.count - 1 - nan[::-1].argmax(axis=0), first)
        )


@dataclass(frozen=True)
class AtMax(_Chosen):
    """Of the first operand, the elements that stand where the second is largest in its window."""

    name = "at_max"

    def infer(self, *inputs: TensorType) -> TensorType:
        t, x = inputs
        _check_numbers(self.name, t, x)
        if t.shape != x.shape:
            raise ShapeError(f"at_max needs one shape: {t}, {x}")
        return self.pooled(x)

    def ref(self, *inputs: Array) -> Array:
        t, x = inputs
        return np.asarray(np.take_along_axis(self.windows_of(t), self.choice(x)[None], 0)[0])

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Unpool(self.sizes, self.strides, self.padding), ct, inputs[1]), None)

    def expand(self, *inputs: Node) -> Node:
        t, x = inputs
        kept = op("where", self.chosen(x), self.windows(t), 0)
        return apply(Sum(self.offsets(x.type.rank)), kept)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from ((cls(*a), [x, x]) for a, x in cases())


@dataclass(frozen=True)
class Unpool(_Chosen):
    """Zeros, to which each element of the first operand is added where the second is largest."""

    name = "unpool"

    def infer(self, *inputs: TensorType) -> TensorType:
        ct, x = inputs
        _check_numbers(self.name, ct, x)
        if ct != self.pooled(x):
            raise ShapeError(f"unpool of {ct} does not fit {x}: it needs {self.pooled(x)}")
        return x

    def ref(self, *inputs: Array) -> Array:
        ct, x = inputs
        numbers = np.arange(self.count)
        hit = numbers.reshape(-1, *(1,) * x.ndim) == self.choice(x)
        return self.overlap_of(np.where(hit, ct, 0), x.shape)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(AtMax(self.sizes, self.strides, self.padding), ct, inputs[1]), None)

    def expand(self, *inputs: Node) -> Node:
        ct, x = inputs
        if self.tiles(x):
            return self.picked(ct, x)
        chosen = self.chosen(x)
        spread = apply(Expand(chosen.type.shape, self.offsets(x.type.rank)), ct)
        return self.overlap(op("where", chosen, spread, 0), x.type.shape)

    def picked(self, ct: Node, x: Node) -> Node:
        """Where windows don't overlap: at each element what its window has, or 0."""
        first = self.first(x)
        extents = known(x.type.shape[-self.spatial :])
        pattern = np.tile(self.numbers, [n // k for n, k in zip(extents, self.sizes, strict=True)])
        lead = tuple(range(x.type.rank - self.spatial))
        number = apply(Expand(x.type.shape, lead), constant(pattern, int32))
        spread = Upsample(self.sizes)
        return op("where", op("eq", number, apply(spread, first)), apply(spread, ct), 0)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from ((cls(*a), [cls(*a).pooled(x), x]) for a, x in cases())
