"""What a program asks of a machine, counted from its loops: instructions, and bytes from afar.

A roofline (Williams, Waterman and Patterson, "Roofline: an insightful visual performance model",
CACM 52(4), 2009) with a roof for each cache: a core does two vector operations and two loads a
cycle, and divides beside them; an operation waits for its operands, which a core makes up for as
far as it looks ahead; and what an iteration of some loop touches beyond a cache's size has to come
from the next one each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from functools import cached_property, lru_cache
from math import gcd, prod

from chainrule.ir.loop import (
    LANES,
    Apply,
    Blocks,
    Buffer,
    Combine,
    Get,
    IndexValue,
    Let,
    Load,
    Local,
    Loop,
    Program,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.machine import MACHINE
from chainrule.ir.size import Dim, evaluate, symbols_of
from chainrule.ir.types import DType
from chainrule.loops.library import listing_of
from chainrule.loops.tiles import SET_SPAN
from chainrule.loops.walk import operands, postorder, statements, values_of
from chainrule.ops.pairs import NATIVE as PAIRS
from chainrule.records import dataclass
from chainrule.target import Target
from chainrule.target.speeds import Speeds

#: operations, of which a core does two a cycle: as many as go on beside a division or a root of
#: whole vectors, which have a unit of their own; of the tree over the lanes of one; and how long an
#: operation waits for what it is made of
DIVISION, TREE, CHAIN = 14, 8, 8
_DIVIDING = ("div", "sqrt")
#: how many operations a core looks ahead: what is longer than that is waited for
WINDOW = 512
#: the same of calling a program, and of each iteration of a loop of numbers
CALL, TURN = 80, 2
#: turns of a loop that are looked at, where something differs from turn to turn
TURNS = 32
#: two blocks of bfloat16 multiplied, which takes 16 cycles (Intel, "Intrinsics Guide", tdpbf16ps)
_BLOCK = 32
#: bytes that come together from afar
_LINE = 64


@dataclass(frozen=True)
class Place:
    """A loop that is run through, the `number`th: how often, and in which mode."""

    var: str
    extent: float
    mode: str
    number: int

    @property
    def times(self) -> float:
        """How often its body is done: for vectors of elements at a time."""
        return -(-self.extent // LANES) if self.mode == "vector" else self.extent


@dataclass(frozen=True)
class Touch:
    """Memory that is read or written in some loops; `slopes` are the elements by which it moves on
    average along those that it depends on, 0 where only the numbers in memory tell.
    """

    buffer: Buffer
    loops: tuple[Place, ...]
    slopes: Mapping[str, float]

    def span(self, depth: int, size: int) -> int:
        """The bytes of it that one iteration of its loop number `depth` - 1 touches, of a buffer of
        `size` bytes.
        """
        inner = [p for p in self.loops[depth:] if p.var in self.slopes]
        around = [p for p in self.loops[max(depth - 1, 0) :] if p.var in self.slopes]
        nearest = min((self.slopes[p.var] or _LINE for p in around), default=1)
        each = min(_LINE, self.buffer.dtype.itemsize * nearest)
        return min(size, int(prod(p.extent for p in inner) * each))

    def room(self, depth: int, size: int) -> int:
        """The bytes of a cache that hold its span: more where runs of it lie at distances that few
        of a cache's sets serve, such as a power of two.
        """
        kind = self.buffer.dtype.itemsize
        steps = sorted((self.slopes.get(p.var, 0) * kind, p.extent) for p in self.loops[depth:])
        run = float(kind)
        for step, extent in steps:
            if step > max(run, _LINE):
                apart = gcd(int(step), SET_SPAN)
                return int(self.span(depth, size) * max(1.0, apart / max(run, _LINE)))
            run = max(run, step * extent)
        return self.span(depth, size)


@dataclass
class Work:
    """What an inmost loop does, in vectors; of its operations some are `divisions`."""

    operations: float = 0.0
    loads: float = 0.0
    stores: float = 0.0
    divisions: float = 0.0


@dataclass
class Effort:
    """Vector operations, loads and stores of a program, by inmost loop, the `longest` chain of
    operations that need each other, and what it touches, at some sizes.

    Loops follow each other: what one of them waits for is not done by the next meanwhile.
    """

    works: dict[int, Work] = field(default_factory=dict)
    longest: int = 0
    touches: dict[tuple[object, ...], Touch] = field(default_factory=dict)
    read: set[Buffer] = field(default_factory=set)
    written: set[Buffer] = field(default_factory=set)
    sizes: dict[Buffer, int] = field(default_factory=dict)

    @property
    def operations(self) -> float:
        """All vector operations."""
        return sum(w.operations for w in self.works.values())

    @property
    def loads(self) -> float:
        """All loads."""
        return sum(w.loads for w in self.works.values())

    @property
    def stores(self) -> float:
        """All stores."""
        return sum(w.stores for w in self.works.values())

    def seconds(self, speeds: Speeds, target: Target) -> float:
        """How long one core takes where all that is touched lies in its nearest cache."""
        rate = speeds.flops / 2 / (target.vector_bytes // 4)
        begun = CALL + CHAIN * self.longest
        done = sum(
            max(w.operations, w.loads, 2 * w.stores, DIVISION * w.divisions)
            for w in self.works.values()
        )
        return (begun + done) / rate

    def traffic(self, held: int) -> float:
        """The bytes that come from beyond a cache that holds so many, each time it is run."""
        within = self._within
        total = 0.0
        for touch in self.touches.values():
            size = self.sizes[touch.buffer]
            path = touch.loops
            depth = next(
                d for d in range(len(path) + 1) if within[path[:d]] <= held or d == len(path)
            )
            if depth == 0:
                continue  # all of it fits: what comes from afar is told by what was done before
            here = path[depth - 1]
            again = here.extent if here.var in touch.slopes else 1
            total += prod(p.extent for p in path[: depth - 1]) * again * touch.span(depth, size)
        return total

    def moved(self, buffer: Buffer) -> int:
        """The bytes of a buffer that it moves: half of what is read and written as well comes on
        top, as it goes back while others come.
        """
        size = self.sizes[buffer]
        most = min(size, sum(t.span(0, size) for t in self.touches.values() if t.buffer == buffer))
        return most + (most // 2 if buffer in self.read and buffer in self.written else 0)

    @cached_property
    def _within(self) -> dict[tuple[Place, ...], int]:
        """The room that one iteration of each loop takes, by the loops from the outermost; asked
        for when all is counted.
        """
        found: dict[tuple[Place, ...], int] = {(): 0}
        for touch in self.touches.values():
            size = self.sizes[touch.buffer]
            for depth in range(len(touch.loops) + 1):
                path = touch.loops[:depth]
                found[path] = found.get(path, 0) + touch.room(depth, size)
        return found


def effort_of(program: Program, sizes: Mapping[str, int], target: Target) -> Effort:
    """What a program asks at given sizes. A loop's inner extents are those of its middle, or of all
    of it on average where they have a name.
    """
    counted = _Counter(sizes, target)
    counted.effort.sizes = {b: evaluate(b.size, sizes) * b.dtype.itemsize for b in program.buffers}
    counted.block(program.body, ())
    return counted.effort


class _Counter:
    def __init__(self, sizes: Mapping[str, int], target: Target) -> None:
        self.at: dict[str, float] = dict(sizes)
        self.target = target
        self.effort = Effort()
        self.count = 0
        self.work = self.effort.works.setdefault(0, Work())
        self.links: dict[tuple[Local, str], int] = {}
        self.made: dict[tuple[Local, str], frozenset[str]] = {}  # the loops that a local differs in

    def block(self, body: Iterable[Stmt], around: tuple[Place, ...]) -> None:
        for s in body:
            if isinstance(s, Loop):
                self.loop(s, around)
            elif isinstance(s, Let):
                self.at[s.var] = self.mean(s.value, around)
            elif isinstance(s, Set | Store):
                self.assign(s, around)
            elif isinstance(s, Blocks):
                products = evaluate(s.steps, self.at) * s.rows * s.columns * s.parts**2
                self.work.operations += _BLOCK * products * prod(p.times for p in around)

    def mean(self, value: Dim, around: tuple[Place, ...]) -> float:
        """A number that has a name, on average over the inmost loop that it differs in."""
        loop = next((p for p in reversed(around) if p.var in symbols_of(value)), None)
        if loop is None:
            return evaluate(value, self.at)
        turns = range(0, int(loop.extent), 1 + int(loop.extent) // TURNS)
        found = (evaluate(value, {**self.at, loop.var: i}) for i in turns)
        return sum(found) / max(1, len(turns))

    def loop(self, loop: Loop, around: tuple[Place, ...]) -> None:
        extent = max(0, evaluate(loop.extent, self.at))
        if not extent:
            return
        self.count += 1
        place = Place(loop.var, extent, loop.mode, self.count)
        shadowed, self.at[loop.var] = self.at.get(loop.var), place.extent // 2
        before, outside = self.effort.operations, self.work
        if not _at_once(loop):
            self.work = self.effort.works.setdefault(self.count, Work())
        self.block(loop.body, (*around, place))
        turns = place.times * prod(p.times for p in around if p.mode != "unroll")
        if loop.mode != "unroll" and place.times > 1:
            waits = CHAIN if _carries(loop) else TURN if loop.mode == "serial" else 0
            idle = before + waits * turns - self.effort.operations
            self.work.operations += max(0.0, idle)
        self.work = outside
        if shadowed is None:
            del self.at[loop.var]
        else:
            self.at[loop.var] = shadowed

    def assign(self, s: Set | Store, around: tuple[Place, ...]) -> None:
        values = values_of(s)
        along: dict[int, frozenset[str]] = {}
        links: dict[int, int] = {}
        done = divided = 0.0
        everywhere = frozenset(p.var for p in around if p.mode != "unroll")
        for v in postorder(*values):
            on = self.dependence(v, everywhere).union(*(along[id(o)] for o in operands(v)))
            along[id(v)] = on & {p.var for p in around}
            before = max([links[id(o)] for o in operands(v)], default=0)
            links[id(v)] = before + self.chain(v)
            times = _times(around, along[id(v)])
            if isinstance(v, Load):
                self.work.loads += times * self.touched(v, around, along[id(v)])
            elif isinstance(v, Apply):
                operations, divisions = self.weight(v)
                done += times * operations
                divided += times * divisions
            elif isinstance(v, Combine):
                done += times * TREE
        chain = max(links[id(v)] for v in values)
        self.work.operations += done * max(1.0, chain * CHAIN / WINDOW)
        self.work.divisions += divided
        self.effort.longest = max(self.effort.longest, chain)
        if isinstance(s, Set):
            self.links[s.local, str(s.index)] = chain
            self.made[s.local, str(s.index)] = along[id(s.value)]
        if isinstance(s, Store):
            on = (symbols_of(s.offset) | symbols_of(s.stride)) & {p.var for p in around}
            on = on if s.index is None else on | along[id(s.index)]
            self.work.stores += _times(around, on) * self.touched(s, around, on)

    def chain(self, v: Value) -> int:
        """How many operations of a value need each other; of a local, those it was made of."""
        if isinstance(v, Apply):
            return _chain(v.fn, tuple(a.dtype for a in v.args))
        if isinstance(v, Get | Combine):
            made = self.links.get((v.local, str(v.index)), 0)
            return made + (TREE // 2 if isinstance(v, Combine) else 0)
        return 0

    def dependence(self, v: Value, everywhere: frozenset[str]) -> frozenset[str]:
        if isinstance(v, Load):
            return symbols_of(v.offset) | symbols_of(v.stride)
        if isinstance(v, IndexValue):
            return symbols_of(v.index)
        if isinstance(v, Get | Combine):
            made = self.made.get((v.local, str(v.index)), frozenset())
            return everywhere.union(made, *(symbols_of(i) for i in v.index))
        return frozenset()

    def weight(self, v: Apply) -> tuple[int, int]:
        """Operations of a whole vector of a function, and how many of them divide."""
        kinds = tuple(a.dtype for a in v.args)
        wide = max([v.dtype.itemsize, *(k.itemsize for k in kinds)])
        each = self.target.registers_of(wide, LANES)
        if v.fn in MACHINE or (v.fn in PAIRS and self.target.pairs):
            return each, each * (v.fn in _DIVIDING)
        _, listing = listing_of(v.fn, kinds)
        return each * len(listing.steps), each * sum(s.fn in _DIVIDING for s in listing.steps)

    def touched(self, ref: Load | Store, around: tuple[Place, ...], along: frozenset[str]) -> int:
        """Note memory that is touched; the loads or stores of a vector, or of one element."""
        kind = ref.buffer.dtype.itemsize
        (self.effort.read if isinstance(ref, Load) else self.effort.written).add(ref.buffer)
        slopes = {p.var: self.slope(ref.offset, p) for p in around if p.var in along}
        key = (ref.buffer, str(ref.offset), around)
        if key in self.effort.touches and isinstance(ref, Load) and ref.index is None:
            return 0  # it is there: equal reads are one
        self.effort.touches[key] = Touch(ref.buffer, around, slopes)
        vector = next((p for p in around if p.mode == "vector"), None)
        if vector is None or vector.var not in along:
            return 1
        each = self.target.registers_of(kind, LANES)
        if slopes[vector.var] == 1:
            return each
        turned = any(p.mode == "unroll" and slopes.get(p.var) == 1 and p.extent > 3 for p in around)
        return 5 * each if turned else LANES  # by shuffles of whole blocks, or one by one

    def slope(self, offset: Dim, place: Place) -> float:
        """By how many elements an offset moves on average from one iteration to the next."""
        last = max(1, place.extent - 1)
        first, end = (evaluate(offset, {**self.at, place.var: i}) for i in (0, last))
        return abs(end - first) / last


def _times(around: tuple[Place, ...], along: frozenset[str]) -> float:
    """How often what depends on some loops is done: outside those that it does not depend on."""
    deepest = max(
        (i for i, p in enumerate(around) if p.var in along and p.mode != "unroll"), default=-1
    )
    return prod(
        p.times
        for i, p in enumerate(around)
        if (p.var in along if p.mode == "unroll" else i <= deepest)
    )


@lru_cache(maxsize=4096)
def _chain(fn: str, kinds: tuple[DType, ...]) -> int:
    """The longest chain of operations in a function of numbers of these types."""
    if fn in MACHINE:
        return 5 if fn in _DIVIDING else 1
    if fn in PAIRS:
        return 1
    _, listing = listing_of(fn, kinds)
    longest: dict[str, int] = {}
    for step in listing.steps:
        before = [longest.get(a, 0) for a in step.args if isinstance(a, str)]
        longest[step.name] = max([0, *before]) + _chain(step.fn, ())
    return max(longest.values(), default=0)


def _carries(loop: Loop) -> bool:
    """Whether each iteration of an inmost loop adds to what the one before has left; vectors that
    are done at once are no loop.
    """
    inside = list(statements(loop.body))
    if any(isinstance(s, Loop) and not _at_once(s) for s in inside):
        return False
    return any(_adds(s) for s in inside if isinstance(s, Set))


def _at_once(loop: Loop) -> bool:
    short = isinstance(loop.extent, int) and loop.extent <= LANES
    return loop.mode == "unroll" or (loop.mode == "vector" and short)


def _adds(s: Set) -> bool:
    own = (v for v in postorder(s.value) if isinstance(v, Get))
    return any(v.local == s.local and v.index == s.index for v in own)
