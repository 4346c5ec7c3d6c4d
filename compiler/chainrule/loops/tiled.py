"""The product on a GPU: a block computes a tile of the result from tiles of its factors in shared
memory, each thread a square of it in registers. From sm_80 on the next tile of a factor that is in
memory as it is comes by itself while this one is multiplied.

Letters of the result that stand in both factors number the products, those of one alone are its
rows or its columns. Every element is one chain of multiply-adds from 0, its terms ascending, so
that neither the tile nor the shape of a square shows in the bits (Volkov and Demmel, "Benchmarking
GPUs to Tune Dense Linear Algebra", SC 2008, for squares in registers over shared memory).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeGuard

from chainrule.ir.loop import (
    Apply,
    Await,
    Buffer,
    Close,
    Fetch,
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
from chainrule.ir.size import Dim, Size, coefficient, divide, product
from chainrule.ir.types import float32
from chainrule.loops.builder import Builder, is_straight
from chainrule.loops.launch import BLOCK
from chainrule.loops.layout import is_view, letter_sizes
from chainrule.loops.walk import postorder
from chainrule.ops.contract import Contract
from chainrule.records import dataclass

#: a block's threads stand in a square of SIDE x SIDE, each with a square of the result of its own
SIDE = 16
#: so many tiles are enough, about one for each multiprocessor of a large GPU
ENOUGH = 128
#: neighbours that a thread takes together: of floats a 16-byte access
FOUR = 4
#: how a factor is read: the element of a term and a line, which is a row or a column
Read = Callable[[Dim, Dim], Value]
#: the number that a size is taken to be where it is not known; any choice has the same bits
TYPICAL = 64

_T, _K, _I, _J, _P, _E = (Size.symbol(f"{name}'") for name in "tkijpe")


@dataclass(frozen=True)
class Axis:
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


class Tiles:
    """The tiles of a product: each is `unit` times as wide as the `side` of a thread's share of it,
    one of `sides`, the first that leaves enough tiles; panels have `depth` terms: more where a tile
    is small, as a panel takes as long to come as the way to memory is.
    """

    unit: int = SIDE
    sides: tuple[int, ...] = (8, 4, 2, 1)
    depth: int

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
        self.side = b.choice.side if b.choice.side in self.sides else self._side_by_size()
        self.wide = self.unit * self.side
        self.x, self.y = (b.reader(i) for i in self.node.inputs)
        self.ahead = False
        self.acc, self.first, self.second = self.memory()

    def looks_ahead(self, depth: int) -> bool:
        """Whether panels of so many terms are fetched while those before them are multiplied: where
        the GPU can, there are several, and a factor lies in memory as it is.
        """
        whole = self.terms.size // depth
        if not self.b.target.tensor or (isinstance(whole, int) and whole < 2):
            return False
        x, y = map(self.words, self.reads(self.groups.at(0)))
        return any(map(_is_given, (x(_K, _P), y(_K, _P))))

    def words(self, read: Read) -> Read:
        """How a factor is read that is fetched: an element of a panel at a time."""
        return read

    def _side_by_size(self) -> int:
        """The largest share that leaves enough tiles."""
        return next((s for s in self.sides if self._count(s) >= ENOUGH), self.sides[-1])

    def _count(self, side: int) -> int:
        """About how many tiles there are."""
        axes = (self.groups, self.rows, self.columns)
        g, m, n = (a.size if isinstance(a.size, int) else TYPICAL for a in axes)
        wide = self.unit * side
        return g * -(-m // wide) * -(-n // wide)

    def memory(self) -> tuple[Local, Buffer, Buffer]:
        """A thread's sums, and panels of both factors: a line of `step` for each term, such that
        threads along the terms are not all at one bank of shared memory.
        """
        dtype = self.node.type.dtype
        self.depth, self.step = max(16, 64 // self.side), self.wide + 4
        self.ahead, self.along = self.looks_ahead(self.depth), self.depth
        self.stage = self.depth * self.step
        size = self.stage * (1 + self.ahead)
        first, second = (self.b.scratch_of(dtype, size, private=True) for _ in range(2))
        return Local("acc", dtype, (self.side, self.side), True), first, second

    def element(self) -> tuple[Dim, Dim, tuple[Dim, ...]]:
        """Row and column in the tile of an element of a thread's share, and its cell."""
        return _T // SIDE * self.side + _I, _T % SIDE * self.side + _J, (_I, _J)

    def share(self, body: Stmts) -> Stmts:
        """The body for each element of a thread's share."""
        return (Loop("i'", self.side, (Loop("j'", self.side, body, "unroll"),), "unroll"),)

    def loops(self) -> Stmts:
        """A part for each tile: the sums, then what becomes of them."""
        over = self.groups.size, self._tiles(self.rows), self._tiles(self.columns)
        g, tile_row, tile_column = (Size.symbol(f"{name}'") for name in ("g", "m", "n"))
        places = self.groups.at(g)
        top, left = tile_row * self.wide, tile_column * self.wide
        zero = Set(self.acc, self.element()[2], Literal(0, self.acc.dtype))
        body: Stmts = (
            self.acc,
            threads(self.share((zero,))),
            *self.sums(places, top, left),
            threads(self._finish(places, top, left)),
        )
        for var, extent in zip(("n'", "m'", "g'"), reversed(over), strict=True):
            body = (Loop(var, extent, body, split=True),)
        return body

    def sums(self, places: Mapping[str, Dim], top: Dim, left: Dim) -> Stmts:
        """All terms, a panel at a time; where they are fetched ahead, in two stages by turns."""
        whole, rest = self.terms.size // self.depth, self.terms.size % self.depth
        last = (self._last(places, top, left, whole, rest),) if rest != 0 else ()
        if not self.ahead:
            panel = self._panel(places, top, left, _K * self.depth, self.depth)
            return (Loop("k'", whole, panel), *last)
        x, y = map(self.words, self.reads(places))

        def ask(panel: Dim) -> Stmt:
            start, stage = panel * self.along, panel % 2 * self.stage
            first = self.ask(self.first, x, top, self.rows.size, start, stage)
            second = self.ask(self.second, y, left, self.columns.size, start, stage)
            return threads((When(((panel, whole),), (*first, *second)),))

        multiply = threads(self.multiply(self.depth, _K % 2 * self.stage))
        panels = Loop("k'", whole, (ask(_K + 1), Close(), Await(1), multiply))
        return (ask(0), Close(), panels, *last)

    def reads(self, places: Mapping[str, Dim]) -> tuple[Read, Read]:
        """How both factors are read, at a term and a row, or a column."""

        def x(k: Dim, m: Dim) -> Value:
            return self.x(_index(self.op.a, {**places, **self.terms.at(k), **self.rows.at(m)}))

        def y(k: Dim, n: Dim) -> Value:
            return self.y(_index(self.op.b, {**places, **self.terms.at(k), **self.columns.at(n)}))

        return x, y

    def _tiles(self, axis: Axis) -> Dim:
        return (axis.size + self.wide - 1) // self.wide

    def _last(self, places: Mapping[str, Dim], top: Dim, left: Dim, whole: Dim, rest: Dim) -> Loop:
        """The terms that do not fill a panel: none, or one more."""
        some = 1 if isinstance(rest, int) else (rest + self.depth - 1) // self.depth
        return Loop("k'", some, self._panel(places, top, left, whole * self.depth, rest))

    def _panel(
        self, places: Mapping[str, Dim], top: Dim, left: Dim, start: Dim, depth: Dim
    ) -> Stmts:
        """Some terms: each factor's to shared memory, then the multiply-adds from there."""
        x, y = self.reads(places)
        return (
            threads(self.copy(self.first, x, top, self.rows.size, start, depth)),
            threads(self.copy(self.second, y, left, self.columns.size, start, depth)),
            threads(self.multiply(depth)),
        )

    def multiply(self, depth: Dim, stage: Dim = 0) -> Stmts:
        """The multiply-adds of a panel, which lies so far in shared memory."""
        i, j, cell = self.element()
        at = stage + _P * self.step
        x, y = Load(self.first, at + i), Load(self.second, at + j)
        sums = Apply("fma", (x, y, Get(self.acc, cell)), self.acc.dtype)
        mode = "unroll" if isinstance(depth, int) else "serial"
        return (Loop("p'", depth, self.share((Set(self.acc, cell, sums),)), mode),)

    #: whether neighbours in a panel are lines of one term, not terms of one line
    by_lines = True

    def place(self, term: Dim, line: Dim) -> Dim:
        """Where an element of a panel lies in it."""
        return term * self.step + line

    def ask(self, to: Buffer, read: Read, begin: Dim, size: Dim, start: Dim, stage: Dim) -> Stmts:
        """A panel of a factor, fetched if it lies in memory as it is, four neighbours at a time
        where they are such in both; what lies outside is left out.
        """
        four = self._by_fours(read, begin, size, start)
        term, line, count = four or self.spread(read, self.along)
        value, at = read(start + term, begin + line), stage + self.place(term, line)
        several = FOUR if four else 1
        moved = Fetch(to, at, value, several) if _is_given(value) else Store(to, at, value)
        return (Loop("e'", count, (When(((begin + line, size),), (moved,)),), "unroll"),)

    def _by_fours(
        self, read: Read, begin: Dim, size: Dim, start: Dim
    ) -> tuple[Dim, Dim, int] | None:
        """Which four neighbours a thread fetches at turn e', and its turns; None where they are
        none in memory, or do not begin at a multiple of 16 bytes there, or are not as many.
        """
        along, across = (self.wide, self.along) if self.by_lines else (self.along, self.wide)
        place, fours = _E * BLOCK + _T, along // FOUR
        count, left = divmod(fours * across, BLOCK)
        near, far = place % fours * FOUR, place // fours
        term, line = (far, near) if self.by_lines else (near, far)
        value = read(start + term, begin + line)
        if left or not _is_given(value) or self.b.kernel.depth:
            return None
        after = read(start + term + (not self.by_lines), begin + line + self.by_lines)
        each = 1 + value.pair
        neighbours = isinstance(after, Load) and after.offset == value.offset + each
        whole = divide(value.offset, FOUR * each) is not None
        if self.by_lines and divide(size, FOUR) is None:  # four lines may be cut in two
            return None
        return (term, line, count) if whole and neighbours else None

    def copy(
        self,
        to: Buffer,
        read: Callable[[Dim, Dim], Value],
        begin: Dim,
        size: Dim,
        start: Dim,
        depth: Dim,
    ) -> Stmts:
        """A panel of a factor, threads along its memory; what lies outside is left out."""
        term, line, count = self.spread(read, self.depth)
        store = Store(to, self.place(term, line), read(start + term, begin + line))
        inside = [(begin + line, size)]
        if depth != self.depth:
            inside.append((term, depth))
        return (Loop("e'", count, (When(tuple(inside), (store,)),), "unroll"),)

    def spread(self, read: Callable[[Dim, Dim], Value], depth: int) -> tuple[Dim, Dim, int]:
        """Which of so many terms, and which line, a thread copies at turn e', and its turns:
        threads go along whichever lies along memory.
        """
        place, count = _E * BLOCK + _T, depth * self.wide // BLOCK
        if goes_along(read(_K, _P), "k'"):
            return place % depth, place // depth, count
        return place // self.wide, place % self.wide, count

    def _finish(self, places: Mapping[str, Dim], top: Dim, left: Dim) -> Stmts:
        """What becomes of each element of a thread's share that the result has."""
        b = self.b
        i, j, cell = self.element()
        m, n = top + i, left + j
        index = _index(self.op.out, {**places, **self.rows.at(m), **self.columns.at(n)})
        b.values[self.node] = Get(self.acc, cell)
        rest = b.kernel.nodes[1:]
        maps = (*b.compute(rest, index, True), *b.store([self.node, *rest], index))
        return self.share((When(((m, self.rows.size), (n, self.columns.size)), maps),))


def _is_given(value: Value) -> TypeGuard[Load]:
    """Whether a value is 4 bytes of the GPU's memory as they are, at a place that is known."""
    if not isinstance(value, Load) or value.index is not None:
        return False
    return not value.buffer.private and (value.pair or value.dtype == float32)


def threads(body: Stmts) -> Stmt:
    """The body for each thread of a block."""
    return Loop("t'", BLOCK, body, "vector")


def _axis(letters: list[str], sizes: Mapping[str, Dim], runs: set[str]) -> Axis:
    """Letters as one axis; those of a run have the whole of it in their last."""
    shape = [sizes[c] for c in letters]
    for i in range(len(letters) - 1):
        if letters[i] + letters[i + 1] in runs:
            shape[i], shape[i + 1] = 1, shape[i] * shape[i + 1]
    return Axis("".join(letters), tuple(shape))


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


def goes_along(value: Value, var: str) -> bool:
    """Whether neighbours along a variable are neighbours in memory."""
    loads = [v for v in postorder(value) if isinstance(v, Load)]
    slopes = [(coefficient(v.offset, var), 1 + v.pair) for v in loads]
    return any(s is not None and s[0] == each for s, each in slopes)


def _index(letters: str, places: Mapping[str, Dim]) -> Index:
    return tuple(places[c] for c in letters)
