"""The order of products: a chain or a tree of them is multiplied in the cheapest order.

`A @ B @ x` costs n³ + n² as written and 2 n² from the right. Which order is taken depends on shapes
alone. Sizes that are not numbers are taken to be `TYPICAL`, so that one order serves every batch;
the written order stays unless another saves a tenth of the work at these sizes. What something else
reads too is computed once and never taken apart. Numbers between the products are moved out, and
transposes are read through. The sums are the same but for rounding, whose order changes.

Up to `EXACT` factors all orders are weighed, subset by subset; of more the cheapest pair is
multiplied first, again and again (Lam, Sadayappan and Wenger, Parallel Processing Letters 7, 1997;
Smith and Gray, opt_einsum, JOSS 3(26), 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from functools import lru_cache
from math import prod

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, users
from chainrule.ir.node import Node, rebuild
from chainrule.ir.size import Dim, evaluate, symbols_of
from chainrule.ops import build
from chainrule.ops.contract import Contract, contract
from chainrule.ops.layout import Permute
from chainrule.ops.source import Full
from chainrule.records import dataclass
from chainrule.rewrite.canonical import is_moderate

#: What a size that is not known is taken to be.
TYPICAL = 64
#: Of so many factors all orders are weighed; more than `MOST` are ordered in parts.
EXACT, MOST = 7, 24
#: The part of the work that another order has to save.
SAVED = 0.1

Axes = tuple[int, ...]
#: A factor by its number, or two that are multiplied.
Order = int | tuple["Order", "Order"]
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def order_contractions(graph: Graph) -> Graph:
    """Dear orders of products disappear: chains and trees of them are multiplied in a cheap order.

    `A @ x + A @ y` becomes `A @ (x + y)`. Orders depend on shapes alone: one for all batch sizes.
    """
    if not any(isinstance(n.op, Contract) for n in graph.nodes):
        return graph
    return _order(_factor_out(graph))


def _read_once(graph: Graph) -> set[Node]:
    """The nodes that one other reads at one place, and nobody from outside."""
    reads, roots = users(graph.nodes), set(graph.roots)
    return {n for n in graph.nodes if n not in roots and len(reads.get(n, ())) == 1}


def _factor_out(graph: Graph) -> Graph:
    """A @ x + A @ y, neither of which anything else reads, becomes A @ (x + y): one product less.

    For elements x * a + x * b stays: in a fused loop the product costs nothing, and a + b can
    overflow where neither product does.
    """
    once = _read_once(graph)
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = [memo[i] for i in node.inputs]
        new = None
        if node.op.name in ("add", "sub") and all(i in once for i in node.inputs):
            new = _common_factor(node, *inputs)
        memo[node] = provenance.inherit(new or rebuild(node, inputs), node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _common_factor(node: Node, left: Node, right: Node) -> Node | None:
    if left is right or left.op != right.op or not isinstance(left.op, Contract):
        return None
    for i in (0, 1):
        x, y = left.inputs[1 - i], right.inputs[1 - i]
        if left.inputs[i] is right.inputs[i] and x is not left.inputs[i]:
            operands = [left.inputs[i], build.call(node.op.name, x, y)]
            op = left.op
            return contract(op.a, op.b, op.out, *(operands[::-1] if i else operands))
    return None


@dataclass
class _Tree:
    """A product of several: its factors with an axis number for each axis, and what scales it."""

    sizes: list[int] = field(default_factory=list)
    factors: list[tuple[Node, Axes]] = field(default_factory=list)
    scales: list[Node] = field(default_factory=list)
    parts: set[Node] = field(default_factory=set)
    cost: int = 0

    def number(self, dims: Iterable[Dim]) -> Axes:
        """New axis numbers for axes of some sizes."""
        first = len(self.sizes)
        for dim in dims:
            self.sizes.append(evaluate(dim, dict.fromkeys(symbols_of(dim), TYPICAL)))
        return tuple(range(first, len(self.sizes)))


def _order(graph: Graph) -> Graph:
    once = _read_once(graph)
    absorbed: set[Node] = set()
    better: dict[Node, tuple[_Tree, Axes, Order]] = {}
    for node in reversed(graph.nodes):
        if not isinstance(node.op, Contract) or node in absorbed:
            continue
        tree = _Tree()
        out = tree.number(node.type.shape)
        _flatten(node, out, tree, once)
        absorbed |= tree.parts
        if len(tree.factors) > 2:
            axes = tuple(a for _, a in tree.factors)
            cost, order = _cheapest(axes, out, tuple(tree.sizes))
            if cost < (1 - SAVED) * tree.cost:
                better[node] = tree, out, order
    if not better:
        return graph
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in better:
            new = _multiplied(*better[node], memo)
        else:
            new = rebuild(node, [memo[i] for i in node.inputs])
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _flatten(root: Node, out: Axes, tree: _Tree, once: set[Node]) -> None:
    """Take a product apart into its factors, as far as nothing else reads the parts."""
    stack = [(root, out)]
    while stack:
        node, axes = stack.pop()
        op = node.op
        mine = node is root or (node in once and len(tree.factors) + len(stack) < MOST)
        if mine and isinstance(op, Contract):
            named = dict(zip(op.out, axes, strict=True))
            sizes = dict(zip(op.a, node.inputs[0].type.shape, strict=True))
            named.update(zip(op.summed, tree.number(sizes[c] for c in op.summed), strict=True))
            tree.parts.add(node)
            tree.cost += _work(named.values(), axes, tree.sizes)
            for x, letters in ((node.inputs[1], op.b), (node.inputs[0], op.a)):
                stack.append((x, tuple(named[c] for c in letters)))
        elif mine and isinstance(op, Permute):
            at = dict(zip(op.perm, axes, strict=True))
            stack.append((node.inputs[0], tuple(at[i] for i in range(len(axes)))))
        elif mine and _scales(node):
            tree.scales.append(node)
            stack.append((node.inputs[0], axes))
        else:
            tree.factors.append((node, axes))


def _scales(node: Node) -> bool:
    """Whether a node scales its first operand by a number that can as well scale the product."""
    if node.op.name == "neg":
        return True
    by = node.inputs[1].op if node.op.name in ("mul", "div") else None
    if not isinstance(by, Full) or not by.dtype.is_float:
        return False
    return is_moderate(by.value)


def _work(axes: Iterable[int], out: Iterable[int], sizes: list[int] | Axes) -> int:
    """What a product costs: its multiplications, and the elements it writes."""
    return prod(sizes[a] for a in axes) + prod(sizes[a] for a in out)


@lru_cache(maxsize=4096)
def _cheapest(factors: tuple[Axes, ...], out: Axes, sizes: Axes) -> tuple[int, Order]:
    """The cheapest order found of the product of factors, and what it costs."""
    reads = [sum(1 << a for a in axes) for axes in factors]
    search = _Search(reads, sum(1 << a for a in out), sizes)
    return search.exact() if len(factors) <= EXACT else search.greedy()


class _Search:
    """Orders of a product. Sets of factors and sets of axes are the bits of a number."""

    def __init__(self, reads: list[int], out: int, sizes: Axes) -> None:
        self.reads, self.out, self.sizes = reads, out, sizes
        self.all = (1 << len(reads)) - 1

    def kept(self, group: int) -> int:
        """The axes that the product of a group of factors has."""
        inside, outside = 0, self.out
        for i, axes in enumerate(self.reads):
            if group >> i & 1:
                inside |= axes
            else:
                outside |= axes
        return inside & outside

    def work(self, left: int, right: int, out: int) -> int:
        return _work(_bits(left | right), _bits(out), self.sizes)

    def exact(self) -> tuple[int, Order]:
        """The cheapest order of all, first of those without products that share no axis."""
        for outer in (False, True):
            best: dict[int, tuple[int, Order]] = {1 << i: (0, i) for i in range(len(self.reads))}
            axes = {g: self.kept(g) for g in best}
            for size in range(2, len(self.reads) + 1):
                for a, b in _pairs(list(best), size):
                    if not (outer or axes[a] & axes[b]):
                        continue
                    both = a | b
                    out = axes.setdefault(both, self.kept(both))
                    cost = best[a][0] + best[b][0] + self.work(axes[a], axes[b], out)
                    if both not in best or cost < best[both][0]:
                        best[both] = cost, (best[a][1], best[b][1])
            if self.all in best:
                break
        return best[self.all]

    def greedy(self) -> tuple[int, Order]:
        """The order in which the cheapest pair is always next."""
        groups: dict[int, Order] = {1 << i: i for i in range(len(self.reads))}
        axes = {g: self.kept(g) for g in groups}
        total = 0
        while len(groups) > 1:
            pairs = [(a, b) for a in groups for b in groups if a < b]
            pairs = [(a, b) for a, b in pairs if axes[a] & axes[b]] or pairs
            costs = {(a, b): self.work(axes[a], axes[b], self.kept(a | b)) for a, b in pairs}
            a, b = min(costs, key=lambda pair: costs[pair])
            total += costs[a, b]
            groups[a | b] = groups.pop(a), groups.pop(b)
            axes[a | b] = self.kept(a | b)
        return total, groups[self.all]


def _pairs(groups: list[int], size: int) -> Iterator[tuple[int, int]]:
    """The pairs of groups without a common factor that have so many factors together."""
    for i, a in enumerate(groups):
        for b in groups[i + 1 :]:
            if not a & b and (a | b).bit_count() == size:
                yield (a, b) if a & -a < b & -b else (b, a)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _multiplied(tree: _Tree, out: Axes, order: Order, memo: Mapping[Node, Node]) -> Node:
    """The product of a tree's factors in an order."""
    needed = list(out)
    for _, axes in tree.factors:
        needed += axes
    left = {a: needed.count(a) for a in set(needed)}

    def build_(part: Order) -> tuple[Node, Axes]:
        if isinstance(part, int):
            node, axes = tree.factors[part]
            return memo[node], axes
        (x, a), (y, b) = build_(part[0]), build_(part[1])
        for axis in (*a, *b):
            left[axis] -= 1
        kept = [c for c in dict.fromkeys((*(c for c in a if c in b), *a, *b)) if left[c]]
        if part is order:
            kept = list(out)
        for axis in kept:
            left[axis] += 1
        name = dict(zip(dict.fromkeys((*a, *b)), _LETTERS, strict=False))
        of_x, of_y, of_both = ("".join(name[c] for c in axes) for axes in (a, b, kept))
        return contract(of_x, of_y, of_both, x, y), tuple(kept)

    product, _ = build_(order)
    for scale in reversed(tree.scales):
        by = [build.call("neg", product)] if len(scale.inputs) == 1 else []
        product = by[0] if by else build.call(str(scale.op.name), product, _number(scale))
    return product


def _number(scale: Node) -> float:
    op = scale.inputs[1].op
    assert isinstance(op, Full)
    return float(op.value)
