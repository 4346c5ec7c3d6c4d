"""The matrix product as a scheduled template: out[m, n] = sum over k of a[m, k] * b[k, n].

Every element of the result is one chain of multiply-adds from 0, k ascending, whatever tiles are
chosen: the choices below change speed, never bits. A tile of rows x (vectors of LANES columns)
stays in registers over the whole of k, then the epilogue takes it (Goto and van de Geijn, "Anatomy
of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008, for tiles and packed panels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Buffer,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.size import Dim, Size, coefficient, typical
from chainrule.loops.parts import by_one, shared_nest
from chainrule.loops.tiles import Columns, Contraction, Rows, tile_shapes
from chainrule.loops.walk import postorder
from chainrule.target import Target

#: rows of the result below which packing a b whose rows evict each other costs more than it gives
CONFLICT_ROWS = 128
#: rows from which on panels of a b of so many elements gain more than they cost: it does not fit
#: the first cache; of a symbolic number of rows that should be certain by this factor
PACK_ROWS, PACK_ELEMENTS, CERTAINTY = 256, 8192, 8
PAGE = 4096
#: so many panels are enough for parts to share
SHARED_PANELS = 4

_M, _N, _K, _I, _V, _J = (Size.symbol(f"{name}'") for name in "mnkivj")


def packed_size(c: Contraction, target: Target) -> Dim:
    """Elements of workspace that `contraction_loops` wants for panels of b; 0 for none."""
    rows = c.m if isinstance(c.m, int) else typical(c.m) // CERTAINTY
    loads = [v for v in postorder(c.b(_K, _N)) if isinstance(v, Load)]
    strided = any(slope_along(load, "n'") not in (0, 1) for load in loads)
    evicting = rows >= CONFLICT_ROWS and any(map(_conflicts, loads))
    large = rows >= PACK_ROWS and typical(panels_size(c)) >= PACK_ELEMENTS
    return panels_size(c) if strided or evicting or large else 0


def panels_size(c: Contraction) -> Dim:
    """Elements of b in panels."""
    return c.k * ((c.n + LANES - 1) // LANES * LANES)


def packed_once(c: Contraction, panels: Buffer) -> tuple[Contraction, tuple[Stmt, ...]]:
    """A product that reads b from panels, and what fills them."""
    return replace(c, b=from_panels(panels, c.k)), fill_panels(c, panels, c.k, True)


def slope_along(load: Load, var: str) -> Dim | None:
    """How far a load moves when a variable grows by 1; None where that differs."""
    slope = coefficient(load.offset, var)
    return None if slope is None else slope[0]


def _conflicts(load: Load) -> bool:
    """Whether the rows of a panel lie whole pages apart, so that caches can't hold many of them."""
    stride = slope_along(load, "k'")
    return isinstance(stride, int) and stride > 0 and stride * load.dtype.itemsize % PAGE == 0


def contraction_loops(
    c: Contraction,
    target: Target,
    packed: Buffer | None,
    split: bool = False,
    long: tuple[Dim, tuple[Stmt, ...]] = (0, ()),
) -> tuple[Stmt, ...]:
    """The loops of a product; with `packed`, b is copied there first, LANES columns a panel.

    With `split` the parts of a program share it, inside the groups. Where sums are `long`, told by
    a size that is 1 then, else 0, other loops take the place of its own.
    """
    body = c.before
    b = c.b
    if split:
        body = tuple(s for nest in c.before for s in shared_nest((nest,), 1))
    between = (Barrier(),) if split else ()
    body += between if body else ()
    direct: tuple[Stmt, ...] = ()
    if packed is not None:
        direct += (*fill_panels(c, packed, c.k, split), *between)
        b = from_panels(packed, c.k)
    shapes = tile_shapes(c, target, c.tile is not None)
    direct += tuple(s for shape in shapes for s in tile_nest(c, b, *shape, split))
    is_long, instead = long
    body += (Loop("h'", is_long, instead),) if is_long != 0 else ()
    body += direct if is_long == 0 else (Loop("h'", 1 - is_long, direct),) if is_long != 1 else ()
    body += between if c.groups else ()
    for var, extent in reversed(c.groups):
        body = (Loop(var, extent, body),)
    return body


# loops


def tile_nest(
    c: Contraction,
    b: Callable[[Dim, Dim], Value],
    rows: Rows,
    columns: Columns,
    split: bool,
) -> tuple[Stmt, ...]:
    """One shape of tile over its part of the result: panels outside, so that b stays near."""
    if rows.count == 0 or columns.count == 0:
        return ()
    whole = columns.vectors - (columns.last != LANES)
    acc = Local("acc", c.dtype, (rows.rows, whole), True)
    edge = Local("edge", c.dtype, (rows.rows, columns.vectors - whole), True)
    row = rows.start + _M * rows.rows + _I
    column = columns.start + _N * (columns.vectors * LANES)

    def cell(v: Dim) -> Get:
        return Get(edge, (_I, 0)) if v == whole else Get(acc, (_I, v))

    def multiply(v: Dim) -> tuple[Stmt, ...]:
        args = (c.a(row, _K), b(_K, column + v * LANES + _J), cell(v))
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

    begun = _over_vectors(columns, begin) if c.start else ()
    laid = _over_vectors(columns, lay_down) if c.tile else ()
    ending = "serial" if c.tile else "unroll"
    tile: tuple[Stmt, ...] = (
        *(s for local in (acc, edge) if all(local.shape) for s in (local, _clear(local))),
        *((Loop("i'", rows.rows, begun, "unroll"),) if begun else ()),
        # row by row, so that an element of a is held no longer than its row takes
        _over_terms(c, Loop("i'", rows.rows, _over_vectors(columns, multiply), "unroll")),
        *((Loop("i'", rows.rows, laid, "unroll"),) if laid else ()),
        Loop("i'", rows.rows, _over_vectors(columns, finish), ending),
    )
    if c.terms or c.inside:
        body: tuple[Stmt, ...] = (Loop("n'", columns.count, tile),)
        for var, extent in reversed(c.inside):
            body = (Loop(var, extent, body),)
        return (Loop("m'", rows.count, body),)
    by_rows = rows_are_more(rows.count, columns.count)
    across = Loop("m'", rows.count, tile, split=split and by_rows)
    return (Loop("n'", columns.count, (across,), split=split and not by_rows),)


def rows_are_more(rows: Dim, columns: Dim) -> bool:
    """Whether parts had better share a product's rows of tiles than its panels."""
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


def _over_vectors(columns: Columns, body: Callable[[Dim], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
    """The body for each vector of a panel, the last of which may be narrower."""
    whole = columns.vectors if columns.last == LANES else columns.vectors - 1
    out: tuple[Stmt, ...] = ()
    if whole:
        out += (Loop("v'", whole, (Loop("j'", LANES, body(_V), "vector"),), "unroll"),)
    if whole < columns.vectors:
        out += (Loop("j'", columns.last, body(whole), "vector"),)
    return out


def from_panels(packed: Buffer, room: Dim) -> Callable[[Dim, Dim], Value]:
    """Reads b from its panels, each with room for so many terms, at a column whose lane is j'."""

    def read(k: Dim, n: Dim) -> Value:
        column = n - _J
        return Load(packed, column * room + k * LANES + _J)

    return read


def fill_panels(c: Contraction, packed: Buffer, room: Dim, split: bool) -> tuple[Stmt, ...]:
    """Copy b, LANES columns after LANES columns, in blocks of LANES values of k."""
    by_k = split and isinstance(c.n, int) and c.n // LANES < SHARED_PANELS

    def block(column: Dim, width: Dim, start: Dim, count: int) -> Stmt:
        k = start + _I
        store = Store(packed, column * room + k * LANES + _J, c.b(k, column + _J))
        return Loop("j'", width, (Loop("i'", count, (store,), "unroll"),), "vector")

    def panel(column: Dim, width: Dim) -> tuple[Stmt, ...]:
        blocks = Loop("k'", c.k // LANES, (block(column, width, _K * LANES, LANES),), split=by_k)
        rest: tuple[Stmt, ...] = ()
        if not isinstance(c.k, int):
            single = block(column, width, c.k // LANES * LANES + _K, 1)
            rest = (Loop("k'", c.k % LANES, (single,)),)
        elif c.k % LANES:
            rest = (block(column, width, c.k - c.k % LANES, c.k % LANES),)
        return (blocks, *(by_one(rest) if by_k and rest else rest))

    whole = Loop("n'", c.n // LANES, panel(_N * LANES, LANES), split=split and not by_k)
    if c.n % LANES == 0:
        return (whole,)
    last = panel(c.n // LANES * LANES, c.n % LANES)
    return (whole, *(by_one(last) if split and not by_k else last))
