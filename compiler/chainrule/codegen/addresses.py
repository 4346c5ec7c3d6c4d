"""Sizes and index maps as LLVM integers and pointers, each part computed outside as it can be."""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.codegen.registers import Builder, memory
from chainrule.ir.loop import LANES, Buffer
from chainrule.ir.size import (
    Atom,
    Dim,
    Monomial,
    Quotient,
    Remainder,
    Size,
    coefficient,
    is_nonnegative,
    str_symbols,
    substitute,
    without_constant,
)

Binding = int | str
IOTA = "<" + ", ".join(f"i64 {i}" for i in range(LANES)) + ">"
WIDE = f"<{LANES} x i64>"


class AddressCode:
    """Emits polynomials. `symbols` binds sizes and loop variables to numbers or registers."""

    def __init__(self, builder: Builder, pointers: Mapping[Buffer, str]) -> None:
        self.builder, self.pointers = builder, pointers
        self.symbols: dict[str, Binding] = {}
        self._reduced: dict[tuple[Size, tuple[tuple[str, int], ...]], Dim] = {}
        self._parts: dict[Size, tuple[Dim, int]] = {}
        self._pointers: dict[tuple[Buffer, Size, tuple[Binding, ...]], str] = {}
        self._slopes: dict[tuple[Size, str], tuple[Dim, Dim] | None] = {}

    def known(self, dim: Dim, keep: str = "") -> Dim:
        """The polynomial with every symbol replaced whose number is known, except `keep`."""
        if isinstance(dim, int):
            return dim
        bound = self.symbols
        values = tuple([(s, v) for s in dim.names if type(v := bound[s]) is int and s != keep])
        if not values:
            return dim
        key = (dim, values)
        found = self._reduced.get(key)
        if found is None:
            found = self._reduced[key] = substitute(dim, dict(values))
        return found

    def bindings(self, dim: Size) -> tuple[Binding, ...]:
        """What the symbols of a polynomial stand for now: with it, a key to what was made of it."""
        bound = self.symbols
        return tuple([bound[s] for s in dim.names])

    def number(self, dim: Dim) -> str:
        """The polynomial's value as an i64."""
        dim = self.known(dim)
        if isinstance(dim, int):
            return str(dim)
        total, rest = "", 0
        for terms, _ in self.by_depth(dim):
            for monomial, c in terms:
                if not monomial:
                    rest = c
                    continue
                term = self.term(monomial, c)
                total = self.add(total, term) if total else term
        return self.add(total, str(rest)) if rest else total

    def add(self, a: str, b: str) -> str:
        return self.builder.pure(f"add nsw i64 {a}, {b}", a, b)

    def term(self, monomial: Monomial, c: int) -> str:
        value = ""
        for atom in monomial:
            factor = self.atom(atom)
            value = (
                self.builder.pure(f"mul nsw i64 {value}, {factor}", value, factor)
                if value
                else factor
            )
        return value if c == 1 else self.builder.pure(f"mul nsw i64 {value}, {c}", value)

    def atom(self, atom: Atom) -> str:
        if isinstance(atom, str):
            return str(self.symbols[atom])
        n, d = self.number(atom.numerator), self.divisor(atom.denominator)
        quotient = isinstance(atom, Quotient)
        if is_nonnegative(atom.numerator):
            return self.builder.pure(f"{'udiv' if quotient else 'urem'} i64 {n}, {d}", n, d)
        return self.floor(n, d, quotient)

    def divisor(self, dim: Dim) -> str:
        """A size to divide by: at least 1, as code may be moved to where no element is."""
        d = self.number(dim)
        if not d.startswith("%"):
            return d
        self.builder.declare("i64 @llvm.smax.i64(i64, i64)")
        return self.builder.pure(f"call i64 @llvm.smax.i64(i64 {d}, i64 1)", d)

    def floor(self, n: str, d: str, quotient: bool) -> str:
        """Division rounding down, from the one that truncates."""
        pure = self.builder.pure
        rest = pure(f"srem i64 {n}, {d}", n, d)
        negative = pure(f"icmp slt i64 {rest}, 0", rest)
        if not quotient:
            shifted = self.add(rest, d)
            return pure(f"select i1 {negative}, i64 {shifted}, i64 {rest}", negative, shifted, rest)
        truncated = pure(f"sdiv i64 {n}, {d}", n, d)
        below = self.add(truncated, "-1")
        return pure(
            f"select i1 {negative}, i64 {below}, i64 {truncated}", negative, below, truncated
        )

    def by_depth(self, dim: Size) -> list[tuple[list[tuple[Monomial, int]], int]]:
        """The terms grouped by the region they are known in, outermost first; the constant last."""
        groups: dict[int, list[tuple[Monomial, int]]] = {}
        for term in dim.terms:
            depth = max(map(self.atom_depth, term[0]), default=1 << 30)
            groups.setdefault(depth, []).append(term)
        return [(groups[d], d) for d in sorted(groups)]

    def atom_depth(self, atom: Atom) -> int:
        depth_of, bound = self.builder.depth_of, self.symbols
        if isinstance(atom, str):
            return depth_of.get(str(bound[atom]), 0)
        return max(depth_of.get(str(bound[n]), 0) for n in str_symbols(atom))

    def pointer(self, buffer: Buffer, offset: Dim) -> str:
        """The address of an element, from the outermost part of its offset to the innermost."""
        offset = self.known(offset)
        if isinstance(offset, int):
            at = self.pointers[buffer]
            return self.step(at, buffer, str(offset)) if offset else at
        parts = self._parts.get(offset)
        if parts is None:
            parts = self._parts[offset] = without_constant(offset)
        rest, constant = parts
        assert isinstance(rest, Size)
        key = (buffer, rest, self.bindings(rest))
        at = self._pointers.get(key, "")
        if not at:
            at = self.pointers[buffer]
            for terms, _ in self.by_depth(rest):
                at = self.step(at, buffer, self.number(Size(dict(terms))))
            self._pointers[key] = at
        return self.step(at, buffer, str(constant)) if constant else at

    def step(self, pointer: str, buffer: Buffer, index: str) -> str:
        text = f"getelementptr {memory(buffer.dtype)}, ptr {pointer}, i64 {index}"
        return self.builder.pure(text, pointer, index)

    def slope(self, dim: Dim, var: str) -> tuple[Dim, Dim] | None:
        """`(c, rest)` with dim == c * var + rest; None where it is not of that form."""
        if isinstance(dim, int):
            return 0, dim
        key = (dim, var)
        if key not in self._slopes:
            self._slopes[key] = coefficient(dim, var)
        slope = self._slopes[key]
        if slope is None:  # the symbol is divided, maybe by what is known to leave it whole
            return coefficient(self.known(dim, keep=var), var)
        return self.known(slope[0], keep=var), slope[1]

    def repetitions(self, dim: Dim, var: str) -> int:
        """The s of a polynomial var//s + rest, where s lanes have each element; else 0."""
        dim = self.known(dim, keep=var)
        terms = dim.terms if isinstance(dim, Size) else ()
        found = [(m, c) for m, c in terms if var in Size({m: 1}).symbols()]
        if len(found) != 1 or found[0][1] != 1 or len(found[0][0]) != 1:
            return 0
        (atom,) = found[0][0]
        halves = isinstance(atom, Quotient) and atom.numerator == Size.symbol(var)
        times = atom.denominator if isinstance(atom, Quotient) and halves else 0
        return times if isinstance(times, int) and times > 0 and LANES % times == 0 else 0

    def lanes(self, dim: Dim, var: str) -> str:
        """A polynomial's value in every lane, lane i having `var` + i."""
        slope = self.slope(dim, var)
        if slope is not None:
            base, stride = self.splat(self.number(dim)), self.number(slope[0])
            if stride == "0":
                return base
            return self.wide("add", base, self.wide("mul", self.splat(stride), IOTA))
        total = self.splat("0")
        dim = self.known(dim, keep=var)
        for monomial, c in dim.terms if isinstance(dim, Size) else (((), dim),):
            term = self.splat(str(c))
            for atom in monomial:
                term = self.wide("mul", term, self.atom_lanes(atom, var))
            total = self.wide("add", total, term)
        return total

    def atom_lanes(self, atom: Atom, var: str) -> str:
        if atom == var:
            return self.wide("add", self.splat(str(self.symbols[var])), IOTA)
        if isinstance(atom, str) or var not in Size({(atom,): 1}).symbols():
            return self.splat(self.atom(atom))
        n, d = self.lanes(atom.numerator, var), self.denominator_lanes(atom, var)
        quotient = isinstance(atom, Quotient)
        if is_nonnegative(atom.numerator):
            return self.wide("udiv" if quotient else "urem", n, d)
        rest = self.wide("srem", n, d)
        negative = self.builder.pure(f"icmp slt {WIDE} {rest}, zeroinitializer", rest)
        less = f"<{LANES} x i1> {negative}"
        value = self.wide("sdiv", n, d) if quotient else rest
        shifted = self.wide("add", value, self.splat("-1") if quotient else d)
        text = f"select {less}, {WIDE} {shifted}, {WIDE} {value}"
        return self.builder.pure(text, negative, shifted, value)

    def denominator_lanes(self, atom: Quotient | Remainder, var: str) -> str:
        if isinstance(atom.denominator, Size) and var in atom.denominator.symbols():
            return self.lanes(atom.denominator, var)
        return self.splat(self.divisor(atom.denominator))

    def wide(self, word: str, a: str, b: str) -> str:
        return self.builder.pure(f"{word} {WIDE} {a}, {b}", a, b)

    def splat(self, number: str) -> str:
        """An i64 in every lane."""
        if not number.startswith("%"):
            return f"splat (i64 {number})"
        one = self.builder.pure(f"insertelement {WIDE} poison, i64 {number}, i32 0", number)
        text = f"shufflevector {WIDE} {one}, {WIDE} poison, <{LANES} x i32> zeroinitializer"
        return self.builder.pure(text, one)
