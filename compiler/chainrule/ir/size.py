"""Sizes and index maps: integer polynomials over named symbols, exact in + - * // and %.

A `Dim` is an `int` wherever the number is known and a `Size` where it is not. Loop variables are
symbols too, so an affine index map is the same kind of thing as a shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar, Union

from chainrule.records import dataclass

Dim = Union[int, "Size"]
Shape = tuple[Dim, ...]
#: what symbols stand for: counts, or their means
Number = TypeVar("Number", int, float)
#: sizes are no larger, where code compares them by dividing
_SIZES = 2**30


@dataclass(frozen=True)
class Quotient:
    """The floor of `numerator / denominator`: an atom, as the division is not exact."""

    numerator: Dim
    denominator: Dim

    def __str__(self) -> str:
        return f"({_factor(self.numerator)}//{_factor(self.denominator)})"


@dataclass(frozen=True)
class Remainder:
    """`numerator - denominator * floor(numerator / denominator)`."""

    numerator: Dim
    denominator: Dim

    def __str__(self) -> str:
        return f"({_factor(self.numerator)}%{_factor(self.denominator)})"


Atom = str | Quotient | Remainder
Monomial = tuple[Atom, ...]


class Size:
    """A polynomial with integer coefficients. Two are equal when their polynomials are."""

    __slots__ = ("_hash", "_names", "terms")
    terms: tuple[tuple[Monomial, int], ...]
    _names: tuple[str, ...] | None

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        kept = [(m, c) for m, c in terms.items() if c]
        if len(kept) > 1:
            kept.sort(key=_rank)
        self._set(kept)

    def _set(self, terms: Iterable[tuple[Monomial, int]]) -> None:
        self.terms = tuple(terms)
        self._hash = hash(self.terms)
        self._names = None

    @staticmethod
    def symbol(name: str) -> Size:
        """The polynomial that is one symbol."""
        return Size({(name,): 1})

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return self.terms == other.terms if isinstance(other, Size) else NotImplemented

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dim) -> Dim:
        if not isinstance(other, (int, Size)):
            return NotImplemented
        return _simplest(_combine(self, other, 1))

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        if not isinstance(other, (int, Size)):
            return NotImplemented
        return _simplest(_combine(self, other, -1))

    def __rsub__(self, other: int) -> Dim:
        return -self + other

    def __neg__(self) -> Dim:
        return self * -1

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            return _simplest({m: c * int(other) for m, c in self.terms})
        if not isinstance(other, Size):
            return NotImplemented
        out: dict[Monomial, int] = {}
        for m, c in self.terms:
            for n, d in other.terms:
                key = tuple(sorted(m + n, key=str)) if m and n else m or n
                out[key] = out.get(key, 0) + c * d
        return _simplest(out)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        if not isinstance(other, (int, Size)):
            return NotImplemented
        whole, rest = _split(self, other)
        if isinstance(rest, int) and isinstance(other, int):
            return whole + rest // other
        return whole + Size({(Quotient(rest, other),): 1}) if rest != 0 else whole

    def __rfloordiv__(self, other: int) -> Dim:
        return Size({(Quotient(other, self),): 1}) if other else 0

    def __mod__(self, other: Dim) -> Dim:
        if not isinstance(other, (int, Size)):
            return NotImplemented
        _, rest = _split(self, other)
        if isinstance(rest, int) and isinstance(other, int):
            return rest % other
        return Size({(Remainder(rest, other),): 1}) if rest != 0 else 0

    def __rmod__(self, other: int) -> Dim:
        return Size({(Remainder(other, self),): 1}) if other else 0

    def __str__(self) -> str:
        text = ""
        for monomial, c in self.terms:
            body = "*".join(str(a) for a in monomial)
            part = str(abs(c)) if not body else body if abs(c) == 1 else f"{abs(c)}*{body}"
            text += (" - " if c < 0 else " + ") + part
        text = text.removeprefix(" + ")
        return ("-" + text.removeprefix(" - ") if text.startswith(" - ") else text) or "0"

    def __repr__(self) -> str:
        return f"Size({self})"

    def __bool__(self) -> bool:
        raise TypeError(f"the size {self} is not known until the function is called")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of every symbol in it, in order."""
        if self._names is None:
            self._names = tuple(sorted(self.symbols()))
        return self._names

    def symbols(self) -> frozenset[str]:
        """The names of every symbol in it."""
        names: set[str] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                if isinstance(atom, str):
                    names.add(atom)
                else:
                    names |= symbols_of(atom.numerator) | symbols_of(atom.denominator)
        return frozenset(names)


def _rank(term: tuple[Monomial, int]) -> tuple[int, tuple[str, ...]]:
    """Where a term stands in its polynomial: those of more factors first, then by name."""
    return _ranked(term[0])


@lru_cache(maxsize=1 << 14)
def _ranked(monomial: Monomial) -> tuple[int, tuple[str, ...]]:
    return -len(monomial), tuple(map(str, monomial))


def _factor(dim: Dim) -> str:
    return str(dim) if isinstance(dim, int) or len(dim.terms) == 1 else f"({dim})"


def _combine(a: Size, b: Dim, sign: int) -> dict[Monomial, int]:
    out = dict(a.terms)
    for m, c in b.terms if isinstance(b, Size) else (((), b),):
        out[m] = out.get(m, 0) + sign * c
    return out


def _simplest(terms: Mapping[Monomial, int]) -> Dim:
    return _sorted(sorted([(m, c) for m, c in terms.items() if c], key=_rank))


def _sorted(terms: Sequence[tuple[Monomial, int]]) -> Dim:
    """A size of terms that are in order, none of them 0; a number where it is one."""
    if not terms:
        return 0
    if len(terms) == 1 and not terms[0][0]:
        return terms[0][1]
    size = Size.__new__(Size)
    size._set(terms)
    return size


def _split(a: Size, b: Dim) -> tuple[Dim, Dim]:
    """`(q, r)` with `a == q * b + r`: q is a / b where that is exact, else what b divides of a.

    Taking q out changes neither floor nor remainder, so that equal quotients are spelled alike:
    (2n + 3)//2 is n + 1. What is left of a coefficient is at least 0, but of a divisor that is
    larger than sizes are, which asks for a sign, it is what is nearest to 0: -n modulo 2**30 + 1
    would be 2**30 * n, more than machines hold whose addresses have 32 bits.
    """
    if isinstance(b, int):
        if b == 0:
            raise ZeroDivisionError(f"the size {a} divided by 0")
        up = b // 2 if b > _SIZES else 0
        whole = _simplest({m: (c + up) // b for m, c in a.terms})
        return whole, _simplest({m: (c + up) % b - up for m, c in a.terms})
    exact = divide(a, b)
    return (0, a) if exact is None else (exact, 0)


def symbols_of(dim: Dim) -> frozenset[str]:
    """The names of the symbols in a size; none in an int."""
    return dim.symbols() if isinstance(dim, Size) else frozenset()


def divide(a: Dim, b: Dim) -> Dim | None:
    """The exact quotient of two sizes as polynomials, or None where there is none."""
    if isinstance(b, int):
        if b == 0:
            return None
        if isinstance(a, int):
            return a // b if a % b == 0 else None
        if any(c % b for _, c in a.terms):
            return None
        return _simplest({m: c // b for m, c in a.terms})
    if isinstance(a, int):
        return 0 if a == 0 else None
    if a == b:
        return 1
    lead, scale = b.terms[0]
    quotient: Dim = 0
    rest: Dim = a
    while isinstance(rest, Size):
        monomial, c = rest.terms[0]
        left = list(monomial)
        for atom in lead:
            if atom not in left:
                return None
            left.remove(atom)
        if c % scale:
            return None
        term = _simplest({tuple(left): c // scale})
        quotient = quotient + term
        rest = rest - term * b
    return quotient if rest == 0 else None


#: The size that symbols are taken to have where a choice is to be made; any is correct.
TYPICAL = 64


def typical(size: Dim) -> int:
    """The number a size is where each symbol is TYPICAL."""
    return evaluate(size, dict.fromkeys(symbols_of(size), TYPICAL))


def evaluate(dim: Dim, values: Mapping[str, Number]) -> Number:
    """The number a size is, given the value of each of its symbols."""
    if isinstance(dim, int):
        return dim
    total: Number = 0
    for monomial, times in dim.terms:
        c: Number = times
        for atom in monomial:
            if isinstance(atom, str):
                c *= values[atom]
                continue
            n, d = evaluate(atom.numerator, values), evaluate(atom.denominator, values)
            c *= n // d if isinstance(atom, Quotient) else n % d
        total += c
    return total


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """The size with symbols replaced by other sizes."""
    if isinstance(dim, int):
        return dim
    numbers = [v for v in values.values() if isinstance(v, int)]
    if len(numbers) == len(values):
        form = _form(dim, tuple(values))
        if form is not None:
            return _filled(form, numbers)
    total: Dim = 0
    for monomial, c in dim.terms:
        term: Dim = c
        for atom in monomial:
            if isinstance(atom, str):
                term = term * values.get(atom, Size.symbol(atom))
                continue
            n, d = substitute(atom.numerator, values), substitute(atom.denominator, values)
            term = term * (n // d if isinstance(atom, Quotient) else n % d)
        total = total + term
    return total


#: what is left of terms where some symbols are numbers, and coefficients with the symbols' places
Form = tuple[tuple[Monomial, tuple[tuple[int, tuple[int, ...]], ...]], ...]


@lru_cache(maxsize=1 << 14)
def _form(dim: Size, names: tuple[str, ...]) -> Form | None:
    """How to fill in numbers for symbols, in their order; None where one is divided."""
    place = {name: i for i, name in enumerate(names)}
    groups: dict[Monomial, list[tuple[int, tuple[int, ...]]]] = {}
    for monomial, c in dim.terms:
        kept = tuple([a for a in monomial if a not in place])
        if any(not isinstance(a, str) and not str_symbols(a).isdisjoint(names) for a in kept):
            return None
        at = tuple([place[a] for a in monomial if isinstance(a, str) and a in place])
        groups.setdefault(kept, []).append((c, at))
    return tuple([(kept, tuple(groups[kept])) for kept in sorted(groups, key=_ranked)])


def _filled(form: Form, numbers: Sequence[int]) -> Dim:
    terms: list[tuple[Monomial, int]] = []
    for kept, parts in form:
        total = 0
        for c, at in parts:
            for i in at:
                c *= numbers[i]
            total += c
        if total:
            terms.append((kept, total))
    return _sorted(terms)


def coefficient(dim: Dim, symbol: str) -> tuple[Dim, Dim] | None:
    """`(c, rest)`, neither holding `symbol`, with `dim == c * symbol + rest`, or None."""
    if isinstance(dim, int):
        return 0, dim
    slope: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, c in dim.terms:
        others = tuple(a for a in monomial if a != symbol)
        if any(not isinstance(a, str) and symbol in str_symbols(a) for a in others):
            return None
        if len(others) == len(monomial):
            rest[monomial] = c
        elif len(others) == len(monomial) - 1:
            slope[others] = c
        else:
            return None
    return _simplest(slope), _simplest(rest)


def without_constant(size: Size) -> tuple[Dim, int]:
    """The terms that hold symbols, and the number that is added to them."""
    monomial, c = size.terms[-1]
    return (_sorted(size.terms[:-1]), c) if not monomial else (size, 0)


def str_symbols(atom: Quotient | Remainder) -> frozenset[str]:
    """The names of the symbols in a quotient or a remainder."""
    return symbols_of(atom.numerator) | symbols_of(atom.denominator)


def is_nonnegative(dim: Dim) -> bool:
    """Whether a size is known not to be below 0, as no symbol is."""
    terms = dim.terms if isinstance(dim, Size) else (((), dim),)
    return all(
        c >= 0
        and all(isinstance(a, str | Remainder) or is_nonnegative(a.numerator) for a in monomial)
        for monomial, c in terms
    )


def product(shape: Shape) -> Dim:
    """The number of elements of a shape."""
    total: Dim = 1
    for dim in shape:
        total = total * dim
    return total


def known(shape: Shape) -> tuple[int, ...]:
    """A shape whose sizes are all numbers. Raises TypeError where one is not."""
    for dim in shape:
        if not isinstance(dim, int):
            raise TypeError(f"the size {dim} is not known here")
    return tuple(int(dim) for dim in shape if isinstance(dim, int))


def static_product(shape: Shape) -> int:
    """The product of the dims that are known."""
    return math.prod(d for d in shape if isinstance(d, int))
