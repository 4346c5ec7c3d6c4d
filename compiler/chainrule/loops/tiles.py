"""Tiles of a product: how many rows and vectors of the result stay in registers at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from chainrule.ir.loop import LANES, Apply, Buffer, Get, Load, Local, Set, Stmt, Store, Value
from chainrule.ir.machine import MACHINE
from chainrule.ir.size import Dim, Size, coefficient
from chainrule.ir.types import DType
from chainrule.loops.choice import BY_SIZES, Choice
from chainrule.loops.library import listing_of
from chainrule.loops.walk import postorder, statements
from chainrule.records import dataclass
from chainrule.target import Target

#: fewer chains than this leave the multiply-adds waiting for each other (latency x units)
CHAINS = 8
#: what a tile costs beside its rows, in rows, and the fewest rows that it costs as many as
TILE_COST, LOW = 1.5, 4
#: rows of a tile at most
TALLEST = 14
#: operations of epilogue code in one tile; where it would have more, the tile is laid down in
#: workspace and loops over its rows and vectors take it from there
EPILOGUE_OPERATIONS = 640
#: bytes after which lines share a set of the nearest cache again, whatever its size: a page; and
#: those that rows of a tile may not lie apart a multiple of
SET_SPAN, ROW_SPAN = 4096, 2048
#: rows that share sets: a tile has no more of those than a set has lines, and more vectors instead
SET_LINES, BESIDE = 8, 3
#: vectors of a row that make few panels
FEW_VECTORS = 16

_M, _N, _K = (Size.symbol(f"{name}'") for name in "mnk")


@dataclass(frozen=True)
class Contraction:
    """A product to be scheduled.

    `groups` are outer loops (batch axes), in which `before` comes first, and before that what each
    part does for itself, `own`; `a(m, k)` and `b(k, n)`
    read the factors at any index, `epilogue(m, n, acc)` says what becomes of an element: statements
    inside a vector loop over n. A sum starts from `start(m, n)`, or from 0. `tile`, if given, is
    workspace of `tile_size` elements, where sums wait for the epilogue; `block` and `sums`, of
    `block_sizes`, are for products in blocks, `flat`, of `flat_size`, for narrow ones. With `terms`
    a sum is nested loops, not one over k, and there may be loops `inside` those over tiles of rows.
    With a `height` tiles have so many rows, the last what is left of a known m. Of each vector the
    first `width` lanes are there. A `choice` says what is not chosen by sizes.
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
    own: tuple[Stmt, ...] = ()
    tile: Buffer | None = None
    block: Buffer | None = None
    sums: Buffer | None = None
    flat: Buffer | None = None
    terms: tuple[tuple[str, Dim], ...] = ()
    inside: tuple[tuple[str, Dim], ...] = ()
    height: int | None = None
    width: int = LANES
    choice: Choice = BY_SIZES


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


def tile_size(c: Contraction, target: Target) -> int:
    """Elements of workspace for a tile whose epilogue would be too much code; else 0.
    Of products in blocks those of few rows are in such tiles.
    """
    cap = TALLEST if c.sums is None or c.choice.packed_from else LOW
    vectors = max(r.rows * r.vectors for r in _rows(c, target, cap))
    much = vectors * epilogue_operations(c.epilogue, c.dtype) > EPILOGUE_OPERATIONS
    return vectors * LANES if much else 0


def tile_shapes(c: Contraction, target: Target, most: int) -> list[tuple[Rows, Columns]]:
    """The shapes of tile, of at most so many rows, that cover a result."""
    return [(r, k) for r in _rows(c, target, most) for k in _columns(c.n, r.vectors)]


def _rows(c: Contraction, target: Target, cap: int) -> Iterator[Rows]:
    """Rows in tiles: for known m of about equal height, else of falling ones."""
    width, available, best = _wide(c, target)
    if c.height is not None:
        yield Rows(c.height, c.m // c.height, 0, best)
        if isinstance(c.m, int) and c.m % c.height:
            yield Rows(c.m % c.height, 1, c.m - c.m % c.height, best)
        return
    most = (target.vector_registers - 1 - best * width) // (best * width)
    tallest = SET_LINES if shares_a_set(c) else cap
    most = max(1, min(most, cap, c.choice.rows or tallest))

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
    rest: Dim = c.m
    start: Dim = 0
    for height in _falling(most):
        yield Rows(height, rest // height, start, vectors(height))
        start, rest = start + rest // height * height, rest % height


def best_vectors(n: Dim, width: int) -> int:
    """Vectors of a tile of n columns, if it has many rows; each takes `width` registers."""
    available = max(1, -(-n // LANES)) if isinstance(n, int) else 2
    return min(available, 3 if available == 3 else 2, max(1, 2 // width))


def _even_height(m: int, most: int) -> int:
    """The height at which tiles cost least together: tall, and with few rows left over."""
    if m <= most:
        return max(m, 1)

    def cost(height: int) -> tuple[float, bool]:
        whole, rest = divmod(m, height)
        left = max(rest, LOW) + TILE_COST if rest else 0
        return whole * (height + TILE_COST) + left, rest > 0

    return min(range(most, most // 2, -1), key=cost)


def _falling(most: int) -> list[int]:
    """Heights that serve any number of rows."""
    if most >= CHAINS:
        return [most // LOW * LOW, LOW, 1]
    return [most, LOW, 1] if most > LOW else [most, 1] if most > 1 else [1]


def _wide(c: Contraction, target: Target) -> tuple[int, int, int]:
    """Registers of a vector, vectors of a row of the result, and how many a tile should have."""
    width = target.registers_of(c.dtype.itemsize, LANES)
    available = max(1, -(-c.n // LANES)) if isinstance(c.n, int) else 2
    beside = width == 1 and c.height is None and shares_a_set(c)
    best = BESIDE if beside and not _leaves_one(c.n) else best_vectors(c.n, width)
    return width, available, min(available, c.choice.vectors or best)


def _leaves_one(n: Dim) -> bool:
    """Whether panels of BESIDE vectors would be few, with one vector left over, and those of two
    would leave none: parts share such evenly.
    """
    vectors = -(-n // LANES) if isinstance(n, int) else 0
    return vectors <= FEW_VECTORS and vectors % BESIDE == 1 and vectors % 2 == 0


def shares_a_set(c: Contraction) -> bool:
    """Whether neighbouring rows of a lie a multiple of ROW_SPAN bytes apart."""
    loads = (v for v in postorder(c.a(_M, _K)) if isinstance(v, Load))
    slopes = ((coefficient(v.offset, "m'"), v.dtype.itemsize) for v in loads)
    apart = (slope[0] * size for slope, size in slopes if slope is not None and slope[0] != 0)
    return any(isinstance(each, int) and each % ROW_SPAN == 0 for each in apart)


def _columns(n: Dim, vectors: int) -> Iterator[Columns]:
    """Columns in panels, whole ones first, then what is left."""
    width = vectors * LANES
    if not isinstance(n, int):
        yield Columns(vectors, n // width, 0)
        if vectors > 1:
            yield Columns(1, n % width // LANES, n // width * width)
        if n % LANES != 0:
            yield Columns(1, 1, n // LANES * LANES, n % LANES)
        return
    whole, rest = n // width, n % width
    if whole:
        yield Columns(vectors, whole, 0)
    if rest:
        yield Columns(-(-rest // LANES), 1, whole * width, (rest - 1) % LANES + 1)


def unrolled_rows(c: Contraction, target: Target) -> int:
    """Rows of a tile whose epilogue is not too much code, row after row."""
    vectors = _wide(c, target)[2]
    return max(1, EPILOGUE_OPERATIONS // (vectors * epilogue_operations(c.epilogue, c.dtype)))


def epilogue_operations(epilogue: Callable[[Dim, Dim, Value], tuple[Stmt, ...]], of: DType) -> int:
    """Operations of what becomes of one vector of sums, of the element type `of`."""
    acc = Get(Local("acc", of, (), True))
    values = [s.value for s in statements(epilogue(_M, _N, acc)) if isinstance(s, Set | Store)]
    return max(1, sum(map(_operations, postorder(*values))))


def _operations(value: Value) -> int:
    """Operations of the machine, or loads, in a value beyond those in its operands."""
    if not isinstance(value, Apply) or value.fn in MACHINE:
        return 1
    _, listing = listing_of(value.fn, tuple(a.dtype for a in value.args))
    return len(listing.steps)
