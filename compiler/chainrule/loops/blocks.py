"""Products with long sums over a factor whose elements lie far apart: a weight's gradient.

A block of the result at a time, its sums in stretches of BLOCK terms: what a stretch reads of both
factors is copied together first, in the order in which it is read, so that it stays in the second
cache, and of one factor a panel in the first. What sums have come to waits in workspace. (Goto and
van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from chainrule.ir.loop import (
    LANES,
    Apply,
    Buffer,
    IndexValue,
    Literal,
    Load,
    Loop,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import bool_, int64
from chainrule.loops.contract import fill_panels, from_panels, slope_along, tile_nest
from chainrule.loops.parts import by_one
from chainrule.loops.tiles import Columns, Contraction, Rows, tile_columns, tile_rows
from chainrule.loops.walk import postorder
from chainrule.target import Target

#: terms of a stretch, and rows and columns of a block: 256 KB of one factor, 512 KB of the other
#: and 512 KB of sums, of the 2 MB that the second cache is taken to hold
BLOCK, BLOCK_ROWS, BLOCK_COLUMNS = 256, 256, 512
#: sums of fewer terms are as fast without copies
LONG = 128

_M, _N, _K, _I, _V, _S, _ROW, _COLUMN = (Size.symbol(f"{name}'") for name in "mnkivsxy")


T = TypeVar("T", bound=Rows | Columns)
#: rows or columns in blocks: from a place on so many, of these tiles each
Cut = list[tuple[int, int, list[T]]]


@dataclass(frozen=True)
class Blocks:
    """How a result is cut, and workspace for copies of a and b and for sums."""

    rows: Cut[Rows]
    columns: Cut[Columns]
    a: Buffer
    b: Buffer
    sums: Buffer


def block_sizes(c: Contraction, target: Target) -> tuple[int, int, int] | None:
    """Elements of workspace that `block_loops` wants: for a, b and sums; None where it is not worth
    it.
    """
    loads = [v for v in postorder(c.a(_M, _K)) if isinstance(v, Load)]
    apart = any(slope_along(load, "k'") not in (0, 1) for load in loads)
    if c.start is not None or not apart or (isinstance(c.k, int) and c.k < LONG):
        return None
    if not isinstance(c.m, int) or not isinstance(c.n, int) or c.n <= LANES:
        return None
    rows, columns = _cut(c, target)
    height = max(sum(map(_extent, tiles)) for _, _, tiles in rows)
    width = max(sum(map(_extent, tiles)) for _, _, tiles in columns)
    return BLOCK * height, BLOCK * width, height * width


def blocks_of(c: Contraction, target: Target, a: Buffer, b: Buffer, sums: Buffer) -> Blocks:
    """The blocks of a result, given workspace of `block_sizes`."""
    return Blocks(*_cut(c, target), a, b, sums)


def is_long(k: Dim) -> Dim:
    """1 where sums of k terms, below 2**40, are long, else 0."""
    return (k // LONG + 2**40) // (2**40 + 1)


def block_loops(c: Contraction, blocks: Blocks, split: bool) -> tuple[Stmt, ...]:
    """The loops of a product, block by block; with `split` the parts of a program share them."""
    by_rows = sum(n for _, n, _ in blocks.rows) > sum(n for _, n, _ in blocks.columns)
    out: list[Stmt] = []
    for above, rows_count, rows in blocks.rows:
        height = sum(map(_extent, rows))
        inside: list[Stmt] = []
        for left, columns_count, columns in blocks.columns:
            width = sum(map(_extent, columns))
            body = _block(c, blocks, above + _ROW * height, left + _COLUMN * width, rows, columns)
            inside += _loop("y'", columns_count, body, split and not by_rows)
        out += _loop("x'", rows_count, tuple(inside), split and by_rows)
    return tuple(out)


def _loop(var: str, count: int, body: tuple[Stmt, ...], split: bool) -> tuple[Stmt, ...]:
    """A loop; one of a single turn, if parts share what stands in it, is one part's."""
    loop = Loop(var, count, body, split=split and count > 1)
    return by_one((loop,)) if split and count == 1 else (loop,)


def _block(
    c: Contraction,
    blocks: Blocks,
    above: Dim,
    left: Dim,
    rows: Sequence[Rows],
    columns: Sequence[Columns],
) -> tuple[Stmt, ...]:
    """A block whose first element is given: stretch by stretch, then what becomes of its sums."""
    height, width = sum(map(_extent, rows)), sum(map(_extent, columns))
    count = (c.k + BLOCK - 1) // BLOCK
    first, after = c.k * _S // count, c.k * (_S + 1) // count
    begun = Apply("gt", (IndexValue(_S, int64), Literal(0, int64)), bool_)

    def so_far(m: Dim, n: Dim) -> Load:
        return Load(blocks.sums, m * width + n)

    stretch = replace(
        c,
        m=height,
        n=width if columns[-1].last == LANES else width - LANES + columns[-1].last,
        k=after - first,
        a=lambda m, k: c.a(above + m, first + k),
        b=lambda k, n: c.b(first + k, left + n),
        start=lambda m, n: Apply("where", (begun, so_far(m, n), Literal(0, c.dtype)), c.dtype),
        epilogue=lambda m, n, acc: (Store(blocks.sums, m * width + n, acc),),
        tile=None,
        groups=(),
        before=(),
    )
    nests = [
        s
        for panels in columns
        for tiles in rows
        for s in tile_nest(
            replace(stretch, a=_from_tiles(blocks.a, tiles)),
            from_panels(blocks.b, BLOCK),
            tiles,
            panels,
            False,
        )
    ]
    copies = (*_fill_tiles(stretch, blocks.a, rows), *_fill_panels(stretch, blocks.b))
    finish = c.epilogue(above + _M, left + _N, so_far(_M, _N))
    ending = Loop("m'", height, (Loop("n'", stretch.n, finish, "vector"),))
    return (Loop("s'", count, (*copies, *nests)), ending)


def _fill_tiles(c: Contraction, to: Buffer, rows: Sequence[Rows]) -> Iterator[Stmt]:
    """Copy a, tile by tile, in each the rows of one term after those of another."""
    for tiles in rows:
        read = c.a(tiles.start + _V * tiles.rows + _I, _K)
        place = (tiles.start + _V * tiles.rows) * BLOCK + _K * tiles.rows + _I
        copy = Loop("i'", tiles.rows, (Store(to, place, read),), "vector")
        yield Loop("k'", c.k, (Loop("v'", tiles.count, (copy,)),))


def _from_tiles(copied: Buffer, tiles: Rows) -> Callable[[Dim, Dim], Value]:
    """Reads a from its tiles, at a row of a tile."""

    def read(m: Dim, k: Dim) -> Load:
        tile = (tiles.start + _M * tiles.rows) * BLOCK
        return Load(copied, tile + k * tiles.rows + _I)

    return read


def _fill_panels(c: Contraction, to: Buffer) -> tuple[Stmt, ...]:
    """Copy b, LANES columns a panel; row by row where a row lies together, as memory is read."""
    loads = [v for v in postorder(c.b(_K, _N)) if isinstance(v, Load)]
    if any(slope_along(load, "n'") != 1 for load in loads):
        return fill_panels(c, to, BLOCK, False)
    assert isinstance(c.n, int)

    def some(column: Dim, width: int) -> Stmt:
        store = Store(to, column * BLOCK + _K * LANES + _I, c.b(_K, column + _I))
        return Loop("i'", width, (store,), "vector")

    whole, rest = divmod(c.n, LANES)
    row: tuple[Stmt, ...] = (Loop("v'", whole, (some(_V * LANES, LANES),)),)
    row += (some(whole * LANES, rest),) if rest else ()
    return (Loop("k'", c.k, row),)


# how a result is cut


def _extent(tiles: Rows | Columns) -> int:
    """Rows or columns of workspace that tiles take."""
    assert isinstance(tiles.count, int)
    each = tiles.rows if isinstance(tiles, Rows) else tiles.vectors * LANES
    return each * tiles.count


def _cut(c: Contraction, target: Target) -> tuple[Cut[Rows], Cut[Columns]]:
    """The rows and the columns of a result in blocks: two at least, for parts to share."""
    assert isinstance(c.m, int) and isinstance(c.n, int)
    rows = list(tile_rows(c, target, True))
    columns = list(tile_columns(c.n, rows[0].vectors))
    high, wide = -(-c.m // BLOCK_ROWS), -(-c.n // BLOCK_COLUMNS)
    if high * wide == 1:
        high, wide = (2, 1) if c.m >= c.n else (1, 2)
    return _in_blocks(rows, high), _in_blocks(columns, wide)


def _in_blocks(tiles: Sequence[T], blocks: int) -> Cut[T]:
    """Tiles in about so many blocks, equal ones but for the last, which has the odd tile too."""
    first, *odd = tiles
    assert isinstance(first.count, int)
    each = _extent(first) // first.count
    some = -(-first.count // blocks)
    whole, left = divmod(first.count, some)
    if odd and not left:
        whole, left = whole - 1, some
    cut: Cut[T] = [(0, whole, [replace(first, count=some, start=0)])] if whole else []
    if left:
        last = [replace(first, count=left, start=0)]
        last += [replace(t, start=left * each) for t in odd]
        cut.append((whole * some * each, 1, last))
    return cut
