"""How a program is divided among parts that run at once, and whether that is worth it.

Forms say where their iterations are independent; no sum is ever divided, so a result does not show
how many parts there were.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Blocks,
    Let,
    Load,
    Loop,
    Program,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.machine import MACHINE
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, substitute
from chainrule.loops.walk import postorder, statements, values_of

#: a flat loop over fewer elements than this is not divided
SHORT = 4 * LANES
#: what is counted, in about a vector operation's share of an element: memory written, a value read
#: that no tile holds, a function that is a polynomial, what is done a number at a time, and two
#: blocks that are multiplied
WRITTEN, READ, POLYNOMIAL, SCALAR, BLOCK = 8, 2, 8, 8, 256


def split_outermost(body: Stmts, depth: int) -> Stmts:
    """A nest of at most `depth` loops with the outermost that is worth it split, if one is.

    A loop of one iteration is passed over where nothing but the next loop stands in it.
    """
    if depth == 0 or len(body) != 1 or not isinstance(body[0], Loop):
        return body
    loop = body[0]
    if loop.extent == 1:
        return (replace(loop, body=split_outermost(loop.body, depth - 1)),)
    short = loop.mode == "vector" and isinstance(loop.extent, int) and loop.extent <= SHORT
    return body if short or loop.mode == "unroll" else (replace(loop, split=True),)


def by_one(body: Stmts) -> Stmts:
    """Statements that one part does."""
    return (Loop("one'", 1, body, split=True),)


def shared_nest(body: Stmts, depth: int) -> Stmts:
    """A nest that parts share, or that one of them does."""
    divided = split_outermost(body, depth)
    return (
        divided
        if any(isinstance(s, Loop) and s.split for s in statements(divided))
        else (by_one(body))
    )


def shared(body: Stmts) -> Stmts:
    """Nests of which each is shared, or done by one part."""
    nests = ((s,) if isinstance(s, Barrier) else shared_nest((s,), 1) for s in body)
    return tuple(s for nest in nests for s in nest)


def is_split(program: Program) -> bool:
    """Whether several parts of a program have something to do."""
    return any(isinstance(s, Loop) and s.split and s.extent != 1 for s in statements(program.body))


def work_of(program: Program) -> Dim:
    """About how much a program does, in vector operations on one element; loops inside another are
    taken to be as long as the first time.
    """
    return _work(program.body, False, False)


def _work(body: Iterable[Stmt], vector: bool, unrolled: bool) -> Dim:
    total: Dim = 0
    named: dict[str, Dim] = {}
    for s in body:
        if isinstance(s, Let):
            named[s.var] = substitute(s.value, named)
        elif isinstance(s, Loop):
            inside = _work(s.body, vector or s.mode == "vector", unrolled or s.mode == "unroll")
            total = total + s.extent * substitute(inside, {s.var: 0})
        elif isinstance(s, Blocks):
            total = total + s.steps * (s.rows * s.columns * s.parts**2 * BLOCK)
        elif isinstance(s, Set | Store):
            each = sum(_cost(v, unrolled) for v in postorder(*values_of(s)))
            each += WRITTEN if isinstance(s, Store) else 0
            total = total + (each if vector else each * SCALAR)
    return substitute(total, named)


def _cost(value: Value, unrolled: bool) -> int:
    if isinstance(value, Apply):
        return 1 if value.fn in MACHINE else POLYNOMIAL
    if isinstance(value, Load) and not unrolled:
        return READ
    return 0
