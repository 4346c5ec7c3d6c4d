"""What is as well computed again where it is folded as written and read back.

The derivative of a norm folds its cotangent, times the scale, times the norm: three tensors that a
product would write beside the cotangent itself, which is there in any case.
"""

from __future__ import annotations

from operator import or_

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, users
from chainrule.ir.node import Node, apply, rebuild
from chainrule.ops.axes import Reduce
from chainrule.ops.elementwise import LIGHT
from chainrule.schedule.reading import sources

#: ops behind which a value lies in memory where something else reads it
_HEAVY = ("contract", "reduce", "nest", "attend", "scan", "alias")


def lighten(graph: Graph) -> Graph:
    """Sums and products of what lies in memory anyway, read by folds and by what needs these,
    disappear; light ones, computed where they are read, appear.
    """
    found = _light(graph)
    if not found:
        return graph
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = [memo[i] for i in node.inputs]
        with provenance.derived_from(node):
            new = apply(LIGHT[node.op.name], *inputs) if node in found else rebuild(node, inputs)
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _light(graph: Graph) -> set[Node]:
    """The nodes that become light."""
    readers, roots = users(graph.nodes), set(graph.roots)
    if not any(isinstance(n.op, Reduce) for n in graph.nodes):
        return set()
    stage: dict[Node, int] = {}  # heavy ops on the longest way to a node
    for node in graph.nodes:
        stage[node] = max((stage[i] for i in node.inputs), default=0) + (node.op.role in _HEAVY)
    found: set[Node] = set()

    def is_kept(base: Node) -> bool:
        """Whether an operand lies in memory whatever becomes of its reader."""
        return base in roots or any(map(_reads_memory, readers[base]))

    def is_there(node: Node, base: Node) -> bool:
        early = base.op.role == "leaf" or stage[base] < stage[node]
        return early or base in found or is_kept(base)

    for node in graph.nodes:  # operands first
        fits = node.op.role == "pointwise" and node.op.name in LIGHT and node.type.rank
        if (
            fits
            and node not in roots
            and all(is_there(node, base) for i in node.inputs for base, _ in sources(i))
        ):
            found.add(node)
    for node in reversed(graph.nodes):  # readers first
        if node in found:
            folding = [r in found or isinstance(r.op, Reduce) for r in readers[node]]
            later = (_is_later(r, node, stage) for r in readers[node])
            if not any(folding) or not all(map(or_, folding, later)):
                found.remove(node)
    return found


def _reads_memory(reader: Node) -> bool:
    """Whether a node's operands lie in memory: a fold over leading axes is a kernel's beginning."""
    return reader.op.role in _HEAVY and not (
        isinstance(reader.op, Reduce) and _is_trailing(reader.op, reader.inputs[0])
    )


def _is_trailing(fold: Reduce, x: Node) -> bool:
    rank = x.type.rank
    return set(fold.axes) == set(range(rank - len(fold.axes), rank))


def _is_later(reader: Node, node: Node, stage: dict[Node, int]) -> bool:
    """Whether a reader is pointwise and behind a fold of what it reads."""
    return reader.op.role == "pointwise" and stage[reader] > stage[node]
