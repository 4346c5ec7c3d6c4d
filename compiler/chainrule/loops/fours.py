"""Rows on a GPU with four neighbours a lane, so that each access is one of 16 bytes.

A part of n threads has then 4n lanes of one element each: an element's lane is its place modulo 4n,
lanes 4t to 4t + 3 are thread t's. Four threads fold theirs in the order of LANES lanes: for each of
the four a tree over threads, then one over the four. A block does the latter first.
"""

from __future__ import annotations

from collections.abc import Callable

from chainrule.ir.loop import Apply, Combine, Get, Load, Local, Loop, Set, Stmt, Store, Value
from chainrule.ir.node import Index, Node, Stmts
from chainrule.ir.size import Dim, Size, divide, product
from chainrule.loops.builder import Builder
from chainrule.loops.folds import Passes, Walk, combine_of, identity_of
from chainrule.loops.launch import BLOCK
from chainrule.loops.tiled import FOUR
from chainrule.loops.walk import postorder

_U = Size.symbol("u'")


class FourPasses(Passes):
    """Passes along rows of a multiple of four elements.

    Where memory is walked straight through, and of few tensors, all four of a lane are read before
    any is written; else one is after the other, and what does not fold has lanes as it had.
    """

    def __init__(self, b: Builder, lanes: int, few: bool) -> None:
        super().__init__(b)
        self.lanes = lanes
        self.wide = few and self.straight
        self.cells: dict[Local, Local] = {}

    def begin(self, fold: Node) -> Stmt:
        """All four cells of a lane begun."""
        cell = self.cell(self.b.local(fold, True))
        return Loop("u'", FOUR, (Set(cell, (_U,), identity_of(fold)),), "unroll")

    def total(self, fold: Node) -> Stmts:
        """The trees over threads folded in one; a block's threads fold their own four before it."""
        cell, total = self.cell(self.b.local(fold, True)), self.b.local(fold, False)
        fn = combine_of(fold)

        def in_one(four: Callable[[int], Value]) -> Value:
            a, b, c, d = map(four, range(FOUR))
            pairs = Apply(fn, (a, c), cell.dtype), Apply(fn, (b, d), cell.dtype)
            return Apply(fn, pairs, cell.dtype)

        if self.lanes < BLOCK:
            return (Set(total, (), in_one(lambda u: Combine(fn, cell, (u,)))),)
        own = Set(cell, (0,), in_one(lambda u: Get(cell, (u,))))
        return (Loop("t'", BLOCK, (own,), "vector"), Set(total, (), Combine(fn, cell, (0,))))

    def over(self, walk: Walk, straight: bool, prefix: str, folds: bool) -> Stmts:
        """What is done along a row, four neighbours a lane."""
        if not folds and not self.wide:
            return super().over(walk, straight, prefix, folds)
        var = f"{prefix}{len(self.inner)}'"
        body = walk(self.at(Size.symbol(var) * FOUR + _U, straight))
        steps = [(s,) for s in body] if self.wide else [body]
        inside = tuple(Loop("u'", FOUR, tuple(map(self.renamed, s)), "unroll") for s in steps)
        extent = divide(product(self.inner), FOUR)
        assert extent is not None
        return (Loop(var, extent, inside, "vector"),)

    def at(self, place: Dim, straight: bool) -> Index:
        """The index of a place along a row that is walked as one."""
        last = len(self.inner) - 1
        if not straight:
            last = next((i for i, d in enumerate(self.inner) if d != 1), last)
        return tuple(place if i == last else 0 for i in range(len(self.inner)))

    def cell(self, local: Local) -> Local:
        """A local with a cell for each of the four."""
        made = Local(local.name, local.dtype, (*local.shape, FOUR), True)
        return self.cells.setdefault(local, made)

    def has_cells(self, local: Local) -> bool:
        return local.lanes and (self.wide or local in self.cells)

    def renamed(self, s: Stmt) -> Stmt:
        """A statement whose locals have such cells."""
        if isinstance(s, Store):
            index = None if s.index is None else self.value(s.index)
            return Store(s.buffer, s.offset, self.value(s.value), index, s.stride)
        assert isinstance(s, Set)
        if not self.has_cells(s.local):
            return Set(s.local, s.index, self.value(s.value))
        return Set(self.cell(s.local), (*s.index, _U), self.value(s.value))

    def value(self, value: Value) -> Value:
        """A value of such locals; what was shared stays so."""
        new: dict[int, Value] = {}
        for v in postorder(value):
            made = v
            if isinstance(v, Get) and self.has_cells(v.local):
                made = Get(self.cell(v.local), (*v.index, _U))
            elif isinstance(v, Apply):
                made = Apply(v.fn, tuple(new[id(a)] for a in v.args), v.dtype)
            elif isinstance(v, Load) and v.index is not None:
                made = Load(v.buffer, v.offset, new[id(v.index)], v.stride, v.pair)
            new[id(v)] = made
        return new[id(value)]

    def loops(self, row: Index) -> Stmts:
        """All passes along a row; the builder's locals have cells then."""
        found = super().loops(row)
        self.b.locals = {key: self.cells.get(x, x) for key, x in self.b.locals.items()}
        return found
