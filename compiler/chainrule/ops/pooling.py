"""Pooling: the largest of each window, or the mean of it.

Of equal elements the first (row-major in the window) is the one a maximum is taken from, and of
NaNs the last, so that it alone gets the cotangent, as PyTorch has it. `at_max` and `unpool` are
what that choice gives: linear in their first operand and each other's adjoint; where the second is
largest has no derivative. So are `avg_pool` and `avg_unpool` each other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.node import Array, Node, Op, Sample, apply
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Shape, known
from chainrule.ir.types import DType, TensorType, dtype, float64, int32
from chainrule.ops import reading
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.build import call as op
from chainrule.ops.layout import Place, Slice
from chainrule.ops.reduce import Max, Min
from chainrule.ops.source import Iota, constant
from chainrule.ops.windows import (
    Ints,
    OverlapAdd,
    Upsample,
    Window,
    call_with,
    positions,
    room,
    shown,
)

#: elements of a window that are few: they are compared with each other where they stand
FEW = 16


@dataclass(frozen=True)
class _Pool(Op):
    """Windows over the last axes, each of which becomes one element."""

    sizes: Ints
    strides: Ints
    padding: Ints

    composite = True

    @property
    def spatial(self) -> int:
        """How many axes the windows slide along."""
        return len(self.sizes)

    @property
    def count(self) -> int:
        """The elements of a window."""
        return int(np.prod(self.sizes))

    def along(self, x: TensorType) -> Shape:
        """The positions along each axis. Raises ShapeError where a window does not fit."""
        name, r = str(self.name), self.spatial
        if x.rank < r or not r:
            raise ShapeError(f"{name} over {r} axes does not fit {x}")
        for k, p in zip(self.sizes, self.padding, strict=True):
            if 2 * p > k:
                raise ShapeError(f"{name}: a padding of {p} is more than half the window of {k}")
        axes = zip(x.shape[-r:], self.sizes, self.strides, self.padding, strict=True)
        return tuple(positions(n, k, s, 1, p, f"{name} of {x}") for n, k, s, p in axes)

    def pooled(self, x: TensorType) -> TensorType:
        """The type with one element a window."""
        return x.with_shape((*x.shape[: -self.spatial], *self.along(x)))

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        axes = zip(inputs[-1].shape[-self.spatial :], self.sizes, self.padding, strict=True)
        return tuple(room(n, k, 1, p) for n, k, p in axes if not isinstance(n, int))

    def window(self, rank: int) -> Window:
        """The windows of an operand."""
        return Window(rank - self.spatial, self.sizes, self.strides, (1,) * self.spatial)

    def offsets(self, rank: int) -> Ints:
        """The axes of the windows that are folded."""
        return tuple(range(rank - self.spatial, rank))

    def padded(self, shape: Shape) -> Shape:
        """A shape with the padding on both sides."""
        lead = len(shape) - self.spatial
        along = zip(shape[lead:], self.padding, strict=True)
        return (*shape[:lead], *(n + 2 * p for n, p in along))

    def starts(self, rank: int) -> Ints:
        """Where an operand stands in its padding."""
        return (*(0,) * (rank - self.spatial), *self.padding)

    def around(self, x: Node, fill: float | int) -> Node:
        """A node, padded with a number."""
        if not any(self.padding):
            return x
        shape, rank = self.padded(x.type.shape), x.type.rank
        return apply(Place(self.starts(rank), shape, (1,) * rank, fill), x)

    def windows(self, x: Node, fill: float | int = 0) -> Node:
        """The windows of a node, padded with a number."""
        return apply(self.window(x.type.rank), self.around(x, fill))

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

    def overlap(self, w: Node, shape: Shape) -> Node:
        """The sum of what overlaps, without its padding: the adjoint of `windows`."""
        rank, window = len(shape), self.window(len(shape))
        extents = self.padded(shape)[window.axis :]
        x = apply(OverlapAdd(*_fields(window), extents), w)
        if any(self.padding):
            x = apply(Slice(self.starts(rank), shape, (1,) * rank), x)
        return x

    def windows_of(self, x: Array, fill: float | int = 0) -> Array:
        """The windows of an array, the offsets in one axis, the first."""
        rank, r = x.ndim, self.spatial
        around = [(p, p) for p in self.starts(rank)]
        w = self.window(rank).ref(np.pad(x, around, constant_values=fill))
        w = np.moveaxis(w, self.offsets(rank), range(r))
        return w.reshape(self.count, *w.shape[r:])

    def overlap_of(self, w: Array, shape: Shape) -> Array:
        """The adjoint of `windows_of`, for an array of the given shape."""
        rank, window = len(shape), self.window(len(shape))
        w = w.reshape(*self.sizes, *w.shape[1:])
        w = np.moveaxis(w, range(self.spatial), self.offsets(rank))
        extents = self.padded(shape)[window.axis :]
        out = OverlapAdd(*_fields(window), extents).ref(w)
        inner = zip(self.starts(rank), known(shape), strict=True)
        return np.asarray(out[tuple(slice(p, p + n) for p, n in inner)])

    def options(self, bare: bool = False) -> list[str]:
        """The attributes, as they print; the window in full where no batch and channels say how
        many axes it has.
        """
        out = [f"({', '.join(map(str, self.sizes))},)" if bare else shown(self.sizes)]
        out += [f"stride={shown(self.strides)}"] if self.strides != self.sizes else []
        return out + ([f"padding={shown(self.padding)}"] if any(self.padding) else [])

    def notation(self, *inputs: Node) -> Notation:
        count = 2 if isinstance(self, _Chosen) else 1
        bare = bool(inputs) and inputs[0].type.rank != self.spatial + 2
        return call_with(str(self.name), count, *self.options(bare))

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        count = 2 if issubclass(cls, _Chosen) else 1

        def word(*args: Any, stride: Any = None, padding: Any = 0) -> Node:
            nodes, kernel = args[:count], args[count]
            return apply(cls(*_given(nodes[0], kernel, stride, padding)), *nodes)

        return {str(cls.name): word}


def _given(x: Node, kernel: Any, stride: Any, padding: Any) -> tuple[Ints, Ints, Ints]:
    """The attributes as they are read back."""
    r = len(kernel) if isinstance(kernel, tuple) else x.type.rank - 2
    sizes = reading.each(kernel, r)
    strides = sizes if stride is None else reading.each(stride, r)
    return sizes, strides, reading.each(padding, r)


def _fields(window: Window) -> tuple[int, Ints, Ints, Ints]:
    return window.axis, window.sizes, window.strides, window.dilations


def _lowest(of: DType) -> float | int:
    """What no element is below."""
    return -np.inf if of.is_float else of.bounds[0]


def _check_numbers(name: object, *types: TensorType) -> None:
    if any(t.dtype.is_bool or t.dtype != types[0].dtype for t in types):
        raise DTypeError(
            f"{name} is defined for numbers of one type, not for {', '.join(map(str, types))}"
        )


@dataclass(frozen=True)
class MaxPool(_Pool):
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
        yield from ((cls(*a), [x]) for a, x in _cases())


class _Chosen(_Pool):
    """What the second operand's largest elements choose."""

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
        yield from ((cls(*a), [x, x]) for a, x in _cases())


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
        yield from ((cls(*a), [cls(*a).pooled(x), x]) for a, x in _cases())


@dataclass(frozen=True)
class AvgPool(_Pool):
    """The mean of each window, in which what is padded counts as 0."""

    name = "avg_pool"

    def infer(self, *inputs: TensorType) -> TensorType:
        if not inputs[0].dtype.is_float:
            raise DTypeError(f"avg_pool is defined for floats, not for {inputs[0]}")
        return self.pooled(inputs[0])

    def ref(self, *inputs: Array) -> Array:
        return np.asarray(self.windows_of(inputs[0]).sum(axis=0) / self.count, inputs[0].dtype)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        extents = inputs[0].type.shape[-self.spatial :]
        return (apply(AvgUnpool(self.sizes, self.strides, self.padding, extents), ct),)

    def expand(self, *inputs: Node) -> Node:
        (x,) = inputs
        return op("div", apply(Sum(self.offsets(x.type.rank)), self.windows(x)), self.count)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from ((cls(*a), [x]) for a, x in _cases())


@dataclass(frozen=True)
class AvgUnpool(_Pool):
    """Zeros of `extents`, to which each element is added over its window in equal parts."""

    name = "avg_unpool"
    extents: Shape

    def infer(self, *inputs: TensorType) -> TensorType:
        (ct,) = inputs
        x = ct.with_shape((*ct.shape[: ct.rank - self.spatial], *self.extents))
        if ct != self.pooled(x):
            raise ShapeError(f"avg_unpool of {ct} does not fit {x}: it needs {self.pooled(x)}")
        return x

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        return ()  # what it is the adjoint of has them

    def ref(self, *inputs: Array) -> Array:
        (ct,) = inputs
        shape = (*ct.shape[: ct.ndim - self.spatial], *self.extents)
        w = np.broadcast_to(ct / self.count, (self.count, *ct.shape))
        return np.asarray(self.overlap_of(w, shape), ct.dtype)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(AvgPool(self.sizes, self.strides, self.padding), ct),)

    def expand(self, *inputs: Node) -> Node:
        (ct,) = inputs
        shape, rank = self.infer(ct.type).shape, ct.type.rank
        windows = self.window(rank).infer(ct.type.with_shape(self.padded(shape)))
        each = op("div", ct, self.count)
        return self.overlap(apply(Expand(windows.shape, self.offsets(rank)), each), shape)

    def options(self, bare: bool = False) -> list[str]:
        size = [] if set(self.strides) == {1} else [f"size={shown(self.extents)}"]
        return super().options(bare) + size

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def word(
            z: Node, kernel: Any, stride: Any = None, padding: Any = 0, size: Any = None
        ) -> Node:
            sizes, strides, around = _given(z, kernel, stride, padding)
            if size is None:
                along = zip(reading.extents_of(z.type, sizes), sizes, around, strict=True)
                size = tuple(n + k - 1 - 2 * p for n, k, p in along)
            return apply(cls(sizes, strides, around, reading.each(size, len(sizes))), z)

        return {"avg_unpool": word}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for a, x in _cases():
            pooled = AvgPool(*a).infer(x)
            yield cls(*a, x.shape[-len(a[0]) :]), [pooled]


def _cases() -> Iterator[tuple[tuple[Ints, Ints, Ints], TensorType]]:
    yield ((2,), (2,), (0,)), TensorType(float64, (2, 3, 6))
    yield ((3,), (1,), (1,)), TensorType(float64, (1, 5))
    yield ((2, 3), (2, 2), (1, 1)), TensorType(float64, (2, 3, 5, 6))
