"""Formulas as text: the grammar of scalar mathematics that ops, rules and users write in.

    program  = { name "=" formula ( newline | ";" ) } formula
    formula  = sum [ ("<" | "<=" | ">" | ">=" | "==" | "!=") sum ]
    sum      = term { ("+" | "-") term }
    term     = factor { ("*" | "/") factor }
    factor   = "-" factor | power
    power    = atom [ "**" factor ]
    atom     = number | name | name "(" formula { "," formula } ")" | "(" formula ")"
             | "Piecewise" "(" piece { "," piece } ")"
    piece    = "(" formula "," formula ")"

Pieces are a value and a condition each, as SymPy writes them, the last condition often `True`:
they become calls of `where`, NaN where none holds.
`parse` gives a tree of `Number`, `Name` and `Call`; operators are calls of `add`, `mul`, `lt` and
so on. Nothing is evaluated here, and nothing but this grammar is accepted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from chainrule.errors import FormulaError
from chainrule.records import dataclass

T = TypeVar("T")
MAX_DEPTH = 100
MAX_HEIGHT = 200  # x + x + ... + x is as high as it is long; what reads formulas recurses


@dataclass(frozen=True)
class Number:
    """A literal; an int where it is written as one."""

    value: float | int


@dataclass(frozen=True)
class Name:
    """A variable."""

    name: str


@dataclass(frozen=True)
class Call:
    """A function of formulas."""

    fn: str
    args: tuple[Formula, ...]


Formula = Number | Name | Call


@dataclass(frozen=True)
class Recipe:
    """Straight-line code: bindings, each of which may use those before it, then the result."""

    bindings: tuple[tuple[str, Formula], ...]
    result: Formula


_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)"
    r"|(?P<op>\*\*|<=|>=|==|!=|[-+*/<>(),=]))"
)
_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
_SUM = {"+": "add", "-": "sub"}
_TERM = {"*": "mul", "/": "div"}


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.tokens, self.next, self.depth = text, _tokens(text), 0, 0

    def peek(self) -> str:
        return self.tokens[self.next][1]

    def take(self) -> tuple[str, str, int]:
        token = self.tokens[self.next]
        self.next += token[0] != "end"
        return token

    def expect(self, text: str) -> None:
        _, found, at = self.take()
        if found != text:
            raise _error(
                self.text,
                at,
                f"expected {text!r}, found {found!r}" if found else f"expected {text!r}",
            )

    def formula(self) -> Formula:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError(f"a formula nests at most {MAX_DEPTH} deep; name its parts")
        left = self.sum()
        if self.peek() in _COMPARE:
            left = Call(_COMPARE[self.take()[1]], (left, self.sum()))
        self.depth -= 1
        return left

    def sum(self) -> Formula:
        return self.chain(_SUM, lambda: self.chain(_TERM, self.factor))

    def chain(self, operators: dict[str, str], operand: Callable[[], Formula]) -> Formula:
        left = operand()
        while self.peek() in operators:
            left = Call(operators[self.take()[1]], (left, operand()))
        return left

    def factor(self) -> Formula:
        signs = 0
        while self.peek() == "-":
            self.take()
            signs += 1
        value = self.power()
        if signs and isinstance(value, Number):
            return Number(-value.value if signs % 2 else value.value)
        return Call("neg", (value,)) if signs % 2 else value

    def power(self) -> Formula:
        base = self.atom()
        if self.peek() != "**":
            return base
        self.take()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError(f"a formula nests at most {MAX_DEPTH} deep; name its parts")
        exponent = self.factor()
        self.depth -= 1
        return Call("pow", (base, exponent))

    def atom(self) -> Formula:
        kind, text, at = self.take()
        if kind == "number":
            value = float(text)
            if text.isdigit() and math.isinf(value):  # 1e999 is how a formula says infinity
                raise _error(self.text, at, "a whole number is beyond float64")
            return Number(int(text) if text.isdigit() else value)
        if text == "Piecewise" and self.peek() == "(":
            return self.pieces(at)
        if kind == "name":
            return Call(text, self.arguments()) if self.peek() == "(" else Name(text)
        if text == "(":
            inner = self.formula()
            self.expect(")")
            return inner
        raise _error(
            self.text,
            at,
            f"expected a number, a name or '(', found {text!r}" if text else "ends too early",
        )

    def arguments(self) -> tuple[Formula, ...]:
        self.take()
        args = [self.formula()]
        while self.peek() == ",":
            self.take()
            args.append(self.formula())
        self.expect(")")
        return tuple(args)

    def pieces(self, at: int) -> Formula:
        found: list[tuple[Formula, Formula]] = []
        while self.peek() in ("(", ",")[bool(found) :]:
            self.take()
            self.expect("(")
            value = self.formula()
            self.expect(",")
            found.append((value, self.formula()))
            self.expect(")")
        self.expect(")")
        if not found:
            raise _error(self.text, at, "Piecewise takes pieces (value, condition)")
        return piecewise(found)

    def end(self) -> None:
        _, found, at = self.take()
        if found:
            raise _error(self.text, at, f"{found!r} is left over")


def _tokens(text: str) -> list[tuple[str, str, int]]:
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _error(text, at, f"{text[at:].lstrip()[:1]!r} has no meaning here")
        kind = str(match.lastgroup)
        tokens.append((kind, match[kind], match.start(kind)))
        at = match.end()
    return [*tokens, ("end", "", len(text))]


def _error(text: str, at: int, what: str) -> FormulaError:
    return FormulaError(f"in a formula: {what}", text, " " * at + "^")


def piecewise(pieces: Sequence[tuple[Formula, Formula]]) -> Formula:
    """Calls of `where` from values and conditions: the first whose condition holds is chosen."""
    chosen: Formula = Number(math.nan)
    for value, condition in reversed(pieces):
        always = condition == Name("True")
        chosen = value if always else Call("where", (condition, value, chosen))
    return chosen


@lru_cache(maxsize=4096)
def parse(text: str) -> Formula:
    """The formula a text spells. Raises FormulaError with the place that is wrong."""
    parser = _Parser(text)
    formula = parser.formula()
    parser.end()
    if _height(formula) > MAX_HEIGHT:
        raise FormulaError(f"a formula is at most {MAX_HEIGHT} operations high; name its parts")
    return formula


def _height(formula: Formula) -> int:
    """The number of operations on the longest way down, found without recursion."""
    height, level = 0, [formula]
    while level:
        level = [a for part in level if isinstance(part, Call) for a in part.args]
        height += 1
    return height


@lru_cache(maxsize=1024)
def parse_recipe(text: str) -> Recipe:
    """Straight-line code: lines (or parts between `;`) `name = formula`, the last one a formula."""
    lines = [line.split("#")[0].strip() for line in re.split(r"[\n;]", text)]
    lines = [line for line in lines if line]
    bindings = []
    for line in lines[:-1]:
        name, equals, body = line.partition("=")
        if not equals or not name.strip().isidentifier():
            raise FormulaError(f"in a recipe: {line!r} is not 'name = formula'")
        bindings.append((name.strip(), parse(body.strip())))
    if not lines:
        raise FormulaError("a recipe needs at least a formula")
    return Recipe(tuple(bindings), parse(lines[-1]))


def fold(
    formula: Formula,
    number: Callable[[float | int], T],
    name: Callable[[str], T],
    call: Callable[[str, Sequence[T]], T],
) -> T:
    """Give a formula a meaning: one function for each of its three kinds of part."""
    if isinstance(formula, Number):
        return number(formula.value)
    if isinstance(formula, Name):
        return name(formula.name)
    return call(formula.fn, [fold(a, number, name, call) for a in formula.args])


def names(formula: Formula) -> tuple[str, ...]:
    """The variables of a formula, in order of appearance."""
    if isinstance(formula, Call):
        return tuple(dict.fromkeys(n for a in formula.args for n in names(a)))
    return (formula.name,) if isinstance(formula, Name) else ()
