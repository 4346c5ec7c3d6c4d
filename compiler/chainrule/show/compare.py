"""What differs between two expressions, whatever their parts are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from chainrule.ir import provenance
from chainrule.ir.graph import walk
from chainrule.ir.node import Node
from chainrule.ir.size import Dim, Shape, Size, substitute
from chainrule.ops.composite import Defined
from chainrule.ops.source import Leaf
from chainrule.records import dataclass
from chainrule.show.lines import write
from chainrule.show.page import arrange

#: Differences that are worth reading.
MANY = 8


@dataclass(frozen=True)
class Comparison:
    """Whether two expressions are equal but for names, and if not the first places that differ."""

    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        return "\n\n".join(self.differences) or "equal but for names"


def compare(first: Sequence[Node], second: Sequence[Node]) -> Comparison:
    """Both walked in lock-step from the results down, each pair of nodes once.

    Inputs correspond one to one, and symbolic sizes too; what is read by both stands for itself.
    Below a difference nothing is compared. Operands are compared in order.
    """
    if len(first) != len(second):
        return Comparison((f"{len(first)} expressions against {len(second)}",))
    shared = {n for n in walk(first) if isinstance(n.op, Leaf)} & set(walk(second))
    walker = _Walker({n: n for n in shared}, {n: n for n in shared})
    for leaf in shared:
        walker.sizes_agree(leaf.shape, leaf.shape)
    for a, b in zip(first, second, strict=True):
        walker.run(a, b)
    return Comparison(tuple(walker.found))


@dataclass
class _Walker:
    """Which node of the first corresponds to which of the second, and which size to which."""

    there: dict[Node, Node]
    back: dict[Node, Node]
    sizes: dict[str, Dim] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def run(self, a: Node, b: Node) -> None:
        stack = [(a, b)]
        done: set[tuple[Node, Node]] = set()
        while stack and len(self.found) < MANY:
            pair = stack.pop()
            if pair in done:
                continue
            done.add(pair)
            fault = self.fault(*pair)
            if fault:
                self.found.append(_difference(fault, *pair))
            else:
                stack.extend(reversed(list(zip(pair[0].inputs, pair[1].inputs, strict=True))))

    def fault(self, a: Node, b: Node) -> str:
        """What differs between two nodes, their operands aside; "" where nothing does."""
        if len(a.inputs) != len(b.inputs) or type(a.op) is not type(b.op):
            return "another operation"
        if a.dtype != b.dtype:
            return f"another element type, {a.dtype} and {b.dtype}"
        if not self.sizes_agree(a.shape, b.shape):
            return f"another shape, {a.type} and {b.type}"
        if isinstance(a.op, Leaf) and isinstance(b.op, Leaf):
            if a.op.kind != b.op.kind:
                return f"{a.op.kind} and {b.op.kind}"
            if self.there.setdefault(a, b) is not b or self.back.setdefault(b, a) is not a:
                return "another input"
            return ""
        return "" if self.same_op(a, b) else "another operation"

    def same_op(self, a: Node, b: Node) -> bool:
        if isinstance(a.op, Defined) and isinstance(b.op, Defined):
            return (a.op.meaning, a.op.params) == (b.op.meaning, b.op.params)
        return a.op.resolve(self.sizes) == b.op

    def sizes_agree(self, a: Shape, b: Shape) -> bool:
        """Whether two shapes are equal but for the names of sizes; a new name finds its match."""
        return len(a) == len(b) and all(map(self.size_agrees, a, b))

    def size_agrees(self, a: Dim, b: Dim) -> bool:
        if isinstance(a, Size) and isinstance(b, Size) and (name := _symbol(a)) and _symbol(b):
            if name not in self.sizes and b in self.sizes.values():
                return False
            return self.sizes.setdefault(name, b) == b
        return substitute(a, self.sizes) == b


def _symbol(size: Size) -> str | None:
    """The name of a size that is one symbol."""
    names = sorted(size.symbols())
    return names[0] if len(names) == 1 and Size.symbol(names[0]) == size else None


def _difference(fault: str, a: Node, b: Node) -> str:
    return f"{fault}:\n  {_written(a)}\n  {_written(b)}"


def _written(node: Node) -> str:
    """A node's own line on its page, and the line of the user's file that made it."""
    line = provenance.line_of(node)
    name = provenance.name_of(node)
    text = write(arrange([node]))[-1].expression
    text = f"{name} = {text}" if name and name != text else text
    return f"{text}    ({str(line).split('    ')[0]})" if line else text
