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
    Buffer,
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
from chainrule.loops.builder import Builder, Maps, is_straight
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

_M, _N, _I, _J = (Size.symbol(f"{name}'") for name in "mnij")


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
    """How much of their vectors lines are to fill. With fewer than CHAINS vectors of sums, lanes
    along columns would mostly wait for the multiply-adds before, so shorter lines do as well.
    """
    vectors = rows * -(-columns // LANES)
    return FULL if vectors >= CHAINS else FULL * rows * columns / (LANES * CHAINS)


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
    maps: Maps,
) -> Stmts:
    """The loops of a product; `maps(index, sum)` is what becomes of an element."""
    node, count, width = b.kernel.anchor, layout.sizes[tile.row], layout.size(tile.columns)
    assert isinstance(count, int)
    by_group = bool(layout.dot_groups)
    split, between = not by_group, () if by_group else (Barrier(),)
    chains = b.workspace(node, count * width * LANES, by_group)
    sums = b.workspace(node, count * width, by_group)
    whole, rest = divmod(count, tile.rows)
    some = _tile(b, layout, tile, chains, tile.rows, _M * tile.rows)
    body: Stmts = (*laid.each, Loop("m'", whole, some, split=split))
    if rest:
        last = _tile(b, layout, tile, chains, rest, whole * tile.rows)
        body += (Loop("m'", 1, last, split=split),)
    for c in reversed(tile.stepped):  # a part goes on with its rows of the next image at once
        body = (Loop(loop_of(c), layout.sizes[c], body),)
    clear = Store(chains, _N, Literal(0, node.type.dtype))
    zero = Loop("n'", count * width * LANES, (clear,), "vector", split=split)
    ends = Loop("m'", count, _ends(b, layout, tile, chains, sums, maps), split=split)
    body = laid.in_groups(layout.dot_groups, (zero, *between, *body, *between, ends))
    return split_outermost(body, len(layout.dot_groups)) if by_group else body


def _tile(
    b: Builder, layout: ContractLayout, tile: DotTile, chains: Buffer, rows: int, first: Dim
) -> Stmts:
    """All columns of so many rows, at one step of the sums: chains go on from where they wait."""
    sizes, dtype = layout.sizes, b.kernel.anchor.type.dtype
    shape, extents = (tuple(sizes[c] for c in letters) for letters in (tile.columns, tile.inside))
    acc = Local("acc", dtype, (rows, *known(extents)), True)
    at = _places(layout) | {tile.row: first + _I}
    cell = (_I, *(at[c] for c in tile.inside))
    flat = at[tile.row] * product(shape) + ravel(tuple(at[c] for c in tile.columns), shape)
    chain = flat * LANES + _J

    def each(body: Stmt) -> Stmt:
        for c in reversed(tile.inside):
            body = Loop(loop_of(c), sizes[c], (body,), "unroll")
        return Loop("i'", rows, (body,), "unroll")

    def lanes(body: Stmt) -> Stmt:
        return each(Loop("j'", LANES, (body,), "vector"))

    body = _terms(b, layout, tile, acc, cell, at, each)
    for c in reversed([c for c in tile.sums[:-1] if c not in tile.stepped]):
        body = (Loop(loop_of(c), sizes[c], body),)
    begin, end = Set(acc, cell, Load(chains, chain)), Store(chains, chain, Get(acc, cell))
    nest: Stmts = (acc, lanes(begin), *body, lanes(end))
    for c in reversed([c for c in tile.columns if c not in tile.inside]):
        nest = (Loop(loop_of(c), sizes[c], nest),)
    return nest


def _terms(
    b: Builder,
    layout: ContractLayout,
    tile: DotTile,
    acc: Local,
    cell: Index,
    at: Mapping[str, Dim],
    each: Callable[[Stmt], Stmt],
) -> Stmts:
    """What a tile's sums take along memory. Lanes that have no term left multiply 0 by 0, which
    needs no mask.
    """
    last = tile.sums[-1]
    (length,) = known((layout.sizes[last],))
    x, y = (b.reader(i) for i in layout.order(b.kernel.anchor.inputs))

    def factors(place: Mapping[str, Dim]) -> tuple[Value, Value]:
        return x(tuple(place[c] for c in layout.a)), y(tuple(place[c] for c in layout.b))

    def term(left: Value, right: Value) -> Stmt:
        return each(Set(acc, cell, Apply("fma", (left, right, Get(acc, cell)), acc.dtype)))

    full, part = length // LANES * LANES, length % LANES
    whole = Loop(loop_of(last), full, (term(*factors(at)),), "vector")
    body: Stmts = (whole,) if full else ()
    if not part:
        return body
    left = Local("left", acc.dtype, acc.shape[:1], True)
    right = Local("right", acc.dtype, acc.shape[1:], True)
    held = Get(left, cell[:1]), Get(right, cell[1:])
    read = factors({**at, last: full + _J})
    takes = tuple(each(Set(to.local, to.index, v)) for to, v in zip(held, read, strict=True))
    begun = Loop("j'", part, takes, "vector")
    return (*body, left, right, begun, Loop("j'", LANES, (term(*held),), "vector"))


def _ends(
    b: Builder,
    layout: ContractLayout,
    tile: DotTile,
    chains: Buffer,
    sums: Buffer,
    maps: Maps,
) -> Stmts:
    """A row's chains added up, each element's in one tree, and what becomes of it."""
    width, at = layout.size(tile.columns), _places(layout)
    chain, place = Local("chain", sums.dtype, (), True), _M * width + _N
    take = Set(chain, (), Load(chains, place * LANES + _J))
    total = Store(sums, place, Combine("add", chain))
    added = Loop("n'", width, (chain, Loop("j'", LANES, (take,), "vector"), total))
    groups = (at[c] for c in layout.letters[: -len(tile.columns) - 1])
    index: Index = (*groups, _M, *(0 for _ in tile.columns[1:]), _N)
    return (added, Loop("n'", width, maps(index, Load(sums, place)), "vector"))


def _places(layout: ContractLayout) -> dict[str, Dim]:
    """Where the loops over letters are."""
    return {c: Size.symbol(loop_of(c)) for c in (*layout.a, *layout.b)}
