"""Factors of a product copied: columns of the second in panels, rows of the first together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from chainrule.ir.loop import LANES, Buffer, Load, Loop, Stmt, Store, Value
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size
from chainrule.loops.nest import SHARED_PANELS, slope_along
from chainrule.loops.parts import by_one
from chainrule.loops.tiles import Contraction, Rows
from chainrule.loops.walk import postorder

#: terms that a copy writes out one after the other
FEW = 4

_M, _N, _K, _I, _J, _O = (Size.symbol(f"{name}'") for name in "mnkijo")


def is_strided(c: Contraction) -> bool:
    """Whether neighbours in a row of b lie apart."""
    loads = [v for v in postorder(c.b(_K, _N)) if isinstance(v, Load)]
    return any(slope_along(load, "n'") not in (0, 1) for load in loads)


def lies_along(value: Value) -> bool:
    """Whether what is read lies together along k."""
    loads = (v for v in postorder(value) if isinstance(v, Load))
    return all(slope_along(load, "k'") in (0, 1) for load in loads)


def padded(n: Dim) -> Dim:
    """A number of columns in whole panels."""
    return (n + LANES - 1) // LANES * LANES


def together(
    c: Contraction, rows: Rows, split: bool, span: Dim, whole: bool
) -> tuple[Contraction, Stmts]:
    """A product that reads a's rows where they were copied together, and the loops that copy: with
    `whole`, all of a line before the next.
    """
    block = c.block
    assert block is not None

    def place(k: Dim, row: Dim) -> Load:
        return Load(block, (rows.start + _M * rows.rows) * span + k * rows.rows + row)

    def square(start: Dim, count: int) -> Stmts:
        read = c.a(rows.start + _M * rows.rows + _J, start + _I)
        return (_square(place(start + _I, _J), read, rows.rows, count),)

    def tiles(start: Dim, count: int) -> Stmts:
        some = _a_few(count, lambda at, few: square(start + at, few))
        return (Loop("m'", rows.count, some, split=split),)

    copies: Stmts = (Loop("k'", c.k, tiles(_K, 1)),) if whole else _in_squares(c.k, tiles, False)
    return replace(c, a=lambda m, k: place(k, _I)), copies


def packed_reader(packed: Buffer, span: Dim, first: Dim = 0) -> Callable[[Dim, Dim], Load]:
    """Reads a factor from its panels, each `span` terms long, from the term `first` on, at a column
    whose lane is j'.
    """

    def read(k: Dim, n: Dim) -> Load:
        return Load(packed, (n - _J) * span + (first + k) * LANES + _J)

    return read


def pack(
    c: Contraction, panels: Callable[[Dim, Dim], Load], split: bool, by_line: bool = False
) -> Stmts:
    """Copy b, LANES columns a panel, in squares of LANES: along its rows, or down its columns where
    they are what lies together. Rows may be copied `by_line`, where panels do not evict each other.
    """

    def square(n: Dim, width: Dim, k: Dim, count: int) -> Stmts:
        return (_square(panels(k + _I, n + _J), c.b(k + _I, n + _J), width, count),)

    def columns(body: Callable[[Dim, Dim], Stmts], shared: bool) -> Stmts:
        whole = c.n // LANES
        nest: Stmts = (Loop("n'", whole, body(_N * LANES, LANES), split=shared),)
        if c.n % LANES == 0:
            return nest
        last = body(whole * LANES, c.n % LANES)
        return (*nest, *(by_one(last) if shared else last))

    by_k = split and isinstance(c.n, int) and c.n // LANES < SHARED_PANELS
    by_n = split and not by_k
    if is_strided(c):
        return columns(lambda n, w: _in_squares(c.k, lambda k, i: square(n, w, k, i), by_k), by_n)

    if by_line:
        return (Loop("k'", c.k, columns(lambda n, w: square(n, w, _K, 1), by_n), split=by_k),)

    def rows(k: Dim, count: int) -> Stmts:
        return columns(lambda n, w: _a_few(count, lambda at, few: square(n, w, k + at, few)), by_n)

    return _in_squares(c.k, rows, by_k)


def _a_few(count: int, body: Callable[[Dim, int], Stmts]) -> Stmts:
    """A copy of so many terms that lie as they are to lie: some at a time, in a loop, which takes
    no longer than all of them written out.
    """
    few = math.gcd(count, FEW)
    return body(0, count) if few == count else (Loop("o'", count // few, body(_O * few, few)),)


def _square(place: Load, read: Value, width: Dim, count: int) -> Stmt:
    """A copy of so many terms of `width` lanes."""
    store = Store(place.buffer, place.offset, read)
    return Loop("j'", width, (Loop("i'", count, (store,), "unroll"),), "vector")


def _in_squares(k: Dim, body: Callable[[Dim, int], Stmts], shared: bool) -> Stmts:
    """Something done for all terms, LANES at a time."""
    whole = k // LANES
    nest: Stmts = (Loop("k'", whole, body(_K * LANES, LANES), split=shared),)
    if k % LANES == 0:
        return nest
    if isinstance(k, int):
        rest = body(whole * LANES, k % LANES)
    else:
        rest = (Loop("k'", k % LANES, body(whole * LANES + _K, 1)),)
    return (*nest, *(by_one(rest) if shared else rest))
