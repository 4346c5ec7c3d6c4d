"""Products of bfloat16 factors on processors that multiply whole blocks of them.

Factors are copied first, in panels of LANES rows or columns, as blocks of LANES x LANES words of
two terms (ir.loop.Panels); sums' last blocks end with 0. The smaller factor is copied as a whole,
so that it stays near; of the larger one what a row of tiles takes, when its turn comes. A sum's
order is what `Blocks` says of all its terms, TERMS at a step: the number of terms alone decides it,
neither tiles nor threads. It is another one than that of loops.pairs, so processors with blocks and
without differ in last bits.

A factor whose terms lie side by side is copied row by row of a left block, one whose rows or
columns do pair by pair of a right one; where it is wanted otherwise the block is turned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

_M, _N, _C, _P, _Q, _I, _J = (Size.symbol(f"{name}'") for name in "mncpqij")
_NOTHING = Literal(0, float32)


class Room(NamedTuple):
    """Workspace: words for the copies of both factors, and for a block that is turned; elements for
    the sums of a tile. Of all but the copy of the smaller factor each thread has its own.
    """

    left: Dim
    right: Dim
    turned: int
    sums: int
    own: tuple[bool, bool]


def room_for(c: Contraction, parts: int) -> Room:
    """The workspace that `block_loops` wants."""
    each = _up(c.k, 1, TERMS) * (parts * WORDS)
    rows, columns = _shape(c, parts)
    wide = _is_wide(c)
    down, across = (rows, _up(c.n, 1)) if not wide else (_up(c.m, 1), columns)
    sums = min(parts, 2) * rows * columns * WORDS
    return Room(down * each, across * each, parts * WORDS, sums, (not wide, wide))


def block_loops(
    c: Contraction,
    words: tuple[Buffer, Buffer],
    turned: Buffer,
    sums: Buffer,
    split: bool,
    parts: int = 1,
) -> tuple[Stmt, ...]:
    """The loops of a product in the workspace that `room_for` asks for.

    With two `parts` a float32 factor is its rounding and that of what this leaves. With `split` the
    threads of a program share it, inside the groups.
    """
    between = (Barrier(),) if split else ()
    left = _Factor(words[0], turned, c.k, c.a, True, parts)
    right = _Factor(words[1], turned, c.k, lambda n, k: c.b(k, n), False, parts)
    smaller = left.copied(0, c.m, split) if _is_wide(c) else right.copied(0, c.n, split)
    body = (*c.before, *between) if c.before else ()
    body += (*smaller, *between, *_products(c, left, right, sums, split))
    body += between if c.groups else ()
    for var, extent in reversed(c.groups):
        body = (Loop(var, extent, body),)
    return body


def _up(size: Dim, blocks: int, each: int = LANES) -> Dim:
    """How many tiles of so many blocks hold so much."""
    return (size + (blocks * each - 1)) // (blocks * each)


def _is_wide(c: Contraction) -> bool:
    """Whether a result has more columns than rows; a size that is not known is taken to be many."""
    return isinstance(c.m, int) and not (isinstance(c.n, int) and c.n <= c.m)


def _shape(c: Contraction, parts: int) -> tuple[int, int]:
    """Blocks of a tile: two by two, unless there are less; with parts, one above the other."""
    rows = 1 if isinstance(c.m, int) and c.m <= LANES else 2
    columns = 1 if parts > 1 or (isinstance(c.n, int) and c.n <= LANES) else 2
    return rows, columns


# copies


@dataclass(frozen=True)
class _Factor:
    """A factor, of which `read(row, term)` gives an element, for the right one `read(column, term)`:
    copied to `words`, by way of `turned` where its blocks are to be turned.
    """

    words: Buffer
    turned: Buffer
    k: Dim
    read: Callable[[Dim, Dim], Value]
    left: bool
    parts: int

    @property
    def steps(self) -> Dim:
        """Steps of a sum."""
        return _up(self.k, 1, TERMS)

    @property
    def each(self) -> Dim:
        """Words of a panel."""
        return self.steps * (self.parts * WORDS)

    @property
    def along(self) -> bool:
        """Whether the terms lie side by side, not rows or columns."""
        loads = [v for v in postorder(self.read(_M, _P)) if isinstance(v, Load)]
        return any(slope_along(load, "m'") not in (0, 1) for load in loads)

    def copied(self, origin: Dim, size: Dim, split: bool) -> tuple[Stmt, ...]:
        """So many rows or columns, from panel `origin` on, in the order in which they lie."""
        panels = [("c'", count, first) for count, first in _pieces(size, LANES)]
        strips = [("p'", count, first) for count, first in _pieces(self.k, TERMS)]
        body: tuple[Stmt, ...] = ()
        outer, inner = (panels, strips) if self.along else (strips, panels)
        for var, count, piece in outer:
            inside: tuple[Stmt, ...] = ()
            for within, times, other in inner:
                panel, step = (piece, other) if self.along else (other, piece)
                made = self.block(origin, panel.first + _C, step.first + _P, panel.size, step.size)
                inside += (Loop(within, times, made),)
            body += (Loop(var, count, inside, split=split),)
        return body

    def block(self, origin: Dim, panel: Dim, step: Dim, width: Dim, terms: Dim) -> tuple[Stmt, ...]:
        """A panel's block of so many terms; of as many rows or columns the rest is anything."""
        start = (panel * self.steps + step) * (self.parts * WORDS)
        row, term = (origin + panel) * LANES, step * TERMS
        if self.along == self.left:
            return self.filled(self.words, start, row, term, width, terms)
        body = self.filled(self.turned, 0, row, term, width, terms)
        for at in range(0, self.parts * WORDS, WORDS):
            word = Load(self.turned, at + _J * LANES + _I)
            turn = Store(self.words, start + at + _I * LANES + _J, word)
            body += (Loop("j'", LANES, (Loop("i'", LANES, (turn,), "unroll"),), "vector"),)
        return body

    def filled(
        self, words: Buffer, start: Dim, row: Dim, term: Dim, width: Dim, terms: Dim
    ) -> tuple[Stmt, ...]:
        """A block as it lies: row by row, or pair by pair; what is missing of the terms is 0."""
        pairs, odd = terms // 2, terms % 2

        def two(line: Dim, pair: Dim, at: Dim, whole: bool = True) -> tuple[Stmt, ...]:
            made = self.word(row + line, term + 2 * pair, whole)
            return tuple(Store(words, at + i * WORDS, word) for i, word in enumerate(made))

        def zeros(at: Dim, count: Dim) -> tuple[Stmt, ...]:
            places = (at + i * WORDS for i in range(self.parts))
            stores = tuple(Store(words, place, Literal(0, int32)) for place in places)
            return (Loop("j'", count, stores, "vector"),)

        if self.along:
            line = start + _I * LANES
            body: tuple[Stmt, ...] = (Loop("j'", pairs, two(_I, _J, line + _J), "vector"),)
            if terms != TERMS:
                body += (Loop("q'", odd, two(_I, pairs, line + pairs, False)),)
                body += zeros(line + (pairs + odd) + _J, LANES - pairs - odd)
            short = width == LANES and self.parts == 1
            return (Loop("i'", width, body, "unroll" if short else "serial"),)
        line = start + _Q * LANES + _J
        body = (Loop("q'", pairs, (Loop("j'", width, two(_J, _Q, line), "vector"),)),)
        if terms != TERMS:
            last = two(_J, pairs, start + pairs * LANES + _J, False)
            body += (Loop("q'", odd, (Loop("j'", width, last, "vector"),)),)
            body += zeros(start + (pairs + odd) * LANES + _J, (LANES - pairs - odd) * LANES)
        return body

    def word(self, row: Dim, term: Dim, whole: bool) -> tuple[Value, ...]:
        """Two terms as a word of each part, or where not `whole` one term and 0; bfloat16 as they
        are, others rounded, then what that leaves.
        """
        x = self.read(row, term)
        y = self.read(row, term + 1) if whole else _NOTHING
        if self.parts == 1:
            near = self.near(x) if whole and self.along else None
            return (near or Apply("pair", (x, y), int32),)
        upper = Apply("round_pair", (x, y), int32)
        rest = (Apply("less_lower", (x, upper), float32), Apply("less_upper", (y, upper), float32))
        return upper, Apply("round_pair", rest, int32)

    def near(self, x: Value) -> Value | None:
        """An element and the next term as the word that they are in memory, if they lie so."""
        there = self.read(_M, _P)
        for value in (x, there):
            source = value.args[0] if isinstance(value, Apply) and value.fn == "cast" else None
            if not isinstance(source, Load) or source.dtype != bfloat16 or source.index is not None:
                return None
        assert isinstance(x, Apply) and isinstance(there, Apply)
        here, place = x.args[0], there.args[0]
        assert isinstance(here, Load) and isinstance(place, Load)
        return Load(here.buffer, here.offset, pair=True) if slope_along(place, "p'") == 1 else None


class _Piece(NamedTuple):
    """Pieces from a number on, and how much each is."""

    first: Dim
    size: Dim


def _pieces(size: Dim, each: int) -> list[tuple[Dim, _Piece]]:
    """How many whole pieces of a size there are, and what is left."""
    whole, rest = size // each, size % each
    found = [(whole, _Piece(0, each)), (_up(size, 1, each) - whole, _Piece(whole, rest))]
    return [(count, piece) for count, piece in found if count != 0]


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
    for count, (first, width) in _pieces(size, blocks * LANES):
        few = -(-width // LANES) if isinstance(width, int) else blocks
        yield _Run(few, count, first * blocks, width)


def _products(
    c: Contraction, left: _Factor, right: _Factor, sums: Buffer, split: bool
) -> tuple[Stmt, ...]:
    """All tiles: a row of them, or a column, after another, for which the larger factor is copied."""
    rows, columns = _shape(c, left.parts)
    wide, body = _is_wide(c), ()
    down, across = list(_runs(c.m, rows)), list(_runs(c.n, columns))
    for outer in across if wide else down:
        shared = split and (not isinstance(outer.count, int) or outer.count > 1)
        factor, var = (right, _N) if wide else (left, _M)
        body_of = factor.copied(outer.start + var * outer.blocks, outer.width, False)
        for inner in down if wide else across:
            r, k = (inner, outer) if wide else (outer, inner)
            tile = _tile(c, left, right, sums, r, k)
            mine = split and not shared
            body_of += (Loop("m'" if wide else "n'", inner.count, tile, split=mine),)
        body += (Loop("n'" if wide else "m'", outer.count, body_of, split=shared),)
    return body


def _tile(
    c: Contraction, left: _Factor, right: _Factor, sums: Buffer, rows: _Run, columns: _Run
) -> tuple[Stmt, ...]:
    """A tile: its sums, and what becomes of them."""
    down, across = rows.start + _M * rows.blocks, columns.start + _N * columns.blocks
    wide, parts = _is_wide(c), left.parts
    blocks = Blocks(
        sums,
        Panels(left.words, down * left.each if wide else 0, left.each),
        Panels(right.words, 0 if wide else across * right.each, right.each),
        left.steps,
        rows.blocks,
        columns.blocks,
        parts,
    )
    value: Value = Load(sums, _I * (columns.blocks * LANES) + _J)
    if parts > 1:
        upper, size = value, rows.blocks * columns.blocks * WORDS
        lower = Load(sums, size + _I * (columns.blocks * LANES) + _J)
        finite = Apply("isfinite", (upper,), bool_)
        value = Apply("where", (finite, Apply("add", (upper, lower), float32), upper), float32)
    row, column = down * LANES + _I, across * LANES + _J
    ends = Loop("j'", columns.width, c.epilogue(row, column, value), "vector")
    return blocks, Loop("i'", rows.width, (ends,))
