"""The matrix product as a scheduled template: out[m, n] = sum over k of a[m, k] * b[k, n].

Every element of the result is one chain of multiply-adds from 0, k ascending, whatever tiles are
chosen: the choices below change speed, never bits. A tile of rows x (vectors of LANES columns)
stays in registers over the whole of k, then the epilogue takes it (Goto and van de Geijn, "Anatomy
of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008, for tiles and packed panels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Buffer,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.size import Dim, Size, coefficient
from chainrule.ir.types import bool_, int64
from chainrule.loops.parts import by_one, shared_nest
from chainrule.loops.tiles import Columns, Contraction, Rows, tile_shapes
from chainrule.loops.walk import postorder
from chainrule.target import Target

#: rows of the result below which packing a b whose rows evict each other costs more than it gives
CONFLICT_ROWS = 128
PAGE = 4096
#: of longer sums over a factor whose elements lie far apart, so many terms of so many rows (256 KB)
#: are copied together at a time, if so many panels then read them
BLOCK, BLOCK_ROWS, BLOCK_PANELS = 1024, 64, 4
#: so many panels are enough for parts to share
SHARED_PANELS = 4

_M, _N, _K, _I, _V, _J, _H, _S = (Size.symbol(f"{name}'") for name in "mnkivjhs")


def packed_size(c: Contraction, target: Target) -> Dim:
    """Elements of workspace that `contraction_loops` wants for panels of b; 0 for none."""
    if c.choice.packed is not None:
        return c.k * ((c.n + LANES - 1) // LANES * LANES) if c.choice.packed else 0
    many = isinstance(c.m, int) and c.m >= CONFLICT_ROWS
    loads = [v for v in postorder(c.b(_K, _N)) if isinstance(v, Load)]
    strided = any(slope_along(load, "n'") not in (0, 1) for load in loads)
    if strided or (many and any(map(_conflicts, loads))):
        return c.k * ((c.n + LANES - 1) // LANES * LANES)
    return 0


def block_sizes(c: Contraction, target: Target) -> tuple[Dim, Dim] | None:
    """Elements of workspace that `contraction_loops` wants for long sums: a block of a's rows, one
    for each part, and all sums so far. None where it wants none.
    """
    if c.start is not None or not _far_apart(c):
        return None
    shapes = tile_shapes(c, target, True)
    rows = max((_block_tiles(*shape) * shape[0].rows for shape in shapes), default=0)
    return (BLOCK * rows, c.m * c.n) if rows else None


def slope_along(load: Load, var: str) -> Dim | None:
    """How far a load moves when a variable grows by 1; None where that differs."""
    slope = coefficient(load.offset, var)
    return None if slope is None else slope[0]


def _conflicts(load: Load) -> bool:
    """Whether the rows of a panel lie whole pages apart, so that caches can't hold many of them."""
    stride = slope_along(load, "k'")
    return isinstance(stride, int) and stride > 0 and stride * load.dtype.itemsize % PAGE == 0


def contraction_loops(
    c: Contraction, target: Target, packed: Buffer | None, split: bool = False
) -> tuple[Stmt, ...]:
    """The loops of a product; with `packed`, b is copied there first, LANES columns a panel.

    With `split` the parts of a program share it, inside the groups.
    """
    body = c.before
    b = c.b
    if split:
        body = tuple(s for nest in c.before for s in shared_nest((nest,), 1))
    between = (Barrier(),) if split else ()
    body += between if body else ()
    if packed is not None:
        body += (*_pack(c, packed, split), *between)
        b = _packed_reader(c, packed)
    shapes = tile_shapes(c, target, c.tile is not None)
    direct = tuple(s for shape in shapes for s in _nest(c, b, *shape, split))
    if c.sums is None:
        body += direct
    else:
        long = _reaches(c.k, BLOCK + 1)
        body += (Loop("h'", long, _long_sums(c, b, shapes, split)),)
        body += (Loop("h'", 1 - long, direct),) if long != 1 else ()
    body += between if c.groups else ()
    for var, extent in reversed(c.groups):
        body = (Loop(var, extent, body),)
    return body


# loops


def _far_apart(c: Contraction) -> bool:
    """Whether a's elements along k lie in lines of their own, and may be more than BLOCK."""
    loads = [v for v in postorder(c.a(_M, _K)) if isinstance(v, Load)]
    short = isinstance(c.k, int) and c.k <= BLOCK
    return not short and any(slope_along(load, "k'") not in (0, 1) for load in loads)


def _block_tiles(rows: Rows, columns: Columns) -> int:
    """How many tiles of one shape make a block, about equal ones; 0 where it is not worth it."""
    if not isinstance(rows.count, int) or not isinstance(columns.count, int):
        return 0
    blocks = -(-rows.count * rows.rows // BLOCK_ROWS)
    return -(-rows.count // blocks) if columns.count >= BLOCK_PANELS else 0


def _long_sums(
    c: Contraction,
    b: Callable[[Dim, Dim], Value],
    shapes: Sequence[tuple[Rows, Columns]],
    split: bool,
) -> tuple[Stmt, ...]:
    """Long sums over a factor whose elements lie far apart: in stretches of k, about equal and at
    most BLOCK long; in each, a block of tiles after the other, what they read of a copied together
    first, so that it stays in the second cache while panels of b pass by. What sums have come to
    waits in workspace.
    """
    sums = c.sums
    assert sums is not None
    count = (c.k + BLOCK - 1) // BLOCK
    first, after = c.k * _S // count, c.k * (_S + 1) // count
    begun = Apply("gt", (IndexValue(_S, int64), Literal(0, int64)), bool_)

    def so_far(m: Dim, n: Dim) -> Value:
        return Load(sums, m * c.n + n)

    def start(m: Dim, n: Dim) -> Value:
        return Apply("where", (begun, so_far(m, n), Literal(0, c.dtype)), c.dtype)

    def keep(m: Dim, n: Dim, acc: Value) -> tuple[Stmt, ...]:
        return (Store(sums, m * c.n + n, acc),)

    def panels(k: Dim, n: Dim) -> Value:
        return b(first + k, n)

    stretch = replace(
        c, k=after - first, a=lambda m, k: c.a(m, first + k), start=start, epilogue=keep, tile=None
    )
    between = (Barrier(),) if split else ()
    nests = [s for rows, k in shapes for s in _copied(stretch, panels, rows, k, split)]
    row = Loop("n'", c.n, c.epilogue(_M, _N, so_far(_M, _N)), "vector")
    return (Loop("s'", count, (*nests, *between)), Loop("m'", c.m, (row,), split=split))


def _copied(
    c: Contraction,
    b: Callable[[Dim, Dim], Value],
    rows: Rows,
    columns: Columns,
    split: bool,
) -> tuple[Stmt, ...]:
    """One shape of tile in blocks, with a copied for each; every part copies for itself."""
    block, tiles = c.block, _block_tiles(rows, columns)
    if not tiles:
        return _nest(c, b, rows, columns, split)
    assert block is not None and isinstance(rows.count, int)

    def place(tile: Dim, row: Dim) -> Dim:
        return (tile * BLOCK + _K) * rows.rows + row

    def some(count: int, start: Dim) -> tuple[Stmt, ...]:
        read = c.a(start + _V * rows.rows + _J, _K)
        copy = Loop("j'", rows.rows, (Store(block, place(_V, _J), read),), "vector")
        copies = Loop("k'", c.k, (Loop("v'", count, (copy,), "unroll"),))
        near = replace(c, a=lambda m, k: Load(block, place(_M, _I)))
        return (copies, *_nest(near, b, replace(rows, count=count, start=start), columns, split))

    whole, rest = divmod(rows.count, tiles)
    size = tiles * rows.rows
    body: tuple[Stmt, ...] = (Loop("h'", whole, some(tiles, rows.start + _H * size)),)
    return (*body, *some(rest, rows.start + whole * size)) if rest else body


def _reaches(size: Dim, bound: int) -> Dim:
    """1 for a size from `bound` on, below 2**40, and 0 for a smaller one."""
    return (size // bound + 2**40) // (2**40 + 1)


def _nest(
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


def _packed_reader(c: Contraction, packed: Buffer) -> Callable[[Dim, Dim], Value]:
    """Reads b from its panels, at a column whose lane is j'."""

    def read(k: Dim, n: Dim) -> Value:
        column = n - _J
        return Load(packed, column * c.k + k * LANES + _J)

    return read


def _pack(c: Contraction, packed: Buffer, split: bool) -> tuple[Stmt, ...]:
    """Copy b, LANES columns after LANES columns, in blocks of LANES values of k."""
    by_k = split and isinstance(c.n, int) and c.n // LANES < SHARED_PANELS

    def block(column: Dim, width: Dim, start: Dim, count: int) -> Stmt:
        k = start + _I
        store = Store(packed, column * c.k + k * LANES + _J, c.b(k, column + _J))
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
