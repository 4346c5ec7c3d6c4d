"""What convolution and its two derivatives share: shapes, groups, padding, windows, options."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.node import Array, Node, Op, apply
from chainrule.ir.size import Dim, Shape, divide, known
from chainrule.ir.types import TensorType
from chainrule.ops import reading
from chainrule.ops.layout import Place, Reshape
from chainrule.ops.windows import Ints, Window, positions, room, shown
from chainrule.records import dataclass

#: Axes of the letters below: of offsets in a window, and of its positions.
_OFFSETS, _POSITIONS = "ijkl", "pqrs"
#: elements of x between those that windows begin at, at most, where it is taken apart by them
MOST_PHASES = 4


@dataclass(frozen=True)
class Convolving(Op):
    """One of the three. Inputs are (n, channels, ...), kernels (o, channels / groups, ...)."""

    strides: Ints
    padding: Ints
    dilations: Ints
    groups: int

    role = "contract"
    letter = "z"
    composite = True

    @property
    def spatial(self) -> int:
        """How many axes the windows slide along."""
        return len(self.strides)

    @property
    def attributes(self) -> tuple[Ints, Ints, Ints, int]:
        """What the other two have too."""
        return self.strides, self.padding, self.dilations, self.groups

    def check(self, *inputs: TensorType) -> None:
        """Refuse operands that are no stacks of numbers of one type and of the right rank."""
        a, b = inputs
        if a.dtype != b.dtype or a.dtype.is_bool:
            raise DTypeError(f"{self.name} needs one numeric element type: {a}, {b}")
        if a.rank != self.spatial + 2 or b.rank != self.spatial + 2 or not self.spatial:
            what = f"{self.name} over {self.spatial} axes needs {self.spatial + 2} axes: {a}, {b}"
            raise ShapeError(what, "an input is (n, channels, ...), a kernel (out, in, ...)")
        if self.groups < 1:
            raise ShapeError(f"{self.name}: groups is at least 1, not {self.groups}")

    def along(self, extents: Shape, sizes: Shape, *operands: TensorType) -> Shape:
        """The positions along each axis. Raises ShapeError where a window does not fit."""
        if not all(isinstance(k, int) for k in sizes):
            raise ShapeError(f"{self.name} needs a kernel of known size, not {shown(sizes)}")
        axes = zip(extents, known(sizes), self.strides, self.dilations, self.padding, strict=True)
        what = f"{self.name} of {', '.join(map(str, operands))}" if operands else str(self.name)
        return tuple(positions(n, k, s, d, p, what) for n, k, s, d, p in axes)

    def rooms(self, extents: Shape, sizes: Shape) -> tuple[Dim, ...]:
        """What must be at least 1 where an extent is symbolic."""
        axes = zip(extents, known(sizes), self.dilations, self.padding, strict=True)
        return tuple(room(n, k, d, p) for n, k, d, p in axes if not isinstance(n, int))

    def per_group(self, what: str, channels: Dim) -> Dim:
        """Channels of one group. Raises ShapeError where they don't divide."""
        each = divide(channels, self.groups)
        if each is None:
            raise ShapeError(
                f"{self.name}: {self.groups} groups don't divide {channels} {what} channels"
            )
        return each

    # shapes with an axis of groups, and without

    @property
    def g(self) -> str:
        """The letter of groups, "" where there is one."""
        return "g" if self.groups > 1 else ""

    @property
    def specs(self) -> tuple[str, str, str]:
        """The letters of the windows, of the kernel and of the result."""
        i, p = _OFFSETS[: self.spatial], _POSITIONS[: self.spatial]
        return f"n{self.g}c{i}{p}", f"{self.g}oc{i}", f"n{self.g}o{p}"

    def split(self, shape: Shape, axis: int) -> Shape:
        """A shape with the groups as an axis before that of channels."""
        if not self.g:
            return shape
        each = self.per_group("", shape[axis])
        return (*shape[:axis], self.groups, each, *shape[axis + 1 :])

    def split_node(self, x: Node, axis: int) -> Node:
        return reshaped(x, self.split(x.type.shape, axis))

    def padded(self, extents: Shape) -> Shape:
        """Extents with the padding on both sides."""
        return tuple(n + 2 * p for n, p in zip(extents, self.padding, strict=True))

    def pad(self, x: Node) -> Node:
        """Zeros around an input."""
        if not any(self.padding):
            return x
        shape = (*x.type.shape[:2], *self.padded(x.type.shape[2:]))
        return apply(Place((0, 0, *self.padding), shape, (1,) * x.type.rank), x)

    def windows(self, sizes: Shape) -> Window:
        return Window(2 + len(self.g), known(sizes), self.strides, self.dilations)

    def windowed(self, x: Node, sizes: Shape) -> Node:
        """The windows of a padded node; of one element at every place, it is the node itself."""
        x, windows = self.split_node(x, 1), self.windows(sizes)
        if set(sizes) == set(self.strides) == {1}:
            return reshaped(x, windows.infer(x.type).shape)
        return apply(windows, x)

    def windows_of(self, x: Array, sizes: Ints) -> Array:
        """The windows of a padded input, in NumPy."""
        padding = [(0, 0), (0, 0), *((p, p) for p in self.padding)]
        x = np.pad(x, padding)
        return self.windows(sizes).ref(x.reshape(known(self.split(x.shape, 1))))

    def by_neighbours(self, kernel: Shape) -> bool:
        """Whether kernels of single channels move in small steps, over windows that overlap: their
        products are few, and to have neighbours in windows pays more than others cost.
        """
        steps = zip(self.strides, known(kernel[2:]), strict=True)
        near = all(s < k for s, k in steps if s > 1) and 1 < prod(self.strides) <= MOST_PHASES
        return self.groups > 1 and kernel[1] == 1 and near

    @classmethod
    def given(cls, x: Node, options: dict[str, Any]) -> tuple[Ints, Ints, Ints, int]:
        """The attributes as they are read back, for each spatial axis of `x`."""
        r = x.type.rank - 2
        values = reading.chosen(options, stride=1, padding=0, dilation=1, groups=1)
        stride, padding, dilation = (
            reading.each(values[k], r) for k in ("stride", "padding", "dilation")
        )
        return stride, padding, dilation, int(values["groups"])

    def options(self) -> list[str]:
        """The attributes that are not as usual, as they print."""
        given = {"stride": self.strides, "padding": self.padding, "dilation": self.dilations}
        usual = {"padding": 0}
        out = [f"{k}={shown(v)}" for k, v in given.items() if set(v) != {usual.get(k, 1)}]
        return out + ([f"groups={self.groups}"] if self.groups > 1 else [])


def reshaped(x: Node, shape: Shape) -> Node:
    """`x` in a shape, where it has another one."""
    return x if x.type.shape == shape else apply(Reshape(shape), x)
