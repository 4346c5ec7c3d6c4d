"""Attention on a GPU, and its derivative: a block of threads has a tile of scores in registers at a
time, and of all that it is for nothing but results comes to memory.

Forward a block goes through the keys twice, for the largest score of each row and then for the rest
(once would do with sums that are scaled again wherever a larger score comes, as in Dao et al.,
"FlashAttention", 2022; here they are those of every other target). Back one launch goes along the
keys for queries' gradients, one along the queries for those of keys and values, as in Dao,
"FlashAttention-2", 2023. Each sum is one chain in the order of keys or of queries, and begins with
what a causal mask hides, as in `loops.attend`: 0, or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from chainrule.ir.loop import (
    LANES,
    Buffer,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Stmt,
    Store,
    Value,
    When,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size, product
from chainrule.ir.types import bool_
from chainrule.loops.builder import Builder
from chainrule.loops.group import GROUP, Group, from_zero, least
from chainrule.loops.launch import BLOCK
from chainrule.loops.tiled import SIDE, goes_along, threads
from chainrule.ops.attend import AttendBack

#: terms that lie in shared memory at a time
DEPTH = 16
#: of a tile's rows and columns each of SIDE x SIDE threads has so many, by the bytes of a number
SIDES = {4: 4, 8: 2}

_T, _P, _I, _J, _E, _K, _R, _U, _D = (Size.symbol(f"{name}'") for name in "tpijekrud")
_BLOCK, _CHUNK = Size.symbol("block'"), Size.symbol("chunk'")
_DOWN, _ACROSS = _T // SIDE, _T % SIDE
#: a number of a query
Numbers = Callable[[Dim], Value]
#: where an index is one of what there is
Bounds = tuple[tuple[Dim, Dim], ...]
#: the element of a factor at a term and a line, and where there is one
Read = Callable[[Dim, Dim], tuple[Value, Bounds]]


def attend_tiles(b: Builder) -> Stmts:
    """Attention, or its derivative, for parts of BLOCK lanes."""
    if not isinstance(b.kernel.anchor.op, AttendBack):
        return _forward(b)
    wanted = Group(b).wanted
    shifts, before = _shifts(b)
    loops: Stmts = before if wanted.keys() - {"dv"} else ()
    if "dq" in wanted:
        loops += _queries(b, shifts)
    return loops if wanted.keys() == {"dq"} else (*loops, *_keys(b, shifts))


class Tiles(Group):
    """Tiles of scores of a group, rows of queries and columns of keys, of `tile` each.

    A thread's share of one is in `acc`. What is made of tiles has as many rows, and `wide` columns
    at a time: a chunk. `scores` is a tile in shared memory, a line of `step` for each term of what
    is summed; `first` and `second` are panels of two factors.
    """

    def __init__(self, b: Builder, name: str, *results: str) -> None:
        super().__init__(b)
        self.name = name
        widths = [self.d if part in ("dq", "dk") else self.e for part in results]
        self.side = SIDES[self.dtype.itemsize]
        self.tile = SIDE * self.side
        self.wide = min(2 * self.tile, -(-max(widths) // SIDE) * SIDE)
        self.chunks = -(-max(widths) // self.wide)
        self.step, self.far = self.tile + 4, max(self.tile, self.wide) + 4
        self.acc = self.cells("acc", self.side, self.side)
        self.first, self.second, self.scores = (
            b.scratch_of(self.dtype, size, True)
            for size in (DEPTH * self.step, DEPTH * self.far, self.tile * self.step)
        )
        self.seen = Local(f"{name}seen", bool_, (self.side, self.side), True)

    def cells(self, name: str, *shape: int) -> Local:
        """Registers of each thread."""
        return Local(f"{self.name}{name}", self.dtype, shape, True)

    def sums(self, name: str) -> Local:
        """A thread's share of a chunk."""
        return self.cells(name, self.side, self.wide // SIDE)

    def parts(self, rows: Dim, body: Stmts) -> Stmts:
        """A part for each tile of rows of each group, and each chunk."""
        over = {"group'": product(self.lead), "block'": self.tiles(rows), "chunk'": self.chunks}
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

    def each(self, *body: Stmt, of: Local | None = None) -> Stmts:
        """The body for each cell of a thread's share of a tile, or of a chunk."""
        down, across = (of or self.acc).shape
        return (Loop("i'", down, (Loop("j'", across, body, "unroll"),), "unroll"),)

    def rows(self, *body: Stmt) -> Stmts:
        """The body for each row of it."""
        return (Loop("i'", self.side, body, "unroll"),)

    # products

    def meet(self, x: str, y: str, width: int, top: Dim, left: Dim) -> Stmts:
        """A tile of the products of queries' rows and keys' rows, in `acc`."""
        whole, rest = divmod(width, DEPTH)
        a, b = self.lines(x, top, self.n), self.lines(y, left, self.m)

        def some(start: Dim, depth: int) -> Stmts:
            return (
                self.panel(self.first, self.step, self.tile, depth, a, start),
                self.panel(self.second, self.far, self.tile, depth, b, start),
                self.add(self.acc, self.first, 0, depth),
            )

        clear = threads(self.each(Set(self.acc, (_I, _J), self.number(0))))
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

    def lines(self, name: str, begin: Dim, size: Dim) -> Read:
        """An operand whose rows are lines, from one on."""

        def read(term: Dim, line: Dim) -> tuple[Value, Bounds]:
            row = begin + line
            return self.read[name]((*self.at, row, term)), ((row, size),)

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
            Store(to, term * step + line, Get(one)),
        )
        if depth * wide % BLOCK:
            moved = (When(((place, depth * wide),), moved),)
        return threads((one, Loop("e'", count, moved, "unroll")))

    def add(self, sums: Local, lines: Buffer, start: Dim, depth: int) -> Stmt:
        """The multiply-adds of a panel in `second` with lines of so many terms."""
        x = Load(lines, (start + _P) * self.step + self.row(0))
        y = Load(self.second, _P * self.far + self.column(0))
        more = Set(sums, (_I, _J), self.apply("fma", x, y, Get(sums, (_I, _J))))
        return threads((Loop("p'", depth, self.each(more, of=sums), "unroll"),))

    def begin(
        self, sums: Local, name: str, width: int, first: Dim, end: Dim, worth: Numbers
    ) -> Stmts:
        """A chunk of sums begun: with 0, under a causal mask with what hidden rows from `first` up
        to the `end` are worth, each that of a number of its own times itself.
        """
        if not self.op.causal:
            return (threads(self.each(Set(sums, (_I, _J), self.number(0)), of=sums)),)
        hidden, column, row = self.cells("hidden", sums.shape[1]), self.column(0), first + _DOWN
        row = row + _R * SIDE
        at = _CHUNK * self.wide + column
        more = self.apply(
            "fma", self.read[name]((*self.at, row, at)), worth(row), Get(hidden, (_J,))
        )
        count = (from_zero(end - first) + SIDE - 1 - _DOWN) // SIDE
        lane = Load(self.second, _R * self.far + column)
        total = self.apply("add", Get(sums, (_I, _J)), lane)

        def across(*body: Stmt) -> Stmts:
            return (Loop("j'", sums.shape[1], body, "unroll"),)

        add = across(When(((at, width),), (Set(hidden, (_J,), more),)))
        kept = across(Store(self.second, _DOWN * self.far + column, Get(hidden, (_J,))))
        clear = across(Set(hidden, (_J,), self.number(0)))
        zero = self.each(Set(sums, (_I, _J), self.number(0)), of=sums)
        whole = Loop("r'", SIDE, self.each(Set(sums, (_I, _J), total), of=sums))
        return (hidden, threads((*clear, Loop("r'", count, add), *kept)), threads((*zero, whole)))

    # rows

    def fold(self, fn: str, cells: Local) -> Stmts:
        """What each row of cells comes to over the LANES threads that share it, in all of them."""
        at = self.row(0) * (LANES + 1)
        kept = self.rows(Store(self.first, at + _ACROSS, Get(cells, (_I,))))
        lanes: list[Value] = [Load(self.first, at + i) for i in range(LANES)]
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
        allowed = Set(self.seen, (_I, _J), self.masks[0]((*self.at, row, key)))
        inside = When(((row, self.n), (key, self.m)), (allowed,))
        return (threads(self.each(Set(self.seen, (_I, _J), Literal(False, bool_)), inside)),)

    def visible(self, top: Dim, left: Dim, value: Value, otherwise: Value) -> Value:
        """A value where a query sees a key; there is none behind the last."""
        row, key = self.row(top), self.column(left)
        tests = self.sees(row, key)
        if self.masks:
            tests.append(Get(self.seen, (_I, _J)))
        elif self.m % self.tile != 0:
            tests.append(self.is_key(key))
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


def _forward(b: Builder) -> Stmts:
    """The largest score of each row, then the sum of its exponentials, and their products."""
    h = Tiles(b, "f", "out")
    tops, totals = h.cells("top", h.side), h.cells("total", h.side)
    out, top, left = h.sums("out"), _BLOCK * h.tile, _K * h.tile
    end = least(top + h.tile, h.m) if h.op.causal else h.m
    score = h.visible(top, left, h.scaled(Get(h.acc, (_I, _J))), h.number(-math.inf))
    power = h.power(h.apply("sub", score, Get(tops, (_I,))))
    scores = (*h.look(top, left), *h.meet("q", "k", h.d, top, left))
    larger = Set(tops, (_I,), h.apply("maximum", Get(tops, (_I,)), score))
    exponential = Set(h.acc, (_I, _J), power)
    more = Set(totals, (_I,), h.apply("add", Get(totals, (_I,)), Get(h.acc, (_I, _J))))
    kept = Store(h.scores, h.column(0) * h.step + h.row(0), Get(h.acc, (_I, _J)))
    body: Stmts = (
        h.acc, h.seen, tops, totals,
        threads(h.rows(Set(tops, (_I,), h.number(-math.inf)), Set(totals, (_I,), h.number(0)))),
        Loop("k'", h.tiles(end), (*scores, threads(h.each(larger)))),
        *h.fold("maximum", tops),
        threads(h.rows(Set(tops, (_I,), h.top(Get(tops, (_I,)))))),
    )  # fmt: skip
    inside: Stmts = (*scores, threads(h.each(exponential, more, kept)))
    if "out" in h.wanted:
        seen = least(top + h.tile, h.m)
        body += (out, *h.begin(out, "v", h.e, seen, h.m, lambda _: h.number(0)))
        inside += h.add_scores(out, "v", h.e, left, h.m)
    body += (Loop("k'", h.tiles(end), inside), *h.fold("add", totals))
    body += (threads(h.rows(Set(totals, (_I,), h.total(Get(totals, (_I,)))))),)
    if "out" in h.wanted:
        mean = h.apply("div", Get(out, (_I, _J)), Get(totals, (_I,)))
        body += (h.finish("out", out, h.e, top, h.n, mean),)
    if "lse" in h.wanted:
        row = h.row(top)
        lse = h.store_row("lse", row, h.lse(Get(tops, (_I,)), Get(totals, (_I,))))
        first = ((row, h.n), (_ACROSS, 1), (_CHUNK, 1))
        body += (threads(h.rows(When(first, (lse,)))),)
    return h.parts(h.n, body)


def _shifts(b: Builder) -> tuple[Numbers, Stmts]:
    """For each query the product of the result and its cotangent: how it is read, and made."""
    h = Tiles(b, "s", "out")
    shifts = b.scratch_of(h.dtype, product((*h.lead, h.n)))
    sums, row, column = h.cells("sum", h.side), h.row(_BLOCK * h.tile), _ACROSS + _R * SIDE
    x, y = (h.read[name]((*h.at, row, column)) for name in ("ct", "out"))
    more = Set(sums, (_I,), h.apply("fma", x, y, Get(sums, (_I,))))
    along = Loop("r'", (h.e + SIDE - 1 - _ACROSS) // SIDE, (more,))
    store = Store(shifts, GROUP * h.n + row, Get(sums, (_I,)))
    body: Stmts = (
        sums,
        threads(h.rows(Set(sums, (_I,), h.number(0)), When(((row, h.n),), (along,)))),
        *h.fold("add", sums),
        threads(h.rows(When(((row, h.n), (_ACROSS, 1)), (store,)))),
    )
    h.chunks = 1
    return lambda row: Load(shifts, GROUP * h.n + row), h.parts(h.n, body)


def _weights(h: Tiles, top: Dim, left: Dim, lse: Local, to: Local) -> Stmts:
    """A tile of weights, made once more."""
    made, none = h.weight(Get(h.acc, (_I, _J)), Get(lse, (_I,))), h.nothing(Get(lse, (_I,)))
    weight = Set(to, (_I, _J), h.visible(top, left, made, none))
    return (*h.look(top, left), *h.meet("q", "k", h.d, top, left), threads(h.each(weight)))


def _pulled(h: Tiles, top: Dim, left: Dim, weights: Local, shift: Local, at: Dim) -> Stmts:
    """A tile of the cotangents of scores, written in shared memory."""
    pulled = h.pulled(Get(weights, (_I, _J)), Get(h.acc, (_I, _J)), Get(shift, (_I,)))
    return (*h.meet("ct", "v", h.e, top, left), threads(h.each(Store(h.scores, at, pulled))))


def _queries(b: Builder, shifts: Numbers) -> Stmts:
    """The gradient of queries: each block of them goes along the keys that it sees."""
    h = Tiles(b, "q", "dq")
    weights, dq = h.cells("weight", h.side, h.side), h.sums("dq")
    lse, shift = h.cells("lse", h.side), h.cells("shift", h.side)
    top, left = _BLOCK * h.tile, _K * h.tile
    seen = least(top + h.tile, h.m)
    result = h.apply("mul", Get(dq, (_I, _J)), h.number(h.factor))
    body: Stmts = (
        h.acc, h.seen, weights, dq, lse, shift,
        h.numbers(lse, top, h.lse_of),
        h.numbers(shift, top, shifts),
        *h.begin(dq, "k", h.d, seen, h.m, lambda _: h.number(0)),
        Loop("k'", h.tiles(seen if h.op.causal else h.m), (
            *_weights(h, top, left, lse, weights),
            *_pulled(h, top, left, weights, shift, h.column(0) * h.step + h.row(0)),
            *h.add_scores(dq, "k", h.d, left, h.m),
        )),
        h.finish("dq", dq, h.d, top, h.n, result),
    )  # fmt: skip
    return h.parts(h.n, body)


def _keys(b: Builder, shifts: Numbers) -> Stmts:
    """The gradients of keys and values: each block of them goes along the queries that see it."""
    parts = [part for part in ("dv", "dk") if part in Group(b).wanted]
    h = Tiles(b, "k", *parts)
    weights, lse, shift = (
        h.cells("weight", h.side, h.side),
        h.cells("lse", h.side),
        h.cells("shift", h.side),
    )
    sums = {part: h.sums(part) for part in parts}
    earlier = _BLOCK if h.op.causal else 0
    top, left = (earlier + _K) * h.tile, _BLOCK * h.tile
    hidden, at = least(left, h.n), h.row(0) * h.step + h.column(0)
    body: Stmts = (h.acc, h.seen, weights, lse, shift, *sums.values())
    inside: Stmts = (h.numbers(lse, top, h.lse_of), *_weights(h, top, left, lse, weights))
    end: Stmts = ()
    if "dv" in sums:
        body += h.begin(sums["dv"], "ct", h.e, 0, hidden, lambda row: h.nothing(h.lse_of(row)))
        inside += (threads(h.each(Store(h.scores, at, Get(weights, (_I, _J))))),)
        inside += h.add_scores(sums["dv"], "ct", h.e, top, h.n)
        end += (h.finish("dv", sums["dv"], h.e, left, h.m, Get(sums["dv"], (_I, _J))),)
    if "dk" in sums:
        body += h.begin(sums["dk"], "q", h.d, 0, hidden, lambda row: h.nothing(shifts(row)))
        inside += (h.numbers(shift, top, shifts), *_pulled(h, top, left, weights, shift, at))
        inside += h.add_scores(sums["dk"], "q", h.d, top, h.n)
        result = h.apply("mul", Get(sums["dk"], (_I, _J)), h.number(h.factor))
        end += (h.finish("dk", sums["dk"], h.d, left, h.m, result),)
    count = from_zero(h.tiles(h.n) - earlier) if h.op.causal else h.tiles(h.n)
    return h.parts(h.m, (*body, Loop("k'", count, inside), *end))
