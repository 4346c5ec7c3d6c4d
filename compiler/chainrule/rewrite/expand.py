"""Composites become the ops that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, rebuild


def expand_composites(graph: Graph) -> Graph:
    """Composites (softmax, pick, ops that users defined) disappear; what they stand for appears.

    The expansion keeps the composite's name and line. It may hold composites again.
    """
    return expand_where(graph, lambda node: True)


def expand_where(graph: Graph, wanted: Callable[[Node], bool]) -> Graph:
    """The graph without the composites that are wanted, and without those among what they hold."""

    def opens(node: Node) -> bool:
        return node.op.composite and wanted(node)

    while any(map(opens, graph.nodes)):
        graph = graph.with_roots(_expand(graph.roots, opens))
    return graph


def _expand(roots: Sequence[Node], opens: Callable[[Node], bool]) -> list[Node]:
    memo: dict[Node, Node] = {}
    for node in walk(roots):
        inputs = [memo[i] for i in node.inputs]
        if not opens(node):
            memo[node] = provenance.inherit(rebuild(node, inputs), node)
            continue
        with provenance.derived_from(node):
            memo[node] = provenance.inherit(node.op.expand(*inputs), node)
    return [memo[r] for r in roots]
