"""Products of rows that are looked up: the table is multiplied, or what rows add up to is.

take(E, at) @ W is take(E @ W, at), element by element the same chain of multiply-adds. Both
derivatives need no more of dz than S, the sum of its rows for each row of the table: the one by W
is E^T S, the one by E is S W^T (a sum of products with one factor is the product with the sum).
So a table of V rows, looked up T times, is multiplied V times in the place of T.

An Inf or NaN in a row that nobody looked up has no part in take(E, at)^T dz, but would be 0 * Inf
in E^T S: there such rows are 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply, rebuild
from chainrule.ir.size import Dim, Size, is_nonnegative, product, substitute, symbols_of, typical
from chainrule.ir.types import int32
from chainrule.ops import build
from chainrule.ops.axes import Sum
from chainrule.ops.contract import Contract, contract, transpose
from chainrule.ops.index import ScatterAdd, Take
from chainrule.ops.layout import Permute
from chainrule.ops.source import full
from chainrule.records import dataclass
from chainrule.rewrite.rule import Rules, See, recognize, rewrite

#: multiply-adds that take as long as moving an element, or adding it to another
MOVED = 16
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class _Factor:
    """An operand of a product with its letters and those of the other."""

    node: Node
    letters: str
    other: Node
    others: str
    out: str
    first: bool

    def product(self, new: Node, letters: str, other: Node, others: str, out: str) -> Node:
        """The product with other factors, in the same order."""
        if self.first:
            return contract(letters, others, out, new, other)
        return contract(others, letters, out, other, new)

    def size(self, letters: str) -> Dim:
        """The size of axes of either operand."""
        sizes = dict(zip(self.others, self.other.type.shape, strict=True))
        sizes |= dict(zip(self.letters, self.node.type.shape, strict=True))
        return product(tuple(sizes[c] for c in letters))

    @property
    def row(self) -> str:
        """A letter of no axis."""
        return next(c for c in _LETTERS if c not in self.letters + self.others)


def _factors(node: Node) -> Iterator[_Factor]:
    op, (x, y) = node.op, node.inputs
    assert isinstance(op, Contract)
    yield _Factor(x, op.a, y, op.b, op.out, True)
    yield _Factor(y, op.b, x, op.a, op.out, False)


def _pays(at: Node, size: Dim, width: Dim) -> bool:
    """Whether rows are looked up at least as often as the table has rows, whatever symbols are (1
    at least), and `width` multiply-adds an element, spared so, are more than moving the rows that
    are looked up, and the table's.
    """
    rows = product(at.type.shape)
    least = {s: Size.symbol(s) + 1 for s in symbols_of(rows - size)}
    if not is_nonnegative(substitute(rows - size, least)):
        return False
    many, few = typical(rows), typical(size)
    return (many - few) * typical(width) >= MOVED * (many + few)


def _gathered(letters: str, together: str, x: Node) -> tuple[str, int, Node]:
    """A node with some of its axes side by side in an order, their place, and its letters."""
    place = letters.index(together[0])
    if letters[place:].startswith(together):
        return letters, place, x
    order = together + "".join(c for c in letters if c not in together)
    return order, 0, transpose(x, [letters.index(c) for c in order])


@recognize("contract", some=["take"])
def product_of_rows(node: Node, see: See) -> Node | None:
    """Given a product of rows that are looked up, at least as many as their table has, those rows
    of the table's product.
    """
    for f in _factors(node):
        inner, take = see(f.node, "take"), f.node.op
        if inner is None or not isinstance(take, Take) or take.index_rank == 0:
            continue
        table, at = inner
        end = take.axis + take.index_rank
        tokens, size = f.letters[take.axis : end], table.type.shape[take.axis]
        summed = "".join(c for c in f.letters if c not in f.out)
        if set(tokens) & set(f.others + summed) or not _pays(at, size, f.size(summed)):
            continue
        letters = f.letters[: take.axis] + f.row + f.letters[end:]
        place = f.out.index(tokens[0])
        if f.out[place:].startswith(tokens):
            kept = f.out[:place] + f.row + f.out[place + len(tokens) :]
        else:
            kept, place = f.row + "".join(c for c in f.out if c not in tokens), 0
        rows = f.product(table, letters, f.other, f.others, kept)
        found = apply(Take(place, take.index_rank, take.end), rows, at)
        order = kept.replace(f.row, tokens)
        return transpose(found, [order.index(c) for c in f.out])
    return None


@recognize("add", some=["take"])
def sum_with_rows(node: Node, see: See) -> Node | None:
    """Given rows that are looked up in a table's product, with what is the same for all added, the
    rows of their sum.
    """
    for x, y in (node.inputs, node.inputs[::-1]):
        inner, take = see(x, "take"), x.op
        if inner is None or not isinstance(take, Take) or not see(inner[0], "contract"):
            continue
        (table, at), axes = inner, y.op.repeats()
        tokens = range(take.axis, take.axis + take.index_rank)
        if not set(tokens) <= set(axes) or see(y, "expand") is None:
            continue
        by_row = _by_row(axes, take.axis, take.index_rank)
        repeated = build.expand(y.inputs[0], table.type.shape, by_row)
        return apply(take, build.call("add", table, repeated), at)
    return None


def _by_row(axes: Iterable[int], first: int, rank: int) -> tuple[int, ...]:
    """Axes where one of rows stands in the place of `rank` of positions, which begin at `first`."""
    moved = (a if a <= first else max(first, a - rank + 1) for a in axes)
    return tuple(dict.fromkeys(moved))


@recognize("permute", some=["take"])
def permuted_rows(node: Node, see: See) -> Node | None:
    """Given rows of a table with the axes of their positions in another order, the rows at the
    positions in that order.
    """
    (x,) = node.inputs
    inner, take, op = see(x, "take"), x.op, node.op
    if inner is None or not isinstance(take, Take) or not isinstance(op, Permute):
        return None
    (table, at), first = inner, take.axis
    end = first + take.index_rank
    order = op.perm[first:end]
    still = all(p == i for i, p in enumerate(op.perm) if not first <= i < end)
    if not still:
        return None
    return apply(take, table, transpose(at, [p - first for p in order]))


@recognize("contract", some=["take"])
def product_over_rows(node: Node, see: See) -> Node | None:
    """Given a product that sums over rows that are looked up, at least as many as their table has,
    the table's with the sums of the other factor's rows, where rows nobody looked up are 0.
    """
    for f in _factors(node):
        inner, take = see(f.node, "take"), f.node.op
        if inner is None or not isinstance(take, Take) or take.index_rank == 0:
            continue
        table, at = inner
        end = take.axis + take.index_rank
        tokens, size = f.letters[take.axis : end], table.type.shape[take.axis]
        width = f.size("".join(c for c in f.letters if c not in f.others))
        summed = not set(tokens) & set(f.out)
        if not summed or not node.dtype.is_float or not _pays(at, size, width):
            continue
        others, sums = _sums(f.other, f.others, tokens, at, take, size, f.row)
        letters = f.letters[: take.axis] + f.row + f.letters[end:]
        return f.product(_looked_up(table, at, take), letters, sums, others, f.out)
    return None


def _sums(
    x: Node, letters: str, tokens: str, at: Node, take: Take, size: Dim, row: str
) -> tuple[str, Node]:
    """What the rows of `x` add up to for each row of a table, and its letters."""
    letters, place, x = _gathered(letters, tokens, x)
    sums = apply(ScatterAdd(place, size, take.end is not None), x, at)
    return letters.replace(tokens, row), sums


def _looked_up(table: Node, at: Node, take: Take) -> Node:
    """A table with 0 in the rows that are not looked up."""
    shape, axis = table.type.shape, take.axis
    ones = full(1, int32, at.type.shape)
    counts = apply(ScatterAdd(0, shape[axis], take.end is not None), ones, at)
    used = build.call("gt", counts, 0)
    others = tuple(i for i in range(table.type.rank) if i != axis)
    return build.call("where", build.expand(used, shape, others), table, 0.0)


@recognize("scatter_add", some=["contract", "add"])
def sums_of_product(node: Node, see: See) -> Node | None:
    """Given the sums of a product's rows for each row of a table, at least as many as it has, the
    product of the sums of that factor's rows; so of a sum of such products.
    """
    x, at = node.inputs
    op, terms = node.op, _terms(x, see)
    assert isinstance(op, ScatterAdd)
    found = [_of_sums(term, at, op) if see(term, "contract") else None for term in terms]
    total: Node | None = None
    for new in found:
        if new is None:
            return None
        total = new if total is None else build.call("add", total, new)
    return total


def _terms(x: Node, see: See) -> Sequence[Node]:
    """What a node is the sum of."""
    found: list[Node] = []
    pending = [x]
    while pending:
        node = pending.pop()
        inner = see(node, "add")
        if inner is None:
            found.append(node)
        else:
            pending.extend(inner[::-1])
    return found


def _of_sums(node: Node, at: Node, op: ScatterAdd) -> Node | None:
    """The product of the sums of one factor's rows, where the other has no part in positions."""
    for f in _factors(node):
        tokens = f.out[op.axis : op.axis + at.type.rank]
        width = f.size("".join(c for c in f.others if c not in f.letters))
        if not tokens or set(tokens) & set(f.others) or not _pays(at, op.n, width):
            continue
        take = Take(0, at.type.rank, op.n if op.from_end else None)
        letters, sums = _sums(f.node, f.letters, tokens, at, take, op.n, f.row)
        return f.product(sums, letters, f.other, f.others, f.out.replace(tokens, f.row))
    return None


LOOKUPS = Rules([product_of_rows, sum_with_rows, permuted_rows, product_over_rows, sums_of_product])


def multiply_tables(graph: Graph) -> Graph:
    """Products of rows that are looked up disappear: the table's, or those with sums of rows for
    each of its rows, appear. Where there are such sums, the sum of all rows is theirs.
    """
    if not any(isinstance(n.op, Take | ScatterAdd) for n in graph.nodes):
        return graph
    return _sum_of_sums(rewrite(graph, LOOKUPS))


def _sum_of_sums(graph: Graph) -> Graph:
    """The sum of rows that are added up for each row of a table too, the sum of those sums."""
    sums = {n.inputs[0]: n for n in graph.nodes if isinstance(n.op, ScatterAdd)}
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        given = sums.get(node.inputs[0]) if isinstance(node.op, Sum) else None
        axes = _of_sums_of(node, given) if given else None
        if given is None or axes is None:
            new = rebuild(node, [memo[i] for i in node.inputs])
        else:
            with provenance.derived_from(node):
                new = apply(Sum(axes), memo.get(given, given))
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _of_sums_of(node: Node, sums: Node) -> tuple[int, ...] | None:
    """The axes of sums that a sum over rows is over, if it is over all, and they are no fewer."""
    op, add, at = node.op, sums.op, sums.inputs[1]
    assert isinstance(op, Sum) and isinstance(add, ScatterAdd)
    rows = range(add.axis, add.axis + at.type.rank)
    fewer = rows and set(rows) <= set(op.axes) and _pays(at, add.n, 4 * MOVED)
    return _by_row(op.axes, add.axis, len(rows)) if fewer else None
