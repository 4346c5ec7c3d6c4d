"""The grammar of printed mathematics: what `str` of an expression writes, and no more.

    page     = { [ name "=" ] formula newline | loop }
    loop     = "for" letter "=" formula ".." formula ":" newline, lines that stand further right
    formula  = sum [ ("<" | "<=" | ">" | ">=" | "==" | "!=") sum ]
    sum      = product { ("+" | "-") product }
    product  = term { "@" term } | "Σ_" letter product
    term     = factor { ("*" | "⊙" | "/" | "//" | "%") factor }
    factor   = "-" factor | "not" factor | power
    power    = postfix [ "**" factor ]
    postfix  = atom { "²" | "ᵀ" | "[" part { "," part } "]" | ".set" "(" formula ")" }
    part     = formula | [ formula ] ":" [ formula ] [ ":" [ formula ] ]
    atom     = number | text | name | name "(" [ argument { "," argument } ] ")"
             | "(" formula { "," formula } ")" | "|" formula "|" | "[" formula { "," formula } "]"
    argument = [ name "=" ] formula

A product of matrices binds weaker than one of elements. What each part means is the business of a
`Meaning`, asked as the text is read, so that a long page needs no stack; only nesting has a limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from chainrule.errors import ChainruleError, FormulaError
from chainrule.records import dataclass

MAX_DEPTH = 40  # a level is a dozen of Python's own
_LETTER = r"(?:(?![²ᵀ])\w)"
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    rf"|(?P<name>(?!\d){_LETTER}+(?:\.(?!set\b){_LETTER}+)*)"
    r'|(?P<text>"[^"]*")'
    r"|(?P<op>\.set\b|\*\*|<=|>=|==|!=|//|[-+*/@⊙<>(),=\[\]|:%²ᵀ]))"
)
_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
_SUM = {"+": "add", "-": "sub"}
_PRODUCT = {"@": "matmul"}
_TERM = {"*": "mul", "⊙": "mul", "/": "div", "//": "floordiv", "%": "mod"}
_POSTFIX = {"²": "square", "ᵀ": "transpose"}


@dataclass(frozen=True)
class Range:
    """A part of an index: `start:stop:step`, each a value or None."""

    start: Any
    stop: Any
    step: Any


class Meaning(Protocol):
    """What the parts of a text are; the values are of any kind that it understands."""

    def number(self, value: float | int) -> Any: ...

    def name(self, name: str) -> Any: ...

    def call(self, fn: str, args: Sequence[Any], options: dict[str, Any]) -> Any: ...

    def index(self, x: Any, parts: Sequence[Any]) -> Any: ...

    def brackets(self, items: Sequence[Any]) -> Any: ...

    def begin_sum(self, letter: str) -> None: ...

    def end_sum(self, letter: str, value: Any) -> Any: ...


def split_page(text: str) -> list[tuple[int, str | None, str]]:
    """The lines of a page as `(indent, name, formula)`, the name None where a line has none."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise FormulaError("there is nothing to read: the text is empty")
    found: list[tuple[int, str | None, str]] = []
    for line in lines:
        indent = len(line) - len(line.lstrip())
        name, equals, formula = line.partition(" = ")
        named = equals and '"' not in name
        found.append((indent, name.strip(), formula) if named else (indent, None, line))
    return found


def read(text: str, meaning: Meaning, odd: Collection[str] = ()) -> Any:
    """What a formula is. `odd` are the names known that do not look like one (see `is_plain`).

    Raises FormulaError with the place in the text that is wrong.
    """
    reader = _Reader(text, meaning, odd)
    value = reader.formula()
    reader.expect("")
    return value


class _Reader:
    def __init__(self, text: str, meaning: Meaning, odd: Collection[str]) -> None:
        self.text, self.meaning, self.depth, self.next = text, meaning, 0, 0
        self.tokens = _tokens(text, odd)

    def peek(self) -> str:
        kind, text, _ = self.tokens[self.next]
        return text if kind == "op" else ""

    def take(self) -> tuple[str, str, int]:
        token = self.tokens[self.next]
        self.next += token[0] != "end"
        return token

    def expect(self, text: str) -> None:
        kind, found, at = self.take()
        if found != text or kind not in ("op", "end"):
            wanted = f"expected {text!r}" if text else f"{found!r} is left over"
            raise _error(self.text, at, wanted)

    def ask(self, at: int, function: Callable[..., Any], *args: Any) -> Any:
        """What the meaning says; its errors name the place."""
        try:
            return function(*args)
        except FormulaError as error:
            if len(error.details) > 1:
                raise
            raise _error(self.text, at, error.what, *error.details) from None
        except ChainruleError as error:
            raise type(error)(error.what, *error.details, self.text, " " * at + "^") from None

    def call(self, at: int, fn: str, *args: Any, **options: Any) -> Any:
        return self.ask(at, self.meaning.call, fn, args, options)

    def formula(self) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError(f"a formula nests at most {MAX_DEPTH} deep; name its parts")
        left = self.sum()
        if self.peek() in _COMPARE:
            _, text, at = self.take()
            left = self.call(at, _COMPARE[text], left, self.sum())
        self.depth -= 1
        return left

    def sum(self) -> Any:
        return self.chain(_SUM, self.product)

    def product(self) -> Any:
        kind, name, at = self.tokens[self.next]
        if kind != "name" or not name.startswith("Σ_"):
            return self.chain(_PRODUCT, self.term)
        self.take()
        letter = name.removeprefix("Σ_")
        self.ask(at, self.meaning.begin_sum, letter)
        return self.ask(at, self.meaning.end_sum, letter, self.term_of_sum())

    def term_of_sum(self) -> Any:
        """What is summed up; sums of sums have a limit."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError(f"a formula nests at most {MAX_DEPTH} deep; name its parts")
        value = self.product()
        self.depth -= 1
        return value

    def term(self) -> Any:
        return self.chain(_TERM, self.factor)

    def chain(self, operators: dict[str, str], operand: Callable[[], Any]) -> Any:
        left = operand()
        while self.peek() in operators:
            _, text, at = self.take()
            left = self.call(at, operators[text], left, operand())
        return left

    def factor(self) -> Any:
        signs: list[tuple[int, str]] = []
        while self.peek() == "-" or self.is_prefix_not():
            _, text, at = self.take()
            signs.append((at, "neg" if text == "-" else "not"))
        value = self.power()
        for at, fn in reversed(signs):
            value = self.call(at, fn, value)
        return value

    def is_prefix_not(self) -> bool:
        kind, text, _ = self.tokens[self.next]
        return kind == "name" and text == "not"

    def power(self) -> Any:
        base = self.postfix()
        if self.peek() != "**":
            return base
        _, _, at = self.take()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError(f"a formula nests at most {MAX_DEPTH} deep; name its parts")
        exponent = self.factor()
        self.depth -= 1
        return self.call(at, "pow", base, exponent)

    def postfix(self) -> Any:
        value = self.atom()
        while self.peek() in (*_POSTFIX, "[", ".set"):
            _, text, at = self.take()
            if text == "[":
                parts = self.items(self.part, "]")
                value = self.ask(at, self.meaning.index, value, parts)
            elif text == ".set":
                self.expect("(")
                value = self.call(at, "set", value, *self.items(self.formula, ")"))
            else:
                value = self.call(at, _POSTFIX[text], value)
        return value

    def part(self) -> Any:
        ends: list[Any] = [None]
        while self.peek() not in (",", "]"):
            if self.peek() == ":":
                self.take()
                ends.append(None)
            else:
                ends[-1] = self.formula()
                if self.peek() not in (":", ",", "]"):
                    self.expect("]")
        if len(ends) > 3:
            raise _error(self.text, self.tokens[self.next][2], "a range is start:stop:step")
        return Range(*ends, *[None] * (3 - len(ends))) if len(ends) > 1 else ends[0]

    def atom(self) -> Any:
        kind, text, at = self.take()
        if kind == "number":
            whole = text.isdigit() and len(text) < 19  # what an int64 holds
            return self.meaning.number(int(text) if whole else float(text))
        if kind == "text":
            return text[1:-1]
        if kind == "name":
            return self.named(text, at)
        if text == "(":
            items = self.items(self.formula, ")")
            return items[0] if len(items) == 1 and self.tokens[self.next - 2][1] != "," else items
        if text == "|":
            inner = self.formula()
            self.expect("|")
            return self.call(at, "abs", inner)
        if text == "[":
            return self.ask(at, self.meaning.brackets, self.items(self.formula, "]"))
        found = f"expected a number, a name or '(', found {text!r}" if text else "ends too early"
        raise _error(self.text, at, found)

    def named(self, name: str, at: int) -> Any:
        if self.peek() != "(":
            return self.ask(at, self.meaning.name, name)
        self.take()
        options: dict[str, Any] = {}
        args = [a for a in self.items(lambda: self.argument(options), ")") if a is not options]
        return self.ask(at, self.meaning.call, name, args, options)

    def argument(self, options: dict[str, Any]) -> Any:
        """A formula; or `name=formula`, which is put among the options."""
        kind, name, _ = self.tokens[self.next]
        if kind != "name" or self.tokens[self.next + 1][:2] != ("op", "="):
            return self.formula()
        self.next += 2
        options[name] = self.formula()
        return options

    def items(self, item: Callable[[], Any], end: str) -> tuple[Any, ...]:
        """What stands between commas, up to the closing bracket; a last comma may be left."""
        found: list[Any] = []
        while self.peek() != end:
            found.append(item())
            if self.peek() != ",":
                break
            self.take()
        self.expect(end)
        return tuple(found)


def _tokens(text: str, odd: Collection[str]) -> list[tuple[str, str, int]]:
    """The words of a text; of the names that do not look like one, the longest that fits is one."""
    odd = sorted(odd, key=len, reverse=True)
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        start = at + len(text[at:]) - len(text[at:].lstrip())
        name = next((n for n in odd if text.startswith(n, start)), None)
        if name is not None and not _continues(text, start + len(name)):
            tokens.append(("name", name, start))
            at = start + len(name)
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            raise _error(text, start, f"{text[start]!r} has no meaning here")
        kind = str(match.lastgroup)
        tokens.append((kind, match.group(kind), match.start(kind)))
        at = match.end()
    return [*tokens, ("end", "", len(text))]


def is_plain(name: str) -> bool:
    """Whether a name looks like one, and so is known for a word wherever it stands."""
    match = _TOKEN.fullmatch(name)
    return match is not None and match.lastgroup == "name" and match.group("name") == name


def _continues(text: str, at: int) -> bool:
    """Whether a word goes on at a place."""
    return re.match(_LETTER, text[at:]) is not None and re.match(_LETTER, text[at - 1]) is not None


def _error(text: str, at: int, what: str, *details: str) -> FormulaError:
    return FormulaError(what, *details, text, " " * at + "^")
