"""Minimal filtering: a few taps over two neighbours with fewer products than their sums have terms.

    z = Aᵀ [(G k) ⊙ (Bᵀ x)]        x: a tile, k: the taps, z: 2 sums

and along each axis of a small array in turn, so that along two 16 products take the place of 36.
Additions and halves are all that tiles are made with, so rounding is about that of the plain sums
(S. Winograd, "Arithmetic Complexity of Computations", SIAM, 1980; A. Lavin, S. Gray, "Fast
Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv:1509.09308: F(2x2, 3x3)). More taps
at once would take multiples as large as 4, and lose bits by them, so they are three or two and then
the others, each by themselves: five take 7 products for 10, along two axes 49 for 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod

from chainrule.ir.loop import Apply, Get, Literal, Local, Set, Value
from chainrule.ir.node import Stmts
from chainrule.ir.types import float32
from chainrule.records import dataclass

Matrix = tuple[tuple[float, ...], ...]

#: sums of a tile along an axis
SUMS = 2


@dataclass(frozen=True)
class Filter:
    """What a tile of x, of k and of z is multiplied by along an axis."""

    b: Matrix
    g: Matrix
    a: Matrix

    @property
    def taps(self) -> int:
        """The elements of k."""
        return len(self.g[0])

    @property
    def tile(self) -> int:
        """The elements of a tile of x."""
        return len(self.b[0])

    @property
    def products(self) -> int:
        """The products of a tile."""
        return len(self.b)

    def then(self, other: Filter) -> Filter:
        """The filter of this one's taps and another's behind them, whose sums are added."""
        return Filter(
            _beside(self.b, other.b, self.taps, self.taps + other.tile),
            _beside(self.g, other.g, self.taps, self.taps + other.taps),
            tuple((*row, *more) for row, more in zip(self.a, other.a, strict=True)),
        )


def _beside(first: Matrix, second: Matrix, start: int, width: int) -> Matrix:
    """The rows of both, the second's from a column on."""
    end = width - len(first[0])
    return (
        *((*row, *[0.0] * end) for row in first),
        *((*[0.0] * start, *row) for row in second),
    )


#: nothing is saved along its axis: both elements are multiplied, by the same
ONE = Filter(b=((1, 0), (0, 1)), g=((1,), (1,)), a=((1, 0), (0, 1)))
TWO = Filter(
    b=((1, -1, 0), (0, 1, 0), (0, -1, 1)),
    g=((1, 0), (1, 1), (0, 1)),
    a=((1, 1, 0), (0, 1, 1)),
)
THREE = Filter(
    b=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    g=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    a=((1, 1, 1, 0), (0, 1, -1, -1)),
)
#: the filters there are, by their taps
FILTERS = {
    f.taps: f
    for f in (
        ONE,
        TWO,
        THREE,
        TWO.then(TWO),
        THREE.then(TWO),
        THREE.then(THREE),
        THREE.then(TWO).then(TWO),
    )
}


def transposed(matrix: Matrix) -> Matrix:
    """A matrix with rows for columns."""
    return tuple(zip(*matrix, strict=True))


def multiplied(
    matrices: Sequence[Matrix],
    read: Callable[[tuple[int, ...]], Value],
    write: Callable[[int, Value], Stmts],
) -> Stmts:
    """A small array multiplied by a matrix along each of its axes, in a vector loop: elements are
    read by place, and written by number.
    """
    shape = [len(matrix[0]) for matrix in matrices]
    values = {at: read(at) for at in product(*map(range, shape))}
    out: Stmts = ()
    for axis, matrix in enumerate(matrices):
        shape[axis] = len(matrix)
        cells = Local(f"p{axis}", float32, (prod(shape),), True)
        made: dict[tuple[int, ...], Value] = {}
        for number, at in enumerate(product(*map(range, shape))):
            along = [values[(*at[:axis], i, *at[axis + 1 :])] for i in range(len(matrix[0]))]
            value = _sum_of(matrix[at[axis]], along)
            if axis == len(matrices) - 1:
                out += write(number, value)
            else:
                out += (Set(cells, (number,), value),)
                made[at] = Get(cells, (number,))
        values = made
    return out


def _sum_of(row: Sequence[float], values: Sequence[Value]) -> Value:
    """The sum of values times a matrix's row; what is added first."""
    terms = sorted((t for t in zip(row, values, strict=True) if t[0]), key=lambda t: t[0] < 0)
    out: Value | None = None
    for factor, value in terms:
        if abs(factor) != 1:
            value = Apply("mul", (Literal(abs(factor), float32), value), float32)
        if out is None:
            out = value if factor > 0 else Apply("neg", (value,), float32)
        else:
            out = Apply("add" if factor > 0 else "sub", (out, value), float32)
    assert out is not None
    return out
