"""Loops that programs have in common, taken out of them: in little code each is one function.

A row of a product, or an optimizer's update, stands in many kernels with other buffers, strides and
extents around it. Such a nest becomes a program of its own that is given a pointer for each place
it reads or writes, and the numbers that are not the same everywhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from chainrule.ir.loop import (
    Apply,
    Buffer,
    Combine,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Note,
    Program,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.size import Dim, Size, coefficient, substitute
from chainrule.loops.text import signature
from chainrule.loops.walk import postorder, statements, values_of
from chainrule.records import dataclass

#: about what an operation, a loop, an argument and the rest of a call are in bytes
_OPERATION, _LOOP, _ARGUMENT, _CALL = 5, 12, 3, 8


@dataclass(frozen=True)
class Place:
    """Where a nest begins to read or write: so far into a buffer, or a cell of a local."""

    of: Buffer | Local
    at: Dim | tuple[Dim, ...]


@dataclass(frozen=True)
class Nest:
    """A nest of loops as a program: what its buffers and its sizes are where it was taken from."""

    loop: Loop
    program: Program
    places: tuple[Place, ...]
    numbers: tuple[Dim, ...]


def nests(program: Program, short: bool) -> Iterator[Nest]:
    """The largest nests of a program that can be one elsewhere.

    `short` says that no vector loop is longer than its lanes.
    """
    reads = Counter(map(_local, _uses(program.body)))
    yield from _found(program.body, reads, short)


def shared(found: Sequence[Nest]) -> list[list[Nest]]:
    """Those that are alike and worth a function, in groups."""
    groups: dict[str, list[Nest]] = {}
    for nest in found:
        groups.setdefault(signature(nest.program), []).append(nest)
    return [g for g in groups.values() if len(g) > 1 and _is_worth_it(g)]


def columns(group: Sequence[Nest]) -> tuple[Program, list[list[Place]], list[list[Dim]]]:
    """The one program of a group, and for each of its buffers and sizes what it is in each nest."""
    first = group[0]
    places = list(zip(*(n.places for n in group), strict=True))
    numbers = list(zip(*(n.numbers for n in group), strict=True))
    values: dict[str, Dim] = {}
    kept: dict[tuple[Dim, ...], str] = {}
    for symbol, column in zip(first.program.sizes, numbers, strict=True):
        if isinstance(column[0], int) and len(set(column)) == 1:
            values[symbol] = column[0]
        else:
            values[symbol] = Size.symbol(kept.setdefault(column, symbol))
    buffers: dict[Buffer, Buffer] = {}
    pointers: dict[tuple[Place, ...], Buffer] = {}
    for buffer, where in zip(first.program.buffers, places, strict=True):
        buffers[buffer] = pointers.setdefault(where, buffer)
    body = tuple(_renamed(s, buffers, values) for s in first.program.body)
    program = replace(
        first.program, buffers=tuple(pointers.values()), sizes=tuple(kept.values()), body=body
    )
    return program, list(map(list, pointers)), list(map(list, kept))


def _found(body: Iterable[Stmt], reads: Mapping[Local | None, int], short: bool) -> Iterator[Nest]:
    for s in body:
        if not isinstance(s, Loop):
            continue
        nest = _Builder(reads, short).nest(s)
        if nest is None:
            yield from _found(s.body, reads, short)
        else:
            yield nest


def _uses(body: Iterable[Stmt]) -> Iterator[Value]:
    for s in statements(body):
        yield from postorder(*values_of(s))


def _local(value: Value) -> Local | None:
    return value.local if isinstance(value, Get | Combine) else None


def _is_worth_it(group: Sequence[Nest]) -> bool:
    """Whether the code that is written once instead of often is more than the calls."""
    program, places, numbers = columns(group)
    weight = 0
    for s in statements(program.body):
        weight += _LOOP if isinstance(s, Loop) else _OPERATION * isinstance(s, Store)
        weight += sum(_OPERATION for v in postorder(*values_of(s)) if isinstance(v, Apply | Load))
    cost = _CALL + _ARGUMENT * (len(places) + len(numbers))
    return weight * (len(group) - 1) > cost * len(group)


class _Builder:
    """Makes a nest of a loop, or finds that it is none."""

    def __init__(self, reads: Mapping[Local | None, int], short: bool) -> None:
        self.reads, self.short = reads, short
        self.variables: list[str] = []
        self.buffers: list[Buffer] = []
        self.places: list[Place] = []
        self.numbers: list[Dim] = []
        self.sizes: list[str] = []
        self.inner: dict[Local, Local] = {}
        self.once: dict[str, Dim] = {}
        self.values: dict[int, Value] = {}

    def nest(self, loop: Loop) -> Nest | None:
        """The nest that a loop is the outermost of."""
        around: list[Loop] = []
        now: Stmt = loop
        while isinstance(now, Loop):
            around.append(now)
            inside = [s for s in now.body if not isinstance(s, Note)]
            if now.mode == "vector" or len(inside) != 1:
                break
            now = inside[0]
        last = around[-1]
        if last.mode != "vector" or any(s.var in self.once for s in around):
            return None
        self.once = {s.var: 0 for s in around[:-1] if s.extent == 1}
        around = [s for s in around if s.var not in self.once]
        self.variables = [s.var for s in around]
        self.own = self.found_inside(last)
        body: list[Stmt] = []
        for s in last.body:
            made = self.statement(s)
            if made is None and not isinstance(s, Note):
                return None
            body += [made] if made is not None else []
        whole: tuple[Stmt, ...] = (*self.inner.values(), *body)
        for s in reversed(around):
            inner = {v: 0 for v in self.variables}
            if substitute(s.extent, inner) != s.extent:
                return None
            mode = "serial" if s.mode == "vector" else s.mode
            extent = Size.symbol(self.number(s.extent))
            whole = (Loop(s.var, extent, whole, mode),)
        program = Program("part", tuple(self.buffers), tuple(self.sizes), whole)
        return Nest(loop, program, tuple(self.places), tuple(self.numbers))

    def found_inside(self, loop: Loop) -> frozenset[Local]:
        """The locals that are set in each iteration before they are read, and nowhere else read."""
        inside = Counter(map(_local, _uses(loop.body)))
        first: dict[Local, bool] = {}
        for s in loop.body:
            for value in postorder(*values_of(s)):
                local = _local(value)
                if local is not None:
                    first.setdefault(local, False)
            if isinstance(s, Set):
                first.setdefault(s.local, True)
        single = (t for t, is_set in first.items() if is_set and math.prod(t.shape) == 1)
        return frozenset(t for t in single if inside[t] == self.reads.get(t, 0))

    # statements and values; None where there is no such thing in a nest

    def statement(self, s: Stmt) -> Stmt | None:
        if not isinstance(s, Set | Store) or (isinstance(s, Store) and s.index is not None):
            return None
        value = self.value(s.value)
        if value is None:
            return None
        if isinstance(s, Store):
            where = self.access(s.buffer, s.offset)
        elif s.local in self.own:
            return Set(self.cell(s.local), (), value)
        else:
            where = self.outside(s.local, s.index)
        if where is None or where[0].dtype != value.dtype:
            return None
        return Store(where[0], where[1], value)

    def value(self, root: Value) -> Value | None:
        for v in postorder(root):
            if id(v) in self.values:
                continue
            made = self.part(v)
            if made is None:
                return None
            self.values[id(v)] = made
        return self.values[id(root)]

    def part(self, v: Value) -> Value | None:
        if isinstance(v, Apply):
            return replace(v, args=tuple(self.values[id(a)] for a in v.args))
        if isinstance(v, Literal):
            return v
        if isinstance(v, Get):
            if v.local in self.own:
                return Get(self.cell(v.local), ())
            where = self.outside(v.local, v.index)
        elif isinstance(v, Load) and v.index is None and not v.pair:
            where = self.access(v.buffer, v.offset)
        else:
            return None
        return None if where is None else Load(*where)

    def cell(self, local: Local) -> Local:
        """A local of each iteration alone."""
        if local not in self.inner:
            self.inner[local] = Local(f"t{len(self.inner)}", local.dtype)
        return self.inner[local]

    def outside(self, local: Local, index: tuple[Dim, ...]) -> tuple[Buffer, Dim] | None:
        """A cell of a local that others see too."""
        where = tuple(substitute(i, self.once) for i in index)
        if any(substitute(i, dict.fromkeys(self.variables, 0)) != i for i in where):
            return None
        if not local.lanes:
            return self.pointer(Place(local, where)), 0
        if not self.short:
            return None
        return self.pointer(Place(local, where)), Size.symbol(self.variables[-1])

    def access(self, buffer: Buffer, offset: Dim) -> tuple[Buffer, Dim] | None:
        """An element of a buffer: strides are numbers."""
        rest = substitute(offset, self.once)
        place: Dim = 0
        moves: list[tuple[str, Dim]] = []
        for variable in self.variables:
            split = coefficient(rest, variable)
            if split is None:
                return None
            by, rest = split
            moves += [(variable, by)] if by != 0 else []
        if any(substitute(by, dict.fromkeys(self.variables, 0)) != by for _, by in moves):
            return None
        for variable, by in moves:
            place = place + Size.symbol(self.number(by)) * Size.symbol(variable)
        return self.pointer(Place(buffer, rest)), place

    def pointer(self, place: Place) -> Buffer:
        buffer = Buffer(f"b{len(self.buffers)}", place.of.dtype, 0)
        self.buffers.append(buffer)
        self.places.append(place)
        return buffer

    def number(self, dim: Dim) -> str:
        """A size of the nest's own for one that it is told."""
        self.sizes.append(f"told{len(self.sizes)}'")
        self.numbers.append(dim)
        return self.sizes[-1]


def _renamed(s: Stmt, buffers: Mapping[Buffer, Buffer], values: Mapping[str, Dim]) -> Stmt:
    """A statement of a nest with other buffers, and with numbers for sizes."""
    known: dict[int, Value] = {}

    def value(root: Value) -> Value:
        for v in postorder(root):
            if isinstance(v, Apply):
                known[id(v)] = replace(v, args=tuple(known[id(a)] for a in v.args))
            elif isinstance(v, Load):
                known[id(v)] = Load(buffers[v.buffer], substitute(v.offset, values))
            else:
                known[id(v)] = v
        return known[id(root)]

    if isinstance(s, Loop):
        body = tuple(_renamed(inner, buffers, values) for inner in s.body)
        return replace(s, extent=substitute(s.extent, values), body=body)
    if isinstance(s, Set):
        return replace(s, value=value(s.value))
    if isinstance(s, Store):
        offset = substitute(s.offset, values)
        return Store(buffers[s.buffer], offset, value(s.value))
    return s
