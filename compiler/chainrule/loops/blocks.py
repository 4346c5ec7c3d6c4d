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
from chainrule.loops.contract import slope_along
from chainrule.loops.tiles import Contraction
from chainrule.loops.walk import postorder

#: terms of a step, words of a block
TERMS, WORDS = 2 * LANES, LANES * LANES
#: blocks of the larger factor that the first cache holds, 1 KiB each, beside what passes by
NEAR = 32

_M, _N, _C, _P, _Q, _I, _J, _S = (Size.symbol(f"{name}'") for name in "mncpqijs")
_NOTHING = Literal(0, float32)


class Room(NamedTuple):
    """Workspace: words for the copies of both factors, and for a block that is turned; elements for
    the sums of a tile. Of all but the copy of the smaller factor each thread has its own.
    """

    left: Dim
    right: Dim
    turned: int
    sums: Dim
    own: tuple[bool, bool]


def room_for(c: Contraction, parts: int) -> Room:
    """The workspace that `block_loops` wants."""
    each = _up(c.k, 1, TERMS) * (parts * WORDS)
    rows, columns = _shape(c, parts)
    wide = _is_wide(c)
    down, across = (rows, _up(c.n, 1)) if not wide else (_up(c.m, 1), columns)
    inner = 1 if _is_short(c, parts) else _up(c.m, rows) if wide else _up(c.n, columns)
    sums = inner * (min(parts, 2) * rows * columns * WORDS)
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
    """Blocks of a tile: two by two, unless there are less; with parts, two of the larger factor."""
    one, wide = parts > 1, _is_wide(c)
    rows = 1 if (one and wide) or (isinstance(c.m, int) and c.m <= LANES) else 2
    columns = 1 if (one and not wide) or (isinstance(c.n, int) and c.n <= LANES) else 2
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


def _is_short(c: Contraction, parts: int) -> bool:
    """Whether all that a row of tiles takes of the larger factor stays in the first cache."""
    return isinstance(c.k, int) and _up(c.k, 1, TERMS) <= _stretch(c, parts)


def _stretch(c: Contraction, parts: int) -> int:
    """Steps for which that is so."""
    return NEAR // (max(_shape(c, parts)) * parts)


def _products(
    c: Contraction, left: _Factor, right: _Factor, sums: Buffer, split: bool
) -> tuple[Stmt, ...]:
    """Tiles, a row of them after another, or a column, for which the larger factor is copied.

    Where it is too long for the first cache, a stretch of it after another: sums wait meanwhile.
    """
    shape, wide = _shape(c, left.parts), _is_wide(c)
    down, across = list(_runs(c.m, shape[0])), list(_runs(c.n, shape[1]))
    factor, here, inside = (right, _N, "m'") if wide else (left, _M, "n'")
    body: tuple[Stmt, ...] = ()
    for outer in across if wide else down:
        shared = split and (not isinstance(outer.count, int) or outer.count > 1)
        made = factor.copied(outer.start + here * outer.blocks, outer.width, False)
        tiles = [
            _Tile(c, left, right, sums, *((inner, outer) if wide else (outer, inner)))
            for inner in (down if wide else across)
        ]

        def loop(body: tuple[Stmt, ...], tile: _Tile, alone: bool = not shared) -> Stmt:
            count = tile.inner.count
            return Loop(inside, count, body, split=split and alone)

        if _is_short(c, left.parts):
            made += tuple(loop((t.blocks(0, left.steps, 0, False), t.ends(0)), t) for t in tiles)
        else:
            step = _stretch(c, left.parts)
            made += tuple(loop((t.cleared(),), t) for t in tiles)
            for count, (first, size) in _pieces(left.steps, step):
                at = (first + _S) * step
                some = tuple(loop((t.blocks(at, size, t.place, True),), t) for t in tiles)
                made += (Loop("s'", count, some),)
            made += tuple(loop((t.ends(t.place),), t) for t in tiles)
        body += (Loop(f"{here}", outer.count, made, split=shared),)
    return body


class _Tile(NamedTuple):
    """One shape of tile over its part of the result."""

    c: Contraction
    left: _Factor
    right: _Factor
    sums: Buffer
    rows: _Run
    columns: _Run

    @property
    def inner(self) -> _Run:
        """What the inner loop goes along."""
        return self.rows if _is_wide(self.c) else self.columns

    @property
    def size(self) -> int:
        """Elements of its sums."""
        return min(self.left.parts, 2) * self.rows.blocks * self.columns.blocks * WORDS

    @property
    def place(self) -> Dim:
        """Where its sums stand among those of its row, or its column."""
        wide = _is_wide(self.c)
        shape = _shape(self.c, self.left.parts)
        each = min(self.left.parts, 2) * shape[0] * shape[1] * WORDS // shape[0 if wide else 1]
        return (self.inner.start + (_M if wide else _N) * self.inner.blocks) * each

    @property
    def corner(self) -> tuple[Dim, Dim]:
        """The number of its first block, down and across."""
        return (
            self.rows.start + _M * self.rows.blocks,
            self.columns.start + _N * self.columns.blocks,
        )

    def cleared(self) -> Stmt:
        """Its sums, 0."""
        zero = Store(self.sums, self.place + _J, Literal(0, float32))
        return Loop("j'", self.size, (zero,), "vector")

    def blocks(self, first: Dim, steps: Dim, at: Dim, more: bool) -> Stmt:
        """Some steps of its sums."""
        (down, across), wide = self.corner, _is_wide(self.c)
        left, right, parts = self.left, self.right, self.left.parts
        begun = first * (parts * WORDS)
        return Blocks(
            self.sums,
            at,
            Panels(left.words, (down * left.each if wide else 0) + begun, left.each),
            Panels(right.words, (0 if wide else across * right.each) + begun, right.each),
            steps,
            self.rows.blocks,
            self.columns.blocks,
            parts,
            more,
        )

    def ends(self, at: Dim) -> Stmt:
        """What becomes of its sums."""
        width = self.columns.blocks * LANES
        value: Value = Load(self.sums, at + _I * width + _J)
        if self.left.parts > 1:
            upper = value
            lower = Load(self.sums, at + self.size // 2 + _I * width + _J)
            finite = Apply("isfinite", (upper,), bool_)
            value = Apply("where", (finite, Apply("add", (upper, lower), float32), upper), float32)
        down, across = self.corner
        row, column = down * LANES + _I, across * LANES + _J
        line = Loop("j'", self.columns.width, self.c.epilogue(row, column, value), "vector")
        return Loop("i'", self.rows.width, (line,))
