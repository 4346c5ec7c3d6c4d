"""The product on a GPU's tensor cores, of factors in bfloat16 or TF32: warps multiply small tiles.

Eight warps, two down and four across, share a tile of the result; panels of the factors lie in
shared memory by lines of words, of two terms in bfloat16, of one in TF32, with four words between
them, so that eight lines of four words are at banks of their own. Terms ascend, 8
words at a time; what is added in which order within those is the machine's affair, so bits are
those of the hardware.
"""

from __future__ import annotations

from collections.abc import Callable

from chainrule.ir.loop import (
    Apply,
    Buffer,
    Literal,
    Local,
    Loop,
    Multiply,
    Store,
    Value,
    When,
    Words,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import float32, int32
from chainrule.loops.tiled import Tiles

WARP = 32
#: words of a line in shared memory: those of a panel's terms, and what keeps lanes at banks apart
WORDS, LINE = 16, 20

_T, _H, _I, _J, _R = (Size.symbol(f"{name}'") for name in "thijr")


class WarpTiles(Tiles):
    """Tiles of 32 to 128 rows and columns; a warp has 16 * side by 8 * side of one."""

    unit, sides, depth = 32, (4, 2, 1), 2 * WORDS

    def memory(self) -> tuple[Local, Buffer, Buffer]:
        """A thread's sums, and a line of words for each row and each column."""
        acc = Local("acc", float32, (self.side, self.side, 4), True)
        first, second = (self.b.scratch_of(int32, self.wide * LINE, private=True) for _ in range(2))
        return acc, first, second

    @property
    def corner(self) -> tuple[Dim, Dim]:
        """Row and column of the tile at which a warp's share begins."""
        warp = _T // WARP
        return warp // 4 * (16 * self.side), warp % 4 * (8 * self.side)

    def element(self) -> tuple[Dim, Dim, tuple[Dim, ...]]:
        """Row and column in the tile of a sum of a thread's, and its cell."""
        (top, left), lane = self.corner, _T % WARP
        row = top + _I * 16 + lane // 4 + _R // 2 * 8
        return row, left + _J * 8 + lane % 4 * 2 + _R % 2, (_I, _J, _R)

    def share(self, body: Stmts) -> Stmts:
        """The body for each sum of a thread's."""
        return self._tiles_of_warp((Loop("r'", 4, body, "unroll"),))

    def _tiles_of_warp(self, body: Stmts) -> Stmts:
        return (Loop("i'", self.side, (Loop("j'", self.side, body, "unroll"),), "unroll"),)

    def multiply(self, depth: Dim, stage: Dim = 0) -> Stmts:
        """A panel, eight words at a time."""
        top, left = self.corner
        rows = Words(self.first, stage + (top + _I * 16) * LINE + _H * 8, LINE)
        columns = Words(self.second, stage + (left + _J * 8) * LINE + _H * 8, LINE)
        product = Multiply(self.acc, (_I, _J), rows, columns, self.first.dtype == float32)
        return (Loop("h'", WORDS // 8, self._tiles_of_warp((product,)), "unroll"),)

    def copy(
        self,
        to: Buffer,
        read: Callable[[Dim, Dim], Value],
        begin: Dim,
        size: Dim,
        start: Dim,
        depth: Dim,
    ) -> Stmts:
        """A panel of a factor as words; terms that there are not are 0, whole lines left out."""
        word, line, count = self.spread(read, WORDS)
        pair = [read(start + 2 * word + i, begin + line) for i in (0, 1)]
        zero = Literal(0, float32)

        def store(low: Value, high: Value) -> Store:
            return Store(to, line * LINE + word, Apply("pair", (low, high), int32))

        def where(*bounds: tuple[Dim, Dim], value: Store) -> When:
            return When(((begin + line, size), *bounds), (value,))

        both = store(pair[0], pair[1])
        if depth == self.depth:
            return (Loop("e'", count, (where(value=both),), "unroll"),)
        body = (
            where(value=store(zero, zero)),
            where((2 * word, depth), value=store(pair[0], zero)),
            where((2 * word + 1, depth), value=both),
        )
        return (Loop("e'", count, body, "unroll"),)


class Tf32Tiles(WarpTiles):
    """The same of float32 factors, which are rounded to TF32 as they are multiplied."""

    depth, by_lines = WORDS, False

    def place(self, term: Dim, line: Dim) -> Dim:
        """Where an element of a panel lies in it."""
        return line * LINE + term

    def memory(self) -> tuple[Local, Buffer, Buffer]:
        """A thread's sums, and a line of terms for each row and each column."""
        acc = Local("acc", float32, (self.side, self.side, 4), True)
        self.ahead, self.stage = self.looks_ahead(self.depth), self.wide * LINE
        size = self.stage * (1 + self.ahead)
        first, second = (self.b.scratch_of(float32, size, private=True) for _ in range(2))
        return acc, first, second

    def copy(
        self,
        to: Buffer,
        read: Callable[[Dim, Dim], Value],
        begin: Dim,
        size: Dim,
        start: Dim,
        depth: Dim,
    ) -> Stmts:
        """A panel of a factor; terms that there are not are 0, whole lines left out."""
        term, line, count = self.spread(read, WORDS)
        place, row = self.place(term, line), (begin + line, size)
        there = When((row,), (Store(to, place, read(start + term, begin + line)),))
        if depth == self.depth:
            return (Loop("e'", count, (there,), "unroll"),)
        none = When((row,), (Store(to, place, Literal(0, float32)),))
        some = When((row, (term, depth)), there.body)
        return (Loop("e'", count, (none, some), "unroll"),)
