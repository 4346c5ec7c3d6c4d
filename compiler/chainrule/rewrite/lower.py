"""Forms that loops are made from: products that are none become maps, folds become suffixes.

Contractions without a summed axis, and those without a free one, disappear; so do reductions that
fold the last axis together with others that do not lie before it.
"""

from __future__ import annotations

from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim
from chainrule.ops import build
from chainrule.ops.assemble import Concat
from chainrule.ops.axes import Reduce, Sum
from chainrule.ops.contract import Contract, transpose
from chainrule.ops.layout import Place
from chainrule.rewrite.rule import Rules, See, recognize

#: Parts that one concatenation puts together, a loop for each.
MAX_PARTS = 32


@recognize("contract")
def product_without_sum(node: Node, see: See) -> Node | None:
    """Given an outer product, the product of its operands repeated along each other's axes."""
    op = node.op
    assert isinstance(op, Contract)
    if op.summed:
        return None
    return build.call("mul", *(_aligned(x, a, op.out, node) for x, a in _operands(node, op)))


@recognize("contract")
def product_without_free_axes(node: Node, see: See) -> Node | None:
    """Given row-by-row inner products, the sum of the elementwise product."""
    op = node.op
    assert isinstance(op, Contract)
    if set(op.a) != set(op.b) or not op.summed:
        return None
    order = op.out + op.summed
    x, y = (transpose(v, [letters.index(c) for c in order]) for v, letters in _operands(node, op))
    axes = tuple(range(len(op.out), len(order)))
    return apply(Sum(axes), build.call("mul", x, y))


@recognize("sum", "max", "min", "prod")
def split_fold(node: Node, see: See) -> Node | None:
    """Given a fold over the last axis and others apart, the last ones first, then the rest."""
    op = node.op
    assert isinstance(op, Reduce)
    rank = node.inputs[0].type.rank
    tail = [a for a in op.axes if all(b in op.axes for b in range(a, rank))]
    if not tail or len(tail) == len(op.axes):
        return None
    kind, rest = type(op), tuple(a for a in op.axes if a not in tail)
    return apply(kind(rest), apply(kind(tuple(tail)), *node.inputs))


@recognize("concat")
def split_concat(node: Node, see: See) -> Node | None:
    """Given a great many parts put together, runs of them put together first.

    One function with a loop for each would take LLVM time quadratic in their number.
    """
    parts = node.inputs
    if len(parts) <= MAX_PARTS:
        return None
    runs = [parts[i : i + MAX_PARTS] for i in range(0, len(parts), MAX_PARTS)]
    return apply(node.op, *[apply(node.op, *run) for run in runs])


@recognize("add", some=["place"])
def parts_put_together(node: Node, see: See) -> Node | None:
    """Given a sum of parts, each placed among zeros beside the others, the parts put together."""
    parts: list[tuple[Place, Node]] = []
    pending = [node]
    while pending:
        n = pending.pop()
        placed = see(n, "place")
        if placed and isinstance(n.op, Place):
            parts.append((n.op, placed[0]))
        elif see(n, "add") and len(parts) + len(pending) < MAX_PARTS:
            pending += n.inputs
        else:
            return None
    axes = {i for op, x in parts for i, d in enumerate(x.type.shape) if d != op.shape[i]}
    if len(axes) != 1 or any(op.fill != 0 or {*op.steps} != {1} for op, _ in parts):
        return None
    (axis,) = axes
    at = {op.starts[axis]: x for op, x in parts}
    order: list[Node] = []
    end: Dim = 0
    while end in at:
        order.append(at.pop(end))
        end = end + order[-1].type.shape[axis]
    if len(order) < len(parts) or end != node.type.shape[axis]:
        return None
    return apply(Concat(axis), *order)


def _operands(node: Node, op: Contract) -> tuple[tuple[Node, str], tuple[Node, str]]:
    return (node.inputs[0], op.a), (node.inputs[1], op.b)


def _aligned(x: Node, letters: str, out: str, node: Node) -> Node:
    ordered = [c for c in out if c in letters]
    x = transpose(x, [letters.index(c) for c in ordered])
    return build.expand(x, node.type.shape, tuple(i for i, c in enumerate(out) if c not in letters))


LOWERING = Rules(
    [product_without_sum, product_without_free_axes, split_fold, split_concat, parts_put_together]
)
