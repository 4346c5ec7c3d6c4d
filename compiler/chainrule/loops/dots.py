"""Products whose sums go along memory in both factors, as of images with their windows: lanes go
along the sums.

Each element has LANES chains, of which lane q % LANES takes the terms of the innermost sum's place
q, and they are added up in one tree at the end: an order that depends on the shapes alone. A tile
of rows x columns of the result stays in registers over the whole of the sums; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Combine,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Stmt,
    Store,
    Value,
    fills,
)
from chainrule.ir.node import Index, Reader, Stmts
from chainrule.ir.size import Dim, Size, coefficient, known, product, static_product
from chainrule.loops.builder import Builder, is_straight
from chainrule.loops.laid import Laid
from chainrule.loops.layout import ContractLayout, loop_of
from chainrule.loops.parts import split_outermost
from chainrule.loops.tiles import CHAINS
from chainrule.loops.walk import postorder
from chainrule.ops.layout import ravel
from chainrule.records import dataclass

#: of more columns, copies of the windows are worth making: each serves all rows
MOST_COLUMNS = 75
#: how much of their vectors lines fill, if lanes along columns would do as well
FULL = 0.75
#: columns of a tile: with three rows, as many as 32 registers hold, each read for three sums
INSIDE = 9
#: registers that hold no sums: a row's factor, a column's, and what LLVM needs
SPARE = 4


@dataclass(frozen=True)
class DotTile:
    """How a product is cut: the letter of its rows, those of its columns and its sums, and what a
    tile holds: so many `rows`, and all of the letters in `inside`, which end the columns. Chains of
    sums wait in workspace from one image to the next, where sums are over images: over the letters
    that are `stepped`.
    """

    row: str
    columns: str
    sums: str
    rows: int
    inside: str
    stepped: str

    @staticmethod
    def of(b: Builder, layout: ContractLayout) -> DotTile | None:
        """The tile for a product, or None where sums don't go along memory in both factors."""
        sizes, last = layout.sizes, layout.b[-1]
        summed = [c for c in layout.b if c not in layout.letters]
        rows = [c for c in layout.letters if c in layout.a and c not in layout.b]
        columns = [c for c in layout.letters if c in layout.b and c not in layout.a]
        operands = layout.order(b.kernel.anchor.inputs)
        groups = [c for c in layout.letters if c in layout.a and c in layout.b]
        in_order = "".join([*groups, *rows, *columns]) == layout.letters
        axes = [set(range(len(groups) + 1, len(layout.letters)))]
        flat = in_order and is_straight(b.kernel.nodes[1:], b.kernel, axes)
        along = last in summed and len(rows) == 1 and flat
        readers = [b.reader(i) for i in operands]
        if not along or not all(
            goes_along(read, letters, last)
            for read, letters in zip(readers, (layout.a, layout.b), strict=True)
        ):
            return None
        count = sizes[rows[0]]
        width = b.target.registers_of(b.kernel.anchor.type.dtype.itemsize, LANES)
        room = (b.target.vector_registers - SPARE) // width
        inside = _ending(columns, sizes, min(room, INSIDE))
        wide = product(tuple(sizes[c] for c in columns))
        if not isinstance(count, int) or not isinstance(wide, int) or wide > MOST_COLUMNS:
            return None
        if not fills(sizes[last], _least(count, wide)):
            return None
        most = min(count, room // static_product(tuple(sizes[c] for c in inside)))
        height = -(-count // -(-count // most))
        first = "".join(summed[:1] if len(summed) > 1 else [])
        return DotTile(rows[0], "".join(columns), "".join(summed), height, inside, first)


def _least(rows: int, columns: int) -> float:
    """How much of their vectors lines are to fill: less where lanes along so few columns would wait
    for one another.
    """
    vectors = -(-columns // LANES)
    busy = columns / (vectors * LANES) * rows * vectors / CHAINS
    return FULL if rows * vectors >= CHAINS else FULL * busy


def goes_along(read: Reader, letters: str, last: str) -> bool:
    """Whether a factor's elements lie side by side along a letter, whatever the others are."""
    index = tuple(Size.symbol(loop_of(c)) for c in letters)
    loads = [v for v in postorder(read(index)) if isinstance(v, Load)]
    slopes = [coefficient(load.offset, loop_of(last)) for load in loads]
    return bool(loads) and all(slope is not None and slope[0] == 1 for slope in slopes)


def _ending(columns: list[str], sizes: Mapping[str, Dim], room: int) -> str:
    """As many of the last letters as have `room` elements together at most."""
    count, inside = 1, ""
    for letter in reversed(columns):
        size = sizes[letter]
        if not isinstance(size, int) or count * size > room:
            break
        count, inside = count * size, letter + inside
    return inside


def dot_loops(
    b: Builder,
    layout: ContractLayout,
    tile: DotTile,
    laid: Laid,
    maps: Callable[[Index, Value], Stmts],
) -> Stmts:
    """The loops of a product; `maps(index, sum)` is what becomes of an element."""
    node, sizes = b.kernel.anchor, layout.sizes
    by_group = bool(layout.dot_groups)
    shape = tuple(sizes[c] for c in tile.columns)
    width = product(shape)
    count = sizes[tile.row]
    chains = b.workspace(node, count * width * LANES, by_group)
    sums = b.workspace(node, count * width, by_group)
    x, y = (b.reader(i) for i in layout.order(node.inputs))
    at: dict[str, Dim] = {c: Size.symbol(loop_of(c)) for c in (*layout.a, *layout.b)}
    kept = [c for c in tile.columns if c not in tile.inside]
    extents = known(tuple(sizes[c] for c in tile.inside))
    dtype = node.type.dtype
    m, n, lane = (Size.symbol(f"{name}'") for name in "mnj")
    length = sizes[tile.sums[-1]]
    assert isinstance(count, int) and isinstance(length, int)
    last, terms = tile.sums[-1], [c for c in tile.sums[:-1] if c not in tile.stepped]

    def over(rows: int, first: Dim) -> Stmts:
        """All columns of so many rows, at one step of the sums."""
        acc = Local("acc", dtype, (rows, *extents), True)
        place = at | {tile.row: first + Size.symbol("i'")}
        cell = (Size.symbol("i'"), *(at[c] for c in tile.inside))
        flat = place[tile.row] * width + ravel(tuple(at[c] for c in tile.columns), shape)

        def each(body: Stmt) -> Stmt:
            for c, extent in zip(reversed(tile.inside), reversed(extents), strict=True):
                body = Loop(loop_of(c), extent, (body,), "unroll")
            return Loop("i'", rows, (body,), "unroll")

        def lanes(body: Stmt) -> Stmt:
            return each(Loop("j'", LANES, (body,), "vector"))

        def term(left: Value, right: Value) -> Stmt:
            return each(Set(acc, cell, Apply("fma", (left, right, Get(acc, cell)), dtype)))

        def factors(index: dict[str, Dim]) -> tuple[Value, Value]:
            left, right = ((index[c] for c in letters) for letters in (layout.a, layout.b))
            return x(tuple(left)), y(tuple(right))

        body: Stmts = ()
        full, part = length // LANES * LANES, length % LANES
        if full:
            body += (Loop(loop_of(last), full, (term(*factors(place)),), "vector"),)
        if part:  # lanes that have no term left multiply 0 by 0, which needs no mask
            held = Local("left", dtype, (rows,), True), Local("right", dtype, extents, True)
            cells = cell[:1], cell[1:]
            read = factors(place | {last: full + lane})
            takes = (Set(local, at, v) for local, at, v in zip(held, cells, read, strict=True))
            begun = Loop("j'", part, tuple(map(each, takes)), "vector")
            multiplied = term(*(Get(local, at) for local, at in zip(held, cells, strict=True)))
            body += (*held, begun, Loop("j'", LANES, (multiplied,), "vector"))
        for c in reversed(terms):
            body = (Loop(loop_of(c), sizes[c], body),)
        chain = flat * LANES + lane
        begin, end = Set(acc, cell, Load(chains, chain)), Store(chains, chain, Get(acc, cell))
        nest: Stmts = (acc, lanes(begin), *body, lanes(end))
        for c in reversed(kept):
            nest = (Loop(loop_of(c), sizes[c], nest),)
        return nest

    whole, rest = divmod(count, tile.rows)
    split = not by_group
    between = (Barrier(),) if split else ()
    body: Stmts = (Loop("m'", whole, over(tile.rows, m * tile.rows), split=split),)
    if rest:
        body += (Loop("m'", 1, over(rest, whole * tile.rows), split=split),)
    body = (*laid.each, *body)
    for c in reversed(tile.stepped):  # a part goes on with its rows of the next image at once
        body = (Loop(loop_of(c), sizes[c], body),)
    index: Index = (
        *(at[c] for c in layout.letters[: -len(shape) - 1]),
        m,
        *(0 for _ in shape[1:]),
        n,
    )
    clear = Store(chains, n, Literal(0, dtype))
    zero = Loop("n'", count * width * LANES, (clear,), "vector", split=split)
    whole_chain = Local("chain", dtype, (), True)
    take = Set(whole_chain, (), Load(chains, (m * width + n) * LANES + lane))
    total = Store(sums, m * width + n, Combine("add", whole_chain))
    added = Loop("n'", width, (whole_chain, Loop("j'", LANES, (take,), "vector"), total))
    finish = Loop("n'", width, maps(index, Load(sums, m * width + n)), "vector")
    body = (zero, *between, *body, *between, Loop("m'", count, (added, finish), split=split))
    body = laid.in_groups(layout.dot_groups, body)
    return split_outermost(body, len(layout.dot_groups)) if by_group else body
