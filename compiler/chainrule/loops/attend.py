"""Attention and its derivative: some rows of scores at a time, and all that they are for is made of
them before the next ones come.

Scores, and their cotangents, of a block of queries lie in workspace: memory grows with the number
of keys, not with its square. Under a causal mask a block goes no further than its last query sees.
Each sum is one chain, in the order of keys or of queries, as of a product of whole matrices: what
is left out would have added 0, or NaN where it is not finite, which a sum begins with then. So
neither blocks nor tiles show in a result.
"""

from __future__ import annotations

import math
from itertools import chain

from chainrule.ir.loop import (
    Buffer,
    Combine,
    Get,
    Load,
    Local,
    Loop,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, product
from chainrule.loops.builder import Builder
from chainrule.loops.heads import EACH, LANE, ROW, Heads
from chainrule.ops.attend import AttendBack

#: rows that are folded side by side, so that none waits for another
TOGETHER = 4

_HERE = ROW * TOGETHER + EACH


def attend_loops(b: Builder) -> Stmts:
    """Attention, or its derivative, of one group after the other; parts share the groups."""
    heads, op = Heads(b), b.kernel.anchor.op
    body = _backward(heads, op) if isinstance(op, AttendBack) else _forward(heads)
    return (Loop("group'", product(heads.lead), body, split=True),)


def _forward(h: Heads) -> Stmts:
    """Scores, their softmax but for its divisor, and what that makes of values."""
    keys, q = h.panels("k", h.d), h.block("q", h.d)
    tops, totals = h.space(h.rows), h.space(h.rows)

    def score(row: Dim, key: Dim, acc: Value) -> Stmts:
        return h.keep(row, key, h.visible(row, key, h.scaled(acc), h.number(-math.inf)))

    def mean(row: Dim, acc: Value) -> Value:
        return h.apply("div", acc, Load(totals, row))

    laid, sums = h.sum_keys("out", h.matrix("v", h.e), h.e, mean)
    lse = h.lse(Load(tops, LANE), Load(totals, LANE))
    blocks = h.blocks(
        q[1],
        h.meet(q, keys, h.d, score),
        _exponentials(h, tops, totals),
        sums,
        h.stored_row("lse", lse),
    )
    return (*keys[1], *laid, *blocks)


def _backward(h: Heads, op: AttendBack) -> Stmts:
    """Weights once more, their cotangents, and what both make of queries, keys and values."""
    keys, q, ct, lse = h.panels("k", h.d), h.block("q", h.d), h.block("ct", h.e), h.row("lse")

    def weigh(row: Dim, key: Dim, acc: Value) -> Stmts:
        here = Load(lse[0], row)
        weight, none = h.weight(acc, here), h.nothing(here)
        return h.keep(row, key, h.visible(row, key, weight, none))

    steps = [q[1], ct[1], lse[1], h.meet(q, keys, h.d, weigh)]
    sums = [h.sum_queries("dv", ct, h.e, 1, lse[0])]
    steps.append(sums[0][1])
    laid = [keys[1]]
    if h.wanted.keys() - {"dv"}:
        values, out, shifts = h.panels("v", h.e), h.block("out", h.e), h.space(h.rows)

        def pull(row: Dim, key: Dim, acc: Value) -> Stmts:
            return h.keep(row, key, h.pulled(h.score(row, key), acc, Load(shifts, row)))

        sums.append(h.sum_queries("dk", q, h.d, op.factor, shifts))
        steps += [
            out[1],
            _dots(h, ct[0], out[0], shifts),
            h.meet(ct, values, h.e, pull),
            sums[1][1],
        ]
        laid.append(values[1])
    if "dq" in h.wanted:
        factor = h.number(op.factor)
        before, step = h.sum_keys(
            "dq", h.matrix("k", h.d), h.d, lambda _, acc: h.apply("mul", acc, factor)
        )
        steps.append(step)
        laid.append(before)
    begins, _, ends = (chain.from_iterable(part) for part in zip(*sums, strict=True))
    return (*chain.from_iterable(laid), *begins, *h.blocks(*steps), *ends)


def _each(*body: Stmt) -> Loop:
    return Loop("u'", TOGETHER, body, "unroll")


def _exponentials(h: Heads, tops: Buffer, totals: Buffer) -> Stmts:
    """exp(score - the row's largest) in the place of each score; those, and the row's sum.

    A row that sees no key has 0 for the largest, and 1 for the sum.
    """
    top, total, power = (Local(x, h.dtype, (TOGETHER,), True) for x in ("top", "total", "power"))
    one, u = Local("one", h.dtype, (TOGETHER,)), (EACH,)
    score, low, none = h.score(_HERE, LANE), h.number(-math.inf), h.number(0)

    def along(*body: Stmt) -> Loop:
        return Loop("j'", h.wide, (_each(*body),), "vector")

    rows = (
        _each(Set(top, u, low), Set(total, u, none)),
        along(Set(top, u, h.apply("maximum", Get(top, u), score))),
        _each(Set(one, u, Combine("maximum", top, u)), Set(one, u, h.top(Get(one, u)))),
        _each(Store(tops, _HERE, Get(one, u))),
        along(
            Set(power, u, h.power(h.apply("sub", score, Get(one, u)))),
            *h.keep(_HERE, LANE, Get(power, u)),
            Set(total, u, h.apply("add", Get(total, u), Get(power, u))),
        ),
        _each(Set(one, u, Combine("add", total, u)), Store(totals, _HERE, h.total(Get(one, u)))),
    )
    return (top, total, power, one, Loop("row'", h.rows // TOGETHER, rows))


def _dots(h: Heads, x: Buffer, y: Buffer, sums: Buffer) -> Stmts:
    """The inner product of each row of two blocks."""
    acc, u = Local("acc", h.dtype, (TOGETHER,), True), (EACH,)
    at = _HERE * h.e + LANE
    term = Set(acc, u, h.apply("fma", Load(x, at), Load(y, at), Get(acc, u)))
    rows = (
        _each(Set(acc, u, h.number(0))),
        Loop("j'", h.e, (_each(term),), "vector"),
        _each(Store(sums, _HERE, Combine("add", acc, u))),
    )
    return (acc, Loop("row'", h.rows // TOGETHER, rows))
