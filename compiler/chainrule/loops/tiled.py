"""The product on a GPU: a block computes a tile of the result from tiles of its factors in shared
memory, each thread a square of it in registers.

Letters of the result that stand in both factors number the products, those of one alone are its
rows or its columns. Every element is one chain of multiply-adds from 0, its terms ascending, so
that neither the tile nor the shape of a square shows in the bits (Volkov and Demmel, "Benchmarking
GPUs to Tune Dense Linear Algebra", SC 2008, for squares in registers over shared memory).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chainrule.ir.loop import (
    Apply,
    Buffer,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Stmt,
    Store,
    Value,
    When,
)
from chainrule.ir.node import Index, Stmts
from chainrule.ir.size import Dim, Size, coefficient, product
from chainrule.loops.builder import Builder, is_straight
from chainrule.loops.launch import BLOCK
from chainrule.loops.layout import is_view, letter_sizes
from chainrule.loops.products import plain_product
from chainrule.loops.walk import postorder
from chainrule.ops.contract import Contract

#: a block's threads stand in a square of SIDE x SIDE, each with a square of the result of its own
SIDE = 16
#: terms of the sums that lie in shared memory at a time
DEPTH = 16
#: sides of a thread's square, and how many tiles are enough to keep the smaller from being taken:
#: about one for each multiprocessor of a large GPU
SQUARES, ENOUGH = (8, 4, 2, 1), 128
#: the number that a size is taken to be where it is not known; any choice has the same bits
TYPICAL = 64

_T, _K, _I, _J, _P, _Q, _E = (Size.symbol(f"{name}'") for name in "tkijpqe")


@dataclass(frozen=True)
class _Axis:
    """Letters that are walked as one, of `size` places together."""

    letters: str
    shape: tuple[Dim, ...]

    @property
    def size(self) -> Dim:
        return product(self.shape)

    def at(self, place: Dim) -> dict[str, Dim]:
        """The index of each letter at a place."""
        index: dict[str, Dim] = dict.fromkeys(self.letters, 0)
        long = [(c, d) for c, d in zip(self.letters, self.shape, strict=True) if d != 1]
        for c, d in reversed(long[1:]):
            index[c], place = place % d, place // d
        return index | {c: place for c, _ in long[:1]}


def tiled_product(b: Builder) -> tuple[Stmts, int]:
    """One product, with the maps that follow it, and the lanes of a part."""
    op = b.kernel.anchor.op
    assert isinstance(op, Contract)
    if not b.kernel.anchor.type.dtype.is_float or not op.out or not op.summed:
        return plain_product(b), 1
    return _Tiles(b).loops(), BLOCK


class _Tiles:
    """The tiles of a product: `side` of a thread's square, `wide` of a tile; lines of a panel lie
    `step` apart, so that threads along its terms are not all at one bank of shared memory.
    """

    def __init__(self, b: Builder) -> None:
        self.b, self.node = b, b.kernel.anchor
        op = self.node.op
        assert isinstance(op, Contract)
        self.op = op
        sizes, runs = letter_sizes(self.node), _runs(b)
        self.groups = _axis([c for c in op.out if c in op.a and c in op.b], sizes, runs)
        self.rows = _axis([c for c in op.out if c not in op.b], sizes, runs)
        self.columns = _axis([c for c in op.out if c not in op.a], sizes, runs)
        self.terms = _axis(list(op.summed), sizes, runs)
        self.side = _side(self.groups.size, self.rows.size, self.columns.size)
        self.wide = SIDE * self.side
        self.step = self.wide + 4
        dtype = self.node.type.dtype
        self.first, self.second = (
            b.scratch_of(dtype, DEPTH * self.step, private=True) for _ in range(2)
        )
        self.acc = Local("acc", dtype, (self.side, self.side), True)
        self.x, self.y = (b.reader(i) for i in self.node.inputs)

    def loops(self) -> Stmts:
        """A part for each tile: the sums, then what becomes of them."""
        over = self.groups.size, self._tiles(self.rows), self._tiles(self.columns)
        g, tile_row, tile_column = (Size.symbol(f"{name}'") for name in ("g", "m", "n"))
        places = self.groups.at(g)
        top, left = tile_row * self.wide, tile_column * self.wide
        whole, rest = self.terms.size // DEPTH, self.terms.size % DEPTH
        zero = Literal(0, self.acc.dtype)
        body: Stmts = (
            self.acc,
            _threads(self._square((Set(self.acc, (_I, _J), zero),))),
            Loop("k'", whole, self._panel(places, top, left, _K * DEPTH, DEPTH)),
            *((self._last(places, top, left, whole, rest),) if rest != 0 else ()),
            _threads(self._finish(places, top, left)),
        )
        for var, extent in zip(("n'", "m'", "g'"), reversed(over), strict=True):
            body = (Loop(var, extent, body, split=True),)
        return body

    def _tiles(self, axis: _Axis) -> Dim:
        return (axis.size + self.wide - 1) // self.wide

    def _last(self, places: Mapping[str, Dim], top: Dim, left: Dim, whole: Dim, rest: Dim) -> Loop:
        """The terms that do not fill a panel: none, or one more."""
        some = 1 if isinstance(rest, int) else (rest + DEPTH - 1) // DEPTH
        return Loop("k'", some, self._panel(places, top, left, whole * DEPTH, rest))

    def _panel(
        self, places: Mapping[str, Dim], top: Dim, left: Dim, start: Dim, depth: Dim
    ) -> Stmts:
        """Some terms: each factor's to shared memory, then the multiply-adds from there."""

        def x(k: Dim, m: Dim) -> Value:
            return self.x(_index(self.op.a, {**places, **self.terms.at(k), **self.rows.at(m)}))

        def y(k: Dim, n: Dim) -> Value:
            return self.y(_index(self.op.b, {**places, **self.terms.at(k), **self.columns.at(n)}))

        def at(row: Dim) -> Value:
            return Load(self.first, _P * self.step + row)

        i = _T // SIDE * self.side + _I
        j = _T % SIDE * self.side + _J
        factors = (at(i), Load(self.second, _P * self.step + j), Get(self.acc, (_I, _J)))
        add = self._square((Set(self.acc, (_I, _J), Apply("fma", factors, self.acc.dtype)),))
        mode = "unroll" if isinstance(depth, int) else "serial"
        return (
            _threads(self._copy(self.first, x, top, self.rows.size, start, depth)),
            _threads(self._copy(self.second, y, left, self.columns.size, start, depth)),
            _threads((Loop("p'", depth, add, mode),)),
        )

    def _copy(
        self,
        to: Buffer,
        read: Callable[[Dim, Dim], Value],
        begin: Dim,
        size: Dim,
        start: Dim,
        depth: Dim,
    ) -> Stmts:
        """A panel of a factor, threads along its memory; what lies outside is left out."""
        each, place = DEPTH * self.wide // BLOCK, _E * BLOCK + _T
        by_terms = _goes_along(read(_K, _P), "k'")
        term, line = (
            (place % DEPTH, place // DEPTH) if by_terms else (place // self.wide, place % self.wide)
        )
        store = Store(to, term * self.step + line, read(start + term, begin + line))
        inside = [(begin + line, size)]
        if depth != DEPTH:
            inside.append((term, depth))
        return (Loop("e'", each, (When(tuple(inside), (store,)),), "unroll"),)

    def _square(self, body: Stmts) -> Stmts:
        return (Loop("i'", self.side, (Loop("j'", self.side, body, "unroll"),), "unroll"),)

    def _finish(self, places: Mapping[str, Dim], top: Dim, left: Dim) -> Stmts:
        """What becomes of each element of a thread's square that the result has."""
        b = self.b
        m = top + _T // SIDE * self.side + _I
        n = left + _T % SIDE * self.side + _J
        index = _index(self.op.out, {**places, **self.rows.at(m), **self.columns.at(n)})
        b.values[self.node] = Get(self.acc, (_I, _J))
        rest = b.kernel.nodes[1:]
        maps = (*b.compute(rest, index, True), *b.store([self.node, *rest], index))
        return self._square((When(((m, self.rows.size), (n, self.columns.size)), maps),))


def _threads(body: Stmts) -> Stmt:
    return Loop("t'", BLOCK, body, "vector")


def _axis(letters: list[str], sizes: Mapping[str, Dim], runs: set[str]) -> _Axis:
    """Letters as one axis; those of a run have the whole of it in their last."""
    shape = [sizes[c] for c in letters]
    for i in range(len(letters) - 1):
        if letters[i] + letters[i + 1] in runs:
            shape[i], shape[i + 1] = 1, shape[i] * shape[i + 1]
    return _Axis("".join(letters), tuple(shape))


def _runs(b: Builder) -> set[str]:
    """Pairs of letters that lie together wherever they occur, in memory as it is."""
    node = b.kernel.anchor
    op = node.op
    assert isinstance(op, Contract)
    texts = [op.a, op.b, op.out]
    opaque = "".join(t for t, x in zip(texts, node.inputs, strict=False) if is_view(x))
    axes = [{i for i, c in enumerate(op.out) if c not in text} for text in (op.a, op.b)]
    if not is_straight(b.kernel.nodes[1:], b.kernel, axes):
        opaque += op.out
    found = set()
    for c, d in {(t[i], t[i + 1]) for t in texts for i in range(len(t) - 1)}:
        where = [t for t in texts if c in t or d in t]
        if all(c + d in t for t in where) and not {c, d} & set(opaque):
            found.add(c + d)
    return found


def _side(groups: Dim, rows: Dim, columns: Dim) -> int:
    """The side of a thread's square: the largest that leaves enough tiles."""
    g, m, n = (d if isinstance(d, int) else TYPICAL for d in (groups, rows, columns))

    def tiles(side: int) -> int:
        wide = SIDE * side
        return g * -(-m // wide) * -(-n // wide)

    return next((s for s in SQUARES if tiles(s) >= ENOUGH), SQUARES[-1])


def _goes_along(value: Value, var: str) -> bool:
    """Whether neighbours along a variable are neighbours in memory."""
    loads = [v for v in postorder(value) if isinstance(v, Load)]
    slopes = [coefficient(v.offset, var) for v in loads]
    return any(s is not None and s[0] == 1 for s in slopes)


def _index(letters: str, places: Mapping[str, Dim]) -> Index:
    return tuple(places[c] for c in letters)
