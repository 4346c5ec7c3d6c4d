"""Attention and its derivative: some rows of scores at a time, and all that they are for is made of
them before the next ones come.

Keys and values of a group are laid out first, in panels of LANES positions or row by row. Then for
each block of queries the scores, and their cotangents, lie in workspace: memory grows with the
number of keys, not with its square. Under a causal mask a block goes no further than its last query
sees. Each sum is one chain, in the order of keys or of queries, as of a product of whole matrices:
what is left out would have added 0. So neither blocks nor tiles show in a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from chainrule.ir.loop import (
    LANES,
    Apply,
    Buffer,
    Combine,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.node import Index, Node, Stmts
from chainrule.ir.size import Dim, Size, known, product
from chainrule.ir.types import bool_, int32
from chainrule.loops.builder import Builder
from chainrule.loops.contract import contraction_loops
from chainrule.loops.tiles import Contraction
from chainrule.ops.attend import Attend, AttendBack
from chainrule.ops.layout import ravel, unravel

#: queries of a block at most; scores are worked out in so many columns at a time
ROWS, WIDE = 32, 2 * LANES
#: rows that are folded side by side, so that none waits for another; heights are multiples of 8
TOGETHER, EVEN = 4, 8

_G, _R, _I, _J, _U = (Size.symbol(name) for name in ("group'", "block'", "row'", "j'", "u'"))
_K, _N = Size.symbol("term'"), Size.symbol("panel'")

Read = Callable[[Dim, Dim], Value]


def attend_loops(b: Builder) -> Stmts:
    """Attention, or its derivative, of one group after the other; parts share the groups."""
    loops = _Loops(b)
    body = loops.forward() if isinstance(b.kernel.anchor.op, Attend) else loops.backward()
    return (Loop("group'", product(loops.lead), body, split=True),)


class _Loops:
    """The loops of a group. Workspace is named after what it holds; rows of `scores` are `stride`
    apart. Of a block that begins with query `first`, `count` rows are queries, which see keys up to
    `seen`; `wide` is that number rounded up to whole tiles.
    """

    def __init__(self, b: Builder) -> None:
        node = b.kernel.anchor
        assert isinstance(node.op, Attend | AttendBack)
        self.b, self.op, self.dtype = b, node.op, node.type.dtype
        q, k, v = (n.type.shape for n in node.inputs[:3])
        self.lead, self.n, self.m = q[:-2], q[-2], k[-2]
        self.d, self.e = known((q[-1], v[-1]))
        names = ("q", "k", "v", "ct", "out", "lse")[: node.op.count]
        self.read = {x: b.reader(n) for x, n in zip(names, node.inputs, strict=False)}
        self.masks = [b.reader(n) for n in node.inputs[node.op.count :]]
        self.wanted: dict[str, Node] = {n.op.part: n for n in b.kernel.nodes}  # type: ignore[attr-defined]
        self.at = unravel(_G, self.lead)
        self.rows = _height(self.n)
        self.first = _R * self.rows
        even = self.n % self.rows == 0
        self.count = self.rows if even else _least(self.rows, self.n - self.first)
        ends = self.first + self.rows
        whole = even and self.n == self.m
        self.seen = self.m if not self.op.causal else ends if whole else _least(ends, self.m)
        self.wide = _rounded(self.seen)
        # rows do not begin whole pages apart: caches could not hold many of such
        self.stride = _rounded(self.m) + LANES
        self.scores = self.space(self.rows * self.stride)
        self.mask = b.scratch_of(bool_, self.rows * self.stride, True) if self.masks else None

    def forward(self) -> Stmts:
        """Scores, their softmax but for its divisor, and what that makes of values."""
        keys, lay_keys = self.panels("k", self.d)
        values, lay_values = self.matrix("v", self.e)
        q, take = self.block("q", self.d)
        tops, totals, sums = (self.space(size) for size in (self.rows, self.rows, self.rows * self.e))

        def score(row: Dim, key: Dim, acc: Value) -> Stmts:
            value = self.apply("mul", acc, self.number(self.op.scale))
            return (self.keep(self.scores, row, key, self.visible(row, key, value, -math.inf)),)

        def summed(row: Dim, column: Dim, acc: Value) -> Stmts:
            mean = self.apply("div", acc, Load(totals, row))
            return (Store(sums, row * self.e + column, mean),)

        scores = self.product(
            self.rows, self.wide, self.d, _row_major(q, self.d), _panelled(keys, self.d), score
        )
        weighed = self.product(
            self.rows, self.e, self.seen, self.score_at(self.scores), _row_major(values, self.e),
            summed,
        )  # fmt: skip
        lse = self.apply("add", Load(tops, _J), self.apply("log", Load(totals, _J)))
        body = (
            *take,
            *self.take_mask(),
            *scores,
            *self.exponentials(tops, totals),
            *weighed,
            *self.written("out", sums, self.first, self.count, self.e),
            *self.written_row("lse", lse),
        )
        return (*lay_keys, *lay_values, self.blocks(body))

    def backward(self) -> Stmts:
        """Weights once more, their cotangent, and what the two make of queries, keys and values."""
        q, take_q = self.block("q", self.d)
        ct, take_ct = self.block("ct", self.e)
        keys, lay = self.panels("k", self.d)
        lse, take_lse = self.row("lse")
        weights, cts = self.scores, self.scores
        body = [*take_q, *take_ct, *take_lse, *self.take_mask()]

        def weigh(row: Dim, key: Dim, acc: Value) -> Stmts:
            below = self.apply("neg", Load(lse, row))
            p = self.power(self.apply("fma", acc, self.number(self.op.scale), below))
            return (self.keep(weights, row, key, self.visible(row, key, p, 0)),)

        body += self.product(
            self.rows, self.wide, self.d, _row_major(q, self.d), _panelled(keys, self.d), weigh
        )
        end: Stmts = ()
        if "dv" in self.wanted:
            begin, step, write = self.gathered("dv", weights, ct, self.e, 1)
            lay, end = (*lay, *begin), (*end, *write)
            body += step
        if "dq" in self.wanted or "dk" in self.wanted:
            values, lay_values = self.panels("v", self.e)
            out, take_out = self.block("out", self.e)
            shift = self.space(self.rows)
            cts = self.scores

            def pull(row: Dim, key: Dim, acc: Value) -> Stmts:
                below = self.apply("sub", acc, Load(shift, row))
                weight = Load(weights, row * self.stride + key)
                return (self.keep(cts, row, key, self.apply("mul", weight, below)),)

            lay = (*lay, *lay_values)
            body += [*take_out, *self.dots(ct, out, shift)]
            body += self.product(
                self.rows, self.wide, self.e, _row_major(ct, self.e),
                _panelled(values, self.e), pull,
            )  # fmt: skip
        if "dk" in self.wanted:
            begin, step, write = self.gathered("dk", cts, q, self.d, self.factor)
            lay, end = (*lay, *begin), (*end, *write)
            body += step
        if "dq" in self.wanted:
            matrix, lay_matrix = self.matrix("k", self.d)
            sums = self.space(self.rows * self.d)

            def summed(row: Dim, column: Dim, acc: Value) -> Stmts:
                scaled = self.apply("mul", acc, self.number(self.factor))
                return (Store(sums, row * self.d + column, scaled),)

            lay = (*lay, *lay_matrix)
            body += self.product(
                self.rows, self.d, self.seen, self.score_at(cts), _row_major(matrix, self.d), summed
            )
            body += self.written("dq", sums, self.first, self.count, self.d)
        return (*lay, self.blocks(tuple(body)), *end)

    # values

    @property
    def factor(self) -> float:
        """What the derivatives by queries and keys are multiplied with."""
        assert isinstance(self.op, AttendBack)
        return self.op.factor

    def number(self, value: float) -> Value:
        return Literal(value, self.dtype)

    def apply(self, fn: str, *args: Value) -> Value:
        return Apply(fn, args, self.dtype)

    def power(self, x: Value) -> Value:
        """exp(x), and 0 where that is below the least normal number: slow, and lost in any sum."""
        least = math.log(2.0) * (-126 if self.dtype.bits == 32 else -1022)
        lost, none = Apply("lt", (x, self.number(least)), bool_), self.number(0)
        kept = self.apply("exp", self.apply("where", lost, none, x))
        return self.apply("where", lost, none, kept)

    def score_at(self, scores: Buffer) -> Read:
        return lambda row, key: Load(scores, row * self.stride + key)

    def keep(self, scores: Buffer, row: Dim, key: Dim, value: Value) -> Stmt:
        return Store(scores, row * self.stride + key, value)

    def visible(self, row: Dim, key: Dim, value: Value, otherwise: float) -> Value:
        """A value where a query may see a key; there is none behind the last."""
        column, tests = IndexValue(key, int32), []
        if self.op.causal:
            tests.append(Apply("le", (column, IndexValue(self.first + row, int32)), bool_))
        if self.m % WIDE != 0 and not (self.op.causal and self.n == self.m):
            tests.append(Apply("lt", (column, IndexValue(self.m, int32)), bool_))
        if self.mask is not None:
            tests.append(Load(self.mask, row * self.stride + key))
        for test in tests:
            value = self.apply("where", test, value, self.number(otherwise))
        return value

    # what is laid out, and what is written

    def space(self, size: Dim) -> Buffer:
        """Workspace of which each part has its own."""
        return self.b.scratch_of(self.dtype, size, True)

    def panels(self, name: str, width: int) -> tuple[Buffer, Stmts]:
        """Keys or values in panels of LANES positions, zeros behind the last."""
        read, space = self.read[name], self.space(_rounded(self.m) * width)

        def panel(first: Dim, count: Dim) -> Stmts:
            def some(start: Dim, terms: int) -> Stmt:
                k = start + _U
                value = read((*self.at, first + _J, k))
                store = Store(space, first * width + k * LANES + _J, value)
                return Loop("j'", count, (Loop("u'", terms, (store,), "unroll"),), "vector")

            whole, rest = divmod(width, LANES)
            body: Stmts = (Loop("term'", whole, (some(_K * LANES, LANES),)),) if whole else ()
            return (*body, some(whole * LANES, rest)) if rest else body

        body: Stmts = (Loop("panel'", self.m // LANES, panel(_N * LANES, LANES)),)
        if self.m % WIDE != 0:
            begin = self.m // WIDE * WIDE
            zero = Store(space, begin * width + _J, self.number(0))
            zeros = Loop("j'", (_rounded(self.m) - begin) * width, (zero,), "vector")
            body = (zeros, *body, *panel(self.m // LANES * LANES, self.m % LANES))
        return space, body

    def matrix(self, name: str, width: Dim) -> tuple[Buffer, Stmts]:
        """Keys or values row by row."""
        space, read = self.space(self.m * width), self.read[name]
        store = Store(space, _I * width + _J, read((*self.at, _I, _J)))
        return space, _matrix_loops(self.m, width, store)

    def block(self, name: str, width: Dim) -> tuple[Buffer, Stmts]:
        """A block of an operand's rows, zeros where queries end before it does."""
        space, read = self.space(self.rows * width), self.read[name]
        store = Store(space, _I * width + _J, read((*self.at, self.first + _I, _J)))
        return space, (*_matrix_loops(self.count, width, store), *self.zeros(space, width))

    def row(self, name: str) -> tuple[Buffer, Stmts]:
        """A block of an operand of one number a query."""
        space = self.space(self.rows)
        store = Store(space, _J, self.read[name]((*self.at, self.first + _J)))
        return space, (Loop("j'", self.count, (store,), "vector"), *self.zeros(space, 1))

    def take_mask(self) -> Stmts:
        """The block's rows of the mask."""
        if self.mask is None:
            return ()
        value = self.masks[0]((*self.at, self.first + _I, _J))
        store = Store(self.mask, _I * self.stride + _J, value)
        loops = _matrix_loops(self.count, self.seen, store)
        return (*loops, *self.zeros(self.mask, self.stride))

    def zeros(self, space: Buffer, width: Dim) -> Stmts:
        """Zeros in the rows of a block that are no queries'."""
        if self.count == self.rows:
            return ()
        zero = Store(space, self.count * width + _J, Literal(0, space.dtype))
        return (Loop("j'", (self.rows - self.count) * width, (zero,), "vector"),)

    def written(self, part: str, space: Buffer, first: Dim, count: Dim, width: Dim) -> Stmts:
        """Rows of a result, from workspace."""
        node = self.wanted.get(part)
        if node is None or node not in self.b.kernel.writes:
            return ()
        index = self.op_of(node).place(self.at, first + _I, _J)
        store = self.store(node, index, Load(space, _I * width + _J))
        return _matrix_loops(count, width, store)

    def written_row(self, part: str, value: Value) -> Stmts:
        """A result of one number a query."""
        node = self.wanted.get(part)
        if node is None or node not in self.b.kernel.writes:
            return ()
        return (Loop("j'", self.count, (self.store(node, (*self.at, self.first + _J), value),), "vector"),)

    def store(self, node: Node, index: Index, value: Value) -> Stmt:
        buffer = self.b.buffers[self.b.kernel.writes[node]]
        return Store(buffer, ravel(index, node.type.shape), value)

    # loops

    def blocks(self, body: Stmts) -> Stmt:
        """The body for each block of queries."""
        return Loop("block'", (self.n + self.rows - 1) // self.rows, body)

    def product(
        self,
        m: Dim,
        n: Dim,
        k: Dim,
        a: Read,
        b: Read,
        epilogue: Callable[[Dim, Dim, Value], Stmts],
        start: Read | None = None,
    ) -> Stmts:
        """A product in tiles."""
        c = Contraction((), m, n, k, a, b, self.dtype, epilogue, start)
        return contraction_loops(c, self.b.target, None)

    def gathered(
        self, part: str, scores: Buffer, rows: Buffer, width: Dim, factor: float
    ) -> tuple[Stmts, Stmts, Stmts]:
        """scoresᵀ @ rows, added up over blocks: how it begins, each block's part, how it ends."""
        sums = self.space(_rounded(self.m) * width)
        zero = Store(sums, _J, self.number(0))
        begin = Loop("j'", _rounded(self.m) * width, (zero,), "vector")

        def so_far(key: Dim, column: Dim) -> Value:
            return Load(sums, key * width + column)

        def keep(key: Dim, column: Dim, acc: Value) -> Stmts:
            return (Store(sums, key * width + column, acc),)

        step = self.product(
            self.wide, width, self.rows, lambda key, row: Load(scores, row * self.stride + key),
            _row_major(rows, width), keep, so_far,
        )  # fmt: skip
        node = self.wanted[part]
        value = so_far(_I, _J)
        scaled = value if factor == 1 else self.apply("mul", value, self.number(factor))
        store = self.store(node, self.op_of(node).place(self.at, _I, _J), scaled)
        return (begin,), step, _matrix_loops(self.m, width, store)

    def op_of(self, node: Node) -> Attend | AttendBack:
        assert isinstance(node.op, Attend | AttendBack)
        return node.op

    def exponentials(self, tops: Buffer, totals: Buffer) -> Stmts:
        """exp(score - the row's largest) in the place of each score; those and their sums."""
        top, total = (Local(name, self.dtype, (TOGETHER,), True) for name in ("top", "total"))
        peak = Local("peak", self.dtype, (TOGETHER,))
        power = Local("power", self.dtype, (TOGETHER,), True)
        row, u = _I * TOGETHER + _U, (_U,)
        score = Load(self.scores, row * self.stride + _J)
        low, none = self.number(-math.inf), self.number(0)
        largest = Combine("maximum", top, u)
        sum_ = Combine("add", total, u)

        def each(*body: Stmt) -> Stmt:
            return Loop("u'", TOGETHER, body, "unroll")

        def along(*body: Stmt) -> Stmt:
            return Loop("j'", self.wide, (each(*body),), "vector")

        blind = Apply("eq", (Get(peak, u), low), bool_)
        empty = Apply("eq", (Get(peak, u), none), bool_)
        return (
            *(top, total, peak, power),
            Loop(
                "row'",
                self.rows // TOGETHER,
                (
                    each(Set(top, u, low), Set(total, u, none)),
                    along(Set(top, u, self.apply("maximum", Get(top, u), score))),
                    each(
                        Set(peak, u, largest),
                        Set(peak, u, self.apply("where", blind, none, Get(peak, u))),
                        Store(tops, row, Get(peak, u)),
                    ),
                    along(
                        Set(power, u, self.power(self.apply("sub", score, Get(peak, u)))),
                        Store(self.scores, row * self.stride + _J, Get(power, u)),
                        Set(total, u, self.apply("add", Get(total, u), Get(power, u))),
                    ),
                    each(
                        Set(peak, u, sum_),
                        Store(totals, row, self.apply("where", empty, self.number(1), Get(peak, u))),
                    ),
                ),
            ),
        )

    def dots(self, x: Buffer, y: Buffer, sums: Buffer) -> Stmts:
        """The inner product of each row of two blocks."""
        acc, u = Local("acc", self.dtype, (TOGETHER,), True), (_U,)
        row = _I * TOGETHER + _U
        here = row * self.e + _J
        term = self.apply("fma", Load(x, here), Load(y, here), Get(acc, u))

        def each(body: Stmt) -> Stmt:
            return Loop("u'", TOGETHER, (body,), "unroll")

        body = (
            each(Set(acc, u, self.number(0))),
            Loop("j'", self.e, (each(Set(acc, u, term)),), "vector"),
            each(Store(sums, row, Combine("add", acc, u))),
        )
        return (acc, Loop("row'", self.rows // TOGETHER, body))


def _height(n: Dim) -> int:
    """Rows of a block: for known n of equal blocks."""
    if not isinstance(n, int):
        return ROWS
    blocks = max(1, -(-n // ROWS))
    return max(1, -(-n // (blocks * EVEN))) * EVEN


def _rounded(size: Dim) -> Dim:
    """A size in whole tiles."""
    return (size + WIDE - 1) // WIDE * WIDE


def _least(a: Dim, b: Dim) -> Dim:
    """The lesser of two sizes."""
    over = a - b
    return a - over * ((over + 2**40) // (2**40 + 1))  # 1 where it is above 0, for any below 2**40


def _panelled(space: Buffer, width: Dim) -> Read:
    """Reads panels, at a position whose lane is j'."""
    return lambda row, column: Load(space, (column - _J) * width + row * LANES + _J)


def _row_major(space: Buffer, width: Dim) -> Read:
    return lambda row, column: Load(space, row * width + column)


def _matrix_loops(rows: Dim, columns: Dim, body: Stmt) -> Stmts:
    return (Loop("row'", rows, (Loop("j'", columns, (body,), "vector"),)),)
