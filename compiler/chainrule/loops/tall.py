"""Long folds of columns on a GPU: 16 columns a block, and 16 lanes down each of them.

Lane i folds rows i, i + 16, ..., as lanes do along a row, and one tree folds the lanes. A column
that is not long is folded in order, as everywhere, also where that is only known when it is run.
"""

from __future__ import annotations

from chainrule.ir.loop import LANES, Apply, Get, Literal, Load, Local, Loop, Set, Store, When
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size, product
from chainrule.loops.builder import Builder
from chainrule.loops.launch import BLOCK
from chainrule.ops.axes import Reduce
from chainrule.ops.layout import unravel

_T, _P, _I = (Size.symbol(f"{name}'") for name in "tpi")


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
    acc = Local("acc", fold.type.dtype, (), True)
    lanes = b.workspace(fold, BLOCK, private=True)
    read, column, lane = b.reader(fold.inputs[0]), _P * LANES + _T % LANES, _T // LANES
    index = unravel(column, shape)

    def add(row: Dim) -> Stmts:
        at = dict(zip((*op.axes, *kept), (*unravel(row, folded), *index), strict=True))
        value = read(tuple(at[i] for i in range(len(space))))
        return (Set(acc, (), Apply(op.combine, (Get(acc), value), acc.dtype)),)

    def where(*bounds: tuple[Dim, Dim], body: Stmts) -> Stmts:
        return (Loop("t'", BLOCK, (When(bounds, body),), "vector"),)

    def step(half: int) -> Stmts:
        pair = Load(lanes, _T), Load(lanes, _T + half * LANES)
        folded_pair = Store(lanes, _T, Apply(op.combine, pair, acc.dtype))
        return where((lane, half), long, body=(folded_pair,))

    long, here = (most, height), (column, width)
    identity = Set(acc, (), Literal(op.identity(acc.dtype), acc.dtype))
    mine = (height + LANES - 1 - lane) // LANES
    b.values[fold] = Get(acc)
    after = (*b.compute(rest, index, True), *b.store([fold, *rest], index))
    body: Stmts = (
        acc,
        Loop("t'", BLOCK, (identity,), "vector"),
        *where(here, (_T, LANES), (height, most + 1), body=(Loop("i'", height, add(_I)),)),
        *where(here, long, body=(Loop("i'", mine, add(lane + _I * LANES)),)),
        *where(long, body=(Store(lanes, _T, Get(acc)),)),
        *(s for half in (8, 4, 2, 1) for s in step(half)),
        *where(long, (_T, LANES), body=(Set(acc, (), Load(lanes, _T)),)),
        *where(here, (_T, LANES), body=after),
    )
    return (Loop("p'", (width + LANES - 1) // LANES, body, split=True),)
