"""Factors copied as panels of blocks, for processors that multiply blocks of bfloat16.

A factor whose terms lie side by side is copied row by row of a left block, one whose rows or
columns do pair by pair of a right one; where it is wanted otherwise the block is turned. A sum's
last blocks end with 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.ir.loop import LANES, Apply, Buffer, Literal, Load, Loop, Stmt, Store, Value
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import bfloat16, float32, int32
from chainrule.loops.nest import slope_along
from chainrule.loops.walk import postorder
from chainrule.records import dataclass

#: terms of a step, words of a block
TERMS, WORDS = 2 * LANES, LANES * LANES

_M, _C, _P, _Q, _I, _J = (Size.symbol(f"{name}'") for name in "mcpqij")
_NOTHING = Literal(0, float32)
Read = Callable[[Dim, Dim], Value]


def up(size: Dim, each: int = LANES) -> Dim:
    """How many pieces hold so much."""
    return (size + (each - 1)) // each


def flipped(read: Read) -> Read:
    """How a right factor is read: its columns first."""
    return lambda n, k: read(k, n)


def lies_along(read: Read) -> bool:
    """Whether a factor's terms lie side by side, not its rows or columns."""
    loads = [v for v in postorder(read(_M, _P)) if isinstance(v, Load)]
    return any(slope_along(load, "m'") not in (0, 1) for load in loads)


@dataclass(frozen=True)
class Piece:
    """Pieces of one size, from a number on."""

    count: Dim
    first: Dim
    size: Dim


def pieces_of(size: Dim, each: int) -> list[Piece]:
    """A size in whole pieces, and what is left."""
    whole, rest = size // each, size % each
    found = (Piece(whole, 0, each), Piece(up(size, each) - whole, whole, rest))
    return [piece for piece in found if piece.count != 0]


@dataclass(frozen=True)
class Factor:
    """A factor, of which `read(row, term)` gives an element, for the right one a column's: copied
    to `words`, by way of `turned` where its blocks are to be turned, `each` to a panel.
    """

    words: Buffer
    turned: Buffer
    read: Read
    left: bool
    parts: int
    each: Dim

    @property
    def along(self) -> bool:
        """Whether its terms lie side by side."""
        return lies_along(self.read)

    def copied(
        self, origin: Dim, size: Dim, begin: Dim, terms: Dim, split: bool
    ) -> tuple[Stmt, ...]:
        """So many rows or columns from panel `origin` on, so many terms from step `begin` on, in
        the order in which they lie.
        """
        panels, steps = pieces_of(size, LANES), pieces_of(terms, TERMS)
        if not self.along:
            return tuple(
                Loop("p'", s.count, self.pieces("c'", panels, [s], origin, begin), split=split)
                for s in steps
            )
        return tuple(
            Loop("c'", p.count, self.pieces("p'", [p], steps, origin, begin), split=split)
            for p in panels
        )

    def pieces(
        self,
        var: str,
        panels: Sequence[Piece],
        steps: Sequence[Piece],
        origin: Dim,
        begin: Dim,
    ) -> tuple[Stmt, ...]:
        """What a loop along the other axis repeats: one along this one, for each of its pieces."""
        pairs = [(p, s) for p in panels for s in steps]
        counts = (p.count if var == "c'" else s.count for p, s in pairs)
        return tuple(
            Loop(var, n, self.block(*pair, origin, begin))
            for n, pair in zip(counts, pairs, strict=True)
        )

    def block(self, panel: Piece, step: Piece, origin: Dim, begin: Dim) -> tuple[Stmt, ...]:
        """One block; of rows or columns that are not there it has anything."""
        across, down = panel.first + _C, step.first + _P
        start = across * self.each + down * (self.parts * WORDS)
        row, term = (origin + across) * LANES, (begin + down) * TERMS
        if self.along == self.left:
            return self.filled(self.words, start, row, term, panel.size, step.size)
        body = self.filled(self.turned, 0, row, term, panel.size, step.size)
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

        def zeros(at: Dim, count: Dim) -> Stmt:
            places = (at + i * WORDS for i in range(self.parts))
            stores = tuple(Store(words, place, Literal(0, int32)) for place in places)
            return Loop("j'", count, stores, "vector")

        body: tuple[Stmt, ...]
        if self.along:
            line = start + _I * LANES
            body = (Loop("j'", pairs, two(_I, _J, line + _J), "vector"),)
            if terms != TERMS:
                body += (Loop("q'", odd, two(_I, pairs, line + pairs, False)),)
                body += (zeros(line + (pairs + odd) + _J, LANES - pairs - odd),)
            short = width == LANES and self.parts == 1
            return (Loop("i'", width, body, "unroll" if short else "serial"),)
        line = start + _Q * LANES + _J
        body = (Loop("q'", pairs, (Loop("j'", width, two(_J, _Q, line), "vector"),)),)
        if terms != TERMS:
            last = two(_J, pairs, start + pairs * LANES + _J, False)
            body += (Loop("q'", odd, (Loop("j'", width, last, "vector"),)),)
            body += (zeros(start + (pairs + odd) * LANES + _J, (LANES - pairs - odd) * LANES),)
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
        here, place = _narrow_load(x), _narrow_load(self.read(_M, _P))
        if here is None or place is None or slope_along(place, "p'") != 1:
            return None
        return Load(here.buffer, here.offset, pair=True)


def _narrow_load(value: Value) -> Load | None:
    """The load behind a bfloat16 as float32."""
    source = value.args[0] if isinstance(value, Apply) and value.fn == "cast" else None
    plain = isinstance(source, Load) and source.dtype == bfloat16 and source.index is None
    return source if isinstance(source, Load) and plain else None
