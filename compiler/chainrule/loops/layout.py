"""Which axes of a product are its groups, rows, columns and sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chainrule.ir.node import Index, Node
from chainrule.ir.size import Dim, Size, product
from chainrule.loops.builder import is_straight
from chainrule.ops.contract import Contract
from chainrule.schedule.kernel import Kernel
from chainrule.schedule.reading import sources


def letter_sizes(node: Node) -> dict[str, Dim]:
    """The size that each letter of a product stands for."""
    op = node.op
    assert isinstance(op, Contract)
    shapes = (dim for operand in node.inputs for dim in operand.type.shape)
    return dict(zip(op.a + op.b, shapes, strict=True))


@dataclass(frozen=True)
class ContractLayout:
    """How a product's letters become group, row, column and summed indices.

    `a` and `b` are the operands' letters with the one that holds the columns second.
    """

    swapped: bool
    a: str
    b: str
    letters: str
    groups: tuple[tuple[str, Dim], ...]
    row: str
    column: str
    inner: str
    sizes: Mapping[str, Dim]

    @staticmethod
    def of(kernel: Kernel) -> ContractLayout | None:
        """The layout of a product kernel, or None where the template does not take it."""
        node = kernel.anchor
        op = node.op
        assert isinstance(op, Contract)
        if not node.type.dtype.is_float or not op.out or not op.summed:
            return None
        straight = is_straight(kernel.nodes[1:], kernel) and all(
            not path for i in node.inputs for _, path in sources(i)
        )
        last = op.out[-1]
        if last in op.a and last in op.b:
            return None
        swapped = last in op.a
        a, b = (op.b, op.a) if swapped else (op.a, op.b)
        rows = [c for c in op.out if c in a and c not in b]
        columns = [c for c in op.out if c in b and c not in a]
        group = [c for c in op.out if c in a and c in b]
        row = _run(rows, [a, op.out], straight)
        column = _run(columns, [b, op.out], straight)
        inner = _run(list(op.summed), [a, b], straight)
        if len(inner) != len(op.summed):
            return None
        outer = [c for c in op.out if c in group or c not in row + column]
        sizes = letter_sizes(node)
        groups = tuple((f"g{c}", sizes[c]) for c in outer)
        return ContractLayout(swapped, a, b, op.out, groups, row, column, inner, sizes)

    def order(self, inputs: Sequence[Node]) -> Sequence[Node]:
        """The operands, the one with the columns second."""
        return inputs[::-1] if self.swapped else inputs

    def size(self, letters: str) -> Dim:
        """The product of the sizes of letters."""
        return product(tuple(self.sizes[c] for c in letters))

    @property
    def m(self) -> Dim:
        """The number of rows."""
        return self.size(self.row)

    @property
    def n(self) -> Dim:
        """The number of columns."""
        return self.size(self.column)

    @property
    def k(self) -> Dim:
        """The number of products in each sum."""
        return self.size(self.inner)

    def index(self, letters: str, places: Mapping[str, Dim]) -> Index:
        """An index by letters: of a run of letters the last takes the whole flat position."""
        at: dict[str, Dim] = {name[1:]: Size.symbol(name) for name, _ in self.groups}
        for run, place in places.items():
            at.update(dict.fromkeys(run[:-1], 0))
            if run:
                at[run[-1]] = place
        return tuple(at[c] for c in letters)

    def first(self, m: Dim, k: Dim) -> Index:
        """Where the first operand is read."""
        return self.index(self.a, {self.row: m, self.inner: k})

    def second(self, k: Dim, n: Dim) -> Index:
        """Where the second operand is read."""
        return self.index(self.b, {self.inner: k, self.column: n})

    def out(self, m: Dim, n: Dim) -> Index:
        """Where the result stands."""
        return self.index(self.letters, {self.row: m, self.column: n})


def _run(letters: list[str], where: Sequence[str], straight: bool) -> str:
    """The longest run at the end of `letters` that lies together, in order, wherever it occurs."""
    for start in range(len(letters)):
        run = "".join(letters[start:])
        if len(run) == 1 or (straight and all(run in text for text in where)):
            return run
    return ""
