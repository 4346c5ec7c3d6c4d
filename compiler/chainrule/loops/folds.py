"""Kernels with folds: along rows in a few passes, and over rows in blocks of columns.

A fold along a row keeps one partial result a lane, which one fixed tree combines at the end: the
lane of an element is its place along the row, row-major, modulo LANES. Where a row of several axes
can't be walked straight through, what is folded is put into workspace first. A fold over rows adds
them in order. So the order of summation depends on shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from chainrule.ir.loop import (
    LANES,
    Apply,
    Buffer,
    Combine,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.node import Index, Node, Stmts, for_each
from chainrule.ir.size import Dim, Size, product
from chainrule.loops.abreast import turns_loops
from chainrule.loops.builder import Builder, is_straight, vectors
from chainrule.loops.parts import by_one, split_outermost
from chainrule.loops.walk import at_most
from chainrule.ops.axes import Reduce
from chainrule.ops.layout import ravel
from chainrule.records import dataclass
from chainrule.schedule.kernel import Kernel
from chainrule.schedule.reading import bases

#: Vectors of columns that a fold over rows keeps in registers at once.
COLUMN_VECTORS = 4

#: what is done at an index along a row
Walk = Callable[[Index], Stmts]

_LANE, _VECTOR = Size.symbol("l'"), Size.symbol("v'")


def row_loops(b: Builder) -> Stmts:
    """For each row a few passes along it: each folds what the next one needs."""
    passes = Passes(b, again=True)
    return split_outermost(for_each(b.kernel.rows, passes.loops, "r"), len(b.kernel.rows))


class RowPlan:
    """How a row is gone through. `stage` is the pass in which each node can be computed; `waiting`
    are the values along it that a later pass needs again, and `operands` what is folded where
    memory is not walked straight through: both wait in workspace. A row of one vector is `held` in
    registers.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.inner = kernel.space[len(kernel.rows) :]
        self.along = [n for n in kernel.nodes if n.type.shape == kernel.space and not _is_fold(n)]
        self.stage = _stages(kernel, set(self.along))
        folds = [n for n in kernel.nodes if _is_fold(n)]
        self.straight = is_straight([*self.along, *folds], kernel)
        one_axis = len([d for d in self.inner if d != 1]) <= 1
        crossing = _crossing(kernel, self.stage, set(self.along))
        short = (self.straight or one_axis) and at_most(product(self.inner), LANES)
        self.held, self.waiting = (crossing, []) if short else ([], crossing)
        folded = () if self.straight or one_axis else (f.inputs[0] for f in folds)
        self.operands = list(dict.fromkeys(folded))


class Passes(RowPlan):
    """The passes along a row, with workspace for what waits: `saved` and `folded`. With `again`,
    what is folded and written too is read back from where it was written.
    """

    def __init__(self, b: Builder, again: bool = False) -> None:
        super().__init__(b.kernel)
        self.b, self.kernel = b, b.kernel
        self.count = 1 + max(self.stage.values(), default=0)
        self.saved = self.kept(self.waiting)
        apart = [n for n in self.operands if n not in self.saved]
        written = {n for n in apart if again and n in b.kernel.writes and not n.op.joins}
        self.written = {n: b.buffers[b.kernel.writes[n]] for n in written}
        self.folded = self.kept(n for n in apart if n not in written)
        self.folded |= {n: self.saved[n] for n in self.operands if n in self.saved}

    def kept(self, nodes: Iterable[Node]) -> dict[Node, Buffer]:
        """Workspace for a row of each node."""
        private = any(rows != 1 for rows in self.kernel.rows)
        return {node: self.b.workspace(node, product(self.inner), private) for node in nodes}

    def loops(self, row: Index) -> Stmts:
        """All passes along a row."""
        return tuple(s for number in range(self.count) for s in self.one(number, row))

    def begin(self, fold: Node) -> Stmt:
        """The lanes of a fold begun."""
        return Set(self.b.local(fold, True), (), identity_of(fold))

    def total(self, fold: Node) -> Stmts:
        """The lanes of a fold in one tree."""
        value = Combine(combine_of(fold), self.b.local(fold, True))
        return (Set(self.b.local(fold, False), (), value),)

    def over(self, walk: Walk, straight: bool, prefix: str, folds: bool) -> Stmts:
        """What is done along a row, `folds` among it or not, in vectors."""
        return vectors(self.inner, straight, walk, prefix)

    def one(self, number: int, row: Index) -> list[Stmt]:
        """One pass along a row, then the scalars that follow from its folds."""
        b = self.b
        mine = [n for n in self.kernel.nodes if self.stage[n] == number]
        folds = [n for n in mine if _is_fold(n)]
        along = [n for n in self.along if self.stage[n] == number and self.inner]
        out: list[Stmt] = [self.begin(n) for n in folds]

        def walk(index: Index) -> Stmts:
            return self.walk(number, along, folds, (*row, *index), ravel(index, self.inner))

        def gather(index: Index) -> Stmts:
            return tuple(self.fold(f, self.waited(f.inputs[0], row, index)) for f in folds)

        if along or folds:
            direct = bool(folds) and not self.operands
            out += self.over(walk, self.straight, f"c{number}", direct)
        if folds and self.operands:
            out += self.over(gather, True, f"f{number}", True)
        for fold in folds:
            out += self.total(fold)
            b.values[fold] = Get(b.local(fold, False))
        scalars = [n for n in mine if n not in along and n not in folds]
        return [*out, *b.compute(scalars, row, False), *b.store([*folds, *scalars], row)]

    def waited(self, x: Node, row: Index, index: Index) -> Value:
        """An element of what was put down to be folded."""
        if x in self.written:
            return Load(self.written[x], ravel((*row, *index), x.type.shape))
        return Load(self.folded[x], ravel(index, self.inner))

    def walk(
        self, number: int, along: list[Node], folds: list[Node], index: Index, place: Dim
    ) -> Stmts:
        """What a pass does at an index, which is at `place` of its row."""
        b = self.b
        for node, buffer in self.saved.items():
            if self.stage[node] < number:
                b.values[node] = Load(buffer, place)
        out = b.compute(along, index, True)
        for node in along:
            cell = b.local(node, True) if node in self.held else None
            if cell is not None and b.values[node] != Get(cell):
                out.append(Set(cell, (), b.values[node]))
                b.values[node] = Get(cell)
        kept = {n: self.saved[n] for n in along if n in self.saved}
        for fold in folds:
            x = fold.inputs[0]
            if x in self.folded:
                kept[x] = self.folded[x]
            elif x not in self.written:
                out.append(self.fold(fold, b.reader(x)(index)))
        out += [Store(buffer, place, b.reader(n)(index)) for n, buffer in kept.items()]
        return (*out, *b.store(along, index))

    def fold(self, fold: Node, value: Value) -> Stmt:
        """One more value folded into its lane."""
        cell = self.b.local(fold, True)
        return Set(cell, (), _combine(fold, Get(cell), value))


def _stages(kernel: Kernel, along: set[Node]) -> dict[Node, int]:
    """The pass along the row in which each node can be computed: one after each fold it needs."""
    stage: dict[Node, int] = {}
    for node in kernel.nodes:
        walks = node in along or _is_fold(node)
        before = [base for base, _ in bases(node) if base in stage]
        stage[node] = max((stage[x] + (walks and x not in along) for x in before), default=0)
    return stage


def _crossing(kernel: Kernel, stage: Mapping[Node, int], along: set[Node]) -> list[Node]:
    """Nodes along the row that a later pass needs again."""
    needed = ((base, node) for node in kernel.nodes for base, _ in bases(node) if base in along)
    return list(dict.fromkeys(base for base, node in needed if stage[base] < stage[node]))


@dataclass(frozen=True)
class _Block:
    """Columns from `start`: `count` vectors of LANES, the last of them `last` wide."""

    start: Dim
    count: int
    last: Dim

    def over(self, make: Callable[[Dim, Dim], Stmts]) -> Stmts:
        """Statements for each vector, given its number and its column."""
        whole = self.count if self.last == LANES else self.count - 1
        out: list[Stmt] = []
        if whole:
            body = make(_VECTOR, self.start + _VECTOR * LANES + _LANE)
            out.append(Loop("v'", whole, (Loop("l'", LANES, body, "vector"),), "unroll"))
        if whole < self.count:
            body = make(whole, self.start + whole * LANES + _LANE)
            out.append(Loop("l'", self.last, body, "vector"))
        return tuple(out)


def column_loops(b: Builder) -> Stmts:
    """A fold over leading axes: blocks of columns in registers while the rows go by."""
    space, fold, rest = b.kernel.space, b.kernel.anchor, b.kernel.nodes[1:]
    if _op(fold).by_lanes:
        return turns_loops(b)
    axes = _op(fold).axes
    kept = [i for i in range(len(space)) if i not in axes]
    order = (*axes, *kept)
    read = b.reader(fold.inputs[0])

    def columns(lead: Index, block: _Block) -> Stmts:
        acc = Local(f"a{block.count}", fold.type.dtype, (block.count,), True)

        def add(at: Index) -> Stmts:
            def step(v: Dim, column: Dim) -> Stmts:
                place = dict(zip(order, (*at, *lead, column), strict=True))
                value = read(tuple(place[i] for i in range(len(space))))
                return (Set(acc, (v,), _combine(fold, Get(acc, (v,)), value)),)

            return block.over(step)

        def finish(v: Dim, column: Dim) -> Stmts:
            b.values[fold] = Get(acc, (v,))
            index = (*lead, column)
            return (*b.compute(rest, index, True), *b.store([fold, *rest], index))

        begin = Set(acc, (_VECTOR,), identity_of(fold))
        rows = for_each(tuple(space[a] for a in axes), add, "r")
        return (acc, Loop("v'", block.count, (begin,), "unroll"), *rows, *block.over(finish))

    outer, width = tuple(space[i] for i in kept[:-1]), space[kept[-1]]
    by_block = all(size == 1 for size in outer) and width // (2 * COLUMN_VECTORS * LANES) != 0

    def over_blocks(lead: Index) -> Stmts:
        out: list[Stmt] = []
        for blocks, var, count in _blocks(width):
            body = columns(lead, blocks)
            if var:
                out.append(Loop(var, count, body, split=by_block))
            else:
                out += by_one(body) if by_block else body
        return tuple(out)

    nest = for_each(outer, over_blocks, "o")
    return nest if by_block else split_outermost(nest, len(outer))


def _blocks(width: Dim) -> Iterator[tuple[_Block, str, Dim]]:
    """Blocks of COLUMN_VECTORS vectors, then what is left; each with its loop, "" for none."""
    wide = COLUMN_VECTORS * LANES
    whole = width // wide * wide
    if whole != 0:
        yield _Block(Size.symbol("b'") * wide, COLUMN_VECTORS, LANES), "b'", width // wide
    if isinstance(width, int):
        rest = width % wide
        if rest:
            yield _Block(width - rest, -(-rest // LANES), (rest - 1) % LANES + 1), "", 1
        return
    yield _Block(whole + Size.symbol("w'") * LANES, 1, LANES), "w'", (width - whole) // LANES
    yield _Block(width // LANES * LANES, 1, width % LANES), "", 1


def _is_fold(node: Node) -> bool:
    return node.op.role == "reduce"


def _op(fold: Node) -> Reduce:
    assert isinstance(fold.op, Reduce)
    return fold.op


def identity_of(fold: Node) -> Value:
    """What a fold begins with."""
    return Literal(_op(fold).identity(fold.type.dtype), fold.type.dtype)


def combine_of(fold: Node) -> str:
    """What folds two values."""
    return _op(fold).combine


def _combine(fold: Node, acc: Value, value: Value) -> Value:
    return Apply(combine_of(fold), (acc, value), fold.type.dtype)
