"""The matrix product as a scheduled template: out[m, n] = sum over k of a[m, k] * b[k, n].

Every element of the result is one chain of multiply-adds from 0, k ascending, whatever tiles and
blocks are chosen: the choices below change speed, never bits. A tile of rows x (vectors of LANES
columns) stays in registers over a sum, then the epilogue takes it. Where b is more than the first
cache holds and many rows read it, sums come in stretches: a panel of b, as long as a stretch, stays
in the first cache while rows pass by, and a block of rows in the second while panels do (Goto and
van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Buffer,
    IndexValue,
    Let,
    Literal,
    Load,
    Loop,
    Store,
    Value,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import bool_, float32, int64
from chainrule.loops.choice import Choice
from chainrule.loops.few import few_rows, has_few_rows
from chainrule.loops.flat import flat_loops
from chainrule.loops.nest import slope_along, tile_nest
from chainrule.loops.packing import (
    is_strided,
    lies_along,
    pack,
    packed_reader,
    padded,
    together,
)
from chainrule.loops.parts import shared
from chainrule.loops.tiles import (
    CHAINS,
    LOW,
    TALLEST,
    Contraction,
    epilogue_operations,
    tile_shapes,
    unrolled_rows,
)
from chainrule.loops.walk import at_most, postorder, statements, values_of
from chainrule.target import NEAREST, SECOND, Target

#: rows, columns and terms from which blocks are worth it, of a b that is larger than so many bytes
BLOCKED_ROWS, BLOCKED_COLUMNS, BLOCKED_TERMS, NEAR_BYTES = 12, 64, 12, NEAREST
#: bytes of a b that is left where it is, if both factors lie along memory and the epilogue is short
LEFT_BYTES = SECOND // 2
#: of a larger one, up to so many bytes, the rows from which a copy usually pays
GUESSED_BYTES, GUESSED_ROWS = 2 * SECOND, 96
#: terms of a stretch, of which a panel of float32 is 3/4 of the nearest cache, where it stays
STRETCH = NEAREST * 3 // 4 // (LANES * float32.itemsize)
#: sums of so many terms, if that is known, are one stretch
LONGEST = 512
#: bytes of a block's factor and sums, which stay in the second cache
BLOCK_BYTES = SECOND // 2
#: the same bytes where all rows may be one block: of a first factor that lies across its sums, so
#: that it is copied in the order in which it lies
WHOLE_BYTES = SECOND * 3 // 2
#: operations of an epilogue that may stand in every tile
LIGHT = 8
#: sums of a block's rows lie a line further apart than whole panels, so as not to evict each other
APART = LANES

_M, _N, _K, _I, _V, _J, _O, _S, _T = (Size.symbol(f"{name}'") for name in "mnkivjost")


def packed_size(c: Contraction, target: Target) -> Dim:
    """Elements of workspace that `contraction_loops` wants for panels of b; 0 for none."""
    few = is_strided(c) and at_most(c.m, (c.choice.packed_from or BLOCKED_ROWS) - 1)
    if c.sums is not None and _is_one_block(c, target) and not few:
        return _panel(c) * padded(c.n)
    return panels_size(c) if is_strided(c) or is_blocked(c) else 0


def panels_size(c: Contraction) -> Dim:
    """Elements that all of b takes in panels."""
    return c.k * padded(c.n)


def packed_once(c: Contraction, panels: Buffer) -> tuple[Contraction, Stmts]:
    """A product that reads b from panels, and what fills them."""
    read = packed_reader(panels, c.k)
    return replace(c, b=read), pack(c, read, True)


def block_sizes(c: Contraction, target: Target) -> tuple[int, Dim]:
    """Elements of workspace that `contraction_loops` wants for a block of a's rows, copied together
    where they lie apart, and for its sums; 0 where it wants none.
    """
    if not is_blocked(c):
        return 0, 0
    rows = _block_rows(c, target) + _height(c, target)  # the last has what is left over, too
    rows = min(rows, c.m) if isinstance(c.m, int) else rows
    span = _span(c, target) if _is_whole(c, target) else _most_terms(c)
    return 0 if lies_along(c.a(_M, _K)) else rows * span, rows * _apart(c)


def is_blocked(c: Contraction) -> bool:
    """Whether blocks may be worth it: for many rows, long sums and a b that is large."""
    if c.start is not None or c.terms or c.inside:
        return False
    if c.choice.packed is not None:
        return c.choice.packed
    few = at_most(c.m, BLOCKED_ROWS - 1) or at_most(c.k, BLOCKED_TERMS - 1)
    narrow = at_most(c.n, BLOCKED_COLUMNS - 1)
    if few or narrow or at_most(c.k * c.n * c.dtype.itemsize, NEAR_BYTES):
        return False
    # what the second cache holds is as near where it stands
    return not (at_most(c.k * c.n * c.dtype.itemsize, LEFT_BYTES) and _may_be_left(c))


def _may_be_left(c: Contraction) -> bool:
    """Whether both factors lie along memory, and what follows is short."""
    return not is_strided(c) and lies_along(c.a(_M, _K)) and _is_light(c)


def with_guess(c: Contraction) -> Choice:
    """A product's choice, with what usually pays where nothing was measured."""
    choice, near = c.choice, at_most(c.k * c.n * c.dtype.itemsize, GUESSED_BYTES)
    if not (choice.guessed and near and is_blocked(c) and _may_be_left(c)):
        return choice
    if isinstance(c.m, int):
        return replace(choice, packed=False) if c.m < GUESSED_ROWS else choice
    return replace(choice, packed_from=GUESSED_ROWS)


def contraction_loops(
    c: Contraction, target: Target, packed: Buffer | None, split: bool = False
) -> Stmts:
    """The loops of a product; with `packed`, b may be copied there first, LANES columns a panel.

    With `split` the parts of a program share it, inside the groups.
    """
    body = c.before
    if split:
        body = shared(c.before)
    between = (Barrier(),) if split else ()
    body = (*c.own, *body, *(between if body else ()))
    few = has_few_rows(c, target)
    if few:
        direct = few_rows(c, split)
    elif c.flat is not None:
        direct = flat_loops(c, c.flat, split, lambda to: _direct(to, None, target, False))
    else:
        direct = _direct(c, packed, target, split)
    if few or c.sums is None or packed is None:
        body += direct
    else:
        many = _reaches(c.m, c.choice.packed_from or BLOCKED_ROWS) * _reaches(c.k, BLOCKED_TERMS)
        blocks = _blocks(c, packed, target, split)
        body += blocks if many == 1 else (Loop("h'", many, blocks), Loop("h'", 1 - many, direct))
    body += between if c.groups else ()
    for var, extent in reversed(c.groups):
        body = (Loop(var, extent, body),)
    return body


def _reaches(size: Dim, bound: int) -> Dim:
    """1 for a size from `bound` on, below 2**30, and 0 for a smaller one; of multiples of a number
    that is no smaller, always 1, as there is nothing to do for 0 of them.
    """
    if isinstance(size, Size) and len(size.terms) == 1 and size.terms[0][1] >= bound:
        return 1
    return (size // bound + 2**30) // (2**30 + 1)


# loops


def _direct(c: Contraction, packed: Buffer | None, target: Target, split: bool) -> Stmts:
    """The whole result in tiles, each over the whole of its sums."""
    strided = is_strided(c)
    most = TALLEST if strided or isinstance(c.m, int) else CHAINS
    if c.sums is not None and c.choice.packed_from is None:  # for few rows or terms
        most = LOW
    elif c.tile is None:
        most = min(most, unrolled_rows(c, target))
    b, copies = c.b, ()
    if packed is not None and strided:
        b = packed_reader(packed, c.k)
        copies = (*pack(c, b, split), *((Barrier(),) if split else ()))
    shapes = tile_shapes(c, target, most)
    return (*copies, *(s for shape in shapes for s in tile_nest(c, b, *shape, split)))


def _blocks(c: Contraction, packed: Buffer, target: Target, split: bool) -> Stmts:
    """The result in blocks of rows, about equal. In each, sums come in stretches, for which b is
    copied in panels; what they have come to waits in workspace. Then the epilogue takes the block,
    row after row. The first block copies b's panels for all.
    """
    between = (Barrier(),) if split else ()
    alone = isinstance(c.k, int) and c.k <= LONGEST
    once = alone and _is_light(c)
    size = _block_rows(c, target)
    blocks, of_all = _named("blocks'", (c.m + size - 1) // size)
    # one at least, as a sum of no terms is 0
    needed = -(-c.k // STRETCH) if isinstance(c.k, int) else c.k // STRETCH + 1
    count, stretches = _named("stretches'", 1 if alone else needed)
    top, rows, of_block = _cut("top'", "rows'", c.m, _height(c, target), _T, blocks)
    first, terms, of_stretch = _cut("first'", "terms'", c.k, LANES, _S, count)
    stretch = _stretch(c, top, rows, first, terms, once)
    # where no second block follows, a stretch lies where the one before did, which is near
    kept, span = _reaches(blocks, 2), c.k
    if blocks == 1:
        span = _panel(c)
    elif isinstance(c.k, int) and c.k > (most := _most_terms(c)):
        span = most + (c.k - most) * kept
    panels = packed_reader(packed, span, first * kept)
    copies: Stmts = pack(stretch, panels, split, blocks == 1)
    if blocks != 1:
        copies = (Loop("h'", (blocks - _T) // blocks, copies),)
    more, nests = _tiles_of(c, stretch, panels, target, split)
    copies = (*copies, *more)
    copies += between if copies else ()
    row = Loop("n'", c.n, c.epilogue(top + _M, _N, _so_far(c, _M, _N)), "vector")
    body: Stmts = (
        *of_block,
        Loop("s'", count, (*of_stretch, *copies, *nests, *between)),
        *((Loop("m'", rows, (row,), split=split), *between) if not once else ()),
    )
    return (*of_all, *stretches, Loop("t'", blocks, body))


def _stretch(
    c: Contraction, top: Dim, rows: Dim, first: Dim, terms: Dim, once: bool
) -> Contraction:
    """A stretch of a block's sums as a product by itself, of so many rows and terms from the first
    on. It goes on from what the stretches before have come to; with `once` there is no other.
    """
    sums = c.sums
    assert sums is not None
    begun = Apply("gt", (IndexValue(_S, int64), Literal(0, int64)), bool_)

    def start(m: Dim, n: Dim) -> Value:
        return Apply("where", (begun, _so_far(c, m, n), Literal(0, c.dtype)), c.dtype)

    def keep(m: Dim, n: Dim, acc: Value) -> Stmts:
        return (Store(sums, m * _apart(c) + n, acc),)

    return replace(
        c,
        m=rows,
        k=terms,
        a=lambda m, k: c.a(top + m, first + k),
        b=lambda k, n: c.b(first + k, n),
        start=None if once else start,
        epilogue=(lambda m, n, acc: c.epilogue(top + m, n, acc)) if once else keep,
        tile=None,
    )


def _so_far(c: Contraction, m: Dim, n: Dim) -> Value:
    """What a sum of a block has come to."""
    assert c.sums is not None
    return Load(c.sums, m * _apart(c) + n)


def _tiles_of(
    c: Contraction,
    stretch: Contraction,
    panels: Callable[[Dim, Dim], Load],
    target: Target,
    split: bool,
) -> tuple[Stmts, Stmts]:
    """What copies a block's rows together, where they lie apart, and its tiles."""
    copies: Stmts = ()
    nests: Stmts = ()
    whole, height = _is_whole(c, target), _height(c, target)
    in_fours = c.m % LOW == 0 and height % LOW == 0  # no row is left by itself
    for shape, columns in tile_shapes(stretch, target, TALLEST):
        if shape.rows == 1 and not isinstance(stretch.m, int) and in_fours:
            continue
        read = stretch
        if c.block is not None and shape.rows > LOW:
            apart = _span(c, target) if whole else stretch.k
            read, copied = together(stretch, shape, split, apart, whole)
            copies += copied if columns.start == 0 else ()
        nests += tile_nest(read, panels, shape, columns, split)
    return copies, nests


def _is_light(c: Contraction) -> bool:
    """Whether the epilogue is little code and reads nothing that differs from row to row."""
    stored = statements(c.epilogue(_M, _N, Literal(0, c.dtype)))
    loads = (v for s in stored for v in postorder(*values_of(s)) if isinstance(v, Load))
    apart = any(slope_along(v, "m'") != 0 for v in loads)
    return not apart and epilogue_operations(c.epilogue, c.dtype) <= LIGHT


def _cut(
    start: str, length: str, size: Dim, unit: int, at: Dim, count: Dim
) -> tuple[Dim, Dim, Stmts]:
    """Where piece `at` of `count` about equal ones begins and how long it is, in whole units but
    the last, with the names this has.
    """
    if count == 1:
        return 0, size, ()
    units = size // unit
    first, begins = _named(start, units * at // count * unit)
    rest = size % unit * ((at + 1) // count)
    long, ends = _named(length, units * (at + 1) // count * unit + rest - first)
    return first, long, (*begins, *ends)


def _named(name: str, value: Dim) -> tuple[Dim, Stmts]:
    """A size by a name, where it is none yet, and what gives it that."""
    return (value, ()) if isinstance(value, int) else (Size.symbol(name), (Let(name, value),))


def _is_whole(c: Contraction, target: Target) -> bool:
    """Whether all rows are one block, of a first factor that is copied and of long sums: of some
    stretches, or, where that is not known, of many terms for each of a batch.
    """
    if not isinstance(c.m, int) or not isinstance(c.n, int) or lies_along(c.a(_M, _K)):
        return False
    long = c.k > LONGEST if isinstance(c.k, int) else _reaches(c.k, LANES) == 1
    rows = c.m + _height(c, target)
    return long and rows * (STRETCH + c.n) * c.dtype.itemsize <= WHOLE_BYTES


def _is_one_block(c: Contraction, target: Target) -> bool:
    """Whether there is one block, as far as is known."""
    return isinstance(c.m, int) and c.m <= _block_rows(c, target)


def _most_terms(c: Contraction) -> int:
    """Terms that a stretch has at most: the last has what is left over, too."""
    most = -(-STRETCH // LANES) * LANES + LANES
    if not isinstance(c.k, int):
        return most
    return c.k if c.k <= LONGEST else min(c.k, most)


def _panel(c: Contraction) -> int:
    """Terms that a panel of b has room for, where stretches lie in one place: an odd number, so
    that panels do not evict each other.
    """
    return _most_terms(c) | 1


def _span(c: Contraction, target: Target) -> int:
    """Terms that rows copied together have room for: as many as a stretch has at most, and so many
    that tiles lie an odd number of vectors apart, not to evict each other where they are written.
    """
    span, height = _most_terms(c), _height(c, target)
    while span * height % (2 * LANES) != LANES:
        span += 1
    return span


def _height(c: Contraction, target: Target) -> int:
    """Rows of the tallest tile."""
    return tile_shapes(replace(c, m=_M), target, TALLEST)[0][0].rows


def _block_rows(c: Contraction, target: Target) -> int:
    """How many rows make a block, in whole tiles."""
    wide = c.n if isinstance(c.n, int) else STRETCH
    height = _height(c, target)
    if _is_whole(c, target):
        assert isinstance(c.m, int)
        return -(-c.m // height) * height
    return max(1, BLOCK_BYTES // ((STRETCH + wide) * c.dtype.itemsize * height)) * height


def _apart(c: Contraction) -> Dim:
    return padded(c.n) + APART
