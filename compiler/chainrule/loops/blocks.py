"""Products of bfloat16 factors on processors that multiply whole blocks of them.

Both factors are copied first, in panels of LANES rows or columns, as blocks of LANES x LANES words
of two terms (ir.loop.Panels); sums' last blocks end with 0. A sum's order is what `Blocks` says of
all its terms, TERMS at a step: the number of terms alone decides it, neither tiles nor threads. It
is another one than that of loops.pairs, so machines with blocks and without differ in last bits.

A factor whose terms lie side by side is copied row by row of a left block, one whose rows or
columns do pair by pair of a right one; where it is wanted otherwise the block is turned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Blocks,
    Buffer,
    Literal,
    Load,
    Loop,
    Panels,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import bfloat16, bool_, float32, int32
from chainrule.loops.contract import rows_are_more, slope_along
from chainrule.loops.tiles import Contraction
from chainrule.loops.walk import postorder

#: terms of a step, words of a block
TERMS, WORDS = 2 * LANES, LANES * LANES

_M, _N, _P, _Q, _I, _J = (Size.symbol(f"{name}'") for name in "mnpqij")
Read = Callable[[Dim, Dim], Value]


def block_words(c: Contraction, parts: int) -> tuple[Dim, Dim, int]:
    """Words of workspace that the copies of both factors take, and a block that is turned."""
    each = steps_of(c) * (parts * WORDS)
    rows, columns = _shape(c, parts)
    return _up(c.m, rows) * rows * each, _up(c.n, columns) * columns * each, parts * WORDS


def block_sums(c: Contraction, parts: int) -> int:
    """Elements of workspace for the sums of a tile."""
    rows, columns = _shape(c, parts)
    return min(parts, 2) * rows * columns * WORDS


def block_loops(
    c: Contraction, words: tuple[Buffer, Buffer, Buffer], sums: Buffer, split: bool, parts: int = 1
) -> tuple[Stmt, ...]:
    """The loops of a product, its factors copied to `words`, a tile's sums to `sums`.

    With two `parts` a float32 factor is its rounding and that of what this leaves. With `split` the
    threads of a program share it, inside the groups.
    """
    between = (Barrier(),) if split else ()
    body = (*c.before, *between) if c.before else ()
    body += _copied(words[0], words[2], c.m, c.k, c.a, True, parts, split)
    body += _copied(words[1], words[2], c.n, c.k, lambda n, k: c.b(k, n), False, parts, split)
    body += between
    for rows, columns in _tiles(c, parts):
        body += _nest(c, words, sums, rows, columns, parts, split)
    body += between if c.groups else ()
    for var, extent in reversed(c.groups):
        body = (Loop(var, extent, body),)
    return body


def steps_of(c: Contraction) -> Dim:
    """Steps of a sum."""
    return _up(c.k, 1, TERMS)


def _up(size: Dim, blocks: int, each: int = LANES) -> Dim:
    """How many tiles of so many blocks hold so much."""
    return (size + (blocks * each - 1)) // (blocks * each)


def _shape(c: Contraction, parts: int) -> tuple[int, int]:
    """Blocks of a tile: two by two, unless there are less; with parts, one beside another."""
    rows = 1 if isinstance(c.m, int) and c.m <= LANES else 2
    columns = 1 if parts > 1 or (isinstance(c.n, int) and c.n <= LANES) else 2
    return rows, columns


# copies


def _copied(
    words: Buffer,
    turned: Buffer,
    size: Dim,
    k: Dim,
    read: Read,
    left: bool,
    parts: int,
    split: bool,
) -> tuple[Stmt, ...]:
    """A factor in panels of LANES rows, for a right one columns, of which `read` gives an element;
    `turned` is room for a block that is turned.
    """
    along = _lies_along(read)
    steps = _up(k, 1, TERMS)

    def block(panel: Dim, step: Dim, width: Dim, terms: Dim) -> tuple[Stmt, ...]:
        start = (panel * steps + step) * (parts * WORDS)
        if along == left:
            return _filled(words, start, panel, step, width, terms, read, along, parts)
        body = _filled(turned, 0, panel, step, width, terms, read, along, parts)
        for part in range(parts):
            word = Load(turned, part * WORDS + _J * LANES + _I)
            turn = Store(words, start + part * WORDS + _I * LANES + _J, word)
            body += (Loop("j'", LANES, (Loop("i'", LANES, (turn,), "unroll"),), "vector"),)
        return body

    panels, strips = _pieces(size, LANES), _pieces(k, TERMS)
    body: tuple[Stmt, ...] = ()
    if along:  # in the order of memory
        for count, first, width in panels:
            inner = tuple(
                Loop("p'", n, block(first + _N, at + _P, width, terms)) for n, at, terms in strips
            )
            body += (Loop("n'", count, inner, split=split),)
        return body
    for count, at, terms in strips:
        inner = tuple(
            Loop("n'", n, block(first + _N, at + _P, width, terms)) for n, first, width in panels
        )
        body += (Loop("p'", count, inner, split=split),)
    return body


def _pieces(size: Dim, each: int) -> list[tuple[Dim, Dim, Dim]]:
    """How often, from which number on, and how much: whole pieces of a size, and what is left."""
    whole, rest = size // each, size % each
    found = [(whole, 0, each), (_up(size, 1, each) - whole, whole, rest)]
    return [(count, first, width) for count, first, width in found if count != 0]


def _lies_along(read: Read) -> bool:
    """Whether a factor's terms lie side by side, not its rows or columns."""
    loads = [v for v in postorder(read(_M, _P)) if isinstance(v, Load)]
    return any(slope_along(load, "m'") not in (0, 1) for load in loads)


def _filled(
    words: Buffer,
    start: Dim,
    number: Dim,
    step: Dim,
    width: Dim,
    terms: Dim,
    read: Read,
    along: bool,
    parts: int,
) -> tuple[Stmt, ...]:
    """A panel's block of so many terms: row by row, or pair by pair."""
    row, first = number * LANES, step * TERMS
    pairs, odd = terms // 2, terms % 2
    nothing = Literal(0, float32)

    def two(line: Dim, pair: Dim, at: Dim, whole: bool = True) -> tuple[Stmt, ...]:
        """A word of each part: of two terms, or of one and 0."""
        term = first + 2 * pair
        near = _pair(read, row + line, term) if whole and along and parts == 1 else None
        if near is not None:
            return (Store(words, at, near),)
        lower = read(row + line, term)
        made = _words(lower, read(row + line, term + 1) if whole else nothing, parts)
        return tuple(Store(words, at + part * WORDS, word) for part, word in enumerate(made))

    def zeros(at: Dim, count: Dim) -> tuple[Stmt, ...]:
        zero = Literal(0, int32)
        stores = tuple(Store(words, at + part * WORDS, zero) for part in range(parts))
        return (Loop("j'", count, stores, "vector"),)

    if along:
        line = start + _I * LANES
        body: tuple[Stmt, ...] = (Loop("j'", pairs, two(_I, _J, line + _J), "vector"),)
        if terms != TERMS:
            body += (Loop("q'", odd, two(_I, pairs, line + pairs, False)),)
            body += zeros(line + (pairs + odd) + _J, LANES - pairs - odd)
        return (Loop("i'", width, body, "unroll" if width == LANES and parts == 1 else "serial"),)
    line = start + _Q * LANES + _J
    body = (Loop("q'", pairs, (Loop("j'", width, two(_J, _Q, line), "vector"),)),)
    if terms != TERMS:
        last = two(_J, pairs, start + pairs * LANES + _J, False)
        body += (Loop("q'", odd, (Loop("j'", width, last, "vector"),)),)
        body += zeros(start + (pairs + odd) * LANES + _J, (LANES - pairs - odd) * LANES)
    return body


def _pair(read: Read, row: Dim, term: Dim) -> Value | None:
    """Two terms as the word that they are in memory, where they lie there side by side."""
    value = read(row, term)
    if not (isinstance(value, Apply) and value.fn == "cast"):
        return None
    (source,) = value.args
    if not isinstance(source, Load) or source.dtype != bfloat16 or source.index is not None:
        return None
    place = read(_M, _P)
    assert isinstance(place, Apply) and isinstance(place.args[0], Load)
    beside = slope_along(place.args[0], "p'") == 1
    return Load(source.buffer, source.offset, pair=True) if beside else None


def _words(x: Value, y: Value, parts: int) -> list[Value]:
    """Two terms as a word of each part: of bfloat16 as they are, else rounded, then what that
    leaves.
    """
    if parts == 1:
        return [Apply("pair", (x, y), int32)]
    upper = Apply("round_pair", (x, y), int32)
    rest = (Apply("less_lower", (x, upper), float32), Apply("less_upper", (y, upper), float32))
    return [upper, Apply("round_pair", rest, int32)]


# tiles


class _Run(NamedTuple):
    """`count` tiles of so many `blocks` each, from block `start` on, of which `width` elements are
    there.
    """

    blocks: int
    count: Dim
    start: Dim
    width: Dim


def _runs(size: Dim, blocks: int) -> Iterator[_Run]:
    """Tiles of so many blocks, and what is left."""
    each = blocks * LANES
    whole, rest = size // each, size % each
    if whole != 0:
        yield _Run(blocks, whole, 0, each)
    if rest != 0:
        few = -(-rest // LANES) if isinstance(rest, int) else blocks
        yield _Run(few, _up(size, blocks) - whole, whole * blocks, rest)


def _tiles(c: Contraction, parts: int) -> Iterator[tuple[_Run, _Run]]:
    rows, columns = _shape(c, parts)
    for across in _runs(c.n, columns):
        for down in _runs(c.m, rows):
            yield down, across


def _nest(
    c: Contraction,
    words: tuple[Buffer, Buffer, Buffer],
    sums: Buffer,
    rows: _Run,
    columns: _Run,
    parts: int,
    split: bool,
) -> tuple[Stmt, ...]:
    """Tiles of one shape over their part of the result: a panel of the larger factor outside, so
    that the smaller one stays near.
    """
    each = steps_of(c) * (parts * WORDS)
    down, across = rows.start + _M * rows.blocks, columns.start + _N * columns.blocks
    left, right = Panels(words[0], down * each, each), Panels(words[1], across * each, each)
    row, column = down * LANES + _I, across * LANES + _J
    blocks = Blocks(sums, left, right, steps_of(c), rows.blocks, columns.blocks, parts)
    value: Value = Load(sums, _I * (columns.blocks * LANES) + _J)
    if parts > 1:
        upper = value
        size = rows.blocks * columns.blocks * WORDS
        lower = Load(sums, size + _I * (columns.blocks * LANES) + _J)
        finite = Apply("isfinite", (upper,), bool_)
        value = Apply("where", (finite, Apply("add", (upper, lower), float32), upper), float32)
    ends = Loop("j'", columns.width, c.epilogue(row, column, value), "vector")
    tile = (blocks, Loop("i'", rows.width, (ends,)))
    by_rows = rows_are_more(rows.count, columns.count)
    body: tuple[Stmt, ...] = tile
    for var in "mn" if _is_wider(c) else "nm":
        count, mine = (rows.count, by_rows) if var == "m" else (columns.count, not by_rows)
        body = (Loop(f"{var}'", count, body, split=split and mine),)
    return body


def _is_wider(c: Contraction) -> bool:
    """Whether a result has more columns than rows; a size that is not known is taken to be many."""
    return isinstance(c.m, int) and not (isinstance(c.n, int) and c.n <= c.m)
