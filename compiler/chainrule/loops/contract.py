"""The matrix product as a scheduled template: out[m, n] = sum over k of a[m, k] * b[k, n].

Every element of the result is one chain of multiply-adds from 0, k ascending, whatever tiles are
chosen: the choices below change speed, never bits. A tile of rows x (vectors of LANES columns)
stays in registers over the whole of k, then the epilogue takes it (Goto and van de Geijn, "Anatomy
of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008, for tiles and packed panels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
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
)
from chainrule.ir.machine import MACHINE
from chainrule.ir.size import Dim, Size, coefficient
from chainrule.ir.types import DType
from chainrule.loops.library import listing_of
from chainrule.loops.parts import by_one, shared_nest
from chainrule.loops.walk import postorder, statements
from chainrule.target import Target

#: fewer chains than this leave the multiply-adds waiting for each other (latency x units)
CHAINS = 8
#: operations of epilogue code in one tile; where more rows are worth it, the tile is laid down in
#: workspace and a loop over its rows takes it from there
EPILOGUE_OPERATIONS = 640
#: rows of the result below which packing a strided b, or one whose rows evict each other, costs
#: more than it gives
PACKING_ROWS, CONFLICT_ROWS = 4, 128
PAGE = 4096
#: so many panels are enough for parts to share
SHARED_PANELS = 4

_M, _N, _K, _I, _V, _J = (Size.symbol(name) for name in ("m'", "n'", "k'", "i'", "v'", "j'"))


@dataclass(frozen=True)
class Contraction:
    """A product to be scheduled.

    `groups` are outer loops (batch axes), in which `before` comes first; `a(m, k)` and `b(k, n)`
    read the factors at any index, `epilogue(m, n, acc)` says what becomes of an element: statements
    inside a vector loop over n. A sum starts from `start(m, n)`, or from 0. `tile`, if given, is
    workspace of `tile_size` elements, where sums wait for the epilogue.
    """

    groups: tuple[tuple[str, Dim], ...]
    m: Dim
    n: Dim
    k: Dim
    a: Callable[[Dim, Dim], Value]
    b: Callable[[Dim, Dim], Value]
    dtype: DType
    epilogue: Callable[[Dim, Dim, Value], tuple[Stmt, ...]]
    start: Callable[[Dim, Dim], Value] | None = None
    before: tuple[Stmt, ...] = ()
    tile: Buffer | None = None


@dataclass(frozen=True)
class Rows:
    """`count` tiles of `rows` rows, from row `start`; each `vectors` vectors wide."""

    rows: int
    count: Dim
    start: Dim
    vectors: int


@dataclass(frozen=True)
class Columns:
    """`count` panels from column `start`: `vectors` vectors each, the last of them `last` wide."""

    vectors: int
    count: Dim
    start: Dim
    last: Dim = LANES


def packed_size(c: Contraction, target: Target) -> Dim:
    """Elements of workspace that `contraction_loops` wants for panels of b; 0 for none."""
    known = c.m if isinstance(c.m, int) else None
    if known is not None and known < PACKING_ROWS:
        return 0
    loads = [v for v in postorder(c.b(_K, _N)) if isinstance(v, Load)]
    strided = any(_slope(load, "n'") not in (0, 1) for load in loads)
    if strided or (known is not None and known >= CONFLICT_ROWS and any(map(_conflicts, loads))):
        return c.k * ((c.n + LANES - 1) // LANES * LANES)
    return 0


def tile_size(c: Contraction, target: Target) -> int:
    """Elements of workspace for a tile that is too tall for the code of its epilogue; else 0."""
    low, tall = (max(r.rows * r.vectors for r in _rows(c, target, t)) for t in (False, True))
    return tall * LANES if tall > low else 0


def _slope(load: Load, var: str) -> Dim | None:
    slope = coefficient(load.offset, var)
    return None if slope is None else slope[0]


def _conflicts(load: Load) -> bool:
    """Whether the rows of a panel lie whole pages apart, so that caches can't hold many of them."""
    stride = _slope(load, "k'")
    return isinstance(stride, int) and stride > 0 and stride * load.dtype.itemsize % PAGE == 0


def contraction_loops(
    c: Contraction, target: Target, packed: Buffer | None, split: bool = False
) -> tuple[Stmt, ...]:
    """The loops of a product; with `packed`, b is copied there first, LANES columns a panel.

    With `split` the parts of a program share it, inside the groups.
    """
    body = c.before
    b = c.b
    if split:
        body = tuple(s for nest in c.before for s in shared_nest((nest,), 1))
    between = (Barrier(),) if split else ()
    body += between if body else ()
    if packed is not None:
        body += (*_pack(c, packed, split), *between)
        b = _packed_reader(c, packed)
    for rows in _rows(c, target, tall=c.tile is not None):
        for columns in _columns(c.n, rows.vectors):
            body += _nest(c, b, rows, columns, split)
    body += between if c.groups else ()
    for var, extent in reversed(c.groups):
        body = (Loop(var, extent, body),)
    return body


# tiles


def _rows(c: Contraction, target: Target, tall: bool) -> Iterator[Rows]:
    """Rows in tiles: for known m of equal height, else of falling powers of two. Only `tall` ones
    may have more rows than the code of the epilogue should be written out for.
    """
    width = target.registers_of(c.dtype.itemsize, LANES)
    available = max(1, -(-c.n // LANES)) if isinstance(c.n, int) else 2
    best = min(available, 3 if available == 3 else 2, max(1, 2 // width))
    most = (target.vector_registers - 1 - best * width) // (best * width)
    most = max(1, min(most, 14))
    if not tall:
        most = min(most, _unrolled_rows(c, best))

    def vectors(rows: int) -> int:
        if rows * best * width >= CHAINS:
            return best
        fitting = (target.vector_registers - 2) // (width * (rows + 1))
        return max(1, min(available, fitting, -(-CHAINS // (rows * width))))

    if isinstance(c.m, int):
        height = _even_height(c.m, most)
        yield Rows(height, c.m // height, 0, vectors(height))
        if c.m % height:
            yield Rows(c.m % height, 1, c.m - c.m % height, vectors(c.m % height))
        return
    above = 0
    for height in _falling(min(most, CHAINS)):
        rest = c.m % above if above else c.m
        start = c.m // above * above if above else 0
        yield Rows(height, rest // height, start, vectors(height))
        above = height


def _even_height(m: int, most: int) -> int:
    """The tallest tile that divides m, if it is not much below `most`; else tiles made equal."""
    if m <= most:
        return max(m, 1)
    for height in range(most, most // 2, -1):
        if m % height == 0:
            return height
    return -(-m // -(-m // most))


def _falling(most: int) -> list[int]:
    """Heights that serve any number of rows: powers of two down to 1; 2 is left out below 4."""
    powers = [1 << i for i in range(most.bit_length())][::-1]
    return [p for p in powers if p != 2 or powers[0] == 2]


def _columns(n: Dim, vectors: int) -> Iterator[Columns]:
    """Columns in panels, whole ones first, then what is left."""
    width = vectors * LANES
    if not isinstance(n, int):
        yield Columns(vectors, n // width, 0)
        if vectors > 1:
            yield Columns(1, n % width // LANES, n // width * width)
        yield Columns(1, 1, n // LANES * LANES, n % LANES)
        return
    whole, rest = n // width, n % width
    if whole:
        yield Columns(vectors, whole, 0)
    if rest:
        yield Columns(-(-rest // LANES), 1, whole * width, (rest - 1) % LANES + 1)


def _unrolled_rows(c: Contraction, vectors: int) -> int:
    """Rows of a tile whose epilogue is not too much code, row after row."""
    return max(1, EPILOGUE_OPERATIONS // (vectors * _epilogue_operations(c)))


def _epilogue_operations(c: Contraction) -> int:
    acc = Get(Local("acc", c.dtype, (), True))
    values = [s.value for s in statements(c.epilogue(_M, _N, acc)) if isinstance(s, Set | Store)]
    return max(1, sum(map(_operations, postorder(*values))))


def _operations(value: Value) -> int:
    """Operations of the machine, or loads, in a value beyond those in its operands."""
    if not isinstance(value, Apply) or value.fn in MACHINE:
        return 1
    _, listing = listing_of(value.fn, tuple(a.dtype for a in value.args))
    return len(listing.steps)


# loops


def _nest(
    c: Contraction,
    b: Callable[[Dim, Dim], Value],
    rows: Rows,
    columns: Columns,
    split: bool,
) -> tuple[Stmt, ...]:
    """One shape of tile over its part of the result: panels outside, so that b stays near."""
    if rows.count == 0 or columns.count == 0:
        return ()
    whole = columns.vectors - (columns.last != LANES)
    acc = Local("acc", c.dtype, (rows.rows, whole), True)
    edge = Local("edge", c.dtype, (rows.rows, columns.vectors - whole), True)
    row = rows.start + _M * rows.rows + _I
    column = columns.start + _N * (columns.vectors * LANES)

    def cell(v: Dim) -> Get:
        return Get(edge, (_I, 0)) if v == whole else Get(acc, (_I, v))

    def multiply(v: Dim) -> tuple[Stmt, ...]:
        args = (c.a(row, _K), b(_K, column + v * LANES + _J), cell(v))
        return (Set(cell(v).local, cell(v).index, Apply("fma", args, c.dtype)),)

    def begin(v: Dim) -> tuple[Stmt, ...]:
        assert c.start is not None
        return (Set(cell(v).local, cell(v).index, c.start(row, column + v * LANES + _J)),)

    def finish(v: Dim) -> tuple[Stmt, ...]:
        value = cell(v) if c.tile is None else Load(c.tile, place(v))
        return c.epilogue(row, column + v * LANES + _J, value)

    def place(v: Dim) -> Dim:
        return (_I * columns.vectors + v) * LANES + _J

    def lay_down(v: Dim) -> tuple[Stmt, ...]:
        assert c.tile is not None
        return (Store(c.tile, place(v), cell(v)),)

    begun = _over_vectors(columns, begin) if c.start else ()
    laid = _over_vectors(columns, lay_down) if c.tile else ()
    ending = "serial" if c.tile else "unroll"
    tile: tuple[Stmt, ...] = (
        *(s for local in (acc, edge) if all(local.shape) for s in (local, _clear(local))),
        *((Loop("i'", rows.rows, begun, "unroll"),) if begun else ()),
        # row by row, so that an element of a is held no longer than its row takes
        Loop("k'", c.k, (Loop("i'", rows.rows, _over_vectors(columns, multiply), "unroll"),)),
        *((Loop("i'", rows.rows, laid, "unroll"),) if laid else ()),
        Loop("i'", rows.rows, _over_vectors(columns, finish), ending),
    )
    by_rows = _rows_are_more(rows.count, columns.count)
    across = Loop("m'", rows.count, tile, split=split and by_rows)
    return (Loop("n'", columns.count, (across,), split=split and not by_rows),)


def _rows_are_more(rows: Dim, columns: Dim) -> bool:
    """Whether parts had better share a product's rows of tiles than its panels."""
    if isinstance(rows, int) and isinstance(columns, int):
        return rows > columns
    if isinstance(columns, int):
        return columns < SHARED_PANELS
    return isinstance(rows, int) and rows >= SHARED_PANELS


def _clear(local: Local) -> Stmt:
    rows, vectors = local.shape
    zero = Set(local, (_I, _V), Literal(0, local.dtype))
    return Loop("i'", rows, (Loop("v'", vectors, (zero,), "unroll"),), "unroll")


def _over_vectors(columns: Columns, body: Callable[[Dim], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
    """The body for each vector of a panel, the last of which may be narrower."""
    whole = columns.vectors if columns.last == LANES else columns.vectors - 1
    out: tuple[Stmt, ...] = ()
    if whole:
        out += (Loop("v'", whole, (Loop("j'", LANES, body(_V), "vector"),), "unroll"),)
    if whole < columns.vectors:
        out += (Loop("j'", columns.last, body(whole), "vector"),)
    return out


def _packed_reader(c: Contraction, packed: Buffer) -> Callable[[Dim, Dim], Value]:
    """Reads b from its panels, at a column whose lane is j'."""

    def read(k: Dim, n: Dim) -> Value:
        column = n - _J
        return Load(packed, column * c.k + k * LANES + _J)

    return read


def _pack(c: Contraction, packed: Buffer, split: bool) -> tuple[Stmt, ...]:
    """Copy b, LANES columns after LANES columns, in blocks of LANES values of k."""
    by_k = split and isinstance(c.n, int) and c.n // LANES < SHARED_PANELS

    def block(column: Dim, width: Dim, start: Dim, count: int) -> Stmt:
        k = start + _I
        store = Store(packed, column * c.k + k * LANES + _J, c.b(k, column + _J))
        return Loop("j'", width, (Loop("i'", count, (store,), "unroll"),), "vector")

    def panel(column: Dim, width: Dim) -> tuple[Stmt, ...]:
        blocks = Loop("k'", c.k // LANES, (block(column, width, _K * LANES, LANES),), split=by_k)
        rest: tuple[Stmt, ...] = ()
        if not isinstance(c.k, int):
            single = block(column, width, c.k // LANES * LANES + _K, 1)
            rest = (Loop("k'", c.k % LANES, (single,)),)
        elif c.k % LANES:
            rest = (block(column, width, c.k - c.k % LANES, c.k % LANES),)
        return (blocks, *(by_one(rest) if by_k and rest else rest))

    whole = Loop("n'", c.n // LANES, panel(_N * LANES, LANES), split=split and not by_k)
    if c.n % LANES == 0:
        return (whole,)
    last = panel(c.n // LANES * LANES, c.n % LANES)
    return (whole, *(by_one(last) if split and not by_k else last))
