"""What a loop computes and nobody reads is taken out of its body."""

from __future__ import annotations

from collections.abc import Hashable

from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, Op, apply, rebuild

#: Where the operands of a node that is made anew come from, and what it is then.
Change = tuple[Op, tuple[int, ...]]


def drop_unread(graph: Graph) -> Graph:
    """Results of loops that nothing reads disappear, with what each step did for them alone.

    So do carried values on which no other result depends, and stacks that no step reads.
    """
    families: dict[Hashable, list[Node]] = {}
    for node in graph.nodes:
        if node.op.family is not None:
            families.setdefault((node.op.family, node.inputs), []).append(node)
    if not families:
        return graph
    live = set(graph.roots)
    changes: dict[Node, Change] = {}
    for node in reversed(graph.nodes):
        members = families.get((node.op.family, node.inputs)) if node.op.family else None
        if members is None or node is not members[0]:
            if node in live and members is None:
                live.update(node.inputs)
            continue
        used = [n for n in members if n in live]
        found = node.op.narrow([n.op for n in used]) if used else None
        if found is not None:
            changes.update({n: (found[0][n.op], found[1]) for n in used})
        if used:
            kept = found[1] if found is not None else range(len(node.inputs))
            live.update(node.inputs[i] for i in kept)
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        if node not in live:
            continue
        if node in changes:
            op, kept = changes[node]
            with provenance.derived_from(node):
                new = apply(op, *(memo[node.inputs[i]] for i in kept))
        else:
            new = rebuild(node, [memo[i] for i in node.inputs])
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])
