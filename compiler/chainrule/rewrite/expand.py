"""Composites become the ops that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, rebuild


def expand_composites(graph: Graph) -> Graph:
    """Composites (softmax, pick, ops that users defined) disappear; what they stand for appears.

    The expansion keeps the composite's name and line. It may hold composites again.
    """
    while any(node.op.composite for node in graph.nodes):
        graph = graph.with_roots(_expand(graph.roots))
    return graph


def _expand(roots: Sequence[Node]) -> list[Node]:
    memo: dict[Node, Node] = {}
    for node in walk(roots):
        inputs = [memo[i] for i in node.inputs]
        if not node.op.composite:
            memo[node] = provenance.inherit(rebuild(node, inputs), node)
            continue
        with provenance.derived_from(node):
            memo[node] = provenance.inherit(node.op.expand(*inputs), node)
    return [memo[r] for r in roots]
