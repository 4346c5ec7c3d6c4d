"""Products of few rows with a transposed factor: `x @ W.T` of one row.

Nothing is copied: a block of LANES columns by LANES terms is read as it lies, turned in registers
and multiplied at once. Each element is one chain of multiply-adds, terms ascending, as everywhere.
"""

from __future__ import annotations

from chainrule.ir.loop import LANES, Apply, Get, Literal, Load, Local, Loop, Set, Stmt, Value
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size
from chainrule.loops.nest import slope_along
from chainrule.loops.tiles import EPILOGUE_OPERATIONS, Contraction, epilogue_operations
from chainrule.loops.walk import postorder
from chainrule.target import Target

#: rows at most: for more a copy of what was turned is read again often enough to be worth it
FEW_ROWS = 3
_M, _N, _K, _I, _J = (Size.symbol(f"{name}'") for name in "mnkij")


def has_few_rows(c: Contraction, target: Target) -> bool:
    """Whether a product is of this kind, and large enough for blocks."""
    if not isinstance(c.m, int) or not isinstance(c.k, int) or c.terms or c.inside or c.start:
        return False
    vectors = target.vector_bytes > c.dtype.itemsize
    if not vectors or c.m > FEW_ROWS or c.k < LANES or not _stands_across(c.b(_K, _N)):
        return False
    epilogue = c.m * epilogue_operations(c.epilogue, c.dtype)
    return isinstance(c.n, int) and c.n >= LANES and epilogue <= EPILOGUE_OPERATIONS


def _stands_across(value: Value) -> bool:
    """Whether all that is read lies together along the terms, and apart along the columns."""
    loads = [v for v in postorder(value) if isinstance(v, Load)]
    along = all(slope_along(v, "k'") == 1 and v.index is None for v in loads)
    return bool(loads) and along and all(slope_along(v, "n'") not in (0, 1, None) for v in loads)


def few_rows(c: Contraction, split: bool) -> Stmts:
    """The loops of such a product: all rows of a panel of LANES columns, then of the next."""
    assert isinstance(c.n, int)
    whole, rest = divmod(c.n, LANES)
    body: Stmts = (Loop("n'", whole, _panel(c, _N * LANES, LANES), split=split),)
    if rest:
        body += (Loop("n'", 1, _panel(c, whole * LANES, rest), split=split),)
    return body


def _panel(c: Contraction, start: Dim, width: int) -> Stmts:
    """All rows of so many columns from `start` on."""
    assert isinstance(c.m, int) and isinstance(c.k, int)
    acc, rows, column = Local("acc", c.dtype, (c.m,), True), range(c.m), start + _J

    def block(k: Dim, count: int) -> Stmt:
        """Its terms one after the other, each for all rows."""
        factor = c.b(k + _I, column)
        products = (Apply("fma", (c.a(m, k + _I), factor, Get(acc, (m,))), c.dtype) for m in rows)
        terms = tuple(Set(acc, (m,), value) for m, value in zip(rows, products, strict=True))
        return Loop("j'", width, (Loop("i'", count, terms, "unroll"),), "vector")

    whole, rest = divmod(c.k, LANES)
    ends = (c.epilogue(m, column, Get(acc, (m,))) for m in rows)
    return (
        acc,
        *(Set(acc, (m,), Literal(0, c.dtype)) for m in rows),
        Loop("k'", whole, (block(_K * LANES, LANES),)),
        *((block(whole * LANES, rest),) if rest else ()),
        *(Loop("j'", width, end, "vector") for end in ends),
    )
