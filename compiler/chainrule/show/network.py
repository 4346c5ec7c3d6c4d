"""The graph for networkx: to draw, to measure, to test our own walks against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainrule.ir import provenance
from chainrule.ir.graph import walk
from chainrule.ir.node import Node
from chainrule.show.graph import attributes


def to_networkx(roots: Sequence[Node]) -> Any:
    """A `networkx.DiGraph` of everything that roots depend on, with edges from operand to result.

    Its nodes are numbers in an order in which operands come first; each has `op`, `attributes`,
    `shape` (ints, and names for symbolic sizes), `dtype`, `name` ("" where it has none) and `line`.
    An edge has `operands`: the places at which the result reads it.
    """
    import networkx

    nodes = walk(roots)
    numbers = {node: i for i, node in enumerate(nodes)}
    graph = networkx.DiGraph()
    for node, i in numbers.items():
        graph.add_node(
            i,
            op=str(node.op.name),
            attributes=attributes(node),
            shape=tuple(d if isinstance(d, int) else str(d) for d in node.shape),
            dtype=str(node.dtype),
            name=provenance.name_of(node) or "",
            line=str(provenance.line_of(node) or ""),
        )
        for operand in dict.fromkeys(node.inputs):
            places = tuple(k for k, other in enumerate(node.inputs) if other is operand)
            graph.add_edge(numbers[operand], i, operands=places)
    return graph
