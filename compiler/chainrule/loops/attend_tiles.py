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

from chainrule.ir.loop import (
    Get,
    Load,
    Local,
    Loop,
    Set,
    Store,
    When,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size, product
from chainrule.loops.builder import Builder
from chainrule.loops.group import GROUP, Group, from_zero, least
from chainrule.loops.score_tiles import Numbers, Tiles, tiles_for
from chainrule.loops.tiled import SIDE, threads
from chainrule.ops.attend import AttendBack

_T, _I, _K, _R = (Size.symbol(f"{name}'") for name in "tikr")
_BLOCK, _CHUNK = Size.symbol("block'"), Size.symbol("chunk'")
_ACROSS = _T % SIDE


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


def _forward(b: Builder) -> Stmts:
    """The largest score of each row, then the sum of its exponentials, and their products."""
    h = tiles_for(b, "f", "out")
    tops, totals = h.each_row("top"), h.each_row("total")
    out, top, left = h.sums("out"), _BLOCK * h.tile, _K * h.tile
    end = least(top + h.tile, h.m) if h.op.causal else h.m
    score = h.visible(top, left, h.scaled(Get(h.acc, h.cell)), h.number(-math.inf))
    power = h.power(h.apply("sub", score, Get(tops, (_I,))))
    scores = (*h.look(top, left), *h.meet("q", "k", h.d, top, left))
    larger = Set(tops, (_I,), h.apply("maximum", Get(tops, (_I,)), score))
    exponential = Set(h.acc, h.cell, power)
    more = Set(totals, (_I,), h.apply("add", Get(totals, (_I,)), Get(h.acc, h.cell)))
    kept = Store(h.scores, h.score_at(h.column(0), h.row(0)), Get(h.acc, h.cell))
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
        mean = h.apply("div", Get(out, h.cell), Get(totals, (_I,)))
        body += (h.finish("out", out, h.e, top, h.n, mean),)
    if "lse" in h.wanted:
        row = h.row(top)
        lse = h.store_row("lse", row, h.lse(Get(tops, (_I,)), Get(totals, (_I,))))
        first = ((row, h.n), (h.number_of, 1), (_CHUNK, 1))
        body += (threads(h.rows(When(first, (lse,)))),)
    return h.parts(h.n, body)


def _shifts(b: Builder) -> tuple[Numbers, Stmts]:
    """For each query the product of the result and its cotangent: how it is read, and made."""
    h = Tiles(b, "s", "out")
    shifts = b.scratch_of(h.dtype, product((*h.lead, h.n)))
    sums, row, column = h.each_row("sum"), h.row(_BLOCK * h.tile), _ACROSS + _R * SIDE
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
    return lambda row: Load(shifts, GROUP * h.n + row), h.parts(h.n, body, chunks=1)


def _weights(h: Tiles, top: Dim, left: Dim, lse: Local, to: Local) -> Stmts:
    """A tile of weights, made once more."""
    made, none = h.weight(Get(h.acc, h.cell), Get(lse, (_I,))), h.nothing(Get(lse, (_I,)))
    weight = Set(to, h.cell, h.visible(top, left, made, none))
    return (*h.look(top, left), *h.meet("q", "k", h.d, top, left), threads(h.each(weight)))


def _pulled(h: Tiles, top: Dim, left: Dim, weights: Local, shift: Local, at: Dim) -> Stmts:
    """A tile of the cotangents of scores, written in shared memory."""
    pulled = h.pulled(Get(weights, h.cell), Get(h.acc, h.cell), Get(shift, (_I,)))
    return (*h.meet("ct", "v", h.e, top, left), threads(h.each(Store(h.scores, at, pulled))))


def _queries(b: Builder, shifts: Numbers) -> Stmts:
    """The gradient of queries: each block of them goes along the keys that it sees."""
    h = tiles_for(b, "q", "dq")
    weights, dq = h.square("weight"), h.sums("dq")
    lse, shift = h.each_row("lse"), h.each_row("shift")
    top, left = _BLOCK * h.tile, _K * h.tile
    seen = least(top + h.tile, h.m)
    result = h.apply("mul", Get(dq, h.cell), h.number(h.factor))
    body: Stmts = (
        h.acc, h.seen, weights, dq, lse, shift,
        h.numbers(lse, top, h.lse_of),
        h.numbers(shift, top, shifts),
        *h.begin(dq, "k", h.d, seen, h.m, lambda _: h.number(0)),
        Loop("k'", h.tiles(seen if h.op.causal else h.m), (
            *_weights(h, top, left, lse, weights),
            *_pulled(h, top, left, weights, shift, h.score_at(h.column(0), h.row(0))),
            *h.add_scores(dq, "k", h.d, left, h.m),
        )),
        h.finish("dq", dq, h.d, top, h.n, result),
    )  # fmt: skip
    return h.parts(h.n, body)


def _keys(b: Builder, shifts: Numbers) -> Stmts:
    """The gradients of keys and values: each block of them goes along the queries that see it."""
    parts = [part for part in ("dv", "dk") if part in Group(b).wanted]
    h = tiles_for(b, "k", *parts)
    weights, lse, shift = (
        h.square("weight"),
        h.each_row("lse"),
        h.each_row("shift"),
    )
    sums = {part: h.sums(part) for part in parts}
    earlier = _BLOCK if h.op.causal else 0
    top, left = (earlier + _K) * h.tile, _BLOCK * h.tile
    hidden, at = least(left, h.n), h.score_at(h.row(0), h.column(0))
    body: Stmts = (h.acc, h.seen, weights, lse, shift, *sums.values())
    inside: Stmts = (h.numbers(lse, top, h.lse_of), *_weights(h, top, left, lse, weights))
    end: Stmts = ()
    if "dv" in sums:
        body += h.begin(sums["dv"], "ct", h.e, 0, hidden, lambda row: h.nothing(h.lse_of(row)))
        inside += (threads(h.each(Store(h.scores, at, Get(weights, h.cell)))),)
        inside += h.add_scores(sums["dv"], "ct", h.e, top, h.n)
        end += (h.finish("dv", sums["dv"], h.e, left, h.m, Get(sums["dv"], h.cell)),)
    if "dk" in sums:
        body += h.begin(sums["dk"], "q", h.d, 0, hidden, lambda row: h.nothing(shifts(row)))
        inside += (h.numbers(shift, top, shifts), *_pulled(h, top, left, weights, shift, at))
        inside += h.add_scores(sums["dk"], "q", h.d, top, h.n)
        result = h.apply("mul", Get(sums["dk"], h.cell), h.number(h.factor))
        end += (h.finish("dk", sums["dk"], h.d, left, h.m, result),)
    count = from_zero(h.tiles(h.n) - earlier) if h.op.causal else h.tiles(h.n)
    return h.parts(h.m, (*body, Loop("k'", count, inside), *end))
