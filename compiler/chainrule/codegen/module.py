"""Programs in the order they are called, as one LLVM module with the entry `step`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chainrule.codegen.direct import direct_call
from chainrule.codegen.epoch import COPY_FUNCTION, run_loop
from chainrule.codegen.function import emit_function
from chainrule.errors import CompileError
from chainrule.ir.loop import Program
from chainrule.ir.size import Atom, Dim, Quotient, Size
from chainrule.loops.text import signature
from chainrule.loops.walk import has_check
from chainrule.target import Target


@dataclass(frozen=True)
class Place:
    """Where a buffer starts: at an address in the table, and further on by so many bytes for each
    slice that the loops around it have come to: `moves` are (loop, bytes), the outermost loop 0.
    """

    entry: int
    moves: tuple[tuple[int, Dim], ...] = ()

    def moved(self, loop: int, size: Dim) -> Place:
        """A slice of `size` bytes of what lies here."""
        return Place(self.entry, (*self.moves, (loop, size)))


@dataclass(frozen=True)
class Call:
    """A program and where its buffers stand, in the order of `program.buffers`.

    A number is the place in the table. Two buffers of a call may share memory where the program
    works in place: where each element is read only by the iteration that writes it, and before it
    does.
    """

    program: Program
    buffers: tuple[int | Place, ...]


@dataclass(frozen=True)
class Copy:
    """So many bytes from one place to another."""

    source: Place
    target: Place
    size: Dim


@dataclass(frozen=True)
class Repeat:
    """Calls and copies once for each slice, from the first or, with `reverse`, from the last."""

    length: Dim
    steps: tuple[Call | Copy | Repeat, ...]
    reverse: bool = False


Step = Call | Copy | Repeat


def calls_in(steps: Sequence[Step]) -> list[Call]:
    """The calls among steps, in order."""
    found: list[Call] = []
    for step in steps:
        if isinstance(step, Repeat):
            found += calls_in(step.steps)
        elif isinstance(step, Call):
            found.append(step)
    return found


def emit_module(
    order: Sequence[Step], sizes: Sequence[str], target: Target, epochs: bool = False
) -> str:
    """LLVM text with one function for each distinct program, and `i32 @step(table, sizes)`.

    `table` is an array of buffer addresses, `sizes` an array of i64 in the order given here. The
    programs run in `order`; the first that leaves with a code other than 0 ends the step with it.
    With `epochs` there are also `i64 @run(block)` and `double @direct(feeds, block)`, see
    codegen.epoch and codegen.direct.
    """
    names: dict[str, str] = {}
    known: dict[int, str] = {}
    texts: list[str] = []
    declarations: set[str] = set()
    calls = calls_in(order)
    for i, call in enumerate(calls):
        _check_call(call, sizes)
        name = known.get(id(call.program))
        if name is None:
            key = signature(call.program)
            if key not in names:
                names[key] = f"kernel{i}"
                text, needed = emit_function(call.program, names[key], target)
                texts.append(text)
                declarations |= needed
            known[id(call.program)] = names[key]
    texts.append(_Entry(known, sizes).function(order))
    if epochs:
        texts += [run_loop(), direct_call()]
    if epochs or any(not isinstance(step, Call) for step in order):
        texts.append(COPY_FUNCTION)
    parts = [*texts, *sorted(declarations), _attributes(target), ""]
    return "\n\n".join([f'target triple = "{target.triple}"', *parts])


def describe(order: Sequence[Step], sizes: Sequence[str], target: Target) -> Iterator[str]:
    """Texts that say all that `emit_module` makes its text of, `epochs` apart."""
    yield repr(target)
    yield repr(tuple(sizes))
    known: dict[int, int] = {}
    for call in calls_in(order):
        if id(call.program) not in known:
            known[id(call.program)] = len(known)
            yield signature(call.program)
    yield repr([_outline(step, known) for step in order])


def _outline(step: Step, known: Mapping[int, int]) -> object:
    """A step with the number of its program in the program's place."""
    if isinstance(step, Call):
        return known[id(step.program)], step.program.sizes, step.buffers
    if isinstance(step, Copy):
        return step
    return step.length, step.reverse, [_outline(inner, known) for inner in step.steps]


def _attributes(target: Target) -> str:
    width = target.vector_bytes * 8
    words = f'nounwind noinline "no-builtins" "prefer-vector-width"="{width}"'
    return f'attributes #0 = {{ {words} }}\nattributes #1 = {{ nounwind "no-builtins" }}'


def _check_call(call: Call, sizes: Sequence[str]) -> None:
    program = call.program
    if len(call.buffers) != len(program.buffers):
        raise CompileError(
            f"{program.name} has {len(program.buffers)} buffers, {len(call.buffers)} were given"
        )
    missing = [s for s in program.sizes if s not in sizes]
    if missing:
        raise CompileError(f"{program.name} needs the sizes {missing}, the step has {list(sizes)}")


class _Entry:
    """The function `step`, which is being written: calls, copies, and loops around them."""

    def __init__(self, names: Mapping[int, str], sizes: Sequence[str]) -> None:
        self.names, self.sizes = names, sizes
        self.lines: list[str] = []
        self.count = 0
        self.block = "entry"
        self.loops: list[str] = []  # the slice that each loop around here has come to
        self.checked: dict[int, bool] = {}

    def function(self, order: Sequence[Step]) -> str:
        """The text of the whole function."""
        for i, _ in enumerate(self.sizes):
            self.lines.append(f"  %where{i} = getelementptr i64, ptr %sizes, i64 {i}")
            self.lines.append(f"  %size{i} = load i64, ptr %where{i}, align 8")
        self.steps(order)
        head = ["define i32 @step(ptr %table, ptr %sizes) #1 {", "entry:"]
        return "\n".join([*head, *self.lines, "  ret i32 0", "}"])

    def steps(self, order: Sequence[Step]) -> None:
        for step in order:
            if isinstance(step, Call):
                self.call(step)
            elif isinstance(step, Copy):
                self.copy(step)
            else:
                self.repeat(step)

    def value(self, text: str) -> str:
        """The register that holds an instruction's result."""
        self.count += 1
        self.lines.append(f"  %v{self.count} = {text}")
        return f"%v{self.count}"

    def open(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.block = label

    def call(self, call: Call) -> None:
        # addresses are loaded here, not all at once: few stay in registers
        arguments = [f"ptr {self.address(place)}" for place in call.buffers]
        arguments += [f"i64 %size{self.sizes.index(s)}" for s in call.program.sizes]
        code = self.value(f"call i32 @{self.names[id(call.program)]}({', '.join(arguments)})")
        if id(call.program) not in self.checked:
            self.checked[id(call.program)] = has_check(call.program.body)
        if self.checked[id(call.program)]:
            good = self.value(f"icmp eq i32 {code}, 0")
            n = self.count
            self.lines.append(f"  br i1 {good}, label %next{n}, label %bad{n}")
            self.lines += [f"bad{n}:", f"  ret i32 {code}"]
            self.open(f"next{n}")

    def copy(self, copy: Copy) -> None:
        target, source = self.address(copy.target), self.address(copy.source)
        size = self.number(copy.size)
        self.lines.append(f"  call void @copy(ptr {target}, ptr {source}, i64 {size})")

    def repeat(self, loop: Repeat) -> None:
        length = self.number(loop.length)
        self.count += 1
        n, before = self.count, self.block
        self.lines.append(f"  br label %head{n}")
        self.open(f"head{n}")
        at = len(self.lines)
        more = self.value(f"icmp slt i64 %t{n}, {length}")
        self.lines.append(f"  br i1 {more}, label %body{n}, label %after{n}")
        self.open(f"body{n}")
        place = f"%t{n}"
        if loop.reverse:
            place = self.value(f"sub i64 {length}, %t{n}")
            place = self.value(f"sub i64 {place}, 1")
        self.loops.append(place)
        self.steps(loop.steps)
        self.loops.pop()
        self.lines += [f"  %again{n} = add i64 %t{n}, 1", f"  br label %head{n}"]
        phi = f"  %t{n} = phi i64 [0, %{before}], [%again{n}, %{self.block}]"
        self.lines.insert(at, phi)
        self.open(f"after{n}")

    def address(self, place: int | Place) -> str:
        """The pointer to where a buffer starts now."""
        entry, moves = (place, ()) if isinstance(place, int) else (place.entry, place.moves)
        at = self.value(f"getelementptr ptr, ptr %table, i64 {entry}")
        pointer = self.value(f"load ptr, ptr {at}, align 8")
        for loop, size in moves:
            by = self.value(f"mul i64 {self.loops[loop]}, {self.number(size)}")
            pointer = self.value(f"getelementptr i8, ptr {pointer}, i64 {by}")
        return pointer

    def number(self, dim: Dim) -> str:
        """A size as an i64."""
        if not isinstance(dim, Size):
            return str(dim)
        total = ""
        for monomial, coefficient in dim.terms:
            term = str(coefficient)
            for atom in monomial:
                term = self.value(f"mul i64 {term}, {self.atom(atom)}")
            total = self.value(f"add i64 {total}, {term}") if total else term
        return total

    def atom(self, atom: Atom) -> str:
        if isinstance(atom, str):
            return f"%size{self.sizes.index(atom)}"
        over, under = self.number(atom.numerator), self.number(atom.denominator)
        rest = self.value(f"srem i64 {over}, {under}")
        below = self.value(f"icmp slt i64 {rest}, 0")  # sizes divide as in Python, downward
        if isinstance(atom, Quotient):
            whole, less = (
                self.value(f"sdiv i64 {over}, {under}"),
                self.value(f"zext i1 {below} to i64"),
            )
            return self.value(f"sub i64 {whole}, {less}")
        more = self.value(f"select i1 {below}, i64 {under}, i64 0")
        return self.value(f"add i64 {rest}, {more}")
