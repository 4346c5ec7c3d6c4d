"""Windows that slide along axes, each of which becomes one element; the mean of each.

`avg_pool` and `avg_unpool` are each other's adjoint. The largest of each window: `max_pooling`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.node import Array, Node, Op, Sample, apply
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Shape, known
from chainrule.ir.types import TensorType, float64
from chainrule.ops import reading
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.build import call as op
from chainrule.ops.layout import Place, Slice
from chainrule.ops.windows import (
    Ints,
    OverlapAdd,
    Window,
    call_with,
    positions,
    room,
    shown,
)
from chainrule.records import dataclass


@dataclass(frozen=True)
class Pool(Op):
    """Windows over the last axes, each of which becomes one element."""

    sizes: Ints
    strides: Ints
    padding: Ints

    composite = True
    #: how many operands it has
    operands = 1

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
        bare = bool(inputs) and inputs[0].type.rank != self.spatial + 2
        return call_with(str(self.name), self.operands, *self.options(bare))

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def word(*args: Any, stride: Any = None, padding: Any = 0) -> Node:
            nodes, kernel = args[: cls.operands], args[cls.operands]
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


@dataclass(frozen=True)
class AvgPool(Pool):
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
        yield from ((cls(*a), [x]) for a, x in cases())


@dataclass(frozen=True)
class AvgUnpool(Pool):
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
        for a, x in cases():
            pooled = AvgPool(*a).infer(x)
            yield cls(*a, x.shape[-len(a[0]) :]), [pooled]


def cases() -> Iterator[tuple[tuple[Ints, Ints, Ints], TensorType]]:
    """Windows to try, and what of."""
    yield ((2,), (2,), (0,)), TensorType(float64, (2, 3, 6))
    yield ((3,), (1,), (1,)), TensorType(float64, (1, 5))
    yield ((2, 3), (2, 2), (1, 1)), TensorType(float64, (2, 3, 5, 6))
