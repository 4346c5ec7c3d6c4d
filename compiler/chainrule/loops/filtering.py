"""Minimal filtering: three taps over two neighbours with 4 products, where plain sums take 6.

    z = Aᵀ [(G k) ⊙ (Bᵀ x)]        x: a tile of 4, k: 3, z: 2

and along each axis of a small array in turn, so that along two 16 products take the place of 36.
Additions and halves are all that tiles are made with, so rounding is about that of the plain sums
(S. Winograd, "Arithmetic Complexity of Computations", SIAM, 1980; A. Lavin, S. Gray, "Fast
Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv:1509.09308: F(2x2, 3x3)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod

from chainrule.ir.loop import Apply, Get, Literal, Local, Set, Value
from chainrule.ir.node import Stmts
from chainrule.ir.types import float32

Matrix = tuple[tuple[float, ...], ...]

#: taps of a kernel, sums and elements of a tile, along an axis
TAPS, SUMS, TILE = 3, 2, 4
#: what a tile of x, of k and of z is multiplied by
B: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
G: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
A: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))


def transposed(matrix: Matrix) -> Matrix:
    """A matrix with rows for columns."""
    return tuple(zip(*matrix, strict=True))


def multiplied(
    matrix: Matrix,
    axes: int,
    read: Callable[[tuple[int, ...]], Value],
    write: Callable[[int, Value], Stmts],
) -> Stmts:
    """A small array multiplied by a matrix along each of its axes, in a vector loop: elements are
    read by place, and written by number.
    """
    rows, columns = len(matrix), len(matrix[0])
    shape = [columns] * axes
    values = {at: read(at) for at in product(*map(range, shape))}
    out: Stmts = ()
    for axis in range(axes):
        shape[axis] = rows
        cells = Local(f"p{axis}", float32, (prod(shape),), True)
        made: dict[tuple[int, ...], Value] = {}
        for number, at in enumerate(product(*map(range, shape))):
            along = [values[(*at[:axis], i, *at[axis + 1 :])] for i in range(columns)]
            value = _sum_of(matrix[at[axis]], along)
            if axis == axes - 1:
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
