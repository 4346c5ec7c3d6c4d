"""Many small products and folds abreast: lanes go along a last axis that nothing sums over.

Every operand has that axis, so a lane needs no other: a product of narrow matrices takes as many
vector multiply-adds as one alone takes of numbers. Orders are those of one alone: each element of a
product is one chain of multiply-adds; a fold that is along rows for one keeps LANES partial results
in turn, which one tree adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from chainrule.ir.loop import LANES, Apply, Get, Literal, Load, Local, Loop, Set, Store, Value
from chainrule.ir.node import Index, Stmts, for_each
from chainrule.ir.size import Dim, Size, product
from chainrule.loops.builder import Builder, Maps
from chainrule.loops.layout import letter_sizes, loop_of
from chainrule.loops.parts import shared_nest
from chainrule.loops.tiles import EPILOGUE_OPERATIONS, epilogue_operations
from chainrule.ops.axes import Reduce
from chainrule.ops.contract import Contract
from chainrule.ops.layout import unravel
from chainrule.records import dataclass
from chainrule.target import Target

#: registers that hold no sums: a row's factors, and what LLVM needs
SPARE = 2

_I, _C, _L = (Size.symbol(f"{name}'") for name in "icl")


# products


@dataclass(frozen=True)
class _Piece:
    """`count` tiles of `size` along a letter, from `start`."""

    letter: str
    size: int
    count: Dim
    start: Dim

    def at(self, inside: Dim) -> dict[str, Dim]:
        """Where an element of the tile stands along the letter, if there is one."""
        if not self.letter:
            return {}
        return {self.letter: self.start + Size.symbol(f"t{self.letter}'") * self.size + inside}

    def over(self, body: Stmts) -> Stmts:
        """The body for each tile."""
        return (Loop(f"t{self.letter}'", self.count, body),) if self.letter else body


def stands_abreast(b: Builder) -> bool:
    """Whether the last axis of a product is one of both factors."""
    node = b.kernel.anchor
    op = node.op
    assert isinstance(op, Contract)
    if not node.type.dtype.is_float or not op.out or not op.summed:
        return False
    last = op.out[-1]
    return op.a[-1:] == op.b[-1:] == last and node.type.shape[-1] != 1


def abreast_loops(b: Builder, maps: Maps) -> Stmts:
    """The loops of such a product; `maps(index, sum)` is what becomes of an element."""
    node = b.kernel.anchor
    op, sizes = node.op, letter_sizes(node)
    assert isinstance(op, Contract)
    letters, last = op.out[:-1], op.out[-1]
    row = _tiled([c for c in letters if c not in op.b], sizes)
    column = _tiled([c for c in letters if c not in op.a], sizes)
    others = [c for c in letters if c not in row + column]
    at = {c: Size.symbol(loop_of(c)) for c in (*others, *op.summed)}

    def one(m: Dim, n: Dim, acc: Value) -> Stmts:
        return maps((*[m] * len(letters), n), acc)

    operations = epilogue_operations(one, node.type.dtype)
    tall, wide = _tile(b.target, node.type.dtype.itemsize, sizes.get(row, 1), sizes.get(column, 1))
    laid = operations * tall * wide > EPILOGUE_OPERATIONS
    buffer = b.workspace(node, tall * wide * LANES, True) if laid else None
    x, y = (b.reader(i) for i in node.inputs)

    def tile(rows: _Piece, columns: _Piece, lane: Dim, width: Dim) -> Stmts:
        acc = Local("acc", node.type.dtype, (rows.size, columns.size), True)

        def index(letters: str) -> Index:
            place = at | {last: lane} | rows.at(_I) | columns.at(_C)
            return tuple(place[c] for c in letters)

        def each(stmts: Stmts, mode: str = "unroll") -> Stmts:
            inside = (Loop("l'", width, stmts, "vector"),)
            return (Loop("i'", rows.size, (Loop("c'", columns.size, inside, mode),), mode),)

        args = x(index(op.a)), y(index(op.b)), Get(acc, (_I, _C))
        terms: Stmts = each((Set(acc, (_I, _C), Apply("fma", args, acc.dtype)),))
        for c in reversed(op.summed):
            terms = (Loop(loop_of(c), sizes[c], terms),)
        body = (acc, *each((Set(acc, (_I, _C), Literal(0, acc.dtype)),)), *terms)
        if buffer is None:
            return (*body, *each(maps(index(op.out), Get(acc, (_I, _C)))))
        place = (_I * columns.size + _C) * LANES + _L
        keep = each((Store(buffer, place, Get(acc, (_I, _C))),))
        return (*body, *keep, *each(maps(index(op.out), Load(buffer, place)), "serial"))

    out: list[Stmts] = []
    for rows in _pieces(row, sizes, tall):
        for columns in _pieces(column, sizes, wide):
            nest = rows.over(columns.over(_over_lanes(sizes[last], _by(tile, rows, columns))))
            for c in reversed(others):
                nest = (Loop(loop_of(c), sizes[c], nest),)
            out.append(shared_nest(nest, len(others) + 2))
    return tuple(s for nest in out for s in nest)


def _by(
    tile: Callable[[_Piece, _Piece, Dim, Dim], Stmts], rows: _Piece, columns: _Piece
) -> Callable[[Dim, Dim], Stmts]:
    return lambda lane, width: tile(rows, columns, lane, width)


def _over_lanes(size: Dim, body: Callable[[Dim, Dim], Stmts]) -> Stmts:
    """The body for each vector of lanes, given the lane and how many there are."""
    if not isinstance(size, int):
        whole: Dim = size // LANES
        rest = body(whole * LANES + _L, size % LANES)
    else:
        whole = size // LANES
        rest = body(whole * LANES + _L, size % LANES) if size % LANES else ()
    if whole == 0:
        return rest
    return (Loop("b'", whole, body(Size.symbol("b'") * LANES + _L, LANES)), *rest)


def _tiled(letters: list[str], sizes: dict[str, Dim]) -> str:
    """The letter that tiles go along: the last that is more than one long."""
    return next((c for c in reversed(letters) if sizes[c] != 1), "")


def _tile(target: Target, itemsize: int, rows: Dim, columns: Dim) -> tuple[int, int]:
    """Rows and columns of a tile that stay in registers: of those that fit, with fewest loads.

    A column's factors count twice: those of a tile of rows stay near while columns go by.
    """
    room = target.vector_registers // target.registers_of(itemsize, LANES)

    def loads(shape: tuple[int, int]) -> tuple[float, int]:
        tall, wide = shape
        return (2 / tall + 1 / wide) / (_used(rows, tall) * _used(columns, wide)), -tall * wide

    shapes = [
        (tall, wide)
        for tall in _heights(rows, room)
        for wide in _heights(columns, room)
        if tall * wide + min(tall, wide) + SPARE <= room or tall == wide == 1
    ]
    return min(shapes, key=loads)


def _heights(size: Dim, room: int) -> list[int]:
    """How much of a letter a tile may hold; where its size is not known, a power of two."""
    if isinstance(size, int):
        return list(range(1, max(1, min(size, room)) + 1))
    return [1 << i for i in range(room.bit_length())]


def _used(size: Dim, height: int) -> float:
    """What share of whole tiles along a letter is used."""
    return size / (-(-size // height) * height) if isinstance(size, int) and size else 1


def _pieces(letter: str, sizes: dict[str, Dim], most: int) -> Iterator[_Piece]:
    """Tiles along a letter: about equal ones where the size is known, else whole ones and ones."""
    if not letter:
        yield _Piece("", 1, 1, 0)
        return
    size = sizes[letter]
    if not isinstance(size, int):
        yield _Piece(letter, most, size // most, 0)
        if most > 1:
            yield _Piece(letter, 1, size % most, size // most * most)
        return
    height = -(-size // -(-size // most)) if size else 1
    yield _Piece(letter, height, size // height, 0)
    if size % height:
        yield _Piece(letter, size % height, 1, size - size % height)


# folds


def turns_loops(b: Builder) -> Stmts:
    """A fold of leading axes in the order of one along a row: LANES cells take turns, and one tree
    folds them; then what follows from it.
    """
    fold, rest, space = b.kernel.anchor, b.kernel.nodes[1:], b.kernel.space
    op = fold.op
    assert isinstance(op, Reduce)
    count, combine = len(space) - len(op.axes) - 1, op.combine
    assert op.axes == tuple(range(count, len(space) - 1))
    folded = space[count:-1]
    read = b.reader(fold.inputs[0])
    acc = Local("acc", fold.type.dtype, (LANES,), True)

    def vectors(lead: Index) -> Stmts:
        def one(lane: Dim, width: Dim) -> Stmts:
            def add(cell: Dim, at: Index) -> Stmts:
                value = Apply(combine, (Get(acc, (cell,)), read((*lead, *at, lane))), acc.dtype)
                return (Loop("l'", width, (Set(acc, (cell,), value),), "vector"),)

            def merge(first: int, second: int) -> Stmts:
                value = Apply(combine, (Get(acc, (first,)), Get(acc, (second,))), acc.dtype)
                return (Loop("l'", width, (Set(acc, (first,), value),), "vector"),)

            total = product(folded)
            used = min(total, LANES) if isinstance(total, int) else LANES
            identity = Set(acc, (_C,), Literal(op.identity(acc.dtype), acc.dtype))
            clear = Loop("c'", LANES, (Loop("l'", width, (identity,), "vector"),), "unroll")
            tree: Stmts = ()
            half = LANES // 2
            while half:
                tree += tuple(s for i in range(half) if i + half < used for s in merge(i, i + half))
                half //= 2

            def finish() -> Stmts:
                b.values[fold] = Get(acc, (0,))
                index = (*lead, lane)
                return (*b.compute(rest, index, True), *b.store([fold, *rest], index))

            return (
                acc, clear, *in_turn(folded, add), *tree, Loop("l'", width, finish(), "vector")
            )  # fmt: skip

        return _over_lanes(space[-1], one)

    return shared_nest(for_each(space[:count], vectors, "r"), count + 1)


def in_turn(folded: tuple[Dim, ...], add: Callable[[Dim, Index], Stmts]) -> Stmts:
    """Each element, with the cell whose turn it is."""
    total, last = product(folded), folded[-1]
    if isinstance(total, int) and total <= LANES:
        return tuple(s for i in range(total) for s in add(i, unravel(i, folded)))
    if isinstance(last, int) and last % LANES == 0 and last:
        along = Size.symbol("k'") * LANES + _C

        def row(lead: Index) -> Stmts:
            turns = Loop("c'", LANES, add(_C, (*lead, along)), "unroll")
            return (Loop("k'", last // LANES, (turns,)),)

        return for_each(folded[:-1], row, "q")
    k = Size.symbol("k'")
    turns = Loop("c'", LANES, add(_C, unravel(k * LANES + _C, folded)), "unroll")
    whole, left = total // LANES * LANES, total % LANES
    rest = [
        Loop("k'", (left + LANES - 1 - i) // LANES, add(i, unravel(whole + i, folded)))
        for i in range(LANES - 1)
    ]
    return (Loop("k'", total // LANES, (turns,)), *(s for s in rest if s.extent != 0))
