"""Sliding windows as index maps, and their adjoint, which adds up what overlaps.

Convolution is a product over windows, pooling a fold over them; see `convolution` and `pooling`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir.loop import Apply, Literal, Value
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
from chainrule.ir.size import Dim, Shape, known, product
from chainrule.ir.types import TensorType, float64
from chainrule.ops import reading
from chainrule.ops.axes import Sum
from chainrule.records import dataclass

Ints = tuple[int, ...]


def positions(
    n: Dim, size: int, stride: int = 1, dilation: int = 1, padding: int = 0, what: str = "windows"
) -> Dim:
    """How often a window fits along an axis of `n`: (n + 2p - d*(k - 1) - 1)//s + 1.

    Raises ShapeError where a number is out of its range, or where it does not fit even once.
    """
    for name, value, least in (
        ("size", size, 1),
        ("stride", stride, 1),
        ("dilation", dilation, 1),
        ("padding", padding, 0),
    ):
        if value < least:
            raise ShapeError(f"{what}: the {name} is at least {least}, not {value}")
    count = (room(n, size, dilation, padding) - 1) // stride + 1
    if isinstance(count, int) and count < 1:
        padded = f"{n} + 2*{padding}" if padding else f"{n}"
        formula = f"({padded} - {dilation}*({size} - 1) - 1)//{stride} + 1 = {count} positions"
        raise ShapeError(f"{what}: a window of {size} does not fit an axis of {n}", formula)
    return count


def room(n: Dim, size: int, dilation: int, padding: int = 0) -> Dim:
    """Where a window may begin: the number of places, which must be at least 1."""
    return n + 2 * padding - dilation * (size - 1)


def shown(values: Sequence[Dim]) -> str:
    """Numbers as they are written: one where all are equal."""
    if len(set(values)) == 1:
        return str(values[0])
    return "(" + ", ".join(map(str, values)) + ")"


def call_with(name: str, operands: int, *options: str) -> Notation:
    """`name(a, b, option, ...)`; in LaTeX the options are a subscript."""
    holes = ", ".join(f"{{{i}}}" for i in range(operands))
    inside = ", ".join([holes, *options])
    tex = name.replace("_", r"\_")
    below = rf"_{{{{{', '.join(options)}}}}}" if options else ""
    return Notation(f"{name}({inside})", rf"\operatorname{{{{{tex}}}}}{below}\left({holes}\right)")


@dataclass(frozen=True)
class _Sliding(Op):
    """What both directions share: windows over neighbouring axes, from `axis` on.

    Of r such axes the r window offsets come first, then the r positions: (..., k1, k2, p1, p2,
    ...), so that loops over one offset walk along memory. Position p, offset j is element
    p*stride + j*dilation.
    """

    axis: int
    sizes: Ints
    strides: Ints
    dilations: Ints

    @property
    def spatial(self) -> int:
        """How many axes the windows slide along."""
        return len(self.sizes)

    def counts(self, extents: Shape) -> Shape:
        """The positions along each axis."""
        along = zip(extents, self.sizes, self.strides, self.dilations, strict=True)
        return tuple(positions(n, k, s, d) for n, k, s, d in along)

    def element(self, index: Index) -> Index:
        """Where an element of a window stands in the whole."""
        a, r = self.axis, self.spatial
        offsets, places = index[a : a + r], index[a + r : a + 2 * r]
        along = zip(offsets, places, self.strides, self.dilations, strict=True)
        return (*index[:a], *(p * s + j * d for j, p, s, d in along), *index[a + 2 * r :])

    def pairs(self, windows: Ints) -> Iterator[tuple[tuple[slice | int, ...], tuple[slice, ...]]]:
        """For each offset, what it is of the windows and of the whole; `windows` is their shape."""
        before = (slice(None),) * self.axis
        counts = windows[self.axis + self.spatial :]
        for offset in np.ndindex(*self.sizes):
            along = zip(offset, self.strides, self.dilations, counts, strict=False)
            whole = [slice(j * d, j * d + s * (n - 1) + 1, s) for j, s, d, n in along]
            yield (*before, *offset), (*before, *whole)

    def options(self, rank: int) -> list[str]:
        """The attributes that are not as usual, as they print."""
        out = [f"stride={shown(self.strides)}"] if set(self.strides) != {1} else []
        out += [f"dilation={shown(self.dilations)}"] if set(self.dilations) != {1} else []
        return out + ([f"axis={self.axis}"] if self.axis + self.spatial != rank else [])


def _given(r: int, options: dict[str, Any]) -> tuple[Ints, Ints]:
    """Strides and dilations as they are read back, for r axes."""
    values = reading.chosen(options, stride=1, dilation=1)
    return reading.each(values["stride"], r), reading.each(values["dilation"], r)


@dataclass(frozen=True)
class Window(_Sliding):
    """Every window of an operand, read where it stands: nothing is copied. No padding; see `Place`.

    Axes n become window sizes k and positions (n - dilation*(k - 1) - 1)//stride + 1.
    """

    role = "view"
    name = "windows"

    def infer(self, *inputs: TensorType) -> TensorType:
        shape, a, r = inputs[0].shape, self.axis, self.spatial
        if not 0 <= a <= len(shape) - r:
            raise ShapeError(f"windows of {r} axes from axis {a} on do not fit {inputs[0]}")
        counts = self.counts(shape[a : a + r])
        return inputs[0].with_shape((*shape[:a], *self.sizes, *counts, *shape[a + r :]))

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        extents = inputs[0].shape[self.axis : self.axis + self.spatial]
        along = zip(extents, self.sizes, self.dilations, strict=True)
        return tuple(room(n, k, d) for n, k, d in along if not isinstance(n, int))

    def ref(self, *inputs: Array) -> Array:
        (x,), a, r = inputs, self.axis, self.spatial
        counts = known(self.counts(x.shape[a : a + r]))
        out = np.empty((*x.shape[:a], *self.sizes, *counts, *x.shape[a + r :]), x.dtype)
        for window, whole in self.pairs(out.shape):
            out[window] = x[whole]
        return out

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        extents = inputs[0].type.shape[self.axis : self.axis + self.spatial]
        back = OverlapAdd(self.axis, self.sizes, self.strides, self.dilations, extents)
        return (apply(back, ct),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        return inputs[0](self.element(index))

    def notation(self, *inputs: Node) -> Notation:
        rank = inputs[0].type.rank if inputs else self.axis + self.spatial
        sizes = "(" + ", ".join(map(str, self.sizes)) + ")"
        size = str(self.sizes[0]) if self.spatial == 1 else sizes
        return call_with("windows", 1, size, *self.options(rank))

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def word(x: Node, size: Any, axis: int | None = None, **options: Any) -> Node:
            sizes = reading.several(size)
            first = x.type.rank - len(sizes) if axis is None else axis
            return apply(cls(first, sizes, *_given(len(sizes), options)), x)

        return {"windows": word}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1, (3,), (1,), (1,)), [TensorType(float64, (2, 5))]
        yield cls(1, (2, 3), (2, 1), (1, 2)), [TensorType(float64, (2, 5, 7))]
        yield cls(0, (2,), (3,), (2,)), [TensorType(float64, (6, 2))]


@dataclass(frozen=True)
class OverlapAdd(_Sliding):
    """Zeros of `extents`, to which every element of every window is added where it stood.

    The adjoint of `Window`. What overlaps adds up in the order of the offsets, row-major.
    """

    role = "nest"
    name = "overlap_add"
    extents: Shape

    def infer(self, *inputs: TensorType) -> TensorType:
        shape, a, r = inputs[0].shape, self.axis, self.spatial
        want = (*self.sizes, *self.counts(self.extents))
        if shape[a : a + 2 * r] != want:
            what = f"overlap_add of {inputs[0]} does not fit axes of {shown(self.extents)}"
            raise ShapeError(what, f"its windows and positions are ({', '.join(map(str, want))})")
        return inputs[0].with_shape((*shape[:a], *self.extents, *shape[a + 2 * r :]))

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        return product(inputs[0].shape)

    def ref(self, *inputs: Array) -> Array:
        (w,), a, r = inputs, self.axis, self.spatial
        out = np.zeros((*w.shape[:a], *known(self.extents), *w.shape[a + 2 * r :]), w.dtype)
        for window, whole in self.pairs(w.shape):
            out[whole] += w[window]
        return out

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (apply(Window(self.axis, self.sizes, self.strides, self.dilations), ct),)

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        (windows,), a, r = types, self.axis, self.spatial
        shape = (*windows.shape[:a], *self.extents, *windows.shape[a + 2 * r :])
        zero = Literal(0, windows.dtype)

        def add(index: Index) -> Stmts:
            at = self.element(index)
            return (write(at, Apply("add", (result(at), inputs[0](index)), windows.dtype)),)

        return (
            *for_each(shape, lambda index: (write(index, zero),), inner="vector"),
            *for_each(windows.shape, add, inner="vector"),  # along it no two places are one
        )

    def notation(self, *inputs: Node) -> Notation:
        rank = inputs[0].type.rank - self.spatial if inputs else self.axis + self.spatial
        size = "(" + ", ".join(map(str, self.extents)) + ("," if self.spatial == 1 else "") + ")"
        return call_with("overlap_add", 1, size, *self.options(rank))

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def word(w: Node, size: Any, axis: int | None = None, **options: Any) -> Node:
            extents = reading.several(size)
            r = len(extents)
            first = w.type.rank - 2 * r if axis is None else axis
            sizes = known(w.type.shape[first : first + r])
            return apply(cls(first, sizes, *_given(r, options), extents), w)

        return {"overlap_add": word}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1, (3,), (1,), (1,), (5,)), [TensorType(float64, (2, 3, 3))]
        x = TensorType(float64, (2, 2, 3, 2, 3))
        yield cls(1, (2, 3), (2, 1), (1, 2), (5, 7)), [x]
        yield cls(0, (2,), (3,), (2,), (6,)), [TensorType(float64, (2, 2, 2))]


@dataclass(frozen=True)
class Upsample(Op):
    """Each element as often as `sizes` say, along the last axes: a nearest neighbour's picture."""

    role = "view"
    name = "upsample"
    indexed = True  # no stride leads through it
    sizes: Ints

    def infer(self, *inputs: TensorType) -> TensorType:
        shape, r = inputs[0].shape, len(self.sizes)
        if r > len(shape) or min(self.sizes, default=0) < 1:
            raise ShapeError(f"upsample by {shown(self.sizes)} does not fit {inputs[0]}")
        along = (n * k for n, k in zip(shape[-r:], self.sizes, strict=True))
        return inputs[0].with_shape((*shape[:-r], *along))

    def ref(self, *inputs: Array) -> Array:
        (x,) = inputs
        for axis, k in enumerate(self.sizes, x.ndim - len(self.sizes)):
            x = np.repeat(x, k, axis)
        return x

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        first, r = inputs[0].type.rank - len(self.sizes), len(self.sizes)
        windows = apply(Window(first, self.sizes, self.sizes, (1,) * r), ct)
        return (apply(Sum(tuple(range(first, first + r))), windows),)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        lead = len(index) - len(self.sizes)
        along = (i // k for i, k in zip(index[lead:], self.sizes, strict=True))
        return inputs[0]((*index[:lead], *along))

    def notation(self, *inputs: Node) -> Notation:
        return call_with("upsample", 1, "(" + ", ".join(map(str, self.sizes)) + ",)")

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {"upsample": lambda x, sizes: apply(cls(reading.several(sizes)), x)}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((2,)), [TensorType(float64, (2, 3))]
        yield cls((3, 2)), [TensorType(float64, (2, 2, 5))]
