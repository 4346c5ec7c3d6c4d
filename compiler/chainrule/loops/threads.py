"""The forms of kernels on a GPU, each in loops of its own where lanes had better go another way.

What is one element by itself is one thread's, or four neighbours are. A row is folded by 16 lanes,
or 4 with four neighbours each, in the order of every other target, or where it is long by a block
of them; a fold of columns goes down one thread's column, in order, or where it is long down those
of a block; a product is tiles in shared memory, each element one chain of multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable

from chainrule.ir.loop import LANES, Apply, Get, Literal, Local, Loop, Set, Stmt, Value, When
from chainrule.ir.node import Index, Node, Stmts, for_each
from chainrule.ir.size import Dim, Shape, Size, divide, product, typical
from chainrule.ir.types import float32
from chainrule.loops.abreast import in_turn
from chainrule.loops.attend_tiles import attend_tiles
from chainrule.loops.builder import Builder, is_straight
from chainrule.loops.choice import PANELS
from chainrule.loops.folds import Passes, RowPlan
from chainrule.loops.fours import FourPasses
from chainrule.loops.grouped import GroupTiles
from chainrule.loops.independent import shared_among_threads
from chainrule.loops.launch import BLOCK, SHARED
from chainrule.loops.maps import check_loops, copy_loops, nest_loops, patch_loops, scan_loops
from chainrule.loops.parts import by_one
from chainrule.loops.products import plain_product
from chainrule.loops.tall import tall_columns
from chainrule.loops.tensor import Tf32Tiles, WarpTiles
from chainrule.loops.tiled import FOUR, Tiles
from chainrule.ops.axes import Reduce
from chainrule.ops.cast import widens
from chainrule.ops.contract import Contract
from chainrule.schedule.kernel import Form

#: a row of more elements, or of a number that is not known, is folded by a whole block
LONG = 2048
#: a column of more elements is folded by several lanes
TALL = 256
#: so many rows are enough for a quarter of the threads to fill a large GPU
MANY = 4096
#: of so many tensors, read and written, a thread has registers for four neighbours each; of more
#: together ptxas has spilled
TENSORS = 16
#: loops, and how many lanes a part of them has
Shaped = tuple[Stmts, int]


def each(shape: Shape, body: Callable[[Index], Stmts]) -> Stmts:
    """The body for each index, a part for each."""
    names = [f"p{axis}'" for axis in range(len(shape))]
    stmts = body(tuple(Size.symbol(n) for n in names))
    if not shape:
        return by_one(stmts)
    for name, extent in zip(reversed(names), reversed(shape), strict=True):
        stmts = (Loop(name, extent, stmts, split=True),)
    return stmts


def _map(b: Builder) -> Shaped:
    nodes, space = b.kernel.nodes, b.kernel.space
    if b.kernel.patch is not None:
        return shared_among_threads(patch_loops(b)), 1

    def one(index: Index) -> Stmts:
        return (*b.compute(nodes, index, False), *b.store(nodes, index))

    if space and _are_few(b) and is_straight(nodes, b.kernel):
        return _straight(b), 1
    return each(space, one), 1


def _straight(b: Builder) -> Stmts:
    """FOUR neighbours a thread, all read before any is written, so that each is one wide access;
    what is left over goes one by one, to a thread of its own.
    """
    nodes, space = b.kernel.nodes, b.kernel.space
    count, p, u = product(space), Size.symbol("p0'"), Size.symbol("u'")
    lead: Index = (0,) * (len(space) - 1)
    kept = [n for n in nodes if n in b.kernel.writes]
    cells = {n: Local(f"w{i}", n.type.dtype, (FOUR,)) for i, n in enumerate(kept)}

    def compute(place: Dim) -> Stmts:
        found = b.compute(nodes, (*lead, place), False)
        return (*found, *(Set(cells[n], (u,), b.values[n]) for n in kept))

    def store(node: Node) -> Callable[[Dim], Stmts]:
        b.values[node] = Get(cells[node], (u,))
        return lambda place: tuple(b.store([node], (*lead, place)))

    def four(body: Callable[[Dim], Stmts]) -> Stmt:
        return Loop("u'", FOUR, body(p * FOUR + u), "unroll")

    whole, left = count // FOUR, count % FOUR
    body: Stmts = (When(((p, whole),), (four(compute), *(four(store(n)) for n in kept))),)
    if left != 0:
        b.values.clear()
        last = (*b.compute(nodes, (*lead, whole * FOUR + u), False),)
        rest = (*last, *b.store(nodes, (*lead, whole * FOUR + u)))
        body += (When(((whole, p + 1),), (Loop("u'", left, rest),)),)
    parts = (count + FOUR - 1) // FOUR
    return (*cells.values(), Loop("p0'", parts, body, split=True))


def _rows(b: Builder) -> Shaped:
    rows = b.kernel.rows
    inner = product(b.kernel.space[len(rows) :])
    if isinstance(inner, int) and inner <= LONG:
        lanes = LANES // FOUR if _has_fours(b, inner) else LANES
        passes = Passes(b) if lanes == LANES else FourPasses(b, lanes, True)
        return each(rows, passes.loops), lanes
    passes = Passes(b) if divide(inner, FOUR) is None else FourPasses(b, BLOCK, _are_few(b))
    return each(rows, passes.loops), BLOCK


def _are_few(b: Builder) -> bool:
    return len(b.kernel.reads) + len(b.kernel.writes) <= TENSORS


def _has_fours(b: Builder, inner: int) -> bool:
    """Whether short rows are folded with four neighbours a lane, in the same order: where they are
    many, walked straight through, and what waits from pass to pass finds the room it had.
    """
    plan, count = RowPlan(b.kernel), typical(product(b.kernel.rows))
    if inner % FOUR or inner < LANES * FOUR or count < MANY or not plan.straight:
        return False
    kept = sum(inner * node.type.dtype.itemsize for node in {*plan.waiting, *plan.operands})
    here, then = (kept * BLOCK // lanes <= SHARED for lanes in (LANES, LANES // FOUR))
    return _are_few(b) and here == then


def _columns(b: Builder) -> Shaped:
    op = _fold(b)
    folded = product(tuple(b.kernel.space[i] for i in op.axes))
    if op.by_lanes or (isinstance(folded, int) and folded <= TALL):
        return _down_columns(b), 1
    return tall_columns(b, TALL), BLOCK


def _fold(b: Builder) -> Reduce:
    op = b.kernel.anchor.op
    assert isinstance(op, Reduce)
    return op


def _down_columns(b: Builder) -> Stmts:
    """A thread goes down each column: in order, or where lanes are asked for, in turns of them."""
    space, fold, rest = b.kernel.space, b.kernel.anchor, b.kernel.nodes[1:]
    op = _fold(b)
    kept = [i for i in range(len(space)) if i not in op.axes]
    shape = tuple(space[i] for i in kept)
    folded = tuple(space[i] for i in op.axes)
    read, combine = b.reader(fold.inputs[0]), op.combine
    cells = LANES if op.by_lanes else 1
    acc = Local("acc", fold.type.dtype, (cells,))
    cell = Size.symbol("c'")

    def column(index: Index) -> Stmts:
        def add(to: Dim, at: Index) -> Stmts:
            where = dict(zip((*op.axes, *kept), (*at, *index), strict=True))
            value = read(tuple(where[i] for i in range(len(space))))
            return (Set(acc, (to,), Apply(combine, (Get(acc, (to,)), value), acc.dtype)),)

        identity = Literal(op.identity(acc.dtype), acc.dtype)
        clear = Loop("c'", cells, (Set(acc, (cell,), identity),), "unroll")
        terms = in_turn(folded, add) if op.by_lanes else for_each(folded, lambda at: add(0, at))
        b.values[fold] = Get(acc, (0,))
        after = (*b.compute(rest, index, False), *b.store([fold, *rest], index))
        return (clear, *terms, *_tree(acc, combine, cells), *after)

    return (acc, *each(shape, column))


def _tree(acc: Local, combine: str, cells: int) -> Stmts:
    """The cells folded as lanes are: ((0+8)+(4+12)) + ((2+10)+(6+14)) + ..."""
    out: Stmts = ()
    half = cells // 2
    while half:
        for i in range(half):
            pair: tuple[Value, Value] = Get(acc, (i,)), Get(acc, (i + half,))
            out += (Set(acc, (i,), Apply(combine, pair, acc.dtype)),)
        half //= 2
    return out


def _product(b: Builder) -> Shaped:
    node = b.kernel.anchor
    op = node.op
    assert isinstance(op, Contract)
    if not node.type.dtype.is_float or not op.out or not op.summed:
        return plain_product(b), 1
    if not b.target.tensor or node.type.dtype != float32:
        return Tiles(b).loops(), BLOCK
    narrow = all(map(widens, node.inputs))
    asked = b.choice.way == PANELS
    paneled = GroupTiles.fitting(b, asked) if asked or (narrow and not b.choice.side) else None
    if paneled:
        return paneled.loops(), BLOCK
    kind = WarpTiles if narrow else Tf32Tiles if op.tf32 else Tiles
    return kind(b).loops(), BLOCK


def _attend(b: Builder) -> Shaped:
    return attend_tiles(b), BLOCK


def _check(b: Builder) -> Shaped:
    return shared_among_threads(check_loops(b)), 1


def _nest(b: Builder) -> Shaped:
    return shared_among_threads(nest_loops(b)), 1


def _copy(b: Builder) -> Shaped:
    return shared_among_threads(copy_loops(b)), 1


def _scan(b: Builder) -> Shaped:
    return scan_loops(b), 1


THREAD_FORMS: dict[Form, Callable[[Builder], Shaped]] = {
    Form.MAP: _map,
    Form.ROWS: _rows,
    Form.COLUMNS: _columns,
    Form.CONTRACT: _product,
    Form.NEST: _nest,
    Form.ATTEND: _attend,
    Form.CHECK: _check,
    Form.COPY: _copy,
    Form.SCAN: _scan,
}
