"""Scalar functions and folds as functions of their own, for code that is to be little.

What is longer than a few machine operations is written once for each element type, and called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from chainrule.codegen.registers import Register, element, memory
from chainrule.codegen.scalar import ScalarCode, constant
from chainrule.ir.loop import LANES, Literal
from chainrule.ir.recipe import Listing
from chainrule.ir.types import DType, bool_, uint8
from chainrule.loops.library import listing_of
from chainrule.target import Target

#: a scalar function of more machine operations is a function of its own
INLINE = 8
#: a polynomial of so many multiply-adds is a table
LONG = 4


class Lines:
    """Instructions of one function in the order they are written: what ScalarCode writes into."""

    def __init__(self, declarations: set[str]) -> None:
        self.lines: list[str] = []
        self.declarations = declarations
        self.count = 0

    def fresh(self, prefix: str = "%v") -> str:
        """A name that is not taken."""
        self.count += 1
        return f"{prefix}{self.count}"

    def pure(self, text: str, *operands: str) -> str:
        """The value of an instruction."""
        name = self.fresh()
        self.lines.append(f"  {name} = {text}")
        return name

    def pinned(self, text: str) -> str:
        """The same: nothing is moved here."""
        return self.pure(text)

    def effect(self, text: str) -> None:
        """An instruction without a value."""
        self.lines.append(f"  {text}")

    def declare(self, text: str) -> None:
        """Note an intrinsic the module must declare."""
        self.declarations.add(f"declare {text}")


class Shared:
    """The functions of one target, by name, and what they declare.

    `prefix` begins names. `ready` are scalar functions that are had in another way, as text in
    which $NAME is to be their name.
    """

    def __init__(self, target: Target, prefix: str, ready: Mapping[str, str]) -> None:
        self.target, self.prefix, self.ready = target, prefix, ready
        self.functions: dict[str, str] = {}
        self.tables: dict[str, str] = {}
        self.declarations: set[str] = set()

    def called(self, fn: str, args: Sequence[Register]) -> str:
        """The name of the function that computes `fn` of such operands."""
        types = tuple(a.dtype for a in args)
        name = ".".join([f"{self.prefix}{fn}", *(t.name for t in types)])
        if fn in self.ready:
            self.functions[name] = self.ready[fn].replace("$NAME", name)
        if name not in self.functions:
            lines = Lines(self.declarations)
            given = [Register(f"%a{i}", t) for i, t in enumerate(types)]
            result = _Polynomials(self, lines).recipe(fn, given)
            self.functions[name] = _function(name, given, result, lines.lines)
        return name

    def polynomial(self, of: DType) -> str:
        """The name of `T @polynomial(x, ptr, i32 count)`: Horner's scheme, the highest first."""
        name = f"{self.prefix}polynomial.{of.name}"
        if name not in self.functions:
            lines, kind = Lines(self.declarations), memory(of)
            x, total = Register("%x", of), Register("%total", of)
            lines.lines += [
                f"  %first = load {kind}, ptr %table, align {of.itemsize}",
                "  br label %next",
                "next:",
                "  %i = phi i32 [1, %entry], [%following, %next]",
                f"  %total = phi {kind} [%first, %entry], [$SUM, %next]",
                f"  %at = getelementptr {kind}, ptr %table, i32 %i",
            ]
            c = loaded(lines, of, "%at")
            sum_ = SharedScalars(self, lines).apply("fma", [x, total, c], of)
            lines.lines += [
                "  %following = add i32 %i, 1",
                "  %more = icmp ult i32 %following, %count",
                "  br i1 %more, label %next, label %end",
                "end:",
            ]
            head = f"define internal {kind} @{name}({kind} %x, ptr %table, i32 %count) noinline #0"
            body = "\n".join(lines.lines).replace("$SUM", sum_.text)
            self.functions[name] = f"{head} {{\nentry:\n{body}\n  ret {sum_.typed}\n}}"
        return name

    def table(self, numbers: Sequence[Register]) -> str:
        """The name of constants one after the other."""
        listed = ", ".join(n.typed for n in numbers)
        text = f"constant [{len(numbers)} x {numbers[0].type}] [{listed}]"
        return self.tables.setdefault(text, f"{self.prefix}table{len(self.tables)}")

    def fold(self, fn: str, of: DType) -> str:
        """The name of `T @fold(ptr)`: LANES elements in the one fixed tree."""
        name = f"{self.prefix}fold.{fn}.{of.name}"
        if name not in self.functions:
            lines = Lines(self.declarations)
            kind = memory(of)
            code = SharedScalars(self, lines)
            a, b = (loaded(lines, of, f"%{side}") for side in ("low", "high"))
            total = stored(lines, code.apply(fn, (a, b), of))
            body = [
                "entry:",
                f"  %room = alloca [{LANES // 2} x {kind}], align {of.itemsize}",
                "  br label %level",
                "level:",
                f"  %half = phi i32 [{LANES // 2}, %entry], [%next, %done]",
                "  %from = phi ptr [%cells, %entry], [%room, %done]",
                "  br label %lane",
                "lane:",
                "  %i = phi i32 [0, %level], [%following, %lane]",
                f"  %low = getelementptr {kind}, ptr %from, i32 %i",
                "  %j = add i32 %i, %half",
                f"  %high = getelementptr {kind}, ptr %from, i32 %j",
                f"  %to = getelementptr {kind}, ptr %room, i32 %i",
                *lines.lines,
                f"  store {kind} {total.text}, ptr %to, align {of.itemsize}",
                "  %following = add i32 %i, 1",
                "  %more = icmp ult i32 %following, %half",
                "  br i1 %more, label %lane, label %done",
                "done:",
                "  %next = lshr i32 %half, 1",
                "  %again = icmp ne i32 %next, 0",
                "  br i1 %again, label %level, label %end",
                "end:",
            ]
            last = Lines(self.declarations)
            last.count = lines.count
            result = loaded(last, of, "%room")
            head = f"define internal {result.type} @{name}(ptr %cells) noinline #0 {{"
            text = [head, *body, *last.lines, f"  ret {result.typed}", "}"]
            self.functions[name] = "\n".join(text)
        return name


class _Polynomials(ScalarCode):
    """A scalar function in which polynomials are tables."""

    def __init__(self, shared: Shared, lines: Lines) -> None:
        super().__init__(lines, shared.target)  # type: ignore[arg-type]
        self.shared, self.lines = shared, lines

    def carry_out(self, listing: Listing, values: dict[str, Register]) -> Register:
        """The steps of a recipe; those of a polynomial are a call."""
        chains = _chains(listing)
        inside = {name for chain in chains.values() for name in chain.steps}
        for step in listing.steps:
            if step.name in chains:
                values[step.name] = self.summed(chains[step.name], values, step.dtype)
            elif step.name not in inside:
                args = [_operand(a, values) for a in step.args]
                values[step.name] = self.apply(step.fn, args, step.dtype)
        return _operand(listing.result, values)

    def summed(self, chain: _Chain, values: Mapping[str, Register], of: DType) -> Register:
        table = self.shared.table([constant(c, of) for c in chain.coefficients])
        given = f"{values[chain.x].typed}, ptr @{table}, i32 {len(chain.coefficients)}"
        text = f"call {element(of)} @{self.shared.polynomial(of)}({given})"
        return Register(self.lines.pure(text), of)


class _Chain(NamedTuple):
    """Multiply-adds that are a polynomial in x, the highest coefficient first."""

    x: str
    coefficients: tuple[float, ...]
    steps: tuple[str, ...]


def _chains(listing: Listing) -> dict[str, _Chain]:
    """The polynomials of a listing with LONG steps at least, by their last."""
    uses = Counter(a for step in listing.steps for a in step.args if isinstance(a, str))
    uses[listing.result] += isinstance(listing.result, str)  # type: ignore[index]
    found: dict[str, _Chain] = {}
    for step in listing.steps:
        if step.fn != "fma":
            continue
        x, inner, last = step.args
        if not isinstance(x, str) or not isinstance(last, Literal):
            continue
        before = found.get(inner) if isinstance(inner, str) and uses[inner] == 1 else None
        if isinstance(inner, Literal):
            found[step.name] = _Chain(x, (inner.value, last.value), (step.name,))
        elif before is not None and before.x == x:
            del found[inner]
            steps = (*before.steps, step.name)
            found[step.name] = _Chain(x, (*before.coefficients, last.value), steps)
    return {name: chain for name, chain in found.items() if len(chain.steps) >= LONG}


def _operand(operand: str | Literal, values: Mapping[str, Register]) -> Register:
    if isinstance(operand, Literal):
        return constant(operand.value, operand.dtype)
    return values[operand]


def _function(name: str, given: list[Register], result: Register, lines: list[str]) -> str:
    listed = ", ".join(a.typed for a in given)
    head = f"define internal {result.type} @{name}({listed}) noinline memory(none) #0 {{"
    return "\n".join([head, "entry:", *lines, f"  ret {result.typed}", "}"])


def loaded(lines: Lines, of: DType, pointer: str) -> Register:
    """An element of memory as a register."""
    name = lines.pure(f"load {memory(of)}, ptr {pointer}, align {of.itemsize}")
    if not of.is_bool:
        return Register(name, of)
    return Register(lines.pure(f"icmp ne i8 {name}, 0"), bool_)


def stored(lines: Lines, value: Register) -> Register:
    """A register as memory holds it."""
    if not value.dtype.is_bool:
        return value
    return Register(lines.pure(f"zext {value.typed} to i8"), uint8)


class SharedScalars(ScalarCode):
    """Scalar functions, of which the longer ones are called."""

    def __init__(self, shared: Shared, lines: Lines) -> None:
        super().__init__(lines, shared.target)  # type: ignore[arg-type]
        self.shared, self.lines = shared, lines

    def recipe(self, fn: str, args: Sequence[Register]) -> Register:
        _, listing = listing_of(fn, tuple(a.dtype for a in args))
        if len(listing.steps) <= INLINE:
            return super().recipe(fn, args)
        name = self.shared.called(fn, args)
        kind = element(listing.dtype)
        text = f"call {kind} @{name}({', '.join(a.typed for a in args)})"
        return Register(self.lines.pure(text), listing.dtype)
