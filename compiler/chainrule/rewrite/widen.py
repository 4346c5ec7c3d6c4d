"""Bfloat16 is memory: what is computed of it is computed in float32, and rounded once.

The product of two bfloat16 is exact in float32, sums and folds are float32's, and to round a
float32 to nearest, ties to even, is what processors with bfloat16 arithmetic do as well.
"""

from __future__ import annotations

from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply, rebuild
from chainrule.ir.types import bfloat16
from chainrule.ops import build
from chainrule.ops.cast import Cast
from chainrule.ops.source import Full, full
from chainrule.rewrite.expand import expand_where


def widen(graph: Graph) -> Graph:
    """Arithmetic on bfloat16 disappears; casts to float32 before and from it after it appear.

    Composites are still whole, so that a softmax is rounded once; those that users wrote disappear,
    as their ops are to be rounded one by one. What only moves elements moves bfloat16. No rounding
    is left out: what is fused later rounds as this says.
    """
    if all(node.dtype != bfloat16 for node in graph.nodes):
        return graph
    graph = expand_where(graph, lambda node: node.op.stepwise)
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = [memo[i] for i in node.inputs]
        if _moves(node) or all(n.dtype != bfloat16 for n in (node, *inputs)):
            new = rebuild(node, inputs)
        else:
            with provenance.derived_from(node):
                new = build.cast(apply(node.op, *map(_wide, inputs)), node.dtype)
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _moves(node: Node) -> bool:
    """Whether a node computes nothing of bfloat16 itself: a loop's body has been widened."""
    op = node.op
    return op.moves or op.rounds or op.role in ("leaf", "view", "alias") or bool(op.bodies())


def _wide(node: Node) -> Node:
    """A bfloat16 as float32; other nodes as they are."""
    if node.dtype != bfloat16:
        return node
    if isinstance(node.op, Full):
        return full(node.op.value, bfloat16.wide, node.shape)
    return apply(Cast(bfloat16.wide, role="light"), node)
