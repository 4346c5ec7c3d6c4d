"""What computes nothing is taken out."""

from __future__ import annotations

from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, rebuild


def drop_unused(graph: Graph) -> Graph:
    """Barriers to derivatives, casts to the same type and updates of a leaf to itself disappear.

    What no output and no update needs is in no graph to begin with.
    """
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = [memo[i] for i in node.inputs]
        new = inputs[0] if _is_identity(node) else rebuild(node, inputs)
        memo[node] = provenance.inherit(new, node)
    updates = ((leaf, memo[value]) for leaf, value in graph.updates)
    kept = tuple((leaf, value) for leaf, value in updates if value is not leaf)
    return Graph(tuple(memo[node] for node in graph.outputs), kept)


def _is_identity(node: Node) -> bool:
    same = node.op.name in ("stop_gradient", "cast")
    return same and node.inputs[0].type == node.type
