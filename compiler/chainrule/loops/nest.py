"""One shape of tile over its part of a product: in registers over the whole of a sum."""

from __future__ import annotations

from collections.abc import Callable

from chainrule.ir.loop import LANES, Apply, Get, Literal, Load, Local, Loop, Set, Stmt, Store, Value
from chainrule.ir.size import Dim, Size, coefficient
from chainrule.loops.tiles import Columns, Contraction, Rows
from chainrule.ops.layout import ravel

#: so many panels are enough for parts to share
SHARED_PANELS = 4

_M, _N, _K, _I, _V, _J = (Size.symbol(f"{name}'") for name in "mnkivj")


def tile_nest(
    c: Contraction,
    b: Callable[[Dim, Dim], Value],
    rows: Rows,
    columns: Columns,
    split: bool,
) -> tuple[Stmt, ...]:
    """One shape of tile over its part of the result: of rows and panels the more outside, so that
    what there is less of stays near.
    """
    if rows.count == 0 or columns.count == 0:
        return ()
    whole = columns.vectors - (columns.last != LANES)
    acc = Local("acc", c.dtype, (rows.rows, whole), True)
    edge = Local("edge", c.dtype, (rows.rows, columns.vectors - whole), True)
    row = rows.start + _M * rows.rows + _I
    column = columns.start + _N * (columns.vectors * LANES)

    def cell(v: Dim) -> Get:
        return Get(edge, (_I, 0)) if v == whole else Get(acc, (_I, v))

    names, extents = (name for name, _ in c.terms), tuple(extent for _, extent in c.terms)
    k = ravel(tuple(map(Size.symbol, names)), extents) if c.terms else _K

    def multiply(v: Dim) -> tuple[Stmt, ...]:
        args = (c.a(row, k), b(k, column + v * LANES + _J), cell(v))
        return (Set(cell(v).local, cell(v).index, Apply("fma", args, c.dtype)),)

    def begin(v: Dim) -> tuple[Stmt, ...]:
        assert c.start is not None
        return (Set(cell(v).local, cell(v).index, c.start(row, column + v * LANES + _J)),)

    def finish(v: Dim) -> tuple[Stmt, ...]:
        value = cell(v) if c.tile is None else Load(c.tile, place(v))
        return c.epilogue(row, column + v * LANES + _J, value)

    def place(v: Dim) -> Dim:
        return (_I * columns.vectors + v) * LANES + _J

    def lay_down(v: Dim) -> tuple[Stmt, ...]:
        assert c.tile is not None
        return (Store(c.tile, place(v), cell(v)),)

    begun = _over_vectors(c, columns, begin) if c.start else ()
    laid = _over_vectors(c, columns, lay_down) if c.tile else ()
    ending = "serial" if c.tile else "unroll"
    tile: tuple[Stmt, ...] = (
        *(s for local in (acc, edge) if all(local.shape) for s in (local, _clear(local))),
        *((Loop("i'", rows.rows, begun, "unroll"),) if begun else ()),
        # row by row, so that an element of a is held no longer than its row takes
        _over_terms(c, Loop("i'", rows.rows, _over_vectors(c, columns, multiply), "unroll")),
        *((Loop("i'", rows.rows, laid, "unroll"),) if laid else ()),
        Loop("i'", rows.rows, _over_vectors(c, columns, finish, ending), ending),
    )
    if c.inside or (c.terms and c.height is None):
        body: tuple[Stmt, ...] = (Loop("n'", columns.count, tile),)
        for var, extent in reversed(c.inside):
            body = (Loop(var, extent, body),)
        return (Loop("m'", rows.count, body),)
    if rows_are_more(rows.count, columns.count):  # what follows goes along its rows in memory too
        return (Loop("m'", rows.count, (Loop("n'", columns.count, tile),), split=split),)
    return (Loop("n'", columns.count, (Loop("m'", rows.count, tile),), split=split),)


def slope_along(load: Load, var: str) -> Dim | None:
    """How far a load moves when a variable grows by 1; None where that differs."""
    slope = coefficient(load.offset, var)
    return None if slope is None else slope[0]


def rows_are_more(rows: Dim, columns: Dim) -> bool:
    """Whether a product has more rows of tiles than panels, for parts to share too."""
    if isinstance(rows, int) and isinstance(columns, int):
        return rows > columns
    if isinstance(columns, int):
        return columns < SHARED_PANELS
    return isinstance(rows, int) and rows >= SHARED_PANELS


def _over_terms(c: Contraction, body: Stmt) -> Stmt:
    for var, extent in reversed(c.terms or (("k'", c.k),)):
        body = Loop(var, extent, (body,))
    return body


def _clear(local: Local) -> Stmt:
    rows, vectors = local.shape
    zero = Set(local, (_I, _V), Literal(0, local.dtype))
    return Loop("i'", rows, (Loop("v'", vectors, (zero,), "unroll"),), "unroll")


def _over_vectors(
    c: Contraction,
    columns: Columns,
    body: Callable[[Dim], tuple[Stmt, ...]],
    mode: str = "unroll",
) -> tuple[Stmt, ...]:
    """The body for each vector of a panel, the last of which may be narrower."""
    whole = columns.vectors if columns.last == LANES else columns.vectors - 1
    out: tuple[Stmt, ...] = ()
    if whole:
        out += (Loop("v'", whole, (Loop("j'", c.width, body(_V), "vector"),), mode),)
    if whole < columns.vectors:
        out += (Loop("j'", columns.last, body(whole), "vector"),)
    return out
