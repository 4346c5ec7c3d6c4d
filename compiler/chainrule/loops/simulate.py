"""Run a launch as a GPU does, all threads in step, over NumPy arrays: its meaning, and a judge.

Every thread of every block goes through the statements at once, those for which a statement is not
meant looking on. What a GPU leaves open is refused: an access outside a buffer, a barrier that not
all lanes of a part come to, and two threads that touch one element, one of them to write it, with
no barrier between. Memory of a part's own holds NaN, or a number unlike others, until it is
written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.errors import CompileError
from chainrule.ir.engine import Bring, Engage, Hear, MultiplyPanels
from chainrule.ir.loop import (
    Await,
    Barrier,
    Buffer,
    Check,
    Close,
    Combine,
    Fetch,
    Get,
    Load,
    Local,
    Loop,
    Multiply,
    Note,
    Set,
    Stmt,
    Store,
    Value,
    When,
    Words,
)
from chainrule.ir.size import evaluate
from chainrule.loops.engines import Engines
from chainrule.loops.launch import Launch, split_loops
from chainrule.loops.races import Log, Race
from chainrule.records import dataclass
from chainrule.target.gpu import WARP

Array = np.ndarray[Any, Any]


def simulate(launch: Launch, buffers: Mapping[str, Array], sizes: Mapping[str, int]) -> int:
    """Run a launch; `buffers` are one-dimensional arrays by name and are written in place.

    The result is 0, or the code of a Check that did not hold; threads that met none go on. Raises
    Race, and CompileError for what else no program may do.
    """
    parts = evaluate(launch.parts, sizes)
    blocks = evaluate(launch.blocks, sizes)
    if blocks <= 0:
        return 0
    threads = _Threads(launch, dict(buffers), dict(sizes), blocks, parts)
    with np.errstate(all="ignore"):
        threads.block(launch.program.body)
    if threads.flying or threads.asked:
        raise Race(f"{launch.program.name}: nobody awaits what was fetched")
    threads.log.judge(launch)
    return threads.code


class _Threads(Engines):
    """All threads of a launch; `active` are those that a statement is meant for."""

    def __init__(
        self,
        launch: Launch,
        buffers: dict[str, Array],
        sizes: dict[str, Any],
        blocks: int,
        parts: int,
    ) -> None:
        super().__init__(buffers, sizes, True)
        self.launch = launch
        number = np.arange(blocks * launch.threads)
        self.part, self.lane = number // launch.lanes, number % launch.lanes
        self.number = number
        self.active = np.ones(len(number), bool)
        self.in_vector = False
        self.code = 0
        self.log = Log(self.part)
        self.groups = np.zeros(len(number), np.int64)  # that each thread has closed
        self.flying: list[_Flight] = []
        self.under_way: dict[str, Array] = {}
        self.widths: dict[str, int] = {}
        self.begin()
        for buffer in launch.shared:
            assert isinstance(buffer.size, int)
            self.keep(buffer, buffer.size, blocks * launch.parts_of_block)
        for buffer in launch.own:
            self.widths[buffer.name] = self.index(buffer.size)
            self.buffers[buffer.name][:] = _unwritten(buffer)

    def keep(self, buffer: Buffer, size: int, parts: int) -> None:
        """Shared memory, a stretch for each part."""
        self.widths[buffer.name] = size
        stretch = np.full(max(1, parts * size), _unwritten(buffer), buffer.dtype.numpy)
        self.buffers[buffer.name] = stretch  # type: ignore[index]

    # statements

    def statement(self, s: Stmt) -> None:
        if isinstance(s, Loop):
            self.loop(s)
        elif isinstance(s, When):
            held = [np.asarray(self.index(i)) < self.index(n) for i, n in s.bounds]
            active = np.logical_and.reduce(np.broadcast_arrays(self.active, *held))
            if s.test is not None and s.bounds:  # a test may read what only is there within them
                self.where(active, (When((), s.body, s.test),))
            else:
                self.where(active if s.test is None else active & self.value(s.test), s.body)
        elif isinstance(s, Local):
            for index in np.ndindex(*s.shape):
                self.cells[s.name, tuple(map(int, index))] = np.zeros(
                    len(self.number), s.dtype.numpy
                )
        elif isinstance(s, Set):
            if self.in_vector and not s.local.lanes:
                raise CompileError(f"{s.local.name} is set in a vector loop, so it must have lanes")
            value = np.broadcast_to(self.value(s.value), self.number.shape)
            self.cell(s.local, s.index)[self.active] = value[self.active]
        elif isinstance(s, Multiply):
            self.multiply_tiles(s)
        elif isinstance(s, Store):
            self.store(s)
        elif isinstance(s, Fetch):
            self.fetch(s)
        elif isinstance(s, Close):
            self.groups[self.active] += 1
        elif isinstance(s, Await):
            self.await_(s.but)
        elif isinstance(s, Check):
            good = np.broadcast_to(self.value(s.condition), self.number.shape)
            if (self.active & ~good).any():
                self.code = self.code or s.code
            self.active = self.active & good
        elif isinstance(s, Engage):
            self.engage(s)
        elif isinstance(s, Bring):
            self.bring(s)
        elif isinstance(s, Hear):
            self.hear(s)
        elif isinstance(s, MultiplyPanels):
            self.multiply_panels(s)
        elif isinstance(s, Barrier):
            self.barrier()
        elif not isinstance(s, Note):
            raise CompileError(f"{s!r} is no statement of the loop grammar")

    def multiply_tiles(self, s: Multiply) -> None:
        """Whole warps' products, each sum in float64 and rounded once."""
        here = self.active.reshape(-1, WARP)
        if (here.any(axis=1) != here.all(axis=1)).any():
            raise CompileError(f"{self.launch.program.name}: not all of a warp multiply")
        words = [self.words(s.a, 8 * (i % 2), 4 * (i // 2)) for i in range(4)]
        words += [self.words(s.b, 0, 4 * i) for i in range(2)]
        cells = [self.cell(s.local, (*s.index, r)) for r in range(4)]
        g, c = np.arange(WARP) // 4, np.arange(WARP) % 4
        a, b = (np.zeros((len(words[0]), 16, n)) for n in (16, 8))
        sums = np.zeros((len(words[0]), 16, 8))
        for terms, first, apart in _terms(words, s.tf32):
            for i, row in enumerate((g, g + 8, g, g + 8)):
                a[:, row, first + apart * c + 4 * apart * (i // 2)] = terms[i]
            for i in (0, 1):
                b[:, first + apart * c + 4 * apart * i, g] = terms[4 + i]
        for r, cell in enumerate(cells):
            sums[:, g + 8 * (r // 2), 2 * c + r % 2] = cell.reshape(-1, WARP)
        sums += a @ b
        for r, cell in enumerate(cells):
            made = sums[:, g + 8 * (r // 2), 2 * c + r % 2].reshape(-1)
            cell[self.active] = made[self.active]

    def words(self, w: Words, below: int, beyond: int) -> Array:
        """The words of a factor that lanes have, so many lines below their own."""
        start = np.broadcast_to(np.asarray(self.index(w.at)), self.number.shape)
        start = np.where(self.active, start, 0)
        if (start.reshape(-1, WARP) != start.reshape(-1, WARP)[:, :1]).any():
            raise CompileError(f"{self.launch.program.name}: a warp multiplies several tiles")
        if w.line % 4 or (start % 4).any():
            raise CompileError(f"{self.launch.program.name}: a line of words is not aligned")
        lane = self.number % WARP
        at = start + (lane // 4 + below) * w.line + lane % 4 + beyond
        place = self.noted(w.buffer, at, self.active, False)
        held = self.buffers[w.buffer.name]
        return held[np.where(self.active, place, 0)].reshape(-1, WARP)

    def where(self, active: Array, body: Sequence[Stmt]) -> None:
        """Statements for some threads; one that has left with a code does not come back."""
        before, self.active = self.active, active
        if active.any():
            self.block(body)
        left = active & ~self.active
        self.active = before & ~left

    def loop(self, loop: Loop) -> None:
        shadowed = self.symbols.get(loop.var)
        extent = np.broadcast_to(np.asarray(self.index(loop.extent)), self.number.shape)
        if loop.split:
            nest = split_loops((loop,))
            shape = [self.index(one.extent) for one in nest]
            index = np.unravel_index(np.minimum(self.part, math.prod(shape) - 1), shape)
            self.symbols.update(zip((one.var for one in nest), index, strict=True))
            self.where(self.active & (self.part < math.prod(shape)), nest[-1].body)
        elif loop.mode == "vector":
            self.vector(loop, extent)
        else:
            for i in range(int(np.where(self.active, extent, 0).max(initial=0))):
                self.symbols[loop.var] = i
                self.where(self.active & (i < extent), loop.body)
        self.symbols.pop(loop.var, None)
        if shadowed is not None:
            self.symbols[loop.var] = shadowed

    def vector(self, loop: Loop, extent: Array) -> None:
        if self.in_vector:
            raise CompileError("vector loops do not nest")
        self.in_vector = True
        for start in range(
            0, int(np.where(self.active, extent, 0).max(initial=0)), self.launch.lanes
        ):
            self.symbols[loop.var] = start + self.lane
            self.where(self.active & (start + self.lane < extent), loop.body)
        self.in_vector = False

    def barrier(self) -> None:
        """Lanes of a part meet: all of them, or none."""
        self.whole("a barrier")
        self.log.meet(self.active)

    def whole(self, what: str) -> None:
        """Refuse what some lanes of a part come to and others do not."""
        here = self.active.reshape(-1, self.launch.lanes)
        if self.in_vector or (here.any(axis=1) != here.all(axis=1)).any():
            raise CompileError(f"{self.launch.program.name}: not all lanes come to {what}")

    # memory and values

    def fetch(self, s: Fetch) -> None:
        """What is asked for is read now, and nobody may touch where it goes before it is there."""
        mine = np.flatnonzero(self.active)
        for i in range(s.count):
            source = replace(s.source, offset=s.source.offset + i * (1 + s.source.pair))
            values = self.given(source, mine)
            home = Store(s.buffer, s.offset + i, source)
            to = self.touched(home, None, self.active, True)[mine]
            self.coming(s.buffer.name)[to] = True
            self.flying.append(_Flight(s.buffer.name, mine, to, values, self.groups[mine]))

    def given(self, source: Load, mine: Array) -> Array:
        """What lies in memory for these threads; of a pair both elements as one word."""
        array = self.buffers[source.buffer.name]
        first = array[self.touched(source, None, self.active, False)[mine]]
        if not source.pair:
            return first
        after = replace(source, offset=source.offset + 1)
        both = first, array[self.touched(after, None, self.active, False)[mine]]
        low, high = (half.view(np.uint16).astype(np.uint32) for half in both)
        return (high << 16 | low).view(np.int32)

    def coming(self, buffer: str) -> Array:
        """Which elements of a buffer are on their way."""
        if buffer not in self.under_way:
            self.under_way[buffer] = np.zeros(len(self.buffers[buffer]), bool)
        return self.under_way[buffer]

    def await_(self, but: int) -> None:
        """What threads have asked for in all their groups but the last ones is there."""
        left: list[_Flight] = []
        for f in self.flying:
            here = self.active[f.thread] & (f.group < self.groups[f.thread] - but)
            array = self.buffers[f.buffer]
            array[f.to[here]] = f.values[here]
            self.coming(f.buffer)[f.to[here]] = False
            address = array.__array_interface__["data"][0] + f.to[here] * array.itemsize
            self.log.note(address, f.thread[here], True)
            if not here.all():
                rest = (row[~here] for row in (f.thread, f.to, f.values, f.group))
                left.append(_Flight(f.buffer, *rest))
        self.flying = left

    def store(self, s: Store) -> None:
        moved = None if s.index is None else self.value(s.index)
        value = np.broadcast_to(self.value(s.value), self.number.shape)
        mine = self.active if self.in_vector else self.active & (self.lane == 0)
        at = self.touched(s, moved, mine, True)
        self.buffers[s.buffer.name][at[mine]] = value[mine]

    def part_of(self, v: Value, known: dict[int, Array]) -> Any:
        if isinstance(v, Load):
            index = None if v.index is None else known[id(v.index)]
            at = self.touched(v, index, self.active, False)
            array = self.buffers[v.buffer.name]
            return array[np.where(self.active, at, 0)] if len(array) else np.zeros(1, array.dtype)
        if isinstance(v, Get):
            if v.local.lanes and not self.in_vector:
                raise CompileError(f"{v.local.name} has lanes: outside a vector loop, combine them")
            return self.cell(v.local, v.index).copy()
        if isinstance(v, Combine):
            self.whole("a fold of lanes")
            return self.combined(v)
        return super().part_of(v, known)

    def combined(self, v: Combine) -> Array:
        """The tree over a part's lanes, for each of them."""
        cell = self.cell(v.local, v.index).reshape(-1, self.launch.lanes)
        half = self.launch.lanes // 2
        while half:
            cell = self.apply(v.fn, [cell[:, :half], cell[:, half : 2 * half]], v.dtype)
            half //= 2
        return np.repeat(cell[:, 0], self.launch.lanes)

    def lanes(self, local: Local) -> Any:
        return ...

    def touched(self, access: Load | Store, moved: Any, mine: Array, writes: bool) -> Array:
        """Which element each thread means; noted for those that are `mine`."""
        at = np.broadcast_to(np.asarray(self.place(access, moved)), self.number.shape)
        return self.noted(access.buffer, at, mine, writes)

    def noted(self, buffer: Buffer, at: Array, mine: Array, writes: bool) -> Array:
        """Elements that threads touch, in the buffer's array, where that is allowed."""
        if buffer.name in self.read_when:
            raise CompileError(f"{self.launch.program.name}: {buffer.name} holds boxes")
        width = self.widths.get(buffer.name, len(self.buffers[buffer.name]))
        bad = mine & ((at < 0) | (at >= width))
        if bad.any():
            word = "writes" if writes else "reads"
            raise CompileError(
                f"{self.launch.program.name}: thread {int(np.argmax(bad))} {word} "
                f"{buffer.name}[{int(at[np.argmax(bad)])}], which has {width} elements"
            )
        if buffer.name in self.widths:
            at = at + self.part * width
        array = self.buffers[buffer.name]
        if self.flying and self.coming(buffer.name)[at[mine]].any():
            raise Race(
                f"{self.launch.program.name}: {buffer.name} is touched before what was fetched into"
                " it has come"
            )
        first = array.__array_interface__["data"][0]
        self.log.note(first + at[mine] * array.itemsize, self.number[mine], writes)
        return at


def _unwritten(buffer: Buffer) -> Any:
    kind = np.dtype(buffer.dtype.numpy)
    return 77 if kind.kind in "biu" else np.nan


def _terms(words: Sequence[Array], tf32: bool) -> list[tuple[list[Array], int, int]]:
    """What words hold: numbers, which of its terms a row's first one is, and how far the next."""
    if tf32:
        return [([_rounded(w) for w in words], 0, 1)]
    bits = [w.astype(np.uint32) for w in words]
    return [
        ([(w << 16).view(np.float32) for w in bits], 0, 2),
        ([(w & 0xFFFF0000).view(np.float32) for w in bits], 1, 2),
    ]


def _rounded(x: Array) -> Array:
    """Floats rounded to TF32: to 10 bits behind the point, to nearest, ties away from 0."""
    bits = x.astype(np.float32).view(np.uint32)
    nearest = ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(x), nearest, x)


@dataclass
class _Flight:
    """What threads have fetched: where it goes, and in which of their groups it is."""

    buffer: str
    thread: Array
    to: Array
    values: Array
    group: Array
