"""Forms that loops are made from: products that are none become maps, folds become suffixes.

Contractions without a summed axis, and those without a free one, disappear; so do reductions that
fold the last axis together with others that do not lie before it.
"""

from __future__ import annotations

from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim, product
from chainrule.ops import build
from chainrule.ops.assemble import Concat
from chainrule.ops.axes import Reduce, Sum
from chainrule.ops.contract import Contract, transpose
from chainrule.ops.layout import Place, Reshape, Slice
from chainrule.rewrite.rule import Rules, See, recognize, rule

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
def sum_of_places(node: Node, see: See) -> Node | None:
    """Given what stands among zeros, one part beside the other, added up: as derivatives of slices
    that share a tensor out are. The parts put together.
    """
    places: list[Node] = []
    pending = list(node.inputs)
    while pending:
        term = pending.pop()
        inner, op = see(term, "add"), term.op
        if inner is not None and len(places) + len(pending) < MAX_PARTS:
            pending.extend(inner)
        elif see(term, "place") is None or not isinstance(op, Place) or not op.is_plain:
            return None
        else:
            places.append(term)
    axes = {i for p in places for i, d in enumerate(p.inputs[0].type.shape) if d != p.type.shape[i]}
    if len(axes) != 1:
        return None
    (axis,) = axes
    at: Dim = 0
    found = {p.op.starts[axis]: p.inputs[0] for p in places if isinstance(p.op, Place)}
    ordered: list[Node] = []
    while at in found:
        ordered.append(found.pop(at))
        at = at + ordered[-1].type.shape[axis]
    whole = at == node.type.shape[axis] and len(ordered) == len(places)
    return apply(Concat(axis), *ordered) if whole else None


@recognize("reshape", some=["slice"])
def slice_of_parted(node: Node, see: See) -> Node | None:
    """Given part of the last axis, then parted into several, whole ones of all that it is parted
    into: which are read where they lie, while a reshape needs memory of its own.
    """
    (part,) = node.inputs
    (x,) = see(part, "slice") or (None,)
    if x is None or not isinstance(part.op, Slice):
        return None
    last, wide = part.type.rank - 1, x.type.shape[-1]
    parts, start = node.type.shape[last:], part.op.starts[-1]
    inner = product(parts[1:])
    alike = node.type.shape[:last] == part.type.shape[:-1] == x.type.shape[:-1]
    turned = set(part.op.steps) != {1}  # the other axes too, of which all is taken
    if len(parts) < 2 or not alike or turned:
        return None
    if not all(isinstance(d, int) for d in (inner, start, wide)) or start % inner or wide % inner:
        return None
    whole = apply(Reshape((*x.type.shape[:-1], wide // inner, *parts[1:])), x)
    starts = (*(0 for _ in range(last)), start // inner, *(0 for _ in parts[1:]))
    return apply(Slice(starts, node.type.shape, (1,) * node.type.rank), whole)


def _operands(node: Node, op: Contract) -> tuple[tuple[Node, str], tuple[Node, str]]:
    return (node.inputs[0], op.a), (node.inputs[1], op.b)


def _aligned(x: Node, letters: str, out: str, node: Node) -> Node:
    ordered = [c for c in out if c in letters]
    x = transpose(x, [letters.index(c) for c in ordered])
    return build.expand(x, node.type.shape, tuple(i for i, c in enumerate(out) if c not in letters))


LOWERING = Rules(
    [
        product_without_sum,
        product_without_free_axes,
        split_fold,
        split_concat,
        sum_of_places,
        slice_of_parted,
        # of a derivative that is a choice one factor is kept, not both and what chooses
        rule("factor_of_choices", "where(c, x * y, x * z)", "x * where(c, y, z)"),
    ]
)
