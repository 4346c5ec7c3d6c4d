"""Loops on a page: what a step computes, and rows of what the steps read, as nodes like others.

Step t of a loop reads `x[t]` and `h[t-1]` and computes `h[t]`. A loop that reads what another has
kept reads the same nodes; so what reverse mode computes again prints by the name it has.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import field

from chainrule.ir import provenance
from chainrule.ir.graph import walk
from chainrule.ir.node import Node, Op, apply, next_serial
from chainrule.ir.notation import ADD, ATOM, MATMUL, Notation
from chainrule.ir.size import Dim, symbols_of
from chainrule.ir.types import TensorType
from chainrule.ops import build
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.body import label_of, substituted
from chainrule.ops.contract import Contract, contract
from chainrule.ops.scan import Scan
from chainrule.ops.source import Full, Iota, Leaf, escape, latex_name, latex_size
from chainrule.records import dataclass

LETTERS = "tsrqpijklm"


@dataclass(frozen=True)
class Steps(Op):
    """All that the steps of a loop read and compute, on a page alone."""

    role = "scan"
    name = "steps"

    def notation(self, *inputs: Node) -> Notation:
        return Notation("", "")


@dataclass(frozen=True, eq=False)
class Loop:
    """One loop: the values a step is given and gives on, and the rows that it stacks.

    `labels` are what the carried values are called, `rows` the nodes of the ys, and `others` names
    for those that have none.
    """

    op: Scan
    letter: str
    inits: tuple[Node, ...]
    carried: tuple[Node, ...]
    nexts: tuple[Node, ...]
    rows: tuple[Node, ...]
    labels: tuple[str, ...]
    others: tuple[str, ...]
    steps: Node = field(repr=False)

    @property
    def first(self) -> str:
        """Where the carried values stand with which it begins."""
        return short(self.op.length) if self.op.reverse else "-1"

    @property
    def last(self) -> str:
        """Where those stand with which it ends."""
        return "0" if self.op.reverse else short(self.op.length - 1)

    @property
    def before(self) -> str:
        """Where those stand that a step is given."""
        return f"{self.letter}{'+' if self.op.reverse else '-'}1"

    @property
    def span(self) -> tuple[str, str]:
        """The first and the last step."""
        last = short(self.op.length - 1)
        return (last, "0") if self.op.reverse else ("0", last)

    def place(self, output: int) -> tuple[str, int]:
        """What a result is, "last", "row" or "before", and the number of the value it is of."""
        count, ys = len(self.carried), len(self.rows)
        if output < count:
            return "last", output
        return ("row", output - count) if output < count + ys else ("before", output - count - ys)

    def index(self, kind: str) -> str:
        """The index of a result in the values that a step computes."""
        length = self.op.length
        if kind == "last":
            return self.last
        return f"0:{short(length)}" if kind == "row" else self._shifted()

    def _shifted(self) -> str:
        length = self.op.length
        return f"1:{short(length + 1)}" if self.op.reverse else f"-1:{short(length - 1)}"


class Loops:
    """The loops of a page, found as it is walked."""

    def __init__(
        self, roots: Sequence[Node], given: Iterable[str], atoms: Collection[Node]
    ) -> None:
        taken, named = _names(roots, atoms)
        self.letters = [c for c in LETTERS if c not in {*taken, *named, *given}]
        self.taken = {*taken, *given, *self.letters}
        self.found: dict[Hashable, Loop] = {}
        self.of_steps: dict[Node, Loop] = {}
        self.stack_of: dict[Node, Node] = {}  # the row of a stack that a step is given -> the stack
        self.carried: dict[Node, tuple[Loop, int]] = {}
        self.numbers: dict[Node, str] = {}  # the number of a step, as a value -> its letter
        self.used: set[tuple[Node, int]] = set()  # loops, and which of their ys the page speaks of
        self.settled = False
        self._rows: dict[tuple[Node, str], Node] = {}
        self._depth: dict[Node, int] = {}

    def __bool__(self) -> bool:
        return bool(self.found)

    def parts(self, steps: Node) -> tuple[Node, ...]:
        """What is written of a loop: all of it, until it is known of which ys the page speaks."""
        if not self.settled:
            return steps.inputs
        unused = {
            row for i, row in enumerate(self.of_steps[steps].rows) if (steps, i) not in self.used
        }
        return tuple(n for n in steps.inputs if n not in unused - {*self.of_steps[steps].nexts})

    def is_step(self, node: Node) -> bool:
        """Whether a node is computed by a step, and no more than a value it is given."""
        return bool(node.inputs) and self.depth(node) > 0

    def depth(self, node: Node) -> int:
        """How many loops a node is in: 0 where it is the same at every step."""
        for n in walk([node], stop=self._depth.__contains__):
            if n not in self._depth:
                self._depth[n] = max((self._depth[i] for i in n.inputs), default=0)
        return self._depth[node]

    def loop_of(self, node: Node) -> Loop:
        """The loop that a node is a result of."""
        op = node.op
        assert isinstance(op, Scan)
        key = (op.family, node.inputs)
        if key not in self.found:
            self.found[key] = self._unrolled(op, node)
        return self.found[key]

    def _unrolled(self, op: Scan, node: Node) -> Loop:
        body, depth = op.body_of_step, self.depth(node)
        count, end = len(body.carries), len(body.carries) + len(body.slices)
        letter = self.letters[depth]
        inits, stacks, outer = node.inputs[:count], node.inputs[count:end], node.inputs[end:]
        carried = [self._leaf(n.type, depth) for n in body.carries]
        rows = [self.row(s, depth) for s in stacks]
        given = dict(zip(body.leaves, (*carried, *rows, *outer), strict=True))
        roots = substituted(body.roots, given)
        needed = [s for s in stacks if isinstance(s.op, Scan) and self.depth(s) == depth]
        first = [self.loop_of(s).steps for s in needed]
        steps = Node(Steps(), (*dict.fromkeys(first), *inits, *roots), node.type)
        self._depth[steps] = depth
        labels = [
            self._claim((new.inputs and provenance.user_name_of(new)) or _carried_label(old, new))
            for old, new in zip(body.carries, body.nexts, strict=True)
        ]
        loop = Loop(
            op,
            letter,
            inits,
            tuple(carried),
            tuple(roots[:count]),
            tuple(roots[count:]),
            tuple(labels),
            tuple(f"y{i}" for i in range(1, len(roots) - count + 1)),
            steps,
        )
        self.of_steps[steps] = loop
        self.carried.update({n: (loop, i) for i, n in enumerate(carried)})
        return loop

    def _leaf(self, kind: TensorType, depth: int) -> Node:
        leaf = apply(Leaf("local", "[]", kind, next_serial()))
        self._depth[leaf] = depth + 1
        return leaf

    def _claim(self, name: str) -> str:
        """The name, or where it is taken h, h2, ..."""
        new, number = name, 1
        while new in self.taken:
            new, number = f"h{number if number > 1 else ''}", number + 1
        self.taken.add(new)
        return new

    def row(self, stack: Node, depth: int) -> Node:
        """What step `letters[depth]` reads of a stack."""
        key = (stack, self.letters[depth])
        if key not in self._rows:
            self._rows[key] = self._row(stack, depth)
        return self._rows[key]

    def _row(self, stack: Node, depth: int) -> Node:
        op, kind = stack.op, stack.type.with_shape(stack.type.shape[1:])
        if isinstance(op, Full):
            return apply(Full(op.data, op.dtype, kind.shape))
        if isinstance(op, Expand) and 0 in op.axes:
            axes = tuple(a - 1 for a in op.axes if a)
            return build.expand(stack.inputs[0], kind.shape, axes)
        if isinstance(op, Scan) and self.depth(stack) == depth:
            loop = self.loop_of(stack)
            what, i = loop.place(op.output)
            if what == "row" and loop.rows[i].op.family is None:
                self.used.add((loop.steps, i))
            if what != "last":
                return loop.rows[i] if what == "row" else loop.carried[i]
        leaf = self._leaf(kind, depth)
        if isinstance(op, Iota) and stack.type.rank == 1:
            self.numbers[leaf] = self.letters[depth]
        else:
            self.stack_of[leaf] = stack
        return leaf

    def summed(self, node: Node) -> Node | None:
        """What is summed up over the steps of a loop, where a node is such a sum."""
        op = node.op
        if isinstance(op, Contract):
            first = op.a[:1]
            steps = first and first == op.b[:1] and first not in op.out
            if not steps or not any(map(self._is_stack, node.inputs)):
                return None
            depth = self.depth(node)
            x, y = (self.row(i, depth) for i in node.inputs)
            return contract(op.a[1:], op.b[1:], op.out, x, y)
        if isinstance(op, Sum) and 0 in op.axes and self._is_stack(node.inputs[0]):
            if provenance.user_name_of(node.inputs[0]) is not None:
                return None
            row, axes = self.row(node.inputs[0], self.depth(node)), tuple(a - 1 for a in op.axes)
            return apply(Sum(axes[1:]), row) if axes[1:] else row
        return None

    def _is_stack(self, node: Node) -> bool:
        """Whether a node is a stack that a loop makes."""
        op = node.op
        return isinstance(op, Scan) and self.loop_of(node).place(op.output)[0] != "last"

    def form(self, node: Node) -> tuple[Notation, tuple[Node, ...]] | None:
        """How a node is written that has to do with a loop, and of what."""
        if isinstance(node.op, Scan):
            loop = self.loop_of(node)
            what, i = loop.place(node.op.output)
            if what == "row":
                self.used.add((loop.steps, i))
            base = "y" if what == "row" else loop.labels[i]
            return indexed(base, loop.index(what)), (loop.steps,)
        if node in self.carried:
            loop, i = self.carried[node]
            return indexed(loop.labels[i], loop.before), ()
        if node in self.stack_of:
            letter = self.letters[self.depth(node) - 1]
            return indexed("{0}", letter), (self.stack_of[node],)
        if node in self.numbers:
            return Notation(self.numbers[node], self.numbers[node]), ()
        inner = self.summed(node)
        if inner is None:
            return None
        made = [self.loop_of(i).steps for i in node.inputs if isinstance(i.op, Scan)]
        return self.total(node), (inner, *dict.fromkeys(made))

    def is_total(self, node: Node) -> bool:
        """Whether a node is written as a sum over steps."""
        return bool(self.found) and self.summed(node) is not None

    def total(self, node: Node) -> Notation:
        """How the sum of what `summed` gives for a node is written."""
        letter = self.letters[self.depth(node)]
        return Notation(f"Σ_{letter} {{0}}", rf"\sum_{{{{{letter}}}}} {{0}}", ADD, (MATMUL,))

    def owners(self, order: Iterable[Node]) -> dict[Node, Loop]:
        """For each node that a step computes, the first loop of which it is a part."""
        found: dict[Node, Loop] = {}
        for steps in order:
            loop = self.of_steps.get(steps)
            if loop is None:
                continue
            inside = self.depth(steps) + 1
            pending = [*loop.nexts, *loop.rows]
            while pending:
                node = pending.pop()
                if node not in found and self.depth(node) >= inside:
                    found[node] = loop
                    pending.extend(self._parts(node))
        return found

    def _parts(self, node: Node) -> Iterator[Node]:
        yield from node.inputs
        if isinstance(node.op, Scan):
            yield self.loop_of(node).steps


def short(size: Dim) -> str:
    """A size without spaces, as it stands in an index."""
    return str(size).replace(" ", "")


def indexed(base: str, index: str) -> Notation:
    """`base[index]`."""
    tex = "{{{0}}}" if base == "{0}" else escape(latex_name(base))
    return Notation(
        f"{base}[{index}]", f"{tex}_{{{{{escape(latex_size(index))}}}}}", operands=(ATOM,)
    )


def _names(roots: Sequence[Node], atoms: Collection[Node]) -> tuple[set[str], set[str]]:
    """The names of what a page is given, and those that users gave to parts of it and of loops."""
    nodes = walk(roots, stop=atoms.__contains__)
    if all(n.op.family is None for n in nodes):
        return set(), set()
    given = {n.op.notation().text for n in nodes if n.op.role == "leaf"}
    given |= {s for n in nodes for d in n.shape for s in symbols_of(d)}
    named: set[str] = set()
    pending = [nodes]
    while pending:
        nodes = pending.pop()
        named |= {name for n in nodes if (name := provenance.user_name_of(n)) is not None}
        pending.extend(list(g.nodes) for n in nodes for g in n.op.bodies())
    return given, named


def _carried_label(old: Node, new: Node) -> str:
    """What a step passes on: of a derivative, `gh` for what goes back to h."""
    label = label_of(old)
    if provenance.cotangent_of(new) is not None and label.startswith("d") and label != "d":
        return f"g{label[1:]}"
    return label
