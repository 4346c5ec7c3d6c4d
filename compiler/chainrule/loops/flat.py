"""Products of narrow rows whose long epilogue goes along the result as one line.

A weight of ten columns fills ten lanes of sixteen, row after row, and a row is read where the last
lanes of the one before have just been written, which is waited for. Where nothing of the epilogue
asks for row and column apart, all sums are laid down first and it takes them LANES at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chainrule.ir.loop import (
    LANES,
    Barrier,
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
from chainrule.loops.tiles import Contraction, epilogue_operations
from chainrule.loops.walk import postorder, statements, values_of

#: operations of an epilogue from which that is worth laying sums down, bytes of those that stay
#: near, and the share of the lanes that a row may fill: whose are full has nothing to gain
LONG, NEAR_BYTES, MOST_FILLED = 12, 2**17, 0.8

_M, _N = (Size.symbol(f"{name}'") for name in "mn")


def flat_size(c: Contraction) -> int:
    """Elements of workspace that `flat_loops` wants; 0 for a product that is not of this kind."""
    if not isinstance(c.m, int) or not isinstance(c.n, int) or c.start or c.terms or c.inside:
        return 0
    size, lanes = c.m * c.n, -(-c.n // LANES) * LANES
    if c.m < 2 or c.groups or c.n > MOST_FILLED * lanes or size * c.dtype.itemsize > NEAR_BYTES:
        return 0
    if epilogue_operations(c.epilogue, c.dtype) < LONG:
        return 0
    return size if _places(c, _M, _N) == _places(c, 0, _M * c.n + _N) else 0


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
    width = c.n

    def keep(m: Dim, n: Dim, acc: Value) -> Stmts:
        return (Store(sums, m * width + n, acc),)

    between = (Barrier(),) if split else ()
    ending = c.epilogue(0, _N, Load(sums, _N))
    line = Loop("n'", c.m * c.n, ending, "vector", split=split)
    return (*loops(replace(c, epilogue=keep)), *between, line)
