"""Attention whose scores need not lie in memory, and what is left of its derivative.

A derivative speaks of the weights, as a lecture does, and of products with them. Where nothing else
reads these, all are made of some rows at a time, forward and back; where anything does, the weights
are computed once and stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, users
from chainrule.ir.node import Node, apply, rebuild
from chainrule.ir.types import DType
from chainrule.ops.attend import Attend, AttendBack
from chainrule.ops.attention import Attention
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.contract import Contract, transpose
from chainrule.ops.layout import Permute
from chainrule.records import dataclass
from chainrule.rewrite.along import axes_of
from chainrule.rewrite.recognition import is_causal, scores_of, unscaled

#: of fewer queries, under a causal mask or without, weights are as quickly kept as made again
MANY = {True: 48, False: 96}
#: what a node becomes, given what others have become
Memo = Mapping[Node, Node]


def attend(graph: Graph) -> Graph:
    """Attention of many queries disappears, and the products of its derivative; what makes them of
    some rows of scores at a time appears.

    Which do depends on shapes, and on whether anything else reads the weights.
    """
    found = _Search(graph).found
    if not found:
        return graph
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        with provenance.derived_from(node):
            if node in found:
                new = found[node].made(memo)
            else:
                new = rebuild(node, [memo[i] for i in node.inputs])
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _near(of: DType) -> float:
    """How far apart numbers may be that were rounded in different orders: a few roundings."""
    return 16 * 2.0 ** -(23 if of.bits == 32 else 52)


@dataclass(frozen=True)
class _Head:
    """What weights are made of. A scale of None is 1 / sqrt(d)."""

    q: Node
    k: Node
    masks: tuple[Node, ...]
    causal: bool
    scale: float | None

    @staticmethod
    def of(q: Node, k: Node, masks: Sequence[Node], causal: bool, scale: float | None) -> _Head:
        """One spelling of what may be spelled in several ways."""
        size = q.type.shape[-1]
        if masks and not causal:
            causal, masks = _without_causal(masks[0])
        if scale is not None:
            scale = float(str(q.type.dtype.numpy.type(scale)))
            near = _near(q.type.dtype)
            if isinstance(size, int) and math.isclose(scale * math.sqrt(size), 1, rel_tol=near):
                scale = None
        return _Head(q, k, tuple(masks), causal, scale)

    @property
    def factor(self) -> float:
        """The scale as a number."""
        size = self.q.type.shape[-1]
        assert isinstance(size, int)
        return 1 / math.sqrt(size) if self.scale is None else self.scale


@dataclass(frozen=True)
class _Forward:
    """An attention of rows `v`, and whether what reads it has its heads beside one another."""

    head: _Head
    v: Node
    turned: bool = False

    def part(self, part: str, memo: Memo, turned: bool = False) -> Node:
        """One of its results."""
        op = Attend(part, self.head.causal, self.head.factor, turned)
        operands = (self.head.q, self.head.k, self.v, *self.head.masks)
        return apply(op, *(memo[n] for n in operands))

    def made(self, memo: Memo) -> Node:
        """Its result, in the order of axes that it was written in."""
        out = self.part("out", memo, self.turned)
        return transpose(out, _swap(out.type.rank)) if self.turned else out


@dataclass(frozen=True)
class _Back:
    """A product of the derivative of an attention, for a cotangent `ct` of what it gives."""

    forward: _Forward
    ct: Node
    op: AttendBack
    order: tuple[int, ...]

    def made(self, memo: Memo) -> Node:
        """The same from the logarithms of the sums of exponentials."""
        head = self.forward.head
        before = [memo[n] for n in (head.q, head.k, self.forward.v)]
        ct = memo.get(self.ct) or apply(self.ct.op, memo[_behind(self.ct)])
        passed = [ct, self.forward.made(memo), self.forward.part("lse", memo)]
        return transpose(
            apply(self.op, *before, *passed, *(memo[n] for n in head.masks)), self.order
        )


@dataclass(frozen=True)
class _Product:
    """A product of scores, or weights, with `rows` of queries, where `crossed`, else of keys.

    Rows are (lead, the axis that is summed, width), the result (lead, the other axis, width) in
    `order`.
    """

    node: Node
    crossed: bool
    rows: Node
    order: tuple[int, ...]

    @staticmethod
    def of(node: Node, scores: Node) -> _Product | None:
        """Such a product as a node is, or None."""
        op = node.op
        if not isinstance(op, Contract) or node.inputs[0] is node.inputs[1]:
            return None
        sides = ((op.a, node.inputs[0]), (op.b, node.inputs[1]))
        (a, _), (b, other) = sides if node.inputs[0] is scores else sides[::-1]
        lead, row, column = a[:-2], *a[-2:]
        width = [c for c in b if c not in a]
        for crossed, summed, kept in ((True, row, column), (False, column, row)):
            rows, result = [*lead, summed, *width], [*lead, kept, *width]
            if len(width) == 1 and set(b) == set(rows) and set(op.out) == set(result):
                order = tuple(result.index(c) for c in op.out)
                return _Product(node, crossed, transpose(other, [b.index(c) for c in rows]), order)
        return None


class _Search:
    """What is `found`: attention of a graph, and the products of its derivative."""

    def __init__(self, graph: Graph) -> None:
        self.found: dict[Node, _Forward | _Back] = {}
        heads: dict[_Head, list[Node]] = {}
        for node in graph.nodes:
            if isinstance(node.op, Attention):
                q, k, _, *masks = node.inputs
                head = _Head.of(q, k, masks, node.op.causal, node.op.scale)
                if _is_worth(node, head.causal):
                    heads.setdefault(head, []).append(node)
        if not heads:
            return
        self.readers, self.roots = users(graph.nodes), set(graph.roots)
        self.time = {node: i for i, node in enumerate(graph.nodes)}
        weights = {w: node for node in graph.nodes if (w := _weighing(node)) is not None}
        for head, nodes in heads.items():
            of = {n: _Forward(head, n.inputs[2], self.is_turned(n)) for n in nodes}
            back = self.backward(list(of.values()), weights[head]) if head in weights else {}
            if back is not None:
                self.found |= of
                self.found |= back

    def backward(self, forward: Sequence[_Forward], weights: Node) -> dict[Node, _Back] | None:
        """What becomes of all that reads weights; None where something else does too."""
        products: dict[Node, list[_Product]] = {}  # by cotangent
        of: dict[Node, _Forward] = {}
        passed = {weights}
        head = forward[0].head
        for ds in self.readers[weights]:
            pulled = self.pulled(weights, ds)
            if pulled is None:
                continue
            ct, v, seen = pulled
            found = [_Product.of(n, ds) for n in self.readers.get(ds, ())]
            attention = next((f for f in forward if f.v is v), None)
            if attention is None or any(
                p is None or p.rows is not (head.q if p.crossed else head.k) for p in found
            ):
                return None
            of[ct] = attention
            products[ct] = [p for p in found if p is not None]
            passed |= {*seen, ds}
        for reader in self.readers[weights]:
            value = _Product.of(reader, weights)
            if reader in passed:
                continue
            if value is None or not value.crossed:
                return None
            wide = value.rows.type.shape[-1]
            alike = next((f for f in forward if f.v.type.shape[-1] == wide), None)
            if alike is None:
                return None
            of.setdefault(value.rows, alike)
            products.setdefault(value.rows, []).append(value)
        if not self.roots.isdisjoint(passed):
            return None
        made = [self.group(of[ct], ct, group) for ct, group in products.items()]
        return None if None in made else dict(chain.from_iterable(m.items() for m in made if m))

    def pulled(self, p: Node, ds: Node) -> tuple[Node, Node, set[Node]] | None:
        """The cotangent and the values that p * (dp - sum(dp * p)) is of, and what stands between;
        None where a node is no such thing.
        """
        below = _other(ds, p)
        last = (p.type.rank - 1,)
        if below is None or below.op.name != "sub":
            return None
        dp, shift = below.inputs
        if not isinstance(shift.op, Expand) or shift.op.axes != last:
            return None
        (total,) = shift.inputs
        (inner,) = total.inputs if isinstance(total.op, Sum) and total.op.axes == last else (None,)
        if inner is None or _other(inner, p) is not dp:
            return None
        steps = {inner: [total], total: [shift], shift: [below], below: [ds]}
        if any(self.readers[n] != by for n, by in steps.items()):
            return None
        factors = _outer(dp)
        alone = set(self.readers[dp]) == {inner, below}
        return (*factors, {dp, *steps}) if factors and alone else None

    def group(
        self, forward: _Forward, ct: Node, products: Sequence[_Product]
    ) -> dict[Node, _Back] | None:
        """What becomes of the products for one cotangent; None where they are there before it."""
        head = forward.head
        ends = {p.node: self.scaled(p.node, head.factor) for p in products if p.rows is not ct}
        factor = 1.0 if any(end is None for end in ends.values()) else head.factor
        found: dict[Node, _Back] = {}
        for p in products:
            part = "dv" if p.rows is ct else "dk" if p.crossed else "dq"
            end = ends.get(p.node) if factor != 1 else None
            turned, order = self.laid(end or p.node, p.order)
            op = AttendBack(part, head.causal, head.factor, turned, factor)
            found[end or p.node] = _Back(forward, ct, op, order)
        begin = max(self.time.get(n, self.time[_behind(n)]) for n in (ct, forward.v))
        return found if begin < min(self.time[n] for n in found) else None

    def scaled(self, node: Node, scale: float) -> Node | None:
        """What scales a node, if that is all that becomes of it."""
        if node in self.roots or len(self.readers[node]) != 1:
            return None
        (reader,) = self.readers[node]
        of, by = unscaled(reader, _see)
        near = _near(node.type.dtype)
        return reader if of is node and math.isclose(by, scale, rel_tol=near) else None

    def is_turned(self, node: Node) -> bool:
        """Whether a reader has the rows of a result before the last of the axes before them."""
        rank = node.type.rank
        readers = self.readers.get(node, ()) if rank > 2 else ()
        return any(isinstance(n.op, Permute) and n.op.perm == _swap(rank) for n in readers)

    def laid(self, node: Node, order: tuple[int, ...]) -> tuple[bool, tuple[int, ...]]:
        """Whether a result in some order had better be turned, and the order of one that is."""
        rank = len(order)
        if rank < 3:
            return False, order
        swap = _swap(rank)
        plain = order == tuple(range(rank)) and self.is_turned(node)
        turned = plain or order == swap
        return turned, tuple(swap[i] for i in order) if turned else order


def _is_worth(node: Node, causal: bool) -> bool:
    """Whether an attention is of many queries, and of widths that are known."""
    q, k, v, *_ = node.inputs
    count, size = q.type.shape[-2:]
    known = isinstance(size, int) and size > 0 and isinstance(v.type.shape[-1], int)
    many = not isinstance(count, int) or count >= MANY[causal]
    some = 0 not in (*q.type.shape, *k.type.shape)
    return known and many and some and q.type.dtype.bits >= 32


def _weighing(node: Node) -> _Head | None:
    """What a node weighs, if it is a softmax of scores."""
    if node.op.name not in ("softmax", "masked_softmax"):
        return None
    scores, *masks = node.inputs
    found = scores_of(scores, _see)
    if found is None or (not masks and axes_of(node.op) != (node.type.rank - 1,)):
        return None
    q, k, scale = found
    return _Head.of(q, k, masks, False, scale)


def _without_causal(mask: Node) -> tuple[bool, tuple[Node, ...]]:
    """Whether a mask is causal, or that and another; and what is left of it then."""
    if is_causal(mask):
        return True, ()
    if mask.op.name == "and_":
        for one, other in (mask.inputs, mask.inputs[::-1]):
            if is_causal(one):
                return True, (other,)
    return False, (mask,)


def _outer(dp: Node) -> tuple[Node, Node] | None:
    """x and y, each (lead, rows, width), where a node is x @ yᵀ, or None."""
    op = dp.op
    if not isinstance(op, Contract) or len(op.out) < 2 or len(op.summed) != 1:
        return None
    lead, row, column = op.out[:-2], *op.out[-2:]
    sides = ((op.a, dp.inputs[0]), (op.b, dp.inputs[1]))
    (a, x), (b, y) = sides if row in op.a else sides[::-1]
    rows, columns = [*lead, row, op.summed], [*lead, column, op.summed]
    if set(a) != set(rows) or set(b) != set(columns):
        return None
    return transpose(x, [a.index(c) for c in rows]), transpose(y, [b.index(c) for c in columns])


def _other(node: Node, factor: Node) -> Node | None:
    """What a factor is multiplied with, where a node is such a product."""
    if node.op.name != "mul" or factor not in node.inputs:
        return None
    return node.inputs[1] if node.inputs[0] is factor else node.inputs[0]


def _behind(node: Node) -> Node:
    """The node of the graph that a permuted one was made of here."""
    return node.inputs[0] if isinstance(node.op, Permute) else node


def _see(node: Node, name: str) -> tuple[Node, ...] | None:
    return node.inputs if node.op.name == name else None


def _swap(rank: int) -> tuple[int, ...]:
    """The permutation that turns a result."""
    return (*range(rank - 3), rank - 2, rank - 3, rank - 1)
