"""Which loops of a nest may go in any order, all at once: those that no two iterations share.

An element's place is a sum of steps times loop variables. A variable's iterations touch different
memory where all smaller steps together stay below one step of it, and where all larger steps are
multiples of one that it stays below with them, as digits of a number do: then no other variable can
make up for a difference. Nothing else is asked, and a nest of which that can't be told stays as it
was (Kennedy, Allen, "Optimizing Compilers for Modern Architectures", 2002, chapter 3, has the
general theory).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from chainrule.ir.loop import (
    Apply,
    Buffer,
    Get,
    IndexValue,
    Load,
    Local,
    Loop,
    Set,
    Store,
    When,
)
from chainrule.ir.node import Stmts
from chainrule.ir.size import (
    Dim,
    Size,
    coefficient,
    divide,
    is_nonnegative,
    product,
    substitute,
    symbols_of,
    typical,
)
from chainrule.ir.types import bool_
from chainrule.loops.walk import postorder, set_locals, statements, values_of
from chainrule.records import dataclass

#: of so many places each may look at all that is added; of more, as many threads as are enough for
#: a large GPU each have a run of places
PLACES, THREADS = 512, 1 << 14


def shared_among_threads(body: Stmts) -> Stmts:
    """Each nest with its independent loops outermost, split; the others inside, in order."""
    return tuple(_shared(s) if isinstance(s, Loop) else s for s in body)


def _shared(nest: Loop) -> Loop:
    if any(isinstance(s, Loop) and s.split for s in statements((nest,))):
        return nest
    loops, body = perfect(nest)
    found = [loop.var for loop in loops if loop.var in independent(loops, body)]
    collected = _collected(loops, body, found)
    if collected is not None:
        return collected
    if not found:
        return nest
    inner = [replace(loop, mode="serial") for loop in loops if loop.var not in found]
    outer = [replace(x, mode="serial", split=True) for x in loops if x.var in found]
    for loop in reversed([*outer, *inner]):
        body = (replace(loop, body=body),)
    (whole,) = body
    assert isinstance(whole, Loop)
    return whole


def _collected(loops: Sequence[Loop], body: Stmts, found: Sequence[str]) -> Loop | None:
    """A nest that adds to places known at run time, turned round: each place, or each run of them
    where they are many, goes through what is added, in order, and takes what is its own.

    None of another nest, or where a place is no digit of its own.
    """
    s = body[0]
    if len(body) != 1 or not isinstance(s, Store) or s.index is None:
        return None
    v, inner = s.value, [loop for loop in loops if loop.var not in found]
    if not (isinstance(v, Apply) and v.fn == "add" and isinstance(old := v.args[0], Load)):
        return None
    same = (old.buffer, old.offset, old.stride) == (s.buffer, s.offset, s.stride)
    places = divide(s.buffer.size, s.stride)
    if not same or old.index is not s.index or places is None:
        return None
    if symbols_of(s.offset) & {loop.var for loop in inner} or not _stays_below(s, loops):
        return None
    split = [loop for loop in loops if loop.var in found]
    if not isinstance(places, int) or places > PLACES:
        return _in_runs(s, split, inner, places)
    place, sum_ = Size.symbol("place'"), Local("sum", s.buffer.dtype)
    home = s.offset + place * s.stride
    mine = Apply("eq", (s.index, IndexValue(place, s.index.dtype)), bool_)
    more = Apply("where", (mine, replace(v, args=(Get(sum_), v.args[1])), Get(sum_)), v.dtype)
    nest: Stmts = (Set(sum_, (), more),)
    for loop in reversed(inner):
        nest = (replace(loop, mode="serial", body=nest),)
    nest = (sum_, Set(sum_, (), Load(s.buffer, home)), *nest, Store(s.buffer, home, Get(sum_)))
    return _outside("place'", places, split, nest)


def _in_runs(s: Store, split: Sequence[Loop], inner: Sequence[Loop], places: Dim) -> Loop:
    """A nest that adds to many places: a thread has a run of them, of one column, and adds to
    memory what belongs there. What does not it passes by, reading only where it would go.
    """
    assert s.index is not None
    count = max(1, THREADS // max(1, typical(product(tuple(loop.extent for loop in split)))))
    count = min(count, places) if isinstance(places, int) else count
    size = (places + count - 1) // count
    first = Size.symbol("run'") * size
    low, high = (IndexValue(i, s.index.dtype) for i in (first, first + size))
    tests = Apply("le", (low, s.index), bool_), Apply("lt", (s.index, high), bool_)
    nest: Stmts = (When((), (s,), Apply("and_", tests, bool_)),)
    for loop in reversed(inner):
        nest = (replace(loop, mode="serial", body=nest),)
    return _outside("run'", count, split, nest)


def _outside(var: str, extent: Dim, split: Sequence[Loop], body: Stmts) -> Loop:
    """A body in split loops, the outermost over a variable."""
    for loop in reversed(split):
        body = (replace(loop, mode="serial", split=True, body=body),)
    return Loop(var, extent, body, split=True)


def _stays_below(s: Store, loops: Sequence[Loop]) -> bool:
    """Whether a place, without what is known at run time only, stays below one step of that."""
    place = _place(replace(s, index=None), loops, {})
    if place is None:
        return False
    last: Dim = place.first
    for _, step, end in place.steps:
        assert end is not None
        last = last + step * end
    return is_nonnegative(s.stride - 1 - last)


def perfect(nest: Loop) -> tuple[list[Loop], Stmts]:
    """Loops of which each holds the next and nothing else, and what the last one holds."""
    loops = [nest]
    while len(loops[-1].body) == 1 and isinstance(inner := loops[-1].body[0], Loop):
        if inner.mode == "unroll" or symbols_of(inner.extent) & {x.var for x in loops}:
            break
        loops.append(inner)
    return loops, loops[-1].body


@dataclass(frozen=True)
class _Place:
    """Where a buffer is touched: `first`, and steps by loop, None for a place known at run time.

    Steps are 0 or more; `ends` says how often each is gone at most, None if that is not known.
    """

    first: Dim
    steps: tuple[tuple[str | None, Dim, Dim | None], ...]


def independent(loops: Sequence[Loop], body: Stmts) -> frozenset[str]:
    """The variables whose iterations touch nothing that another of them writes."""
    declared = {s for s in statements(body) if isinstance(s, Local)}
    if set_locals(body) - declared:
        return frozenset()
    every = [*loops, *(s for s in statements(body) if isinstance(s, Loop))]
    # where a size that a loop goes to is 0 nothing is touched, so such sizes are 1 at least
    ends = {s for loop in every for s in symbols_of(loop.extent) if loop.extent == Size.symbol(s)}
    positive = {s: Size.symbol(s) + 1 for s in ends}
    places: dict[Buffer, list[_Place | None]] = {}
    accesses = list(_accesses(body))
    stored = {a.buffer for a in accesses if isinstance(a, Store)}
    for access in accesses:
        if access.buffer in stored:
            places.setdefault(access.buffer, []).append(_place(access, every, positive))
    return frozenset(
        loop.var for loop in loops if all(_apart(loop.var, known) for known in places.values())
    )


def _accesses(body: Stmts) -> Iterator[Load | Store]:
    for s in statements(body):
        if isinstance(s, Store):
            yield s
        yield from (v for v in postorder(*values_of(s)) if isinstance(v, Load))


def _place(
    access: Load | Store, loops: Sequence[Loop], positive: Mapping[str, Dim]
) -> _Place | None:
    """The steps of an access; None where it is not a sum of them."""
    names = {loop.var for loop in loops}
    first: Dim = substitute(access.offset, positive)
    steps: list[tuple[str | None, Dim, Dim | None]] = []
    for loop in loops:
        slope = coefficient(first, loop.var)
        if slope is None or symbols_of(slope[0]) & names:
            return None
        step, first = slope
        if step == 0:
            continue
        last = substitute(loop.extent, positive) - 1
        if not is_nonnegative(step):
            first, step = first + step * last, -step
        if not is_nonnegative(step) or symbols_of(last) & names:
            return None
        steps.append((loop.var, step, last))
    if access.index is not None:
        stride = substitute(access.stride, positive)
        if not is_nonnegative(stride):
            return None
        steps.append((None, stride, None))
    return None if symbols_of(first) & names else _Place(first, tuple(steps))


def _apart(var: str, known: Sequence[_Place | None]) -> bool:
    """Whether two iterations of a variable never meet at these places of one buffer."""
    digits = set()
    for place in known:
        if place is None:
            return False
        same = all(p is not None and p.first == place.first for p in known)
        digit = _digit(var, place, same)
        if digit is None:
            return False
        digits.add(digit)
    return len(digits) == 1


def _digit(var: str, place: _Place, same: bool) -> tuple[Dim, Dim] | None:
    """The step of a variable and the one above that others are multiples of, 0 for none, if it is a
    digit of the place; `same` says that every place begins at the same element.
    """
    mine = [(step, last) for name, step, last in place.steps if name == var]
    if len(mine) != 1:
        return None
    ((step, last),) = mine
    assert last is not None
    others = [(s, e) for name, s, e in place.steps if name != var]
    above = [s for s, _ in others if s != step and is_nonnegative(s - step)]
    below = [(s, e) for s, e in others if s not in above]
    unit = _unit(above)
    low: Dim = 0
    for s, e in below:
        if e is None or not is_nonnegative(step - s):
            return None
        low = low + s * e
    if not same and (unit == 0 or divide(place.first, unit) is None):
        if not is_nonnegative(place.first):
            return None
        low = low + place.first
    if not is_nonnegative(step - 1 - low):
        return None
    if above and (unit == 0 or not is_nonnegative(unit - 1 - step * last - low)):
        return None
    return step, unit


def _unit(steps: Sequence[Dim]) -> Dim:
    """The one of some steps that all are multiples of; 0 where there is none."""
    return next((u for u in steps if all(divide(s, u) is not None for s in steps)), 0)
