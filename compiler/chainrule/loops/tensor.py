"""The product on a GPU's tensor cores, of factors in bfloat16 or TF32: warps multiply small tiles.

Eight warps, two down and four across, share a tile of the result; panels of the factors lie in
shared memory by lines of words, of two terms in bfloat16, of one in TF32, with four words between
them, so that eight lines of four words are at banks of their own. Terms ascend, 8
words at a time; what is added in which order within those is the machine's affair, so bits are
those of the hardware.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chainrule.ir.loop import (
    Apply,
    Buffer,
    Literal,
    Load,
    Local,
    Loop,
    Multiply,
    Store,
    Value,
    When,
    Words,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size, divide
from chainrule.ir.types import DType, bfloat16, float32, int32
from chainrule.loops.tiled import Read, Tiles
from chainrule.target.gpu import WARP

#: words of a line in shared memory: those of a panel's terms, and what keeps lanes at banks apart
WORDS, LINE = 16, 20

_T, _H, _I, _J, _R = (Size.symbol(f"{name}'") for name in "thijr")


class WarpTiles(Tiles):
    """Tiles of 32 to 128 rows and columns; a warp has 16 * side by 8 * side of one."""

    unit, sides, depth, by_lines = 32, (4, 2, 1), 2 * WORDS, False
    #: what words are in shared memory
    kind: DType = int32

    def memory(self) -> tuple[Local, Buffer, Buffer]:
        """A thread's sums, and a line of words for each row and each column."""
        acc = Local("acc", float32, (self.side, self.side, 4), True)
        self.ahead, self.along = self.looks_ahead(self.depth), WORDS
        self.stage = self.wide * LINE
        size = self.stage * (1 + self.ahead)
        first, second = (self.b.scratch_of(self.kind, size, private=True) for _ in range(2))
        return acc, first, second

    def place(self, term: Dim, line: Dim) -> Dim:
        """Where a word of a panel lies in it."""
        return line * LINE + term

    def words(self, read: Read) -> Read:
        """Pairs of terms, which are one word of memory where they lie there side by side."""

        def word(at: Dim, line: Dim) -> Value:
            low, high = read(2 * at, line), read(2 * at + 1, line)
            whole = None if self.b.kernel.depth else _in_memory(low, high)  # slices begin anywhere
            return whole or Apply("pair", (low, high), int32)

        return word

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
            return Store(to, self.place(word, line), Apply("pair", (low, high), int32))

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

    depth, kind = WORDS, float32

    def words(self, read: Read) -> Read:
        """Terms, each a word by itself."""
        return read

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


def _in_memory(low: Value, high: Value) -> Load | None:
    """The word that two terms are in memory, if they are bfloat16 side by side, aligned as one."""
    terms = [v.args[0] for v in (low, high) if isinstance(v, Apply) and v.fn == "cast"]
    if len(terms) != 2 or not all(isinstance(t, Load) and t.index is None for t in terms):
        return None
    first, second = terms
    assert isinstance(first, Load) and isinstance(second, Load)
    if first.buffer != second.buffer or first.dtype != bfloat16:
        return None
    if second.offset != first.offset + 1 or divide(first.offset, 2) is None:
        return None
    return replace(first, pair=True)
