"""What attention and its derivative share: operands laid out in workspace, blocks of queries, and
products of the two.

Of a group, rows that are summed over keys are laid out as they are, those of which each is met by
all queries in panels of LANES positions. Of a block of queries all rows are there, zeros behind the
last: so each product has one shape, whatever the number of queries.
"""

from __future__ import annotations

from collections.abc import Callable

from chainrule.ir.loop import LANES, Buffer, Literal, Load, Loop, Store, Value
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import bool_
from chainrule.loops.builder import Builder
from chainrule.loops.contract import contraction_loops
from chainrule.loops.group import Group, from_zero, least
from chainrule.loops.tiles import Contraction

#: queries of a block at most; scores are worked out in so many columns at a time
ROWS, WIDE = 32, 2 * LANES
#: the height of a block is a multiple of this
EVEN = 8

BLOCK, ROW, LANE, EACH = (Size.symbol(f"{name}'") for name in ("block", "row", "j", "u"))
_TERM, _PANEL = Size.symbol("term'"), Size.symbol("panel'")

Read = Callable[[Dim, Dim], Value]
#: what has been laid out: where, and how
Laid = tuple[Buffer, Stmts]


class Heads(Group):
    """A group's queries, keys and values.

    Of a block that begins with query `first`, `count` of the `rows` are queries, which see keys up
    to `seen`; `wide` is that number in whole tiles. Rows of `scores` are `stride` apart.
    """

    def __init__(self, b: Builder) -> None:
        super().__init__(b)
        self.rows = _height(self.n)
        self.first, self.block_count = BLOCK * self.rows, (self.n + self.rows - 1) // self.rows
        even = self.n % self.rows == 0
        self.count = self.rows if even else least(self.rows, self.n - self.first)
        ends = self.first + self.rows
        whole = even and self.n == self.m
        self.seen = self.m if not self.op.causal else ends if whole else least(ends, self.m)
        self.wide = _rounded(self.seen)
        # rows do not begin whole pages apart: caches could not hold many of such
        self.stride = _rounded(self.m) + LANES
        self.scores = self.space(self.rows * self.stride)
        self.mask = b.scratch_of(bool_, self.rows * self.stride, True) if self.masks else None

    def blocks(self, *body: Stmts) -> Stmts:
        """The body for each block of queries, the first part of it where there is a mask."""
        inside = tuple(s for part in (self.take_mask(), *body) for s in part)
        return (Loop("block'", self.block_count, inside),)

    def space(self, size: Dim) -> Buffer:
        """Workspace of which each part has its own."""
        return self.b.scratch_of(self.dtype, size, True)

    def score(self, row: Dim, key: Dim) -> Load:
        """What lies in `scores` for a row of the block and a key."""
        return Load(self.scores, row * self.stride + key)

    def keep(self, row: Dim, key: Dim, value: Value) -> Stmts:
        """Put it there."""
        return (Store(self.scores, row * self.stride + key, value),)

    def visible(self, row: Dim, key: Dim, value: Value, otherwise: Value) -> Value:
        """A value where a query may see a key; there is none behind the last."""
        tests = self.sees(self.first + row, key, self.rows)
        if self.m % WIDE != 0 and not (self.op.causal and self.n == self.m):
            tests.append(self.is_below(key, self.m))
        if self.mask is not None:
            tests.append(Load(self.mask, row * self.stride + key))
        return self.where(tests, value, otherwise)

    # what is laid out

    def panels(self, name: str, width: int) -> Laid:
        """Keys or values in panels of LANES positions, zeros behind the last."""
        read, space = self.read[name], self.space(_rounded(self.m) * width)

        def panel(first: Dim, count: Dim) -> Stmts:
            def some(start: Dim, terms: int) -> Loop:
                term = start + EACH
                value = read((*self.at, first + LANE, term))
                store = Store(space, first * width + term * LANES + LANE, value)
                return Loop("j'", count, (Loop("u'", terms, (store,), "unroll"),), "vector")

            whole, rest = divmod(width, LANES)
            inside = (Loop("term'", whole, (some(_TERM * LANES, LANES),)),) if whole else ()
            return (*inside, some(whole * LANES, rest)) if rest else inside

        body: Stmts = (Loop("panel'", self.m // LANES, panel(_PANEL * LANES, LANES)),)
        if self.m % WIDE != 0:
            begin = self.m // WIDE * WIDE
            zero = Store(space, begin * width + LANE, self.number(0))
            zeros = Loop("j'", (_rounded(self.m) - begin) * width, (zero,), "vector")
            body = (zeros, *body, *panel(self.m // LANES * LANES, self.m % LANES))
        return space, body

    def matrix(self, name: str, width: int) -> Laid:
        """Keys or values row by row."""
        space, read = self.space(self.m * width), self.read[name]
        store = Store(space, ROW * width + LANE, read((*self.at, ROW, LANE)))
        return space, over(self.m, width, store)

    def hidden(self, rows: Buffer, width: int) -> Laid:
        """For each block of queries 0 times the rows of all keys that none of it sees, added up.

        That is 0, or NaN where one is infinite or NaN, which no weight of 0 hides. Those of a block
        stand one row further; before them is that of all keys.
        """
        count = self.block_count
        space = self.space((count + 1) * width)

        def plus(block: Dim, keys: Dim) -> Stmts:
            """So many rows from a block's first on, added to what is there."""
            here, row = block * width + LANE, (block * self.rows + ROW) * width + LANE
            total = self.apply("fma", Load(rows, row), self.number(0), Load(space, here))
            return over(keys, width, Store(space, here, total))

        zero = Store(space, count * width + LANE, self.number(0))
        behind: Stmts = (Loop("j'", width, (zero,), "vector"),)
        if self.n != self.m:
            behind += plus(count, from_zero(self.m - count * self.rows))
        block = count - 1 - BLOCK
        left = self.m - block * self.rows
        left = left if self.n == self.m else from_zero(left)
        copied = Store(space, block * width + LANE, Load(space, (block + 1) * width + LANE))
        body = Loop("j'", width, (copied,), "vector"), *plus(block, least(self.rows, left))
        return space, (*behind, Loop("block'", count, body))

    def block(self, name: str, width: int) -> Laid:
        """A block of an operand's rows."""
        space, read = self.space(self.rows * width), self.read[name]
        store = Store(space, ROW * width + LANE, read((*self.at, self.first + ROW, LANE)))
        return space, (*over(self.count, width, store), *self.zeros(space, width))

    def row(self, name: str) -> Laid:
        """A block of an operand of one number a query."""
        space = self.space(self.rows)
        store = Store(space, LANE, self.read[name]((*self.at, self.first + LANE)))
        return space, (Loop("j'", self.count, (store,), "vector"), *self.zeros(space, 1))

    def take_mask(self) -> Stmts:
        """The block's rows of the mask, if there is one."""
        if self.mask is None:
            return ()
        value = self.masks[0]((*self.at, self.first + ROW, LANE))
        store = Store(self.mask, ROW * self.stride + LANE, value)
        return (*over(self.count, self.seen, store), *self.zeros(self.mask, self.stride))

    def zeros(self, space: Buffer, width: Dim) -> Stmts:
        """Zeros in the rows of a block that are no queries'."""
        if self.count == self.rows:
            return ()
        zero = Store(space, self.count * width + LANE, Literal(0, space.dtype))
        return (Loop("j'", (self.rows - self.count) * width, (zero,), "vector"),)

    # products

    def product(
        self,
        shape: tuple[Dim, Dim, Dim],
        a: Read,
        b: Read,
        epilogue: Callable[[Dim, Dim, Value], Stmts],
        start: Read | None = None,
    ) -> Stmts:
        """The product of an (m, k) and a (k, n) factor, for (m, n, k), in tiles."""
        c = Contraction((), *shape, a, b, self.dtype, epilogue, start)
        return contraction_loops(c, self.b.target, None)

    def meet(
        self, rows: Laid, panels: Laid, width: int, epilogue: Callable[[Dim, Dim, Value], Stmts]
    ) -> Stmts:
        """Rows of the block times those that panels hold, of which a query sees some."""
        shape = self.rows, self.wide, width
        return self.product(shape, row_major(rows[0], width), panelled(panels[0], width), epilogue)

    def sum_keys(
        self, part: str, rows: Laid, width: int, finish: Callable[[Dim, Value], Value]
    ) -> tuple[Stmts, Stmts]:
        """scores @ rows of keys, written as a part of the results once it is finished: what is laid
        out for that, and what each block does.
        """
        if part not in self.wanted:
            return (), ()
        sums = self.space(self.rows * width)
        begun, before = self.hidden(rows[0], width) if self.op.causal else (None, ())

        def keep(row: Dim, column: Dim, acc: Value) -> Stmts:
            return (Store(sums, row * width + column, finish(row, acc)),)

        def start(_: Dim, column: Dim) -> Value:
            assert begun is not None
            return Load(begun, (BLOCK + 1) * width + column)

        shape, second = (self.rows, width, self.seen), row_major(rows[0], width)
        product = self.product(shape, self.score, second, keep, None if begun is None else start)
        stored = self.store(part, self.first + ROW, LANE, Load(sums, ROW * width + LANE))
        return (*rows[1], *before), (*product, *over(self.count, width, stored))

    def sum_queries(
        self, part: str, rows: Laid, width: int, factor: float, hidden: Buffer
    ) -> tuple[Stmts, Stmts, Stmts]:
        """scoresᵀ @ rows of queries, added up over blocks, times a factor: how that begins, what
        each block adds, how it ends.

        Under a causal mask a key begins with what all queries of earlier blocks are worth to it: 0
        times a number of each query, `hidden`, times its row.
        """
        if part not in self.wanted:
            return (), (), ()
        sums = self.space(_rounded(self.m) * width)
        so_far = row_major(sums, width)

        def keep(key: Dim, column: Dim, acc: Value) -> Stmts:
            return (Store(sums, key * width + column, acc),)

        def from_to(first: Dim, end: Dim, value: Value) -> Stmts:
            return over(end - first, width, Store(sums, (first + ROW) * width + LANE, value))

        shape = self.wide, width, self.rows
        step = self.product(
            shape, lambda key, row: self.score(row, key), row_major(rows[0], width), keep, so_far
        )
        begin = from_to(0, _rounded(self.m), self.number(0))
        end: Stmts = ()
        if self.op.causal:
            earlier = self.space(width)
            begin = (Loop("j'", width, (Store(earlier, LANE, self.number(0)),), "vector"),)
            nothing = self.nothing(Load(hidden, ROW))
            total = self.apply(
                "fma", Load(rows[0], ROW * width + LANE), nothing, Load(earlier, LANE)
            )
            step = (
                *from_to(self.wide_at(BLOCK), self.wide, Load(earlier, LANE)),
                *step,
                *over(self.rows, width, Store(earlier, LANE, total)),
            )
            end = from_to(self.wide_at(self.block_count), _rounded(self.m), Load(earlier, LANE))
        value = so_far(ROW, LANE)
        value = value if factor == 1 else self.apply("mul", value, self.number(factor))
        return begin, step, (*end, *over(self.m, width, self.store(part, ROW, LANE, value)))

    def wide_at(self, block: Dim) -> Dim:
        """How many keys the queries before a block see, in whole tiles."""
        return _rounded(least(block * self.rows, self.m))

    def stored_row(self, part: str, value: Value) -> Stmts:
        """A result of one number a query written, if it is wanted."""
        if part not in self.wanted:
            return ()
        store = self.store_row(part, self.first + LANE, value)
        return (Loop("j'", self.count, (store,), "vector"),)


def row_major(space: Buffer, width: Dim) -> Read:
    """Reads rows that lie one behind another."""
    return lambda row, column: Load(space, row * width + column)


def panelled(space: Buffer, width: Dim) -> Read:
    """Reads panels, at a position whose lane is j'."""
    return lambda term, column: Load(space, (column - LANE) * width + term * LANES + LANE)


def over(rows: Dim, columns: Dim, body: Store) -> Stmts:
    """A statement for each element of a matrix."""
    return (Loop("row'", rows, (Loop("j'", columns, (body,), "vector"),)),)


def _height(n: Dim) -> int:
    """Rows of a block: for known n of about equal blocks."""
    if not isinstance(n, int):
        return ROWS
    blocks = max(1, -(-n // ROWS))
    return max(1, -(-n // (blocks * EVEN))) * EVEN


def _rounded(size: Dim) -> Dim:
    """A size in whole tiles."""
    return (size + WIDE - 1) // WIDE * WIDE
