"""What a graph computes as text, equal in every process: what a name on disk can be made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from functools import cached_property

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node
from chainrule.records import dataclass


@dataclass(frozen=True)
class Unwritten:
    """A graph that is written when somebody asks for it.

    `tell` gives all that decides what it computes of what it is given, as text that is equal in
    every process and no other graph's; None where that can't be told.
    """

    tell: Callable[[], str | None] = field(repr=False)
    write: Callable[[], Graph] = field(repr=False)

    @cached_property
    def graph(self) -> Graph:
        """The graph, from now on."""
        return self.write()


def written(graph: Graph | Unwritten) -> Graph:
    """A graph, written if it was not."""
    return graph if isinstance(graph, Graph) else graph.graph


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
