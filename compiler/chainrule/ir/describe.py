"""What a graph computes as text, equal in every process: what a name on disk can be made of."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.ir import provenance
from chainrule.ir.graph import walk
from chainrule.ir.node import Node


def described(roots: Sequence[Node], given: Sequence[Node]) -> str | None:
    """All that decides what roots are, given some nodes; None where an op can't say what it is.

    Nodes are numbered in the order of the graph, those given first. No name is in it but those of
    integers that are computed: a position outside its bounds is reported by its name.
    """
    number = {node: i for i, node in enumerate(given)}
    lines = [repr(tuple((n.type.dtype, n.type.shape) for n in given))]
    for node in walk(roots, stop=number.__contains__):
        if node in number:
            continue
        op = node.op
        content = op.content(*[i.type for i in node.inputs])
        if content is None:
            return None
        name = provenance.user_name_of(node) if node.type.dtype.is_integer else None
        operands = [number[i] for i in node.inputs]
        lines.append(f"{type(op).__module__}.{content} {operands} {name!r}")
        number[node] = len(number)
    lines.append(repr([number[root] for root in roots]))
    return "\n".join(lines)
