"""Tiles of scores on a GPU: what a block of threads does with one, for attention in all its parts.

In float32 or float64 each thread multiplies a square of it, from panels in shared memory; where
factors may be rounded to TF32 tensor cores do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.ir.loop import (
    LANES,
    Buffer,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Multiply,
    Set,
    Stmt,
    Store,
    Value,
    When,
    Words,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size, product
from chainrule.ir.types import bool_, float32
from chainrule.loops.builder import Builder
from chainrule.loops.group import Group, from_zero
from chainrule.loops.launch import BLOCK
from chainrule.loops.tensor import LINE
from chainrule.loops.tiled import SIDE, goes_along, threads
from chainrule.ops.attend import Attend, AttendBack
from chainrule.target.gpu import WARP

#: terms that lie in shared memory at a time
DEPTH = 16
#: of a tile's rows and columns each of SIDE x SIDE threads has so many, by the bytes of a number
SIDES = {4: 4, 8: 2}

_T, _P, _I, _J, _C, _E, _K, _R, _U, _D = (Size.symbol(f"{name}'") for name in "tpijcekrud")
_CHUNK = Size.symbol("chunk'")
_DOWN, _ACROSS = _T // SIDE, _T % SIDE
#: a number of a query
Numbers = Callable[[Dim], Value]
#: where an index is one of what there is
Bounds = tuple[tuple[Dim, Dim], ...]
#: the element of a factor at a term and a line, and where there is one
Read = Callable[[Dim, Dim], tuple[Value, Bounds]]


class Tiles(Group):
    """Tiles of scores of a group, rows of queries and columns of keys, of `tile` each.

    A thread's share of one is in `acc`. What is made of tiles has as many rows, and `wide` columns
    at a time: a chunk. `scores` is a tile in shared memory, a line of `step` for each term of what
    is summed; `first` and `second` are panels of two factors. A thread has `cell` of its share, in
    row i of `height` and column j.
    """

    cell: tuple[Dim, ...] = (_I, _J)
    #: whether panels are whole, with 0 behind the last term
    padded = False
    #: the threads that share a row, and which of them one is
    sharing: int = LANES
    number_of: Dim = _ACROSS

    def __init__(self, b: Builder, name: str, *results: str) -> None:
        super().__init__(b)
        self.name = name
        widths = [self.d if part in ("dq", "dk") else self.e for part in results]
        self.side = self.height = SIDES[self.dtype.itemsize]
        self.tile = SIDE * self.side
        self.wide = min(2 * self.tile, -(-max(widths) // SIDE) * SIDE)
        self.chunks = -(-max(widths) // self.wide)
        self.step, self.far = self.tile + 4, max(self.tile, self.wide) + 4
        self.shape()
        self.acc = self.square("acc")
        sizes = self.room(self.tile), self.room(max(self.tile, self.wide)), self.tile * self.step
        self.first, self.second, self.scores = (b.scratch_of(self.dtype, n, True) for n in sizes)
        self.seen = Local(f"{name}seen", bool_, self.acc.shape, True)

    def shape(self) -> None:
        """Choose how threads share a tile."""

    def room(self, lines: int) -> int:
        """The size of a panel of so many lines."""
        return DEPTH * (lines + 4)

    def cells(self, name: str, *shape: int) -> Local:
        """Registers of each thread."""
        return Local(f"{self.name}{name}", self.dtype, shape, True)

    def square(self, name: str) -> Local:
        """A thread's share of a tile."""
        return self.cells(name, self.side, self.side)

    def sums(self, name: str) -> Local:
        """A thread's share of a chunk."""
        return self.cells(name, self.side, self.wide // SIDE)

    def each_row(self, name: str) -> Local:
        """A number for each row of a thread's share."""
        return self.cells(name, self.side)

    def parts(self, rows: Dim, body: Stmts, chunks: int | None = None) -> Stmts:
        """A part for each tile of rows of each group, and each chunk, of which there may be fewer
        than the results have.
        """
        chunks = chunks or self.chunks
        over = {"group'": product(self.lead), "block'": self.tiles(rows), "chunk'": chunks}
        for var, extent in reversed(over.items()):
            body = (Loop(var, extent, body, split=True),)
        return body

    def tiles(self, size: Dim) -> Dim:
        """How many tiles there are of so many rows."""
        return (size + self.tile - 1) // self.tile

    def row(self, top: Dim) -> Dim:
        """The row that cell i is of, in a tile that begins at `top`."""
        return top + _DOWN * self.side + _I

    def column(self, left: Dim) -> Dim:
        """The column of cell j."""
        return left + _ACROSS + _J * SIDE

    def score_at(self, term: Dim, line: Dim) -> Dim:
        """Where a term of a line lies in `scores`."""
        return term * self.step + line

    def place(self, step: int, term: Dim, line: Dim) -> Dim:
        """Where a term of a line lies in a panel."""
        return term * step + line

    def each(self, *body: Stmt, of: Local | None = None) -> Stmts:
        """The body for each cell of a thread's share of a tile, or of a chunk."""
        down, across = (of or self.acc).shape
        return (Loop("i'", down, (Loop("j'", across, body, "unroll"),), "unroll"),)

    def rows(self, *body: Stmt) -> Stmts:
        """The body for each row of it."""
        return (Loop("i'", self.height, body, "unroll"),)

    # products

    def meet(self, x: str, y: str, width: int, top: Dim, left: Dim) -> Stmts:
        """A tile of the products of queries' rows and keys' rows, in `acc`."""
        whole, rest = divmod(width, DEPTH)
        if rest and self.padded:
            whole, rest = whole + 1, 0
        a, b = self.lines(x, top, self.n, width), self.lines(y, left, self.m, width)

        def some(start: Dim, depth: int) -> Stmts:
            return (
                self.panel(self.first, self.step, self.tile, depth, a, start),
                self.panel(self.second, self.far, self.tile, depth, b, start),
                self.add(self.acc, self.first, 0, depth),
            )

        clear = threads(self.each(Set(self.acc, self.cell, self.number(0))))
        inside: Stmts = (Loop("d'", whole, some(_D * DEPTH, DEPTH)),) if whole else ()
        return (clear, *inside, *(some(whole * DEPTH, rest) if rest else ()))

    def add_scores(self, sums: Local, name: str, width: int, start: Dim, size: Dim) -> Stmts:
        """The products of the tile in `scores` with rows from `start` on, added to a chunk."""

        def row(term: Dim, line: Dim) -> tuple[Value, Bounds]:
            at = start + term, _CHUNK * self.wide + line
            return self.read[name]((*self.at, *at)), tuple(zip(at, (size, width), strict=True))

        panel = self.panel(self.second, self.far, self.wide, DEPTH, row, _U * DEPTH)
        panels = (panel, self.add(sums, self.scores, _U * DEPTH, DEPTH))
        return (Loop("u'", self.tile // DEPTH, panels),)

    def lines(self, name: str, begin: Dim, size: Dim, width: int) -> Read:
        """An operand whose rows are lines, from one on."""
        cut = self.padded and width % DEPTH

        def read(term: Dim, line: Dim) -> tuple[Value, Bounds]:
            row = begin + line
            inside: Bounds = ((row, size), (term, width)) if cut else ((row, size),)
            return self.read[name]((*self.at, row, term)), inside

        return read

    def panel(self, to: Buffer, step: int, wide: int, depth: int, read: Read, start: Dim) -> Stmt:
        """Some terms of a factor in shared memory, with 0 in the place of what there is not."""
        place, count = _E * BLOCK + _T, -(-depth * wide // BLOCK)
        along = goes_along(read(_K, _P)[0], "k'")
        term, line = (place % depth, place // depth) if along else (place // wide, place % wide)
        value, bounds = read(start + term, line)
        one = self.cells("one")
        moved: Stmts = (
            Set(one, (), self.number(0)),
            When(bounds, (Set(one, (), value),)),
            Store(to, self.place(step, term, line), Get(one)),
        )
        if depth * wide % BLOCK:
            moved = (When(((place, depth * wide),), moved),)
        return threads((one, Loop("e'", count, moved, "unroll")))

    def add(self, sums: Local, lines: Buffer, start: Dim, depth: int) -> Stmt:
        """The multiply-adds of a panel in `second` with lines of so many terms."""
        x = Load(lines, (start + _P) * self.step + self.row(0))
        y = Load(self.second, _P * self.far + self.column(0))
        more = Set(sums, self.cell, self.apply("fma", x, y, Get(sums, self.cell)))
        return threads((Loop("p'", depth, self.each(more, of=sums), "unroll"),))

    def begin(
        self, sums: Local, name: str, width: int, first: Dim, end: Dim, worth: Numbers
    ) -> Stmts:
        """A chunk of sums begun: with 0, under a causal mask with what hidden rows from `first` up
        to the `end` are worth, each that of a number of its own times itself.
        """
        if not self.op.causal:
            return (threads(self.each(Set(sums, self.cell, self.number(0)), of=sums)),)
        columns = self.wide // SIDE
        hidden, row, column = (
            self.cells("hidden", columns),
            first + _DOWN + _R * SIDE,
            _ACROSS + _J * SIDE,
        )
        at = _CHUNK * self.wide + column
        more = self.apply(
            "fma", self.read[name]((*self.at, row, at)), worth(row), Get(hidden, (_J,))
        )
        count = (from_zero(end - first) + SIDE - 1 - _DOWN) // SIDE
        lane = Load(self.second, _R * self.far + self.column(0))
        total = self.apply("add", Get(sums, self.cell), lane)

        def across(*body: Stmt) -> Stmts:
            return (Loop("j'", columns, body, "unroll"),)

        add = across(When(((at, width),), (Set(hidden, (_J,), more),)))
        kept = across(Store(self.second, _DOWN * self.far + column, Get(hidden, (_J,))))
        clear = across(Set(hidden, (_J,), self.number(0)))
        zero = self.each(Set(sums, self.cell, self.number(0)), of=sums)
        whole = Loop("r'", SIDE, self.each(Set(sums, self.cell, total), of=sums))
        return (hidden, threads((*clear, Loop("r'", count, add), *kept)), threads((*zero, whole)))

    # rows

    def fold(self, fn: str, cells: Local) -> Stmts:
        """What each row of cells comes to over the threads that share it, in all of them."""
        at = self.row(0) * (LANES + 1)
        kept = self.rows(Store(self.first, at + self.number_of, Get(cells, (_I,))))
        lanes: list[Value] = [Load(self.first, at + i) for i in range(self.sharing)]
        return (
            threads(kept),
            threads(self.rows(Set(cells, (_I,), self.tree(fn, lanes)))),
        )

    def tree(self, fn: str, lanes: Sequence[Value]) -> Value:
        """Lanes folded as everywhere: ((0+8)+(4+12)) + ((2+10)+(6+14)) + ..."""
        while len(lanes) > 1:
            half = len(lanes) // 2
            pairs = zip(lanes[:half], lanes[half:], strict=True)
            lanes = [self.apply(fn, a, b) for a, b in pairs]
        return lanes[0]

    def lse_of(self, row: Dim) -> Value:
        """The logarithm of the sum of exponentials of a query, as it is given."""
        return self.read["lse"]((*self.at, row))

    def numbers(self, cells: Local, top: Dim, read: Numbers) -> Stmt:
        """A number of each of a thread's queries; 0 behind the last."""
        row = self.row(top)
        inside = When(((row, self.n),), (Set(cells, (_I,), read(row)),))
        return threads(self.rows(Set(cells, (_I,), self.number(0)), inside))

    def look(self, top: Dim, left: Dim) -> Stmts:
        """What a mask says of a tile, if there is one, in `seen`."""
        if not self.masks:
            return ()
        row, key = self.row(top), self.column(left)
        allowed = Set(self.seen, self.cell, self.masks[0]((*self.at, row, key)))
        inside = When(((row, self.n), (key, self.m)), (allowed,))
        return (threads(self.each(Set(self.seen, self.cell, Literal(False, bool_)), inside)),)

    def visible(self, top: Dim, left: Dim, value: Value, otherwise: Value) -> Value:
        """A value where a query sees a key; there is none behind the last."""
        row, key = self.row(top), self.column(left)
        tests = self.sees(row, key, self.tile)
        if self.masks:
            tests.append(Get(self.seen, self.cell))
        elif self.m % self.tile != 0:
            tests.append(self.is_below(key, self.m))
        return self.where(tests, value, otherwise)

    @property
    def factor(self) -> float:
        """What queries' and keys' gradients are times."""
        assert isinstance(self.op, AttendBack)
        return self.op.factor

    def finish(self, part: str, sums: Local, width: int, top: Dim, size: Dim, value: Value) -> Stmt:
        """A chunk of a result written."""
        row, column = self.row(top), self.column(_CHUNK * self.wide)
        store = When(((row, size), (column, width)), (self.store(part, row, column, value),))
        return threads(self.each(store, of=sums))


class TensorTiles(Tiles):
    """Tiles whose products are those of tensor cores, of factors rounded to TF32.

    Eight warps share one, four down and two across, which take columns by eights in turn: of a warp
    lane 4g + c has rows g and g + 8 of 16, and columns 2c and 2c + 1 of eight. Lines of panels and
    of `scores` are those of words.
    """

    cell = (_J, 2 * _I + _C)
    padded = True
    sharing, number_of = 8, _T // WARP % 2 * 4 + _T % 4

    def shape(self) -> None:
        self.tile, self.height = 64, 2
        self.step, self.far = self.tile + 4, max(self.tile, self.wide) + 4

    def room(self, lines: int) -> int:
        return lines * LINE

    def square(self, name: str) -> Local:
        return self.cells(name, self.tile // 16, 4)

    def sums(self, name: str) -> Local:
        return self.cells(name, self.wide // 16, 4)

    def each_row(self, name: str) -> Local:
        return self.cells(name, self.height)

    def row(self, top: Dim) -> Dim:
        return top + _T // (2 * WARP) * 16 + _T % WARP // 4 + _I * 8

    def column(self, left: Dim) -> Dim:
        return left + (2 * _J + _T // WARP % 2) * 8 + _T % 4 * 2 + _C

    def score_at(self, term: Dim, line: Dim) -> Dim:
        return line * self.step + term

    def place(self, step: int, term: Dim, line: Dim) -> Dim:
        return line * LINE + term

    def each(self, *body: Stmt, of: Local | None = None) -> Stmts:
        inside: Stmts = (Loop("c'", 2, body, "unroll"),)
        inside = (Loop("j'", (of or self.acc).shape[0], inside, "unroll"),)
        return (Loop("i'", self.height, inside, "unroll"),)

    def add(self, sums: Local, lines: Buffer, start: Dim, depth: int) -> Stmt:
        step = LINE if lines is self.first else self.step
        down, across = _T // (2 * WARP) * 16, (2 * _J + _T // WARP % 2) * 8
        rows = Words(lines, down * step + start + _P * 8, step)
        columns = Words(self.second, across * LINE + _P * 8, LINE)
        product = Multiply(sums, (_J,), rows, columns, tf32=True)
        body: Stmts = (Loop("j'", sums.shape[0], (product,), "unroll"),)
        return threads((Loop("p'", depth // 8, body, "unroll"),))


def tiles_for(b: Builder, name: str, *results: str) -> Tiles:
    """Tiles for some results: on tensor cores where factors may be rounded."""
    op = b.kernel.anchor.op
    assert isinstance(op, Attend | AttendBack)
    exact = not (op.tf32 and b.target.tensor and b.kernel.anchor.type.dtype == float32)
    return (Tiles if exact else TensorTiles)(b, name, *results)
