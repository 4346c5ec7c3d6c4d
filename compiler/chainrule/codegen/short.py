"""A loop program as one short LLVM function: every loop a loop, every local memory of its frame.

The same bits as codegen.function gives, in a fraction of the code: iterations of a vector loop come
one after the other, lane i % LANES is an element of an array, and longer scalar functions are
functions of their own. LLVM's passes make registers of what they can afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from chainrule.codegen.assigned import is_read_unset, runs
from chainrule.codegen.outlined import Place
from chainrule.codegen.registers import Register, element, memory
from chainrule.codegen.scalar import constant
from chainrule.codegen.shared import Lines, SharedScalars, loaded, stored
from chainrule.codegen.spots import Part, given
from chainrule.errors import CompileError
from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Buffer,
    Check,
    Get,
    IndexValue,
    Let,
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
from chainrule.ir.size import Atom, Dim, Quotient, is_nonnegative
from chainrule.ir.types import DType, int64
from chainrule.loops.walk import postorder, statements, values_of

if TYPE_CHECKING:
    from chainrule.codegen.compact import Compact


class ShortFunction:
    """One program."""

    def __init__(self, compact: Compact, program: Program) -> None:
        self.compact, self.program, self.word = compact, program, compact.word
        self.lines = Lines(compact.declarations)
        self.code = SharedScalars(compact, self.lines)
        self.pointers = {b: f"%b{i}" for i, b in enumerate(program.buffers)}
        self.symbols: dict[str, str] = {}
        self.frame: list[str] = []
        self.places: dict[Local, str] = {}
        self.lane: str | None = None
        self.positive = compact.positive(program)
        self.spots = compact.known(program)

    def text(self, name: str) -> str:
        """The whole function: the parameters of codegen.function, sizes as wide as addresses."""
        self.symbols = {size: f"%s{i}" for i, size in enumerate(self.program.sizes)}
        for s in statements(self.program.body):
            if isinstance(s, Local) and s not in self.places:
                self.places[s] = f"%l{len(self.places)}"
                kind = f"[{self.cells(s)} x {memory(s.dtype)}]"
                self.frame.append(f"  {self.places[s]} = alloca {kind}, align {s.dtype.itemsize}")
        self.block(self.program.body)
        places = [
            f"  %b{i} = getelementptr i8, ptr %{spot.base}, {self.word} {spot.offset}"
            for i, spot in enumerate(self.spots)
            if spot is not None
        ]
        parameters = given(self.spots, [f"ptr %b{i}" for i in range(len(self.spots))])
        parameters += [f"{self.word} %s{i}" for i in range(len(self.program.sizes))]
        head = f"define internal i32 @{name}({', '.join(parameters)}) #0 {{"
        return "\n".join(
            [head, "entry:", *places, *self.frame, *self.lines.lines, "  ret i32 0", "}"]
        )

    @staticmethod
    def cells(local: Local) -> int:
        """The elements of a local."""
        return math.prod(local.shape) * (LANES if local.lanes else 1)

    # statements

    def block(self, body: Iterable[Stmt]) -> None:
        statements_ = list(body)
        for i, s in enumerate(statements_):
            if not isinstance(s, Local) or self.begins_as_0(s, statements_[i + 1 :]):
                self.statement(s)

    def begins_as_0(self, local: Local, following: Sequence[Stmt]) -> bool:
        """Whether it shows that a local begins as 0."""
        return is_read_unset(local, following, self.positive)

    def statement(self, s: Stmt) -> None:
        if isinstance(s, Loop):
            self.loop(s)
        elif isinstance(s, Let):
            self.symbols[s.var] = self.number(s.value)
        elif isinstance(s, Local):
            self.fill(self.places[s], str(self.cells(s)), s.dtype, constant(0, s.dtype))
        elif isinstance(s, Set):
            self.set(s)
        elif isinstance(s, Store):
            value, *index = self.values(*values_of(s))
            if value.dtype != s.buffer.dtype:
                raise CompileError(f"a {value.dtype} is stored in a buffer of {s.buffer.dtype}")
            pointer = self.moved(s, index[0] if index else None)
            self.put(value, pointer, s.buffer.dtype)
        elif isinstance(s, Check):
            (condition,) = self.values(s.condition)
            go_on, leave = self.label(), self.label()
            self.lines.effect(f"br {condition.typed}, label %{go_on}, label %{leave}")
            self.open(leave)
            self.lines.effect(f"ret i32 {s.code}")
            self.open(go_on)
        elif not isinstance(s, Note | Barrier):
            raise CompileError(f"{s!r} is no statement of the loop grammar")

    def set(self, s: Set) -> None:
        (value,) = self.values(s.value)
        if s.local.lanes and self.lane is None:
            start = self.cell(s.local, s.index, "0")
            self.fill(start, str(LANES), s.local.dtype, value)
            return
        self.put(value, self.cell(s.local, s.index, self.lane), s.local.dtype)

    def put(self, value: Register, pointer: str, of: DType) -> None:
        kept = stored(self.lines, value)
        self.lines.effect(f"store {memory(of)} {kept.text}, ptr {pointer}, align {of.itemsize}")

    def fill(self, start: str, count: str, of: DType, value: Register) -> None:
        """One value in so many elements."""
        if count == "1":
            self.put(value, start, of)
            return

        def one(i: str) -> None:
            self.put(value, self.step(start, of, i), of)

        self.counted(count, one)

    def call(self, part: Part) -> None:
        pointers = [f"ptr {self.start(place)}" for place in part.places]
        arguments = given(self.compact.known(part.program), pointers)
        arguments += [f"{self.word} {self.number(n)}" for n in part.numbers]
        self.lines.pure(f"call i32 @{part.name}({', '.join(arguments)})")

    def start(self, place: Place) -> str:
        """The pointer to a place."""
        if isinstance(place.of, Buffer):
            assert not isinstance(place.at, tuple)
            return self.step(self.pointers[place.of], place.of.dtype, self.number(place.at))
        assert isinstance(place.at, tuple)
        return self.cell(place.of, place.at, "0" if place.of.lanes else None)

    def loop(self, loop: Loop) -> None:
        part = self.compact.part(self.program, loop)
        if part is not None:
            self.call(part)
            return
        shadowed, outer = self.symbols.get(loop.var), self.lane

        def body(i: str) -> None:
            self.symbols[loop.var] = i
            if loop.mode == "vector":
                self.lane = self.lines.pure(f"and {self.word} {i}, {LANES - 1}")
            self.block(loop.body)

        self.counted(self.number(loop.extent), body, runs(loop.extent, self.positive))
        self.lane = outer
        self.symbols.pop(loop.var, None)
        if shadowed is not None:
            self.symbols[loop.var] = shadowed

    def counted(self, stop: str, body: Callable[[str], None], runs: bool = True) -> None:
        """`body(i)` for i from 0 to `stop`, which is left out; for 0 in any case, where it `runs`.

        The question whether to go on stands at the end then, which is a branch less.
        """
        if stop == "0":
            return
        if stop == "1":
            body("0")
            return
        cell = self.lines.fresh("%i")
        self.frame.append(f"  {cell} = alloca {self.word}, align 4")
        head, inside, after = self.label(), self.label(), self.label()
        self.lines.effect(f"store {self.word} 0, ptr {cell}, align 4")
        self.lines.effect(f"br label %{inside if runs else head}")
        if not runs:
            self.open(head)
            i = self.lines.pure(f"load {self.word}, ptr {cell}, align 4")
            more = self.lines.pure(f"icmp slt {self.word} {i}, {stop}")
            self.lines.effect(f"br i1 {more}, label %{inside}, label %{after}")
        self.open(inside)
        i = self.lines.pure(f"load {self.word}, ptr {cell}, align 4")
        body(i)
        following = self.lines.pure(f"add nuw nsw {self.word} {i}, 1")
        self.lines.effect(f"store {self.word} {following}, ptr {cell}, align 4")
        if runs:
            more = self.lines.pure(f"icmp slt {self.word} {following}, {stop}")
            self.lines.effect(f"br i1 {more}, label %{inside}, label %{after}")
        else:
            self.lines.effect(f"br label %{head}")
        self.open(after)

    def label(self) -> str:
        return self.lines.fresh("L")

    def open(self, label: str) -> None:
        self.lines.lines.append(f"{label}:")

    # places and sizes

    def step(self, pointer: str, of: DType, by: str) -> str:
        return self.lines.pure(f"getelementptr {memory(of)}, ptr {pointer}, {self.word} {by}")

    def cell(self, local: Local, index: tuple[Dim, ...], lane: str | None) -> str:
        """Where a cell lies, or one lane of it."""
        place: Dim = 0
        for i, size in zip(index, local.shape, strict=True):
            place = place * size + i
        if not local.lanes:
            return self.step(self.places[local], local.dtype, self.number(place))
        if lane is None:
            raise CompileError(f"{local.name} has lanes: outside a vector loop, combine them")
        row = self.number(place * LANES)
        return self.step(self.places[local], local.dtype, self.sum(row, lane))

    def moved(self, access: Load | Store, index: Register | None) -> str:
        at = self.number(access.offset)
        of = access.buffer.dtype
        if index is not None:
            wide = self.code.cast(index, int64).text
            if self.word != "i64":
                wide = self.lines.pure(f"trunc i64 {wide} to {self.word}")
            by = self.lines.pure(f"mul {self.word} {wide}, {self.number(access.stride)}")
            at = self.sum(at, by)
        return self.step(self.pointers[access.buffer], of, at)

    def sum(self, a: str, b: str) -> str:
        if "0" in (a, b):
            return b if a == "0" else a
        return self.lines.pure(f"add {self.word} {a}, {b}")

    def number(self, dim: Dim) -> str:
        """A size, an extent or an offset."""
        if isinstance(dim, int):
            return str(dim)
        total = "0"
        for monomial, coefficient in dim.terms:
            term = ""
            for factor in (*map(self.atom, monomial), *([str(coefficient)] * (coefficient != 1))):
                term = self.lines.pure(f"mul {self.word} {term}, {factor}") if term else factor
            total = self.sum(total, term or "1")
        return total

    def atom(self, atom: Atom) -> str:
        if isinstance(atom, str):
            return self.symbols[atom]
        over, under = self.number(atom.numerator), self.number(atom.denominator)
        whole = isinstance(atom, Quotient)
        if is_nonnegative(atom.numerator):
            return self.lines.pure(f"{'udiv' if whole else 'urem'} {self.word} {over}, {under}")
        rest = self.lines.pure(f"srem {self.word} {over}, {under}")
        below = self.lines.pure(f"icmp slt {self.word} {rest}, 0")  # downward, as in Python
        if whole:
            quotient = self.lines.pure(f"sdiv {self.word} {over}, {under}")
            less = self.lines.pure(f"zext i1 {below} to {self.word}")
            return self.lines.pure(f"sub {self.word} {quotient}, {less}")
        more = self.lines.pure(f"select i1 {below}, {self.word} {under}, {self.word} 0")
        return self.sum(rest, more)

    # values

    def values(self, *roots: Value) -> list[Register]:
        registers: dict[int, Register] = {}
        for v in postorder(*roots):
            registers[id(v)] = self.part(v, registers)
        return [registers[id(root)] for root in roots]

    def part(self, v: Value, registers: dict[int, Register]) -> Register:
        if isinstance(v, Apply):
            return self.code.apply(v.fn, [registers[id(a)] for a in v.args], v.dtype)
        if isinstance(v, Load):
            index = registers[id(v.index)] if v.index is not None else None
            return loaded(self.lines, v.dtype, self.moved(v, index))
        if isinstance(v, Get):
            return loaded(self.lines, v.dtype, self.cell(v.local, v.index, self.lane))
        if isinstance(v, Literal):
            return constant(v.value, v.dtype)
        if isinstance(v, IndexValue):
            number = self.number(v.index)
            if self.word != "i64" and number.startswith("%"):
                number = self.lines.pure(f"sext {self.word} {number} to i64")
            return self.code.cast(Register(number, int64), v.dtype)
        start = self.cell(v.local, v.index, "0")
        kind = element(v.dtype)
        text = f"call {kind} @{self.compact.fold(v.fn, v.dtype)}(ptr {start})"
        return Register(self.lines.pure(text), v.dtype)
