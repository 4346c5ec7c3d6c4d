"""Products of bfloat16 factors: the template for pairs along the sums, two to a word.

Both factors are copied first: LANES rows or columns side by side, for each of them one word a pair
of its terms, so that an instruction that multiplies pairs finds them where it reads. Where a sum
has an odd number of terms, the last pair ends with 0. A word's upper half is added before its lower
half (ops.pairs), pair after pair, from 0, for at most STRETCH pairs; the sums of stretches, about
equally long, are added up in order. That is one order, which the number of terms alone decides: it
is the same at every instruction level, with that instruction and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Buffer,
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
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import bool_, float32, int32, int64
from chainrule.loops.nest import rows_are_more, slope_along
from chainrule.loops.parts import by_one
from chainrule.loops.tiles import Columns, Contraction, Rows
from chainrule.loops.walk import postorder
from chainrule.target import Target

#: pairs whose products are added up before the sum joins that of the stretches before
STRETCH = 128
#: terms, and for sums of one stretch rows and columns, below which copies cost more than they give
LEAST = 8

_M, _N, _P, _Q, _I, _V, _J, _S, _U = (Size.symbol(f"{name}'") for name in "mnpqivjsu")


def takes_pairs(c: Contraction) -> bool:
    """Whether the template takes a product of bfloat16 factors: not a small one."""
    if isinstance(c.k, int) and c.k <= 2 * STRETCH:
        return not any(isinstance(d, int) and d < LEAST for d in (c.m, c.n, c.k))
    return True


def word_sizes(c: Contraction) -> tuple[Dim, Dim]:
    """Words of workspace that the copies of both factors take."""
    return _panels(c.m) * LANES * _pairs(c), _panels(c.n) * LANES * _pairs(c)


def sums_size(target: Target) -> int:
    """Elements of workspace for the sums of a tile."""
    return max(_height(target, v) * v * LANES for v in range(1, _most_vectors(target) + 1))


def pair_loops(
    c: Contraction, target: Target, words: tuple[Buffer, Buffer], sums: Buffer, split: bool
) -> tuple[Stmt, ...]:
    """The loops of a product, its factors copied to `words`, a tile's sums to `sums`.

    With `split` the parts of a program share it, inside the groups.
    """
    between = (Barrier(),) if split else ()
    body = (*c.before, *between) if c.before else ()
    body += _copied(words[0], c.m, c.k, lambda m, k: c.a(m, k), split)
    body += _copied(words[1], c.n, c.k, lambda n, k: c.b(k, n), split)
    body += between
    for rows, columns in _tiles(c, target):
        body += _nest(c, words, sums, rows, columns, split)
    body += between if c.groups else ()
    for var, extent in reversed(c.groups):
        body = (Loop(var, extent, body),)
    return body


# copies


def _pairs(c: Contraction) -> Dim:
    return (c.k + 1) // 2


def _panels(size: Dim) -> Dim:
    return (size + LANES - 1) // LANES


def _copied(
    words: Buffer, size: Dim, k: Dim, read: Callable[[Dim, Dim], Value], split: bool
) -> tuple[Stmt, ...]:
    """A factor in panels of LANES rows or columns, of which `read` gives an element; a panel holds
    the words of its first pair, then those of the next.

    Where the rows of a panel lie apart, squares of LANES x LANES are turned; what is left beside
    them is read one by one.
    """
    pairs, blocks = (k + 1) // 2, k // LANES
    apart = _lie_apart(read)

    def place(row: Dim, pair: Dim) -> Dim:
        return row // LANES * LANES * pairs + pair * LANES + row % LANES

    def single(row: Dim, first: Dim) -> tuple[Stmt, ...]:
        """The words of one row from a pair on."""
        both = Apply("pair", (read(row, 2 * (first + _P)), read(row, 2 * (first + _P) + 1)), int32)
        half = Apply("pair", (read(row, k - 1), Literal(0, float32)), int32)
        whole = Loop("p'", k // 2 - first, (Store(words, place(row, first + _P), both),))
        return whole, Loop("p'", k % 2, (Store(words, place(row, k // 2), half),))

    def block(panel: Dim, width: Dim, first: Dim, count: int) -> Stmt:
        """So many terms of a panel, from an even one on."""
        terms = Local("terms", float32, (count + count % 2,), True)
        at = panel * LANES * pairs + (first // 2 + _Q) * LANES + _J
        word = Apply("pair", (Get(terms, (2 * _Q,)), Get(terms, (2 * _Q + 1,))), int32)
        body: tuple[Stmt, ...] = (
            Loop("i'", count, (Set(terms, (_I,), read(panel * LANES + _J, first + _I)),), "unroll"),
            *((Set(terms, (count,), Literal(0, float32)),) if count % 2 else ()),
            Loop("q'", (count + 1) // 2, (Store(words, at, word),), "unroll"),
        )
        return Loop("once'", 1, (terms, Loop("j'", width, body, "vector")))

    def panel(number: Dim, width: Dim, beside: int = 1) -> tuple[Stmt, ...]:
        """A panel, or so many side by side, some terms of each in turn."""
        across = (lambda s: Loop("u'", beside, (s,))) if beside > 1 else (lambda s: s)
        body: tuple[Stmt, ...] = (
            Loop("p'", blocks, (across(block(number, width, _P * LANES, LANES)),)),
        )
        if k % LANES == 0:
            return body
        if apart:
            rest = single(number * LANES + _I, blocks * (LANES // 2))
            return (*body, Loop("i'", width, rest))
        if isinstance(k, int):
            return (*body, across(block(number, width, blocks * LANES, k % LANES)))
        two = block(number, width, blocks * LANES + 2 * _P, 2)
        odd = block(number, width, k // 2 * 2, 1)
        ends = Loop("p'", k % LANES // 2, (across(two),)), Loop("p'", k % 2, (across(odd),))
        return (*body, *ends)

    body: tuple[Stmt, ...] = (Loop("n'", size // LANES, panel(_N, LANES), split=split),)
    if not apart and isinstance(size, int) and size >= 2 * LANES:
        # a line of memory holds terms of two panels
        both = Loop("n'", size // (2 * LANES), panel(2 * _N + _U, LANES, 2), split=split)
        odd = panel(size // LANES - 1, LANES) if size // LANES % 2 else ()
        body = (both, *(by_one(odd) if split and odd else odd))
    if size % LANES == 0:
        return body
    if apart:
        rest = Loop("i'", size % LANES, single(size // LANES * LANES + _I, 0), split=split)
        return (*body, rest)
    last = panel(size // LANES, size % LANES)
    return (*body, *(by_one(last) if split else last))


def _lie_apart(read: Callable[[Dim, Dim], Value]) -> bool:
    loads = [v for v in postorder(read(_M, _P)) if isinstance(v, Load)]
    return any(slope_along(load, "m'") not in (0, 1) for load in loads)


# tiles


def _most_vectors(target: Target) -> int:
    wide = target.registers_of(float32.itemsize, LANES) == 1
    return 3 if wide and target.vector_registers >= 32 else 1


def _height(target: Target, vectors: int) -> int:
    """Rows of a tile: a power of two, so that they lie in one panel; sums fill three quarters of
    the registers at most.
    """
    room = target.vector_registers * 3 // 4
    rows = max(1, room // (vectors * target.registers_of(float32.itemsize, LANES)))
    return min(LANES, 1 << rows.bit_length() - 1)


def _tiles(c: Contraction, target: Target) -> Iterator[tuple[Rows, Columns]]:
    for columns in _columns(c.n, _most_vectors(target)):
        for rows in _rows(c.m, _height(target, columns.vectors), columns.vectors):
            yield rows, columns


def _rows(m: Dim, height: int, vectors: int) -> Iterator[Rows]:
    yield Rows(height, m // height, 0, vectors)
    if isinstance(m, int):
        if m % height:
            yield Rows(m % height, 1, m - m % height, vectors)
        return
    above = height
    for lower in [h for h in (8, 4, 1) if h < height]:
        yield Rows(lower, m % above // lower, m // above * above, vectors)
        above = lower


def _columns(n: Dim, most: int) -> Iterator[Columns]:
    """Panels of `most` vectors, and what is left in about equal ones."""
    width = most * LANES
    if not isinstance(n, int):
        yield Columns(most, n // width, 0)
        if most > 1:
            yield Columns(1, n % width // LANES, n // width * width)
        yield Columns(1, (n % LANES + LANES - 1) // LANES, n // LANES * LANES, n % LANES)
        return
    total, last = -(-n // LANES), (n - 1) % LANES + 1
    wide, rest = divmod(total, most)
    if rest == 1 and wide and most > 2:  # two of two, not one more of one
        wide, rest = wide - 1, 4
    pieces = [2, 2] if rest == 4 else [rest] if rest else []
    if last != LANES and not pieces:
        wide, pieces = wide - 1, [most]
    if wide:
        yield Columns(most, wide, 0)
    start = wide * width
    for i, vectors in enumerate(pieces):
        yield Columns(vectors, 1, start, last if i == len(pieces) - 1 else LANES)
        start += vectors * LANES


def _nest(
    c: Contraction,
    words: tuple[Buffer, Buffer],
    sums: Buffer,
    rows: Rows,
    columns: Columns,
    split: bool,
) -> tuple[Stmt, ...]:
    """One shape of tile over its part of the result: panels outside, so that they stay near."""
    if rows.count == 0 or columns.count == 0:
        return ()
    pairs, vectors = _pairs(c), columns.vectors
    count = pairs // STRETCH + 1
    first, after = pairs * _S // count, pairs * (_S + 1) // count
    row, column = rows.start + _M * rows.rows, columns.start + _N * (vectors * LANES)
    acc = Local("acc", float32, (rows.rows, vectors), True)
    place = (_I * vectors + _V) * LANES + _J
    pair = first + _P
    left = Load(words[0], row // LANES * LANES * pairs + pair * LANES + row % LANES + _I)
    right = Load(words[1], (column + _V * LANES) * pairs + pair * LANES + _J)
    begun = Apply("gt", (IndexValue(_S, int64), Literal(0, int64)), bool_)
    so_far = Apply("where", (begun, Load(sums, place), Literal(0, float32)), float32)
    total = Apply("add", (so_far, Get(acc, (_I, _V))), float32) if count != 1 else None

    def each(body: Stmt) -> Stmt:
        across = Loop("v'", vectors, (Loop("j'", LANES, (body,), "vector"),), "unroll")
        return Loop("i'", rows.rows, (across,), "unroll")

    stretch: tuple[Stmt, ...] = (
        acc,
        each(Set(acc, (_I, _V), Literal(0, float32))),
        Loop(
            "p'",
            after - first,
            (each(Set(acc, (_I, _V), Apply("dot2", (left, right, Get(acc, (_I, _V))), float32))),),
        ),
        each(Store(sums, place, total or Get(acc, (_I, _V)))),
    )

    def finish(v: Dim, width: Dim) -> Stmt:
        value = Load(sums, (_I * vectors + v) * LANES + _J)
        return Loop("j'", width, c.epilogue(row + _I, column + v * LANES + _J, value), "vector")

    whole = vectors - (columns.last != LANES)
    ends: tuple[Stmt, ...] = (Loop("v'", whole, (finish(_V, LANES),), "unroll"),) if whole else ()
    ends += (finish(whole, columns.last),) if whole < vectors else ()
    tile = (Loop("s'", count, stretch), Loop("i'", rows.rows, ends))
    by_rows = rows_are_more(rows.count, columns.count)
    across = Loop("m'", rows.count, tile, split=split and by_rows)
    return (Loop("n'", columns.count, (across,), split=split and not by_rows),)
