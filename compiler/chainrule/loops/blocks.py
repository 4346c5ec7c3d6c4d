"""Products of bfloat16 factors on processors that multiply whole blocks of them.

Factors are copied first, in panels of LANES rows or columns, as blocks of LANES x LANES words of
two terms (ir.loop.Panels); a sum's last blocks end with 0. Of the smaller factor all is copied, so
that it stays near, and of the larger one what a row of tiles takes, when its turn comes; where both
lie across the sums, as in a weight's derivative, some terms of both after others. A sum's order is
what `Blocks` says of all its terms, TERMS at a step: the number of terms alone decides it, neither
tiles nor threads. It is another one than that of loops.pairs, so processors with blocks and without
differ in last bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
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
from chainrule.ir.types import bool_, float32, int32
from chainrule.loops.pairs import takes_pairs
from chainrule.loops.panels import TERMS, WORDS, Factor, flipped, lies_along, pieces_of, up
from chainrule.loops.tiles import Contraction
from chainrule.records import dataclass
from chainrule.target import NEAREST, SECOND

_BLOCK = WORDS * int32.itemsize
#: blocks of the larger factor that the nearest cache holds beside what passes by, and of both
#: factors that the second one does beside sums, so many at most
NEAR, BY, SUMS = NEAREST // _BLOCK, SECOND * 5 // 8 // _BLOCK, SECOND // 2 // float32.itemsize

_M, _N, _I, _J, _S = (Size.symbol(f"{name}'") for name in "mnijs")


def takes_blocks(c: Contraction, parts: int) -> bool:
    """Whether the template takes a product: not a small one, nor one in parts of a single step."""
    return takes_pairs(c) and (parts == 1 or not isinstance(c.k, int) or c.k > TERMS)


class Room(NamedTuple):
    """Workspace: words for the copies of both factors, elements for sums, words for a block that is
    turned; and of which of the first three each thread has its own.
    """

    left: Dim
    right: Dim
    sums: Dim
    turned: int
    own: tuple[bool, bool, bool]


def room_for(c: Contraction, parts: int) -> Room:
    """The workspace that `block_loops` wants."""
    s = _Shape.of(c, parts)
    down, across = (
        up(size, blocks * LANES) * blocks for size, blocks in ((c.m, s.rows), (c.n, s.columns))
    )
    own = (False, False, False)
    if not s.strips:
        down, across = (down, s.columns) if s.wide else (s.rows, across)
        own = (not s.wide, s.wide, True)
    sums = s.rows * s.columns if s.short else down * across
    return Room(down * s.each, across * s.each, sums * parts * WORDS, parts * WORDS, own)


def block_loops(
    c: Contraction,
    words: tuple[Buffer, Buffer],
    sums: Buffer,
    turned: Buffer,
    split: bool,
    parts: int = 1,
) -> tuple[Stmt, ...]:
    """The loops of a product in the workspace that `room_for` asks for.

    With two `parts` a float32 factor is its rounding and that of what this leaves. With `split` the
    threads of a program share it, inside the groups.
    """
    s = _Shape.of(c, parts)
    left = Factor(words[0], turned, c.a, True, parts, s.each)
    right = Factor(words[1], turned, flipped(c.b), False, parts, s.each)
    between = (Barrier(),) if split else ()
    body = (*c.before, *between) if c.before else ()
    body += (_by_strips if s.strips else _by_rows)(c, s, left, right, sums, split)
    body += between if c.groups else ()
    for var, extent in reversed(c.groups):
        body = (Loop(var, extent, body),)
    return body


@dataclass(frozen=True)
class _Shape:
    """How a product is cut.

    A tile is `rows` x `columns` blocks: two by two, unless there are less; in parts, one above the
    other. With `wide` the larger factor is the right one. Sums of all rows and columns
    go on in `strips` of so many `steps`, or else those of a row of tiles, if they are not `short`:
    of all steps a row's blocks of the larger factor stay in the first cache then. A panel has room
    for `each` words.
    """

    rows: int
    columns: int
    wide: bool
    short: bool
    strips: bool
    steps: int
    each: Dim

    @staticmethod
    def of(c: Contraction, parts: int) -> _Shape:
        """The shape for a product; a size that is not known is taken to be large."""
        wide = isinstance(c.m, int) and not (isinstance(c.n, int) and c.n <= c.m)
        rows = 1 if isinstance(c.m, int) and c.m <= LANES else 2
        columns = 1 if parts > 1 or (isinstance(c.n, int) and c.n <= LANES) else 2
        near = NEAR // ((columns if wide else rows) * parts)
        all_steps = up(c.k, TERMS)
        short = isinstance(all_steps, int) and all_steps <= near
        across = not (lies_along(c.a) or lies_along(flipped(c.b)))
        if across and not short and isinstance(c.m, int) and isinstance(c.n, int):
            steps = BY // ((-(-c.m // LANES) - (-c.n // LANES)) * parts)
            if steps and c.m * c.n * parts <= SUMS:
                return _Shape(rows, columns, wide, short, True, steps, steps * (parts * WORDS))
        return _Shape(rows, columns, wide, short, False, near, all_steps * (parts * WORDS))


@dataclass(frozen=True)
class _Run:
    """`count` tiles of so many `blocks` each, from block `start` on, of which `width` elements are
    there.
    """

    blocks: int
    count: Dim
    start: Dim
    width: Dim


def _runs(size: Dim, blocks: int) -> Iterator[_Run]:
    """Tiles of so many blocks, and what is left."""
    for p in pieces_of(size, blocks * LANES):
        few = -(-p.size // LANES) if isinstance(p.size, int) else blocks
        yield _Run(few, p.count, p.first * blocks, p.size)


def _by_rows(
    c: Contraction, s: _Shape, left: Factor, right: Factor, sums: Buffer, split: bool
) -> tuple[Stmt, ...]:
    """A row of tiles after another, or a column, for each of which the larger factor is copied.

    Where that is too long for the first cache, a stretch of it after another: sums wait meanwhile.
    """
    down, across = list(_runs(c.m, s.rows)), list(_runs(c.n, s.columns))
    larger, here, inside = (right, _N, "m'") if s.wide else (left, _M, "n'")
    body = left.copied(0, c.m, 0, c.k, split) if s.wide else right.copied(0, c.n, 0, c.k, split)
    body += (Barrier(),) if split else ()
    for outer in across if s.wide else down:
        alone = split and isinstance(outer.count, int) and outer.count <= 1
        made = larger.copied(outer.start + here * outer.blocks, outer.width, 0, c.k, False)
        tiles = [
            _Tile(c, s, left, right, sums, *((inner, outer) if s.wide else (outer, inner)))
            for inner in (down if s.wide else across)
        ]
        if s.short:
            bodies = [(t, (t.blocks(0, up(c.k, TERMS), False), t.ends())) for t in tiles]
            made += _each(inside, bodies, alone)
        else:
            made += _each(inside, [(t, (t.cleared(),)) for t in tiles], alone)
            for p in pieces_of(up(c.k, TERMS), s.steps):
                begin = (p.first + _S) * s.steps
                some = [(t, (t.blocks(begin, p.size, True),)) for t in tiles]
                made += (Loop("s'", p.count, _each(inside, some, alone)),)
            made += _each(inside, [(t, (t.ends(),)) for t in tiles], alone)
        body += (Loop(f"{here}", outer.count, made, split=split and not alone),)
    return body


def _each(
    var: str, bodies: Sequence[tuple[_Tile, tuple[Stmt, ...]]], split: bool
) -> tuple[Stmt, ...]:
    """Something of each tile of a row, or of a column."""
    counts = ((t.rows if var == "m'" else t.columns).count for t, _ in bodies)
    return tuple(
        Loop(var, n, body, split=split) for n, (_, body) in zip(counts, bodies, strict=True)
    )


def _by_strips(
    c: Contraction, s: _Shape, left: Factor, right: Factor, sums: Buffer, split: bool
) -> tuple[Stmt, ...]:
    """All tiles, some steps after others, for which both factors are copied; all sums wait."""
    runs = product(_runs(c.m, s.rows), _runs(c.n, s.columns))
    tiles = [_Tile(c, s, left, right, sums, rows, columns) for rows, columns in runs]
    between = (Barrier(),) if split else ()

    def over(t: _Tile, body: Stmt) -> Stmt:
        loops = [("m'", t.rows.count), ("n'", t.columns.count)]
        (inner, few), (outer, many) = loops if s.wide else loops[::-1]
        mine = split and (many != 1 or few == 1)
        return Loop(outer, many, (Loop(inner, few, (body,), split=split and not mine),), split=mine)

    body = tuple(over(t, t.cleared()) for t in tiles)
    for p in pieces_of(c.k, s.steps * TERMS):
        begin = (p.first + _S) * s.steps
        copies = left.copied(0, c.m, begin, p.size, split)
        copies += right.copied(0, c.n, begin, p.size, split)
        some = tuple(over(t, t.blocks(0, up(p.size, TERMS), True)) for t in tiles)
        body += (Loop("s'", p.count, (*copies, *between, *some, *between)),)
    return body + tuple(over(t, t.ends()) for t in tiles)


class _Tile(NamedTuple):
    """One shape of tile over its part of the result."""

    c: Contraction
    s: _Shape
    left: Factor
    right: Factor
    sums: Buffer
    rows: _Run
    columns: _Run

    @property
    def corner(self) -> tuple[Dim, Dim]:
        """The number of its first block, down and across."""
        rows, columns = self.rows, self.columns
        return rows.start + _M * rows.blocks, columns.start + _N * columns.blocks

    @property
    def size(self) -> int:
        """Elements of its sums."""
        return self.left.parts * self.rows.blocks * self.columns.blocks * WORDS

    @property
    def place(self) -> Dim:
        """Where its sums stand: among all of them, or in its row, or column; or they are alone."""
        (down, across), each = self.corner, self.left.parts * WORDS
        if self.s.strips:
            return (down * up(self.c.n) + across * self.rows.blocks) * each
        if self.s.short:
            return 0
        return (down * self.columns.blocks if self.s.wide else across * self.rows.blocks) * each

    def cleared(self) -> Stmt:
        """Its sums, 0."""
        zero = Store(self.sums, self.place + _J, Literal(0, float32))
        return Loop("j'", self.size, (zero,), "vector")

    def blocks(self, first: Dim, steps: Dim, more: bool) -> Stmt:
        """Some steps of its sums, as copies have them."""
        (down, across), left, right = self.corner, self.left, self.right
        begun = first * (left.parts * WORDS)
        down = down if self.s.strips or self.s.wide else 0
        across = 0 if self.s.wide and not self.s.strips else across
        return Blocks(
            self.sums,
            self.place,
            Panels(left.words, down * left.each + begun, left.each),
            Panels(right.words, across * right.each + begun, right.each),
            steps,
            self.rows.blocks,
            self.columns.blocks,
            left.parts,
            more,
        )

    def ends(self) -> Stmt:
        """What becomes of its sums."""
        place, width = self.place + _I * (self.columns.blocks * LANES) + _J, self.columns.width
        value: Value = Load(self.sums, place)
        if self.left.parts > 1:
            upper, lower = value, Load(self.sums, place + self.size // 2)
            finite = Apply("isfinite", (upper,), bool_)
            value = Apply("where", (finite, Apply("add", (upper, lower), float32), upper), float32)
        down, across = self.corner
        row, column = down * LANES + _I, across * LANES + _J
        line = Loop("j'", width, self.c.epilogue(row, column, value), "vector")
        return Loop("i'", self.rows.width, (line,))
