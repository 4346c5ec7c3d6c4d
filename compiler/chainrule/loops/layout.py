"""Which axes of a product are its groups, rows, columns and sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.ir.loop import LANES
from chainrule.ir.node import Index, Node
from chainrule.ir.size import Dim, Size, product
from chainrule.loops.builder import is_straight
from chainrule.ops.contract import Contract
from chainrule.ops.layout import unravel
from chainrule.records import dataclass
from chainrule.schedule.kernel import Kernel
from chainrule.schedule.reading import sources


def letter_sizes(node: Node) -> dict[str, Dim]:
    """The size that each letter of a product stands for."""
    op = node.op
    assert isinstance(op, Contract)
    shapes = (dim for operand in node.inputs for dim in operand.type.shape)
    return dict(zip(op.a + op.b, shapes, strict=True))


def loop_of(letter: str) -> str:
    """The variable of the loop along a letter of a product."""
    return f"g{letter}'"


def letter_of(var: str) -> str:
    """The letter that a loop goes along."""
    return var[1:-1]


@dataclass(frozen=True)
class ContractLayout:
    """How a product's letters become group, row, column and summed indices.

    `a` and `b` are the operands' letters with the one that holds the columns second. Sums run over
    `outer`, a loop a letter, and inside over `inner`. The operands in `gathered` are views whose
    axes lie in one run only after they have been copied, a group and an outer sum at a time. With
    `sliding` nothing is copied: vectors go along the columns where they stand, and every sum is a
    loop of its own, inside a tile.
    """

    swapped: bool
    a: str
    b: str
    letters: str
    groups: tuple[tuple[str, Dim], ...]
    row: str
    column: str
    outer: str
    inner: str
    sizes: Mapping[str, Dim]
    gathered: tuple[bool, bool]
    sliding: bool = False

    @staticmethod
    def of(kernel: Kernel, sliding: bool = False) -> ContractLayout | None:
        """The layout of a product kernel, or None where the template does not take it."""
        node = kernel.anchor
        op = node.op
        assert isinstance(op, Contract)
        if not node.type.dtype.is_float or not op.out or not op.summed:
            return None
        sizes = letter_sizes(node)
        last = _column(op, sizes)
        if last in op.a and last in op.b:
            return None
        swapped = last in op.a
        a, b = (op.b, op.a) if swapped else (op.a, op.b)
        x, y = node.inputs[::-1] if swapped else node.inputs
        long = {c for c in sizes if sizes[c] != 1 or c == last}  # the others lie nowhere
        first, second, out, summed = (
            "".join(c for c in letters if c in long) for letters in (a, b, op.out, op.summed)
        )
        rows = [c for c in out if c in a and c not in b]
        columns = [c for c in out if c in b and c not in a]
        row = _run(rows, [first, out])
        column = _run(columns, [second, out])
        inner = _run(list(summed), [first, second])
        axes = [{op.out.index(c) for c in run} for run in (row, column)]
        if not is_straight(kernel.nodes[1:], kernel, axes):
            row, column = row[-1:], column[-1:]
        runs = [run for run in (row, column, inner) if len(run) > 1]
        cut = [any(run[0] in letters for run in runs) for letters in (a, b)]
        gathered = is_view(x) and cut[0], is_view(y) and cut[1]
        if sliding:
            row, inner = row if not is_view(x) else row[-1:], ""
            column = column if takes_lines(sizes[last]) else last
        outer = "".join(c for c in summed if c not in inner)
        groups = tuple((loop_of(c), sizes[c]) for c in out if c not in row + column)
        return ContractLayout(
            swapped, a, b, op.out, groups, row, column, outer, inner, sizes, gathered, sliding
        )

    def order(self, inputs: Sequence[Node]) -> Sequence[Node]:
        """The operands, the one with the columns second."""
        return inputs[::-1] if self.swapped else inputs

    def size(self, letters: str) -> Dim:
        """The product of the sizes of letters."""
        return product(tuple(self.sizes[c] for c in letters))

    @property
    def by_group(self) -> bool:
        """Whether there are several groups: parts share those, not what is done for one."""
        return any(extent != 1 for _, extent in self.groups)

    @property
    def dot_groups(self) -> tuple[tuple[str, Dim], ...]:
        """The loops of letters that stand in both operands and in the result."""
        return tuple(
            (loop_of(c), self.sizes[c]) for c in self.letters if c in self.a and c in self.b
        )

    @property
    def split_groups(self) -> tuple[tuple[tuple[str, Dim], ...], tuple[tuple[str, Dim], ...]]:
        """The loops of groups that stand before the rows in the result, and after them: along the
        latter a tile of rows walks on through memory.
        """
        before = self.letters.partition(self.row[-1])[0] if self.row else self.letters
        outside = tuple(g for g in self.groups if letter_of(g[0]) in before)
        return outside, tuple(g for g in self.groups if g not in outside)

    @property
    def m(self) -> Dim:
        """The number of rows."""
        return self.size(self.row)

    @property
    def n(self) -> Dim:
        """The number of columns; where a vector is a line of windows, of its lanes."""
        if not self.sliding or len(self.column) == 1:
            return self.size(self.column)
        return self.size(self.column[:-1]) * whole_vectors(self.sizes[self.column[-1]])

    @property
    def width(self) -> int:
        """The lanes of a vector that have something to do; a last one may have fewer."""
        size = self.sizes[self.column[-1]]
        several = self.sliding and len(self.column) > 1
        return size if several and isinstance(size, int) and size < LANES else LANES

    @property
    def k(self) -> Dim:
        """The number of products in each inner sum."""
        return self.size(self.inner)

    @property
    def sums(self) -> tuple[tuple[str, Dim], ...]:
        """The loops of the outer sums."""
        return tuple((loop_of(c), self.sizes[c]) for c in self.outer)

    def inside(self, letters: str) -> str:
        """Of an operand's letters those that are no group's and no outer sum's."""
        return "".join(c for c in letters if c in self.row + self.column + self.inner)

    def index(self, letters: str, places: Mapping[str, Dim]) -> Index:
        """An index by letters: of a run of letters the last takes the whole flat position."""
        loops = (*self.groups, *self.sums)
        at: dict[str, Dim] = {letter_of(name): Size.symbol(name) for name, _ in loops}
        for run, place in places.items():
            at.update(dict.fromkeys(run[:-1], 0))
            if run:
                at[run[-1]] = place
        return tuple(at.get(c, 0) for c in letters)

    def apart(self, run: str, place: Dim) -> dict[str, Dim]:
        """Where a flat place of a run stands along each of its letters."""
        if len(run) == 1:
            return {run: place}
        return dict(zip(run, unravel(place, tuple(self.sizes[c] for c in run)), strict=True))

    def first(self, m: Dim, k: Dim) -> dict[str, Dim]:
        """Where the first operand is read: the flat place of each run."""
        return {self.row: m, self.inner: k}

    def second(self, k: Dim, n: Dim) -> dict[str, Dim]:
        """Where the second operand is read."""
        return {self.inner: k, **self.columns(n)}

    def columns(self, n: Dim) -> dict[str, Dim]:
        """Where a column stands: its flat place or, of lines of vectors, that of each axis."""
        if not self.sliding or len(self.column) == 1:
            return {self.column: n}
        lane, sizes = Size.symbol("j'"), [self.sizes[c] for c in self.column]
        places = unravel(n - lane, (*sizes[:-1], whole_vectors(sizes[-1])))
        return {
            c: place
            for c, place in zip(self.column, (*places[:-1], places[-1] + lane), strict=True)
        }

    def out(self, m: Dim, n: Dim) -> Index:
        """Where the result stands."""
        return self.index(self.letters, {self.row: m, **self.columns(n)})


def _column(op: Contract, sizes: Mapping[str, Dim]) -> str:
    """The letter that vectors go along: the last of the result's that is more than one long, if the
    factor that has it lies along it too; else the last.
    """
    long = [c for c in op.out if sizes[c] != 1]
    if long and long[-1] != op.out[-1]:
        ends = [[c for c in letters if sizes[c] != 1][-1:] for letters in (op.a, op.b)]
        if ends.count(long[-1:]) == 1 and sum(long[-1] in letters for letters in (op.a, op.b)) == 1:
            return long[-1]
    return op.out[-1]


def fills(size: Dim, share: float) -> bool:
    """Whether of vectors along so many elements at least that share is filled."""
    return isinstance(size, int) and size >= share * (-(-size // LANES) * LANES)


def takes_lines(size: Dim) -> bool:
    """Whether a line of windows so long is whole vectors, or one."""
    return isinstance(size, int) and (size % LANES == 0 or size < LANES)


def whole_vectors(size: Dim) -> Dim:
    """A size with the lanes of its last vector full."""
    return (size + LANES - 1) // LANES * LANES


def is_view(operand: Node) -> bool:
    """Whether a factor is read through an index map, so that its axes may not lie together."""
    return operand.op.role == "view" or any(path for _, path in sources(operand))


def _run(letters: list[str], where: Sequence[str]) -> str:
    """The longest run at the end of `letters` that lies together, in order, wherever it occurs."""
    for start in range(len(letters)):
        run = "".join(letters[start:])
        if all(run in text for text in where):
            return run
    return ""
