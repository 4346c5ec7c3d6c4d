"""One model's graph becomes that of many, which stand along a new last axis.

What depends on no leaf that models have of their own stays as it is, computed once for all. Of the
rest each role is spread in its own way: maps, folds and products are the same ops on one more axis;
whatever says where elements stand is done for `Each`. Last, so that vectors go over the models: a
net of width 3 fills them as well as one of width 300.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, apply
from chainrule.ops.axes import Expand, Reduce
from chainrule.ops.body import Body
from chainrule.ops.contract import Contract, transpose
from chainrule.ops.each import Each, Every, Own, models_of
from chainrule.ops.layout import Reshape
from chainrule.ops.scan import Scan
from chainrule.ops.source import Leaf

#: of a product the letter that models stand along
_MODEL = "Z"


def spread(graph: Graph) -> Graph:
    """Values of one model disappear; values of all models appear, which stand along a last axis.

    What is the same for all is computed once.
    """
    count = models_of(graph)
    if count is None:
        return graph
    spreading = _Spread(count)
    for node in walk(graph.roots):
        if isinstance(node.op, Own):
            spreading.wide[node] = node.inputs[0]
    ends = [n.inputs[0] if isinstance(n.op, Every) else n for n in graph.roots]
    spreading.run(ends)
    roots = [
        spreading.widened(end) if isinstance(root.op, Every) else end
        for root, end in zip(graph.roots, ends, strict=True)
    ]
    return graph.with_roots(roots)


class _Spread:
    """Nodes of one model and, for those that differ by model, what they are of all: `wide`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.wide: dict[Node, Node] = {}
        self.bodies: dict[tuple[Body, tuple[bool, ...]], Body] = {}

    def run(self, roots: Sequence[Node]) -> None:
        """Spread whatever roots depend on."""
        for node in walk(roots, stop=self.wide.__contains__):
            if node in self.wide or not any(i in self.wide for i in node.inputs):
                continue
            make = _BY_ROLE.get(str(node.op.role), _Spread.each)
            with provenance.derived_from(node):
                self.wide[node] = provenance.inherit(make(self, node), node)

    def widened(self, node: Node) -> Node:
        """The node of all models; where they share it, repeated."""
        if node in self.wide:
            return self.wide[node]
        return apply(Expand((*node.type.shape, self.count), (node.type.rank,)), node)

    # by role

    def each(self, node: Node) -> Node:
        """Whatever says where elements stand."""
        if isinstance(node.op, Expand):
            return apply(replace(node.op, shape=(*node.op.shape, self.count)), *self.all(node))
        flags = tuple(i in self.wide for i in node.inputs)
        inputs = [self.wide.get(i, i) for i in node.inputs]
        return apply(Each(node.op, self.count, flags), *inputs)

    def all(self, node: Node) -> list[Node]:
        """The operands of all models."""
        return [self.widened(i) for i in node.inputs]

    def map(self, node: Node) -> Node:
        if node.op.buffered or node.op.indexed:
            return self.each(node)
        return apply(node.op, *self.all(node))

    def alias(self, node: Node) -> Node:
        return apply(Reshape((*node.type.shape, self.count)), *self.all(node))

    def fold(self, node: Node) -> Node:
        """A fold of a model's last axes keeps the order of a fold along rows."""
        op, rank = node.op, node.inputs[0].type.rank
        assert isinstance(op, Reduce)
        last = set(op.axes) == set(range(rank - len(op.axes), rank))
        return apply(replace(op, by_lanes=last), *self.all(node))

    def product(self, node: Node) -> Node:
        op = node.op
        assert isinstance(op, Contract)
        a, b = (
            letters + (_MODEL if i in self.wide else "")
            for letters, i in zip((op.a, op.b), node.inputs, strict=True)
        )
        return apply(Contract(a, b, op.out + _MODEL), *(self.wide.get(i, i) for i in node.inputs))

    def attend(self, node: Node) -> Node:
        """Attention of all models: they are groups beside one another."""
        first = [self.turned(self.widened(i), -1) for i in node.inputs]
        return self.turned(apply(node.op, *first), 0)

    def turned(self, x: Node, axis: int) -> Node:
        """The last axis put first, or the first one last."""
        order = list(range(x.type.rank))
        order.insert(0 if axis else len(order), order.pop(axis))
        return transpose(x, order)

    def loop(self, node: Node) -> Node:
        """A loop of all models: they take their steps together."""
        op = node.op
        assert isinstance(op, Scan)
        body, carries = op.body_of_step, len(op.body_of_step.carries)
        wide = tuple(i < carries or n in self.wide for i, n in enumerate(node.inputs))
        if (body, wide) not in self.bodies:
            self.bodies[body, wide] = self.body(body, wide)
        pairs = zip(node.inputs, wide, strict=True)
        inputs = [self.widened(n) if own else n for n, own in pairs]
        return apply(replace(op, body_of_step=self.bodies[body, wide]), *inputs)

    def body(self, body: Body, wide: Sequence[bool]) -> Body:
        inside = _Spread(self.count)
        pairs = zip(body.leaves, wide, strict=True)
        inside.wide = {n: self.leaf(n) for n, own in pairs if own}
        inside.run(body.roots)
        carries, slices, constants = (
            tuple(inside.wide.get(n, n) for n in group)
            for group in (body.carries, body.slices, body.constants)
        )
        nexts, ys = (tuple(map(inside.widened, group)) for group in (body.nexts, body.ys))
        return Body(carries, slices, constants, nexts, ys)

    def leaf(self, one: Node) -> Node:
        """A leaf of a loop's step that is given what all models have."""
        assert isinstance(one.op, Leaf)
        shape = (*one.type.shape, self.count)
        new = apply(replace(one.op, type=one.type.with_shape(shape)))
        return provenance.inherit(new, one)


_BY_ROLE: dict[str, Callable[[_Spread, Node], Node]] = {
    "pointwise": _Spread.map,
    "light": _Spread.map,
    "alias": _Spread.alias,
    "reduce": _Spread.fold,
    "contract": _Spread.product,
    "attend": _Spread.attend,
    "scan": _Spread.loop,
}
