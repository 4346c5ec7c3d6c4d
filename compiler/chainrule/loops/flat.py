"""Products of narrow rows whose long epilogue goes along the result as one line.

A weight of ten columns fills ten lanes of sixteen, row after row, and a row is read where the last
lanes of the one before have just been written, which is waited for. Where nothing of the epilogue
asks for row and column apart, sums of some rows are laid down and it takes them LANES at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from chainrule.ir.loop import (
    LANES,
    Buffer,
    Get,
    IndexValue,
    Load,
    Local,
    Loop,
    Store,
    Value,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size
from chainrule.loops.nest import SHARED_PANELS
from chainrule.loops.parts import by_one
from chainrule.loops.tiles import Contraction, epilogue_operations
from chainrule.loops.walk import postorder, statements, values_of

#: operations of an epilogue from which that is worth laying sums down, rows of them at least, and
#: the share of the lanes that a row may fill: whose are full has nothing to gain
LONG, FEWEST, MOST_FILLED = 12, 8, 0.8

_M, _N, _C = (Size.symbol(f"{name}'") for name in "mnc")


def flat_size(c: Contraction) -> int:
    """Elements of workspace that `flat_loops` wants; 0 for a product that is not of this kind."""
    if not isinstance(c.m, int) or not isinstance(c.n, int) or c.start or c.terms or c.inside:
        return 0
    lanes = -(-c.n // LANES) * LANES
    if c.m < SHARED_PANELS * _rows(c.n) or c.n > MOST_FILLED * lanes or c.groups:
        return 0
    if epilogue_operations(c.epilogue, c.dtype) < LONG:
        return 0
    same = _places(c, _M, _N) == _places(c, 0, _M * c.n + _N)
    return _rows(c.n) * c.n if same else 0


def _rows(n: int) -> int:
    """How many rows are laid down together: they are whole vectors, and some for a tile."""
    whole = LANES // math.gcd(n, LANES)
    return whole * -(-FEWEST // whole)


def _places(c: Contraction, m: Dim, n: Dim) -> list[tuple[str, Dim]]:
    """All that an epilogue reads, writes and counts by its place."""
    found: list[tuple[str, Dim]] = []
    for s in statements(c.epilogue(m, n, Get(Local("acc", c.dtype, (), True)))):
        for v in postorder(*values_of(s)):
            if isinstance(v, Load):
                found.append((v.buffer.name, v.offset))
                found.append((v.buffer.name, v.stride))
            elif isinstance(v, IndexValue):
                found.append(("", v.index))
        if isinstance(s, Store):
            found.append((s.buffer.name, s.offset))
    return found


def flat_loops(
    c: Contraction, sums: Buffer, split: bool, loops: Callable[[Contraction], Stmts]
) -> Stmts:
    """The loops of such a product; `loops` makes those of one with another epilogue."""
    assert isinstance(c.m, int) and isinstance(c.n, int)
    each, width = _rows(c.n), c.n

    def some(first: Dim, rows: int) -> Stmts:
        def keep(m: Dim, n: Dim, acc: Value) -> Stmts:
            return (Store(sums, m * width + n, acc),)

        part = replace(c, m=rows, a=lambda m, k: c.a(first + m, k), epilogue=keep)
        ending = c.epilogue(0, first * width + _N, Load(sums, _N))
        return (*loops(part), Loop("n'", rows * width, ending, "vector"))

    whole, rest = divmod(c.m, each)
    body: Stmts = (Loop("c'", whole, some(_C * each, each), split=split),)
    if not rest:
        return body
    last = some(whole * each, rest)
    return (*body, *(by_one(last) if split else last))
