"""What a GPU does around a step so that many can go by themselves: rows of a minibatch brought
together, results of a step put behind those of the steps before, and copies.

How many steps are done stands in a cursor on the GPU, so that each step is the same launches.
"""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.ir.loop import (
    Apply,
    Buffer,
    Check,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Loop,
    Program,
    Set,
    Store,
    Value,
    When,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size, product
from chainrule.ir.types import DType, bool_, int64, uint32, uint64
from chainrule.loops.launch import Launch
from chainrule.ops.philox import SHUFFLE_DRAW

#: the parameters of `gather` after its buffers: rows of a minibatch, elements of a row; of an epoch
#: the rows, the steps, and the rows of all minibatches but the last; the step at which the cursor
#: is 0, from the beginning of the first of so many epochs
GATHER_SIZES = ("count", "row", "rows", "steps", "size", "first", "epochs")
#: those of `log`: elements of a result, and how many results there will be
LOG_SIZES = ("count", "total")
#: those of `sort_pairs`: rows, half a block, and how many pairs are compared
SORT_SIZES = ("rows", "half", "pairs")


def gather(dtype: DType) -> Launch:
    """The rows of this step's minibatch, of data that lies there whole, by their order.

    Buffers: the data, the numbers of rows in order, epoch after epoch, the cursor, the minibatch.
    """
    count, row, rows, steps, size, first, epochs = map(Size.symbol, GATHER_SIZES)
    data, out = Buffer("data", dtype, rows * row), Buffer("out", dtype, count * row)
    order, cursor = Buffer("order", int64, rows * epochs), Buffer("cursor", int64, 1)
    i, j = Size.symbol("i'"), Size.symbol("j'")
    step = _sum(Load(cursor, 0), _number(first))
    epoch = Apply("quotient", (step, _number(steps)), int64)
    in_epoch = _sum(step, Apply("neg", (_product(epoch, steps),), int64))
    place = _sum(_sum(_product(epoch, rows), _product(in_epoch, size)), _number(i))
    chosen = Load(order, 0, place, 1)
    return _launch(
        "gather",
        (data, order, cursor, out),
        GATHER_SIZES,
        (("i'", count), ("j'", row)),
        (Store(out, i * row + j, Load(data, j, chosen, row)),),
    )


def log(dtype: DType) -> Launch:
    """A step's result, of so many elements, put where the log of this step begins.

    Buffers: the result, the log, the cursor.
    """
    count, total = map(Size.symbol, LOG_SIZES)
    j = Size.symbol("j'")
    out, kept = Buffer("out", dtype, count), Buffer("log", dtype, count * total)
    cursor = Buffer("cursor", int64, 1)
    store = Store(kept, j, Load(out, j), Load(cursor, 0), count)
    return _launch("log", (out, kept, cursor), LOG_SIZES, (("j'", count),), (store,))


def check_order(code: int) -> Launch:
    """Leave with a code where a number of the order is no row: the buffer, and how many rows."""
    rows, i = Size.symbol("rows"), Size.symbol("i'")
    order = Buffer("order", int64, rows)
    number = Load(order, i)
    tests = ("ge", Literal(0, int64)), ("lt", _number(rows))
    body = tuple(Check(Apply(fn, (number, bound), bool_), code) for fn, bound in tests)
    return _launch("check_order", (order,), ("rows",), (("i'", rows),), body)


def shuffle_keys(code: int) -> Launch:
    """A random word for each row, by which rows are sorted, and the rows as they lie; leaves with a
    code where the epoch has no 32 bits. Buffers: the seed, the epoch, the rows, their words.
    """
    rows, i = Size.symbol("rows"), Size.symbol("i'")
    seed, epoch = Buffer("seed", uint64, 1), Buffer("epoch", uint64, 1)
    order, keys = Buffer("order", int64, rows), Buffer("keys", uint64, rows)
    row, key, now = IndexValue(i, uint64), Load(seed, 0), Load(epoch, 0)

    def high(x: Value) -> Value:
        return Apply("lshr", (x, Literal(32, uint64)), uint64)

    given = (row, high(row), now, Literal(SHUFFLE_DRAW, uint64), key, high(key))
    wide = (Apply(f"philox_{w}", given, uint64) for w in range(2))
    words = (Apply("cast", (word,), uint32) for word in wide)
    first, second = (Apply("cast", (word,), uint64) for word in words)
    upper = Apply("shl", (first, Literal(32, uint64)), uint64)
    body: Stmts = (
        Check(Apply("lt", (now, Literal(2**32, uint64)), bool_), code),
        Store(keys, i, Apply("or_", (upper, second), uint64)),
        Store(order, i, IndexValue(i, int64)),
    )
    return _launch("shuffle_keys", (seed, epoch, order, keys), ("rows",), (("i'", rows),), body)


def sort_pairs(first: bool) -> Launch:
    """A step of a sort of rows by their words, ascending, equal ones by row: of blocks of `half` a
    pair each, the `first` step of a merge compares the lower one upwards with the upper one
    downwards, the others each with its like. What would lie behind the last row is left out.

    Bitonic sorting, all steps of which go one way (Knuth, The Art of Computer Programming 3, 1998,
    5.3.4). Buffers: the rows, their words.
    """
    rows, half, pairs = map(Size.symbol, SORT_SIZES)
    order, keys = Buffer("order", int64, rows), Buffer("keys", uint64, rows)
    p = Size.symbol("i'")
    low = p // half * half * 2 + p % half
    above = p // half * half * 2 + half * 2 - 1 - p % half if first else low + half
    cells = [(Local(f"{x}k", uint64), Local(f"{x}r", int64)) for x in "ab"]
    (ka, ra), (kb, rb) = ((Get(k), Get(r)) for k, r in cells)
    wrong = Apply("lt", (kb, ka), bool_)
    tie = Apply("and_", (Apply("eq", (ka, kb), bool_), Apply("lt", (rb, ra), bool_)), bool_)
    swap = Local("swap", bool_)
    reads = (
        Set(cell, (), Load(buffer, at))
        for at, own in zip((low, above), cells, strict=True)
        for cell, buffer in zip(own, (keys, order), strict=True)
    )
    stores = (
        Store(buffer, at, Apply("where", (Get(swap), other, own), buffer.dtype))
        for buffer, at, own, other in (
            (keys, low, ka, kb), (keys, above, kb, ka), (order, low, ra, rb), (order, above, rb, ra)
        )
    )  # fmt: skip
    body: Stmts = (*reads, Set(swap, (), Apply("or_", (wrong, tie), bool_)), *stores)
    inside: Stmts = (*(x for own in cells for x in own), swap, When(((above, rows),), body))
    name = "sort_first" if first else "sort_rest"
    return _launch(name, (order, keys), SORT_SIZES, (("i'", pairs),), inside)


def check_words(wanted: Mapping[int, tuple[int, int]]) -> Launch:
    """Leave where a word of memory is another than wanted: by its place the word, as an int64, and
    the code. The buffer is that memory.
    """
    head = Buffer("head", int64, max(wanted) + 1)
    body = tuple(
        Check(Apply("eq", (Load(head, at), Literal(word, int64)), bool_), code)
        for at, (word, code) in wanted.items()
    )
    return _launch("check_words", (head,), (), (("i'", 1),), body)


def advance() -> Launch:
    """One step more is done; the buffer is the cursor."""
    cursor = Buffer("cursor", int64, 1)
    more = Store(cursor, 0, _sum(Load(cursor, 0), Literal(1, int64)))
    return _launch("advance", (cursor,), (), (("i'", 1),), (more,))


def copy(dtype: DType) -> Launch:
    """So many elements from the first buffer to the second."""
    count, j = Size.symbol("count"), Size.symbol("j'")
    source, target = Buffer("source", dtype, count), Buffer("target", dtype, count)
    move = Store(target, j, Load(source, j))
    return _launch("copy", (source, target), ("count",), (("j'", count),), (move,))


def _launch(
    name: str,
    buffers: tuple[Buffer, ...],
    sizes: tuple[str, ...],
    over: tuple[tuple[str, Dim], ...],
    body: Stmts,
) -> Launch:
    for var, extent in reversed(over):
        body = (Loop(var, extent, body, split=True),)
    parts = product(tuple(extent for _, extent in over))
    return Launch(Program(name, buffers, sizes, body), 1, parts)


def _number(dim: Dim) -> Value:
    return IndexValue(dim, int64)


def _sum(a: Value, b: Value) -> Value:
    return Apply("add", (a, b), int64)


def _product(a: Value, by: Dim) -> Value:
    return Apply("mul", (a, _number(by)), int64)
