"""Loops read back: what their steps say of sequences, `h[t]` in terms of `h[t-1]` and `x[t]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from chainrule.errors import FormulaError
from chainrule.ir.graph import walk
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import int64
from chainrule.ops.axes import Sum
from chainrule.ops.body import close, local
from chainrule.ops.scan import Scan
from chainrule.ops.source import Iota
from chainrule.records import dataclass
from chainrule.show.grammar import Range
from chainrule.show.ranges import is_size

_HEAD = re.compile(r"for (\w+) = (.+)\.\.(.+):")
_INDEXED = re.compile(r"(.+?)\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Index:
    """The number of a step, `t`, or of one beside it, `t-1`."""

    letter: str
    offset: int = 0


@dataclass(frozen=True)
class Given:
    """A sequence of a loop: `rows` are those of its steps, the others are there where it carries.

    `letters` are the loops in which it is made anew at each step.
    """

    rows: Node
    before: Node | None = None
    last: Node | None = None
    reverse: bool = False
    letters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Named:
    """A sequence that is spoken of, before an index says what of it."""

    name: str


@dataclass
class Block:
    """The steps of a loop while they are read: what they are given and what they say."""

    letter: str
    ends: tuple[Dim, Dim]
    indent: int
    inits: dict[str, tuple[Dim, Node]]
    carried: dict[str, Node] = field(default_factory=dict)
    rows: dict[str, Node] = field(default_factory=dict)
    inner: dict[str, Given] = field(default_factory=dict)

    @property
    def reverse(self) -> bool:
        """Whether it goes from the last step to the first; of one step its beginning says so."""
        first, last = self.ends
        if first == last:
            return any(place == 1 for place, _ in self.inits.values())
        return last == 0 and not (isinstance(first, int) and first < -1)

    @property
    def length(self) -> Dim:
        return (self.ends[0] if self.reverse else self.ends[1]) + 1


def head_of(name: str | None, formula: str) -> tuple[str, str, str] | None:
    """The letter and the ends of `for t = 0..n-1:`, or None."""
    match = _HEAD.fullmatch(f"{name} = {formula}".strip()) if name is not None else None
    return None if match is None else (match[1], match[2], match[3])


def indexed(name: str | None) -> tuple[str, str] | None:
    """The name and the index of what a line says, `h[t]`, or None."""
    match = _INDEXED.fullmatch(name) if name is not None else None
    return None if match is None else (match[1], match[2])


class Sequences:
    """The sequences that are known, and the loops that are being read."""

    def __init__(self) -> None:
        self.known: dict[str, Given] = {}
        self.begin: dict[str, tuple[Dim, Node]] = {}
        self.open: list[Block] = []
        self.sums: list[str] = []
        self._rows: dict[tuple[Node, str], Node] = {}
        self._numbers: dict[tuple[Dim, str], Node] = {}

    # names

    def is_letter(self, name: str) -> bool:
        """Whether a name is the number of a step here."""
        return name in self.sums or any(b.letter == name for b in self.open)

    def __contains__(self, name: str) -> bool:
        said = any(name in b.inits or name in b.rows for b in self.open)
        return said or name in self.known

    def row(self, stack: Node, letter: str) -> Node:
        """What a step reads of a stack."""
        if not stack.type.rank:
            raise FormulaError(f"a step reads along axis 0, and {stack!r} has none")
        key = (stack, letter)
        if key not in self._rows:
            self._rows[key] = local("x", stack.type.with_shape(stack.type.shape[1:]))
        return self._rows[key]

    def number(self, index: Index) -> Node:
        """The number of a step as a value."""
        length = next((b.length for b in reversed(self.open) if b.letter == index.letter), None)
        if length is None or index.offset:
            raise FormulaError(f"{index.letter} has a value in a step of its loop alone")
        key = (length, index.letter)
        if key not in self._numbers:
            self._numbers[key] = apply(Iota((length,), 0, int64))
        return self.row(self._numbers[key], index.letter)

    def whole(self, name: str) -> Node:
        """The stack of a sequence's rows."""
        return self._made(name, self._known(name).rows)

    def _known(self, name: str) -> Given:
        if name not in self.known:
            raise FormulaError(f"{name} is known as a whole below its loop alone")
        return self.known[name]

    def _made(self, name: str, node: Node) -> Node:
        """A node of a sequence that is made anew at each step of outer loops."""
        for letter in self._known(name).letters:
            node = self.row(node, letter)
        return node

    def at(self, name: str, part: Any) -> Node:
        """`h[t]`, `h[t-1]`, `h[n-1]`, `h[0:n]` or `h[-1:n-1]`."""
        if isinstance(part, Index):
            return self._at_step(name, part)
        given = self._known(name)
        if isinstance(part, Range):
            first = 1 if given.reverse else -1
            node = given.before if part.start == first else given.rows
        else:
            node = given.last if is_size(part) else None
        if node is None:
            raise FormulaError(f"of {name} there are {name}[0:n] and, where it is carried, its end")
        return self._made(name, node)

    def _at_step(self, name: str, index: Index) -> Node:
        block = next((b for b in reversed(self.open) if b.letter == index.letter), None)
        if block is not None and name in block.rows and not index.offset:
            return block.rows[name]
        if block is not None and name in block.inits:
            if index.offset != (1 if block.reverse else -1):
                raise FormulaError(f"a step is given {name} of the step before alone")
            return block.carried[name]
        given = self._known(name)
        node = given.rows
        if index.offset:
            before = given.before
            if before is None or index.offset != (1 if given.reverse else -1):
                raise FormulaError(f"{name} has no element one beside that of step {index.letter}")
            node = before
        return self.row(self._made(name, node), index.letter)

    # loops

    def start(self, letter: str, ends: tuple[Dim, Dim], indent: int) -> None:
        """Begin a loop with what was said of the beginning of its sequences."""
        block = Block(letter, ends, indent, self.begin)
        block.carried = {name: local(name, node.type) for name, (_, node) in self.begin.items()}
        self.begin = {}
        self.open.append(block)

    def say(self, name: str, value: Node) -> None:
        """What a step says of a sequence."""
        self.open[-1].rows[name] = value

    def finish(self) -> None:
        """Close the innermost loop: what it says is known from here on."""
        block = self.open.pop()
        for name in block.inits:
            if name not in block.rows:
                raise FormulaError(f"no step says what {name}[{block.letter}] is")
        inits = [node for _, node in block.inits.values()]
        carried = list(block.carried.values())
        nexts = [block.rows[name] for name in block.inits]
        nodes = [n for g in block.inner.values() for n in (g.rows, g.before, g.last) if n]
        results = self._loop(block, carried, inits, nexts, [*block.rows.values(), *nodes])
        count, ys = len(carried), len(block.rows) + len(nodes)
        stacks = dict(zip(nodes, results[count + len(block.rows) :], strict=False))
        made: dict[str, Given] = {}
        for name, g in block.inner.items():
            rows, before, last = (n and stacks[n] for n in (g.rows, g.before, g.last))
            assert rows is not None
            letters = (block.letter, *g.letters)
            made[name] = Given(rows, before, last, g.reverse, letters)
        for i, name in enumerate(block.rows):
            made[name] = Given(results[count + i], None, None, block.reverse)
        for i, name in enumerate(block.inits):
            rows, before = made[name].rows, results[count + ys + i]
            made[name] = Given(rows, before, results[i], block.reverse)
        self.known |= made
        if self.open:
            self.open[-1].inner |= made

    def _loop(
        self,
        block: Block,
        carried: Sequence[Node],
        inits: Sequence[Node],
        nexts: Sequence[Node],
        ys: Sequence[Node],
    ) -> list[Node]:
        here = self._read(block.letter, [*nexts, *ys])
        body, constants = close(carried, list(here), nexts, ys)
        operands = (*inits, *here.values(), *constants)
        length, reverse = block.length, block.reverse
        for stack in here.values():
            if stack.type.shape[0] != length:
                raise FormulaError(f"{stack!r} has no element for each of {length} steps")
        count = len(carried) + len(ys) + len(carried)
        return [apply(Scan(body, length, reverse, i), *operands) for i in range(count)]

    def _read(self, letter: str, values: Sequence[Node]) -> dict[Node, Node]:
        """The rows that values read with a letter, and their stacks."""
        read = set(walk(values))
        return {r: stack for (stack, at), r in self._rows.items() if at == letter and r in read}

    def total(self, letter: str, value: Node) -> Node:
        """The sum of a value over the steps of a loop."""
        here = self._read(letter, [value])
        lengths = {stack.type.shape[0] for stack in here.values()}
        if len(lengths) != 1:
            raise FormulaError(f"Σ_{letter} is over sequences of one length with index {letter}")
        body, constants = close([], list(here), [], [value])
        operands = (*here.values(), *constants)
        stack = apply(Scan(body, lengths.pop(), False, 0), *operands)
        return apply(Sum((0,)), stack)


def moved(fn: str, args: Sequence[Any]) -> Index | None:
    """`t-1` and `t+1`, or None where that is not what is said."""
    if fn not in ("add", "sub") or len(args) != 2 or not isinstance(args[0], Index):
        return None
    if not isinstance(args[1], int) or isinstance(args[1], Size):
        return None
    by = args[1] if fn == "add" else -args[1]
    return Index(args[0].letter, args[0].offset + by)
