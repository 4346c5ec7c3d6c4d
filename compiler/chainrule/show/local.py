"""Cotangents in terms of each other, as a lecture writes them: one local expression each."""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, rebuild
from chainrule.ops.source import leaf
from chainrule.rewrite.passes import simplify


def by_parts(named: Mapping[Node, str]) -> dict[Node, Node]:
    """For each node its expression, simplified, in which the others stand by their names alone.

    The expression for W's gradient reads that of the layer above and no further, so that all of
    them together are linear in the size of the graph.
    """
    stand = {n: leaf("cotangent", name, n.type) if n.inputs else n for n, name in named.items()}
    local: dict[Node, Node] = {}
    for node in walk(named):
        local[node] = rebuild(node, [stand.get(i) or local[i] for i in node.inputs])
    simple = simplify(Graph(tuple(local[n] for n in named))).outputs
    return dict(zip(named, simple, strict=True))
