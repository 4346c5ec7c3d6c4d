"""Long folds of columns on a GPU: 16 columns a block, and lanes down each of them.

A thread has four neighbouring columns where their number is a multiple of four, so that each access
is one of 16 bytes, else one: of a block's threads 64 lanes, or 16, go down then. Of n lanes lane i
folds rows i, i + n, ..., as lanes do along a row, and one tree folds the lanes. A column that is
not long is folded in order, as everywhere, also where that is only known when it is run.
"""

from __future__ import annotations

from chainrule.ir.loop import Apply, Get, Literal, Load, Local, Loop, Set, Stmt, Store, When
from chainrule.ir.node import Index, Stmts
from chainrule.ir.size import Dim, Shape, Size, divide, product
from chainrule.loops.builder import Builder, is_straight
from chainrule.loops.launch import BLOCK
from chainrule.loops.tiled import FOUR
from chainrule.ops.axes import Reduce
from chainrule.ops.layout import unravel

_T, _P, _I, _U = (Size.symbol(f"{name}'") for name in "tpiu")
#: columns of a block
WIDE = 16


def tall_columns(b: Builder, most: int) -> Stmts:
    """A fold over leading or middle axes, and the maps of its result, for parts of BLOCK lanes;
    columns of at most so many elements are folded in order.
    """
    space, fold, rest = b.kernel.space, b.kernel.anchor, b.kernel.nodes[1:]
    op = fold.op
    assert isinstance(op, Reduce)
    kept = [i for i in range(len(space)) if i not in op.axes]
    shape, folded = tuple(space[i] for i in kept), tuple(space[i] for i in op.axes)
    width, height = product(shape), product(folded)
    straight = tuple(op.axes) == tuple(range(len(op.axes))) and is_straight(
        b.kernel.nodes, b.kernel
    )
    own = 1 if divide(width, FOUR) is None else FOUR
    across = WIDE // own
    count = BLOCK // across
    acc = Local("acc", fold.type.dtype, (own,), True)
    lanes = b.workspace(fold, BLOCK * own, private=True)
    read, first, lane = b.reader(fold.inputs[0]), _P * WIDE + _T % across * own, _T // across

    def add(row: Dim) -> Stmts:
        def one(u: int) -> Set:
            places = (*_places(row, folded, straight), *_places(first + u, shape, straight))
            at = dict(zip((*op.axes, *kept), places, strict=True))
            value = read(tuple(at[i] for i in range(len(space))))
            return Set(acc, (u,), Apply(op.combine, (Get(acc, (u,)), value), acc.dtype))

        return tuple(map(one, range(own)))

    def where(*bounds: tuple[Dim, Dim], body: Stmts) -> Stmts:
        return (Loop("t'", BLOCK, (When(bounds, body),), "vector"),)

    def each(*body: Stmt) -> Stmts:
        return (Loop("u'", own, body, "unroll"),)

    def step(half: int) -> Stmts:
        pair = Load(lanes, cell), Load(lanes, cell + half * WIDE)
        folded_pair = Store(lanes, cell, Apply(op.combine, pair, acc.dtype))
        return where((lane, half), long, body=each(folded_pair))

    cell = _T * own + _U
    long, here = (most, height), (first, width)
    identity = Set(acc, (_U,), Literal(op.identity(acc.dtype), acc.dtype))
    mine = (height + count - 1 - lane) // count
    b.values[fold] = Get(acc, (_U,))
    index = _places(first + _U, shape, straight)
    after = each(*b.compute(rest, index, True), *b.store([fold, *rest], index))
    halves = [count >> i for i in range(1, count.bit_length())]
    body: Stmts = (
        acc,
        Loop("t'", BLOCK, each(identity), "vector"),
        *where(here, (_T, across), (height, most + 1), body=(Loop("i'", height, add(_I)),)),
        *where(here, long, body=(Loop("i'", mine, add(lane + _I * count)),)),
        *where(long, body=each(Store(lanes, cell, Get(acc, (_U,))))),
        *(s for half in halves for s in step(half)),
        *where(long, (_T, across), body=each(Set(acc, (_U,), Load(lanes, cell)))),
        *where(here, (_T, across), body=after),
    )
    return (Loop("p'", (width + WIDE - 1) // WIDE, body, split=True),)


def _places(place: Dim, shape: Shape, straight: bool) -> Index:
    """The index of a place in row-major order; where memory is walked straight through it stands
    along the last axis.
    """
    if straight or not shape:
        return (*(0 for _ in shape[1:]), place)[: len(shape)]
    rest = product(shape[1:])
    return (place // rest, *unravel(place % rest, shape[1:]))
