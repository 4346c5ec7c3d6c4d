"""Programs that differ in nothing but numbers, as one program with these as sizes besides.

Layers of a net do the same with other strides and extents; where code is to be little, they are one
function, which is told the numbers that are not the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from chainrule.ir.loop import (
    Apply,
    Buffer,
    Check,
    Combine,
    Get,
    IndexValue,
    Let,
    Literal,
    Load,
    Loop,
    Program,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.size import Atom, Dim, Quotient, Size
from chainrule.loops.text import signature
from chainrule.loops.walk import postorder, values_of
from chainrule.records import dataclass

#: no size of a program is called so
_NAME = "number{}'"


@dataclass(frozen=True)
class Alike:
    """A program for many: what it is told besides its own sizes, for the one that it stands for."""

    program: Program
    numbers: tuple[int, ...]


def merged(programs: Iterable[Program]) -> dict[int, Alike]:
    """For each program, by identity, the one it shares with those that are like it."""
    groups: dict[str, list[tuple[Program, tuple[int, ...]]]] = {}
    for program in programs:
        numbers: list[int] = []

        def hole(number: int, numbers: list[int] = numbers) -> Dim:
            numbers.append(number)
            return Size.symbol(_NAME.format(len(numbers)))

        general = _Rewriter(hole).program(program)
        groups.setdefault(signature(general), []).append((program, tuple(numbers)))
    found: dict[int, Alike] = {}
    for members in groups.values():
        found |= _shared(members)
    return found


def _shared(members: Sequence[tuple[Program, tuple[int, ...]]]) -> dict[int, Alike]:
    """The program of a group: places that hold one number in all keep it, others have a size."""
    columns = list(zip(*(numbers for _, numbers in members), strict=True))
    different = [c for c in dict.fromkeys(columns) if len(set(c)) > 1]
    sizes = {column: Size.symbol(_NAME.format(i)) for i, column in enumerate(different)}
    places = iter(columns)

    def choose(number: int) -> Dim:
        column = next(places)
        return sizes.get(column, number)

    first = members[0][0]
    names = (*first.sizes, *(_NAME.format(i) for i, _ in enumerate(different)))
    program = replace(_Rewriter(choose).program(first), sizes=names) if different else first
    return {
        id(member): Alike(program, tuple(column[i] for column in different))
        for i, (member, _) in enumerate(members)
    }


class _Rewriter:
    """Puts what `choose` gives in the place of each number in sizes, offsets and extents."""

    def __init__(self, choose: Callable[[int], Dim]) -> None:
        self.choose = choose
        self.values: dict[int, Value] = {}
        self.buffers: dict[Buffer, Buffer] = {}

    def program(self, program: Program) -> Program:
        buffers = tuple(map(self.buffer, program.buffers))
        return replace(program, buffers=buffers, body=self.block(program.body))

    def buffer(self, buffer: Buffer) -> Buffer:
        # how large it is does not show in the code
        return self.buffers.setdefault(buffer, replace(buffer, size=0))

    def block(self, body: Iterable[Stmt]) -> tuple[Stmt, ...]:
        return tuple(map(self.statement, body))

    def statement(self, s: Stmt) -> Stmt:
        if isinstance(s, Loop):
            return replace(s, extent=self.dim(s.extent), body=self.block(s.body))
        if isinstance(s, Let):
            return replace(s, value=self.dim(s.value))
        for value in postorder(*values_of(s)):
            if id(value) not in self.values:
                self.values[id(value)] = self.value(value)
        if isinstance(s, Set):
            index = tuple(map(self.dim, s.index))
            return replace(s, index=index, value=self.values[id(s.value)])
        if isinstance(s, Check):
            return replace(s, condition=self.values[id(s.condition)])
        if isinstance(s, Store):
            return replace(
                s,
                buffer=self.buffer(s.buffer),
                offset=self.dim(s.offset),
                value=self.values[id(s.value)],
                index=None if s.index is None else self.values[id(s.index)],
                stride=self.dim(s.stride),
            )
        return s

    def value(self, v: Value) -> Value:
        if isinstance(v, Apply):
            return replace(v, args=tuple(self.values[id(a)] for a in v.args))
        if isinstance(v, Load):
            index = None if v.index is None else self.values[id(v.index)]
            offset, stride = self.dim(v.offset), self.dim(v.stride)
            return Load(self.buffer(v.buffer), offset, index, stride)
        if isinstance(v, Get | Combine):
            return replace(v, index=tuple(map(self.dim, v.index)))
        if isinstance(v, IndexValue):
            return replace(v, index=self.dim(v.index))
        assert isinstance(v, Literal)
        return v

    def dim(self, dim: Dim) -> Dim:
        terms = dim.terms if isinstance(dim, Size) else (((), dim),)
        total = self.choose(dict(terms).get((), 0))
        for monomial, coefficient in terms:
            if not monomial:
                continue
            term = self.choose(coefficient)
            for atom in monomial:
                term = term * self.atom(atom)
            total = total + term
        return total

    def atom(self, atom: Atom) -> Dim:
        if isinstance(atom, str):
            return Size.symbol(atom)
        over, under = self.dim(atom.numerator), self.dim(atom.denominator)
        return over // under if isinstance(atom, Quotient) else over % under
