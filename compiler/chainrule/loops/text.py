"""Loop programs as text, for people; and a text by which equal programs know each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from chainrule.ir.engine import Bring, Engage, Hear, MultiplyPanels
from chainrule.ir.loop import (
    Await,
    Barrier,
    Blocks,
    Buffer,
    Close,
    Combine,
    Fetch,
    Get,
    IndexValue,
    Let,
    Literal,
    Load,
    Local,
    Loop,
    Multiply,
    Note,
    Panels,
    Program,
    Set,
    Stmt,
    Store,
    Value,
    When,
)
from chainrule.ir.size import Dim, Size, substitute
from chainrule.loops.walk import shared, statements, values_of
from chainrule.records import dataclass


def show(program: Program) -> str:
    """The program as indented text, one statement a line."""
    parameters = [
        f"{'private ' if b.private else ''}{b.name}: {b.dtype.short}[{b.size}]"
        for b in program.buffers
    ]
    head = f"{program.name}({', '.join([*parameters, *program.sizes])}):"
    return "\n".join([head, *_Printer().block(program.body, "  ")])


def signature(program: Program) -> str:
    """The program's text without the names it chose: equal where the machine code may be shared."""
    printer = _Printer(notes=False)
    for i, buffer in enumerate(program.buffers):
        printer.buffers.setdefault(buffer, f"b{i}")
    for i, size in enumerate(program.sizes):
        printer.symbols[size] = Size.symbol(f"s{i}")
    printer.fresh = True
    parameters = [
        f"{'private ' if b.private else ''}{b.dtype.short}[{printer.dim(b.size)}]"
        for b in program.buffers
    ]
    head = f"({', '.join(parameters)}; {len(program.sizes)}):"
    return "\n".join([head, *printer.block(program.body, " ")])


def outline(program: Program) -> tuple[object, ...]:
    """What tells most programs apart at a glance: it is equal wherever the signature is."""
    buffers = tuple((b.dtype, b.private, _number(b.size)) for b in program.buffers)
    kinds = tuple(
        (type(s), _number(s.extent) if isinstance(s, Loop) else None)
        for s in statements(program.body)
        if not isinstance(s, Note)
    )
    return (len(program.sizes), buffers, kinds)


def _number(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) else None


@dataclass
class _Printer:
    """Prints; with `fresh`, loop variables and locals are renamed in order of appearance."""

    notes: bool = True
    fresh: bool = False
    buffers: dict[Buffer, str] = field(default_factory=dict)
    symbols: dict[str, Dim] = field(default_factory=dict)
    locals: dict[Local, str] = field(default_factory=dict)
    bound: dict[int, str] = field(default_factory=dict)
    count: int = 0

    def block(self, body: tuple[Stmt, ...], indent: str) -> Iterator[str]:
        for statement in body:
            yield from self.statement(statement, indent)

    def statement(self, s: Stmt, indent: str) -> Iterator[str]:
        if isinstance(s, Note):
            if self.notes:
                yield f"{indent}# {s.text}"
        elif isinstance(s, Barrier):
            yield f"{indent}barrier{' among lanes' if s.lanes else ''}"
        elif isinstance(s, Blocks):
            left, right = self.panels(s.left), self.panels(s.right)
            parts = f" in {s.parts} parts" if s.parts > 1 else ""
            size = f"{s.rows} x {s.columns}{parts} over {self.dim(s.steps)}"
            sums = f"{self.buffer(s.sums)}[{self.dim(s.at)}]"
            yield f"{indent}{sums} {'+' if s.more else ''}= blocks {size}: {left} * {right}"
        elif isinstance(s, When):
            tests = [f"{self.dim(i)} < {self.dim(n)}" for i, n in s.bounds]
            tests += [] if s.test is None else [self.value(s.test)]
            yield f"{indent}when {', '.join(tests)}:"
            yield from self.block(s.body, indent + "  ")
        elif isinstance(s, Loop):
            yield from self.loop(s, indent)
        elif isinstance(s, Let):
            value = self.dim(s.value)
            if self.fresh:
                self.symbols[s.var] = Size.symbol(f"i{self.next()}")
            yield f"{indent}let {self.dim(Size.symbol(s.var))} = {value}"
        elif isinstance(s, Local):
            shape = f"[{', '.join(map(str, s.shape))}]" if s.shape else ""
            kind = "lanes " if s.lanes else "local "
            yield f"{indent}{kind}{self.local(s)}: {s.dtype.short}{shape}"
        elif isinstance(s, Set):
            yield from self.lets((s.value,), indent)
            yield f"{indent}{self.cell(s.local, s.index)} = {self.value(s.value)}"
        elif isinstance(s, Multiply):
            words = (
                f"{self.buffer(w.buffer)}[{self.dim(w.at)}, lines of {w.line}]" for w in (s.a, s.b)
            )
            kind = " in TF32" if s.tf32 else ""
            yield f"{indent}{self.cell(s.local, s.index)} += {' * '.join(words)}{kind}"
        elif isinstance(s, Fetch):
            to = f"{self.buffer(s.buffer)}[{self.dim(s.offset)}]"
            several = f", {s.count} of them" if s.count > 1 else ""
            yield f"{indent}fetch {to} = {self.value(s.source)}{several}"
        elif isinstance(s, Close):
            yield f"{indent}close a group"
        elif isinstance(s, Await):
            yield f"{indent}await all{f' but {s.but}' if s.but else ''}"
        elif isinstance(s, Engage | Bring | Hear | MultiplyPanels):
            yield from (indent + line for line in self.engine(s))
        elif isinstance(s, Store):
            yield from self.lets(values_of(s), indent)
            yield f"{indent}{self.place(s)} = {self.value(s.value)}"
        else:
            yield from self.lets((s.condition,), indent)
            yield f"{indent}check {self.value(s.condition)} else {s.code}"

    def engine(self, s: Engage | Bring | Hear | MultiplyPanels) -> Iterator[str]:
        """What a copy engine and panels have to do with."""
        if isinstance(s, Engage):
            yield f"engage at {self.buffer(s.desk)}, in {self.buffer(s.room)}:"
            for i, m in enumerate(s.matrices):
                start = f"{self.buffer(m.source)}[{self.dim(m.offset)}]"
                size = (
                    f"{self.dim(m.lines)} lines of {self.dim(m.along)}, {self.dim(m.apart)} apart"
                )
                yield f"  matrix {i} = {start}, {size}, boxes of {m.box}"
        elif isinstance(s, Bring):
            for b in s.boxes:
                place = f"{b.matrix}[{self.dim(b.line)}, {self.dim(b.first)}]"
                yield f"bring {self.buffer(b.to)}[{self.dim(b.at)}] = box of matrix {place}"
            yield f"  then ring {self.dim(s.bell)}"
        elif isinstance(s, Hear):
            yield f"hear bell {self.dim(s.bell)}, turn {self.dim(s.turn)}"
        else:
            left, right = (
                f"{self.buffer(p.buffer)}[{self.dim(p.at)}]{' turned' if p.turned else ''}"
                for p in (s.a, s.b)
            )
            yield f"{self.local(s.local)} += panels {left} * {right}, {s.columns} columns"

    def loop(self, loop: Loop, indent: str) -> Iterator[str]:
        word = ("split " if loop.split else "") + {"serial": "for"}.get(
            loop.mode, loop.mode + " for"
        )
        outer = self.symbols.get(loop.var)
        extent = self.dim(loop.extent)
        if self.fresh:
            self.symbols[loop.var] = Size.symbol(f"i{self.next()}")
        yield f"{indent}{word} {self.dim(Size.symbol(loop.var))} in 0..{extent}:"
        yield from self.block(loop.body, indent + "  ")
        if outer is not None:
            self.symbols[loop.var] = outer

    def next(self) -> int:
        self.count += 1
        return self.count

    def lets(self, roots: tuple[Value, ...], indent: str) -> Iterator[str]:
        """Names for values used more than once, so that a DAG does not print as its tree."""
        self.bound = {}
        for number, value in enumerate(shared(*roots)):
            text = self.value(value)
            self.bound[id(value)] = f"t{number}"
            yield f"{indent}t{number} = {text}"

    def dim(self, dim: Dim) -> str:
        return str(substitute(dim, self.symbols) if self.symbols else dim)

    def buffer(self, buffer: Buffer) -> str:
        return self.buffers.get(buffer, buffer.name)

    def local(self, local: Local) -> str:
        if not self.fresh:
            return local.name
        return self.locals.setdefault(local, f"l{len(self.locals)}")

    def cell(self, local: Local, index: tuple[Dim, ...]) -> str:
        inside = f"[{', '.join(map(self.dim, index))}]" if index else ""
        return self.local(local) + inside

    def place(self, access: Load | Store) -> str:
        at = self.dim(access.offset)
        if access.index is not None:
            stride = "" if access.stride == 1 else f"*({self.dim(access.stride)})"
            at = f"{at} + <{self.value(access.index)}>{stride}"
        return f"{self.buffer(access.buffer)}[{at}]"

    def panels(self, p: Panels) -> str:
        return f"{self.buffer(p.buffer)}[{self.dim(p.offset)}, {self.dim(p.apart)} apart]"

    def value(self, v: Value) -> str:
        if id(v) in self.bound:
            return self.bound[id(v)]
        if isinstance(v, Load):
            return f"pair {self.place(v)}" if v.pair else self.place(v)
        if isinstance(v, Get):
            return self.cell(v.local, v.index)
        if isinstance(v, Combine):
            return f"combine {v.fn} {self.cell(v.local, v.index)}"
        if isinstance(v, Literal):
            return f"{v.value!r}:{v.dtype.short}"
        if isinstance(v, IndexValue):
            return f"{v.dtype.short}({self.dim(v.index)})"
        to = f":{v.dtype.short}" if v.fn == "cast" else ""
        return f"{v.fn}{to}({', '.join(map(self.value, v.args))})"
