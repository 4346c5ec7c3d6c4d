"""Convolution and the two products that are its derivatives, as composites of windows and products.

z[n, o, p] = sum over c, j of x[n, c, p*stride + j*dilation - padding] k[o, c, j] is linear in x
and in k. So is each derivative in what it is made from, and every derivative of one of the three
is one of the others: `conv` gives z from x and k, `conv_transpose` what z sends back to x,
`correlate` what it sends back to k. They are ops of their own, not contractions of a view, so that
gradients of every order print as short as this, and so that the loops of each may be chosen where
it is expanded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.errors import FormulaError, ShapeError
from chainrule.ir.node import Array, Node, Sample, apply
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Shape, divide, known
from chainrule.ir.types import TensorType, float64
from chainrule.ops import reading
from chainrule.ops.build import call as op
from chainrule.ops.contract import contract
from chainrule.ops.convolving import Convolving, reshaped
from chainrule.ops.layout import Place, Slice
from chainrule.ops.windows import Ints, OverlapAdd, call_with, shown
from chainrule.records import dataclass

#: what was of the output is of the input, on the way back
_TURNED = str.maketrans("co", "oc")


@dataclass(frozen=True)
class Conv(Convolving):
    """z from x and k: cross-correlation, as the networks of today mean convolution."""

    name = "conv"

    def infer(self, *inputs: TensorType) -> TensorType:
        self.check(*inputs)
        x, k = inputs
        each = self.per_group("input", x.shape[1])
        self.per_group("output", k.shape[0])
        if each != k.shape[1]:
            raise ShapeError(
                f"conv needs the channels to agree: {x}, kernel {k}",
                f"{x.shape[1]} (axis 1 of the input) / {self.groups} groups = {each} != "
                f"{k.shape[1]} (axis 1 of the kernel)",
            )
        along = self.along(x.shape[2:], k.shape[2:], x, k)
        return x.with_shape((x.shape[0], k.shape[0], *along))

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        return self.rooms(inputs[0].shape[2:], inputs[1].shape[2:])

    def ref(self, *inputs: Array) -> Array:
        x, k = inputs
        w, kernel, out = self.specs
        windows, parts = self.windows_of(x, k.shape[2:]), k.reshape(known(self.split(k.shape, 0)))
        z = np.einsum(f"{w},{kernel}->{out}", windows, parts, optimize=True)
        return np.asarray(z.reshape(x.shape[0], k.shape[0], *z.shape[z.ndim - self.spatial :]))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        x, k = inputs
        back = ConvTranspose(*self.attributes, x.type.shape[2:])
        onto = Correlate(*self.attributes, known(k.type.shape[2:]))
        return (apply(back, ct, k), apply(onto, x, ct))

    def expand(self, *inputs: Node) -> Node:
        x, k = inputs
        w, kernel, out = self.specs
        shape = self.infer(x.type, k.type).shape
        windows = self.windowed(self.pad(x), k.type.shape[2:])
        return reshaped(contract(kernel, w, out, self.split_node(k, 0), windows), shape)

    def notation(self, *inputs: Node) -> Notation:
        return call_with("conv", 2, *self.options())

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        return {"conv": lambda x, k, **options: apply(cls(*cls.given(x, options)), x, k)}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from ((cls(*a), [x, k]) for a, x, k, _ in _cases())


@dataclass(frozen=True)
class ConvTranspose(Convolving):
    """What z sends back to x of the given `extents` through k: each element of z spread over its
    window, and what overlaps added up.
    """

    name = "conv_transpose"
    extents: Shape

    def infer(self, *inputs: TensorType) -> TensorType:
        self.check(*inputs)
        z, k = inputs
        self.per_group("output", k.shape[0])
        want = (k.shape[0], *self.along(self.extents, k.shape[2:]))
        if z.shape[1:] != want:
            what = f"conv_transpose of {z}, kernel {k} does not fit extents {shown(self.extents)}"
            raise ShapeError(what, f"the first operand is to be (n, {', '.join(map(str, want))})")
        return z.with_shape((z.shape[0], k.shape[1] * self.groups, *self.extents))

    def ref(self, *inputs: Array) -> Array:
        z, k = inputs
        w, kernel, out = self.specs
        parts = k.reshape(known(self.split(k.shape, 0)))
        spread = np.einsum(
            f"{out},{kernel}->{w}", z.reshape(known(self.split(z.shape, 1))), parts, optimize=True
        )
        extents = known(self.padded(self.extents))
        channels = k.shape[1] * self.groups
        x = self.adder(k.shape[2:]).ref(spread).reshape(z.shape[0], channels, *extents)
        inner = (slice(p, n - p) for p, n in zip(self.padding, extents, strict=True))
        return np.asarray(x[(slice(None), slice(None), *inner)])

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        z, k = inputs
        onto = Correlate(*self.attributes, known(k.type.shape[2:]))
        return (apply(Conv(*self.attributes), ct, k), apply(onto, ct, z))

    def adder(self, sizes: Shape) -> OverlapAdd:
        """The sum of what overlaps, still padded."""
        to, windows = self.padded(self.extents), self.windows(sizes)
        return OverlapAdd(windows.axis, windows.sizes, self.strides, self.dilations, to)

    def expand(self, *inputs: Node) -> Node:
        z, k = inputs
        around = self.around(known(k.type.shape[2:]))
        apart = set(self.strides) != {1} and not self.by_neighbours(k.type.shape)
        return self.spread(z, k) if around is None or apart else self.gathered(z, k, around)

    def around(self, sizes: Ints) -> Ints | None:
        """The zeros before z with which x is a convolution of z; None where it is none."""
        reach = (d * (n - 1) for d, n in zip(self.dilations, sizes, strict=True))
        around = tuple(r - p for r, p in zip(reach, self.padding, strict=True))
        return around if min(around) >= 0 else None

    def gathered(self, z: Node, k: Node, around: Ints) -> Node:
        """Each element of x gathers from a window of z, whose elements stand a stride apart among
        zeros, through k turned around.
        """
        w, kernel, out = self.specs
        shape, sizes = self.infer(z.type, k.type).shape, k.type.shape[2:]
        reach = (d * (n - 1) for d, n in zip(self.dilations, known(sizes), strict=True))
        extents = tuple(n + r for n, r in zip(self.extents, reach, strict=True))
        if extents != z.type.shape[2:]:
            places = (0, 0, *around), (*z.type.shape[:2], *extents), (1, 1, *self.strides)
            z = apply(Place(*places), z)
        densely = replace(self, strides=(1,) * self.spatial)
        windows, turned = densely.windowed(z, sizes), k
        if set(sizes) != {1}:
            ends = (0, 0, *(n - 1 for n in known(sizes)))
            turned = apply(Slice(ends, k.type.shape, (1, 1, *(-1 for _ in sizes))), k)
        w, out = w.translate(_TURNED), out.translate(_TURNED)
        x = contract(kernel, w, out, self.split_node(turned, 0), windows)
        return reshaped(x, shape)

    def spread(self, z: Node, k: Node) -> Node:
        """Each element of z, times k, added where it came from."""
        w, kernel, out = self.specs
        shape = self.infer(z.type, k.type).shape
        spread = contract(kernel, out, w, self.split_node(k, 0), self.split_node(z, 1))
        x = apply(self.adder(k.type.shape[2:]), spread)
        x = reshaped(x, (*shape[:2], *self.padded(self.extents)))
        if any(self.padding):
            x = apply(Slice((0, 0, *self.padding), shape, (1,) * x.type.rank), x)
        return x

    def notation(self, *inputs: Node) -> Notation:
        size = [] if set(self.strides) == {1} else [f"size={shown(self.extents)}"]
        return call_with("conv_transpose", 2, *self.options(), *size)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def word(z: Node, k: Node, size: Any = None, **options: Any) -> Node:
            strides, padding, dilations, groups = cls.given(z, options)
            if size is None:
                along = zip(z.type.shape[2:], k.type.shape[2:], padding, dilations, strict=True)
                size = tuple(n + d * (m - 1) - 2 * p for n, m, p, d in along)
            extents = reading.each(size, len(strides))
            return apply(cls(strides, padding, dilations, groups, extents), z, k)

        return {"conv_transpose": word}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from ((cls(*a, x.shape[2:]), [z, k]) for a, x, k, z in _cases())


@dataclass(frozen=True)
class Correlate(Convolving):
    """What z sends back to k of the given spatial `sizes`: x against z at each offset."""

    name = "correlate"
    sizes: Ints

    def infer(self, *inputs: TensorType) -> TensorType:
        self.check(*inputs)
        x, z = inputs
        each = self.per_group("input", x.shape[1])
        self.per_group("output", z.shape[1])
        want = (x.shape[0], z.shape[1], *self.along(x.shape[2:], self.sizes))
        if z.shape != want:
            what = f"correlate of {x}, {z} does not fit a kernel of {shown(self.sizes)}"
            raise ShapeError(what, f"the second operand is to be ({', '.join(map(str, want))})")
        return x.with_shape((z.shape[1], each, *self.sizes))

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        return self.rooms(inputs[0].shape[2:], self.sizes)

    def ref(self, *inputs: Array) -> Array:
        x, z = inputs
        w, kernel, out = self.specs
        parts = z.reshape(known(self.split(z.shape, 1)))
        windows = self.windows_of(x, self.sizes)
        k = np.einsum(f"{w},{out}->{kernel}", windows, parts, optimize=True)
        return np.asarray(k.reshape(z.shape[1], x.shape[1] // self.groups, *self.sizes))

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        x, z = inputs
        back = ConvTranspose(*self.attributes, x.type.shape[2:])
        return (apply(back, z, ct), apply(Conv(*self.attributes), x, ct))

    def expand(self, *inputs: Node) -> Node:
        x, z = inputs
        w, kernel, out = self.specs
        if set(self.dilations) == {1} and self.by_neighbours(self.infer(x.type, z.type).shape):
            return self.by_phases(x, z)
        windows = self.windowed(self.pad(x), self.sizes)
        k = contract(out, w, kernel, self.split_node(z, 1), windows)
        return reshaped(k, self.infer(x.type, z.type).shape)

    def by_phases(self, x: Node, z: Node) -> Node:
        """Offsets a stride apart meet neighbours among the elements of x that are a stride apart:
        so many kernels by themselves, with stride 1, put together.
        """
        x, places = self.pad(x), z.type.shape[2:]
        k: Node | None = None
        for phase in np.ndindex(*self.strides):
            sizes = tuple(
                -(-(n - r) // s) for n, r, s in zip(self.sizes, phase, self.strides, strict=True)
            )
            extents = tuple(n + m - 1 for n, m in zip(places, sizes, strict=True))
            steps = (1, 1, *self.strides)
            mine = apply(Slice((0, 0, *phase), (*x.type.shape[:2], *extents), steps), x)
            ones = (1,) * self.spatial
            part = apply(Correlate(ones, (0,) * self.spatial, ones, self.groups, sizes), mine, z)
            part = apply(Place((0, 0, *phase), (*part.type.shape[:2], *self.sizes), steps), part)
            k = part if k is None else op("add", k, part)
        assert k is not None
        return k

    def notation(self, *inputs: Node) -> Notation:
        size = [] if set(self.strides) == {1} else [f"size={shown(self.sizes)}"]
        return call_with("correlate", 2, *self.options(), *size)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def word(x: Node, z: Node, size: Any = None, **options: Any) -> Node:
            strides, padding, dilations, groups = cls.given(x, options)
            if size is None:
                along = zip(x.type.shape[2:], z.type.shape[2:], padding, dilations, strict=True)
                size = tuple(_quotient(n + 2 * p - m, d) + 1 for n, m, p, d in along)
            sizes = reading.each(size, len(strides))
            return apply(cls(strides, padding, dilations, groups, sizes), x, z)

        return {"correlate": word}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield from ((cls(*a, known(k.shape[2:])), [x, z]) for a, x, k, z in _cases())


def _quotient(n: Dim, d: int) -> Dim:
    count = divide(n, d)
    if count is None:
        raise FormulaError("the size of this kernel is not in the text: write size=")
    return count


def _cases() -> Iterator[tuple[tuple[Ints, Ints, Ints, int], TensorType, TensorType, TensorType]]:
    """Attributes, and the types of x, k and z."""
    for attributes, x, k in (
        (((1,), (0,), (1,), 1), (2, 3, 6), (4, 3, 3)),
        (((2,), (1,), (1,), 2), (2, 4, 5), (2, 2, 2)),
        (((1, 2), (1, 2), (2, 1), 1), (2, 2, 5, 6), (3, 2, 2, 3)),
        (((2, 1), (0, 1), (1, 1), 2), (1, 2, 4, 3), (2, 1, 3, 2)),
    ):
        types = TensorType(float64, x), TensorType(float64, k)
        yield attributes, *types, Conv(*attributes).infer(*types)
