"""Products over windows, turned: lanes go along the rows of the other factor.

Windows are read an element at a time where they stand, for every lane the same, so neither is
anything of them copied nor need images be wide enough for vectors. The other factor is copied,
lanes side by side; the sums, which come out turned as well, wait in workspace and are turned back,
LANES by LANES, for what becomes of them. Each is one ascending chain of multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from chainrule.ir.loop import (
    LANES,
    Barrier,
    Buffer,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Store,
    Value,
    fills,
)
from chainrule.ir.node import Reader, Stmts
from chainrule.ir.size import Dim, Size, coefficient, known, product
from chainrule.ir.types import float32
from chainrule.loops.builder import Builder, Maps
from chainrule.loops.contract import contraction_loops
from chainrule.loops.laid import Laid
from chainrule.loops.layout import ContractLayout, letter_of, loop_of
from chainrule.loops.packing import pack, packed_reader
from chainrule.loops.parts import split_outermost
from chainrule.loops.tiles import (
    CHAINS,
    Contraction,
    best_vectors,
    epilogue_operations,
)
from chainrule.ops.cast import widens
from chainrule.ops.layout import ravel, unravel
from chainrule.records import dataclass
from chainrule.target import SECOND

#: rows of a tile at most, of one vector, two and three
MOST_ROWS = (25, 14, 9)
#: of more elements, sums would leave the second cache before they are turned back
MOST_SUMS = SECOND // float32.itemsize
#: rows from which each part had better copy a factor for itself than wait for others twice a step
OWN_ROWS = 32
#: operations of epilogue code for a block that is turned back; where it would have more, the block
#: is laid down in workspace and a loop over its rows takes it from there
TURNED_OPERATIONS = 160

_M, _N, _I, _J = (Size.symbol(f"{name}'") for name in "mnij")


@dataclass(frozen=True)
class TurnedTile:
    """What of the windows' letters a tile holds: of the one numbered `next` so many (`factor`) at a
    time, and all of those after it, which are `inside` together.

    The other factor is copied once for `all` groups, with all terms of a sum, if groups share it,
    as images do; else for each group and each step of the outer sums. Where those would be too few
    rows for the registers there are, tiles are of `straddling` rows, wherever lines end.
    """

    next: int
    factor: int
    inside: int
    all: bool
    straddling: int = 0

    @staticmethod
    def of(b: Builder, layout: ContractLayout) -> TurnedTile | None:
        """The tile for a product, or None where it is not one of windows, or lanes are too few."""
        node, m, n = b.kernel.anchor, layout.m, layout.n
        sizes = [layout.sizes[c] for c in layout.column]
        fixed = [d for d in (m, n, *sizes) if isinstance(d, int)]
        if not layout.gathered[1] or len(fixed) < len(sizes) + 2 or not fills(m, 0.75):
            return None
        groups = [letter_of(var) for var, extent in layout.groups if extent != 1]
        shared = any(c not in layout.a for c in groups)
        large = shared and fixed[0] * fixed[1] > MOST_SUMS
        if large or all(map(widens, node.inputs)):
            return None
        vectors = best_vectors(m, 1)  # as the order of sums may not hang on the machine
        if TurnedTile.tallest(fixed[2:], MOST_ROWS[vectors - 1], shared).rows * vectors < CHAINS:
            return None
        width = b.target.registers_of(node.type.dtype.itemsize, LANES)
        used = best_vectors(m, width) * width
        most = min(MOST_ROWS[vectors - 1], (b.target.vector_registers - 1 - used) // used)
        tile = TurnedTile.tallest(fixed[2:], max(1, most), shared)
        return tile if tile.rows * used >= CHAINS else replace(tile, straddling=most)

    @staticmethod
    def tallest(sizes: Sequence[int], most: int, shared: bool) -> TurnedTile:
        """The tile of most rows, over letters of such sizes."""
        at, inside = len(sizes) - 1, 1
        while at > 0 and inside * sizes[at] <= most:
            at, inside = at - 1, inside * sizes[at]
        fitting = range(1, max(1, most // inside) + 1)
        factor = max(f for f in fitting if sizes[at] % f == 0)
        return TurnedTile(at, factor, inside, shared)

    @property
    def rows(self) -> int:
        """The rows of a tile."""
        return self.straddling or self.factor * self.inside


def turned_loops(
    b: Builder,
    layout: ContractLayout,
    tile: TurnedTile,
    laid: Laid,
    maps: Maps,
) -> Stmts:
    """The loops of a product; `maps(index, sum)` is what becomes of an element."""
    node, m, n, split = b.kernel.anchor, layout.m, layout.n, not layout.by_group
    assert isinstance(m, int) and isinstance(n, int)
    steps, between = () if tile.all else layout.sums, (Barrier(),) if split else ()
    own = not tile.all and (layout.by_group or n >= OWN_ROWS)
    sums = b.workspace(node, m * (-(-n // LANES) * LANES), layout.by_group)

    def so_far(row: Dim, column: Dim) -> Value:
        return Load(sums, row * m + column)

    def keep(row: Dim, column: Dim, acc: Value) -> Stmts:
        return (Store(sums, row * m + column, acc),)

    c, copy = _copied(b, layout, tile, _contraction(b, layout, tile, keep), own)
    c = replace(c, start=so_far if steps else None)
    body = contraction_loops(c, b.target, None, split)
    if not tile.all:
        waits = () if own else between
        body = _nested(steps, (*laid.each, *copy, *waits, *body, *waits))
    body = (*body, *between)
    if steps:
        zero = Loop("n'", m * n, (Store(sums, _N, Literal(0, c.dtype)),), "vector", split=split)
        body = (zero, *between, *body)
    body = laid.in_groups(layout.groups, (*body, *turned_back(b, layout, so_far, maps, split)))
    body = body if split else split_outermost(body, len(layout.groups))
    return (*copy, *body) if tile.all else body


def _contraction(
    b: Builder,
    layout: ContractLayout,
    tile: TurnedTile,
    keep: Callable[[Dim, Dim, Value], Stmts],
) -> Contraction:
    """The product turned: windows are rows of it, and the rows of the other factor columns, both
    read where they stand.
    """
    x, y = layout.order(b.kernel.anchor.inputs)
    plain, windows = b.reader(x), b.reader(y)
    letters = layout.outer + layout.inner if tile.all else layout.inner

    def factor(k: Dim, column: Dim) -> Value:
        places: dict[str, Dim] = {}
        for run, flat in ((layout.row, column), (layout.inner, k)):
            places |= {run: flat} if _is_one_axis(layout, plain, run) else layout.apart(run, flat)
        return plain(layout.index(layout.a, places))

    def window(row: Dim, k: Dim) -> Value:
        places = _places(layout, tile, row) | {c: Size.symbol(loop_of(c)) for c in letters}
        return windows(layout.index(layout.b, places))

    dtype, terms = b.kernel.anchor.type.dtype, tuple((loop_of(c), layout.sizes[c]) for c in letters)
    c = Contraction((), layout.n, layout.m, layout.k, window, factor, dtype, keep)
    return replace(c, terms=terms, height=tile.rows)


def _copied(
    b: Builder, layout: ContractLayout, tile: TurnedTile, c: Contraction, own: bool
) -> tuple[Contraction, Stmts]:
    """The product with its lanes read where they are copied, and what copies them: those of all
    groups and terms at once or, each part its `own` or for others, of a group and an outer step.
    """
    groups = [g for g in layout.groups if tile.all and letter_of(g[0]) in layout.a]
    steps = layout.sums if tile.all else ()
    depth, panels = product(tuple(extent for _, extent in c.terms)), (layout.m + LANES - 1) // LANES
    size = product(tuple(extent for _, extent in groups)) * depth * panels * LANES
    copied = b.workspace(layout.order(b.kernel.anchor.inputs)[0], size, own)
    base = _number(groups) * depth * panels
    copy = pack(c, packed_reader(copied, depth, base + _number(steps) * c.k), not own)
    if tile.all:
        copy = (*_nested((*groups, *steps), copy), Barrier())
    read = packed_reader(copied, depth)
    return replace(c, k=depth, b=lambda k, n: read(base + k, n)), copy


def _number(loops: Sequence[tuple[str, Dim]]) -> Dim:
    """Of all turns of nested loops, how many have been before this one."""
    return ravel(tuple(Size.symbol(var) for var, _ in loops), tuple(size for _, size in loops))


def _is_one_axis(layout: ContractLayout, read: Reader, run: str) -> bool:
    """Whether a run of letters lies in the factor that is no view of windows as one axis does."""
    value = read(tuple(Size.symbol(loop_of(c)) for c in layout.a))
    if not isinstance(value, Load) or value.index is not None:
        return False
    steps = [coefficient(value.offset, loop_of(c)) for c in run]
    return all(
        step is not None and inner is not None and step[0] == inner[0] * layout.sizes[c]
        for step, inner, c in zip(steps, steps[1:], run[1:], strict=False)
    )


def _places(layout: ContractLayout, tile: TurnedTile, row: Dim) -> dict[str, Dim]:
    """Where a row of tiles stands among the windows' letters."""
    sizes = known(tuple(layout.sizes[c] for c in layout.column))
    if tile.straddling:
        return dict(zip(layout.column, unravel(row, sizes), strict=True))
    tiles = unravel(row // tile.rows, (*sizes[: tile.next], sizes[tile.next] // tile.factor))
    inside = row % tile.rows
    place = tiles[-1] * tile.factor + inside // tile.inside
    last = unravel(inside % tile.inside, sizes[tile.next + 1 :])
    return dict(zip(layout.column, (*tiles[:-1], place, *last), strict=True))


def _nested(loops: Sequence[tuple[str, Dim]], body: Stmts) -> Stmts:
    for var, extent in reversed(loops):
        body = (Loop(var, extent, body),)
    return body


def turned_back(
    b: Builder,
    layout: ContractLayout,
    sums: Callable[[Dim, Dim], Value],
    maps: Maps,
    split: bool,
    columns: tuple[Dim, int] | None = None,
    waits: bool = False,
) -> Stmts:
    """What becomes of sums, in the order of the result: blocks of LANES rows and LANES columns, of
    all or of so many `columns` from one on. They wait in workspace where what becomes of them is
    much code, or with `waits`, for a loop over rows.
    """
    node, m = b.kernel.anchor, layout.m
    at, n = columns or (0, layout.n)
    assert isinstance(m, int) and isinstance(n, int)

    def become(row: Dim, column: Dim, acc: Value) -> Stmts:
        return maps(layout.out(row, at + column), acc)

    much = epilogue_operations(become, node.type.dtype) * min(m, LANES) > TURNED_OPERATIONS
    waiting = b.workspace(node, LANES * LANES, True) if much or waits else None

    def block(rows: int, first: Dim, columns: int, start: Dim) -> Stmts:
        """Whole blocks are turned in registers; past the last column is workspace still."""
        row, column = first + _I, start + _J
        read = sums(column, row)
        return turned_block(rows, columns, read, lambda acc: become(row, column, acc), waiting)

    def across(rows: int, first: Dim) -> Stmts:
        whole = Loop("n'", n // LANES, block(rows, first, LANES, _N * LANES))
        rest = n % LANES
        return (whole, *(block(rows, first, rest, n - rest) if rest else ()))

    body: Stmts = (Loop("m'", m // LANES, across(LANES, _M * LANES), split=split),)
    rest = m % LANES
    return (*body, Loop("m'", 1, across(rest, m - rest), split=split)) if rest else body


def turned_block(
    rows: int,
    columns: int,
    read: Value,
    give: Callable[[Value], Stmts],
    waiting: Buffer | None,
) -> Stmts:
    """What becomes of a block of numbers that lie with the row i' first and the column j' apart;
    LANES columns are read. They wait in workspace, where there is some, for a loop over rows.
    """
    if waiting is not None:
        at = _I * LANES + _J
        lay = Loop("i'", rows, (Store(waiting, at, read),), "unroll")
        row = Loop("j'", columns, give(Load(waiting, at)), "vector")
        return (Loop("j'", LANES, (lay,), "vector"), Loop("i'", rows, (row,)))
    turned = Local("turned", read.dtype, (rows,), True)
    cell = Get(turned, (_I,))
    take = Loop("i'", rows, (Set(turned, (_I,), read),), "unroll")
    given = Loop("i'", rows, give(cell), "unroll")
    return (turned, Loop("j'", LANES, (take,), "vector"), Loop("j'", columns, (given,), "vector"))
