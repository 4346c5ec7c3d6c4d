"""Kernels with folds: along rows in a few passes, and over rows in blocks of columns.

A fold along a row keeps one partial result a lane, which one fixed tree combines at the end: the
lane of an element is its place along the row, row-major, modulo LANES. Where a row of several axes
can't be walked straight through, what is folded is put into workspace first, some of it at a time,
unless lanes come out right as it lies. A fold over rows adds them in order. So the order of
summation depends on shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import gcd

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
from chainrule.ir.size import Dim, Size, divide, product
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

#: elements that are put into workspace before they are folded, at least
BLOCK = 1024

#: what is done at an index along a row
Walk = Callable[[Index], Stmts]

_LANE, _VECTOR = Size.symbol("l'"), Size.symbol("v'")


def row_loops(b: Builder) -> Stmts:
    """For each row a few passes along it: each folds what the next one needs."""
    return split_outermost(for_each(b.kernel.rows, BlockPasses(b).loops, "r"), len(b.kernel.rows))


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
    """The passes along a row, with workspace for what waits: `saved` and `folded`."""

    def __init__(self, b: Builder) -> None:
        super().__init__(b.kernel)
        self.b, self.kernel = b, b.kernel
        self.count = 1 + max(self.stage.values(), default=0)
        self.saved = self.kept(self.waiting, product(self.inner))
        self.folded = self.waits([n for n in self.operands if n not in self.saved])
        self.folded |= {n: self.saved[n] for n in self.operands if n in self.saved}

    def waits(self, nodes: list[Node]) -> dict[Node, Buffer]:
        """Workspace for what is to be folded."""
        return self.kept(nodes, product(self.inner))

    def kept(self, nodes: Iterable[Node], size: Dim) -> dict[Node, Buffer]:
        """Workspace for so many elements of each node."""
        private = any(rows != 1 for rows in self.kernel.rows)
        return {node: self.b.workspace(node, size, private) for node in nodes}

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

    def folding(
        self, number: int, along: list[Node], folds: list[Node], row: Index, direct: bool
    ) -> Stmts:
        """The loops of a pass: what is computed along a row, and what is folded."""

        def walk(index: Index) -> Stmts:
            place = ravel(index, self.inner)
            return self.walk(number, along, folds, (*row, *index), place, place)

        out = self.over(walk, self.straight, f"c{number}", direct)
        return out if direct or not folds else (*out, *self.gathered(number, folds))

    def gathered(self, number: int, folds: list[Node], shape: Index | None = None) -> Stmts:
        """What waits in workspace folded, a row or, of a `shape`, a block of it."""

        def gather(index: Index) -> Stmts:
            place = ravel(index, shape or self.inner)
            return tuple(self.fold(f, Load(self.folded[f.inputs[0]], place)) for f in folds)

        if shape is not None:
            return vectors(shape, True, gather, f"f{number}")
        return self.over(gather, True, f"f{number}", True)

    def one(self, number: int, row: Index) -> list[Stmt]:
        """One pass along a row, then the scalars that follow from its folds."""
        b = self.b
        mine = [n for n in self.kernel.nodes if self.stage[n] == number]
        folds = [n for n in mine if _is_fold(n)]
        along = [n for n in self.along if self.stage[n] == number and self.inner]
        out: list[Stmt] = [self.begin(n) for n in folds]
        if along or folds:
            out += self.folding(number, along, folds, row, bool(folds) and not self.folded)
        for fold in folds:
            out += self.total(fold)
            b.values[fold] = Get(b.local(fold, False))
        scalars = [n for n in mine if n not in along and n not in folds]
        return [*out, *b.compute(scalars, row, False), *b.store([*folds, *scalars], row)]

    def walk(
        self,
        number: int,
        along: list[Node],
        folds: list[Node],
        index: Index,
        place: Dim,
        near: Dim,
    ) -> Stmts:
        """What a pass does at an index, which is at `place` of its row, and `near` of what is
        folded at a time.
        """
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
        kept = {n: (self.saved[n], place) for n in along if n in self.saved}
        for fold in folds:
            x = fold.inputs[0]
            if x in self.folded:
                kept.setdefault(x, (self.folded[x], near))
            else:
                out.append(self.fold(fold, b.reader(x)(index)))
        out += [Store(buffer, at, b.reader(n)(index)) for n, (buffer, at) in kept.items()]
        return (*out, *b.store(along, index))

    def fold(self, fold: Node, value: Value) -> Stmt:
        """One more value folded into its lane."""
        cell = self.b.local(fold, True)
        return Set(cell, (), _combine(fold, Get(cell), value))


@dataclass(frozen=True)
class _Rows:
    """A row of several axes by blocks: `count` at a time of the axis `lead`, its first that is more
    than 1; 0 where lanes come out right as it lies.
    """

    lead: int
    count: int

    @staticmethod
    def of(inner: Index) -> _Rows | None:
        """The blocks, each a multiple of LANES elements; None where a row is about one of them."""
        wide = [i for i, d in enumerate(inner) if d != 1]
        size = product(inner[wide[0] + 1 :])
        if divide(inner[wide[-1]], LANES) is not None:
            return _Rows(wide[0], 0)
        count = LANES
        if isinstance(size, int):
            least = LANES // gcd(size, LANES)
            count = least * -(-BLOCK // (least * size))
        return None if at_most(inner[wide[0]], count) else _Rows(wide[0], count)


class BlockPasses(Passes):
    """Passes in which what would wait in workspace to be folded waits by blocks, or not at all.

    Every element has the lane that it has in the whole row, and those of a lane their order.
    """

    def waits(self, nodes: list[Node]) -> dict[Node, Buffer]:
        """Workspace for a block."""
        self.rows = _Rows.of(self.inner) if nodes and nodes == self.operands else None
        if self.rows is None:
            return super().waits(nodes)
        count, lead = self.rows.count, self.rows.lead
        return self.kept(nodes, count * product(self.inner[lead + 1 :])) if count else {}

    def folding(
        self, number: int, along: list[Node], folds: list[Node], row: Index, direct: bool
    ) -> Stmts:
        """Block by block what is computed, then folded."""
        if self.rows is None or direct or not folds:
            return super().folding(number, along, folds, row, direct)
        lead, count = self.rows.lead, self.rows.count

        def some(start: Dim, count: Dim) -> Stmts:
            shape = (*self.inner[:lead], count, *self.inner[lead + 1 :])

            def walk(index: Index) -> Stmts:
                at = (*index[:lead], start + index[lead], *index[lead + 1 :])
                places = ravel(at, self.inner), ravel(index, shape)
                return self.walk(number, along, folds, (*row, *at), *places)

            computed = vectors(shape, False, walk, f"c{number}")
            return (*computed, *self.gathered(number, folds, shape))

        whole, rest = self.inner[lead] // count, self.inner[lead] % count
        blocks = Loop("b'", whole, some(Size.symbol("b'") * count, count))
        return (blocks, *(some(whole * count, rest) if rest != 0 else ()))


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
