"""The sizes that a graph speaks of: which are known at a call, what they must be, and as data."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.errors import CompileError
from chainrule.given import is_int
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.size import Dim, Quotient, Size, is_nonnegative, symbols_of
from chainrule_runtime.manifest import DimData


def sizes_of(leaves: Sequence[Node]) -> tuple[str, ...]:
    """The symbolic sizes that the shapes of leaves speak of, sorted."""
    return tuple(sorted({s for leaf in leaves for d in leaf.type.shape for s in symbols_of(d)}))


def check_sizes(graph: Graph, known: Sequence[str]) -> None:
    """Raise CompileError where a graph speaks of a size that is not `known` at a call."""
    for node in all_nodes(graph):
        for name in sorted({s for d in node.type.shape for s in symbols_of(d)} - set(known)):
            raise CompileError(
                f"the size {name} of {node!r} can't be known: no input that is needed has it",
                "let an output depend on an input with that size",
                where=provenance.line_of(node),
            )


def check_number(
    name: str, number: object, symbols: Sequence[str], what: str = "", least: int = 1
) -> None:
    """Raise CompileError where there is no size of that name, or it can't be such a number."""
    if name not in symbols:
        have = ", ".join(symbols) or "all known"
        raise CompileError(f"{what}the sizes are {have}, not {name!r}: {number!r}")
    if not is_int(number) or number < least:
        raise CompileError(f"{what}the size {name} is an int from {least} on, not {number!r}")


def demands_of(graph: Graph, written: Graph | None = None) -> list[Dim]:
    """Sizes that must be at least 1 for a graph to have a meaning.

    Those that its ops ask for, or composites that were `written` before passes opened them, and
    n + 1 for each n that could be below 0 in a shape of it, or of what was written.
    """
    found: dict[Dim, None] = {}
    nodes = all_nodes(graph)
    before = [] if written is None else all_nodes(written)
    for node in (*nodes, *(n for n in before if n.op.composite)):
        found.update(dict.fromkeys(node.op.demands(*[i.type for i in node.inputs])))
    shapes = dict.fromkeys(node.type.shape for node in (*nodes, *before))
    found.update((d + 1, None) for shape in shapes for d in shape if not is_nonnegative(d))
    return list(found)


def all_nodes(graph: Graph) -> list[Node]:
    """The nodes of a graph, and those of the bodies of loops in it."""
    bodies = dict.fromkeys(body for node in graph.nodes for body in node.op.bodies())
    return [*graph.nodes, *(node for body in bodies for node in all_nodes(body))]


def dim_data(dim: Dim) -> DimData:
    """A size as plain data, for the runtime."""
    if not isinstance(dim, Size):
        return dim
    terms = []
    for monomial, c in dim.terms:
        factors: list[object] = []
        for atom in monomial:
            if isinstance(atom, str):
                factors.append(atom)
            else:
                kind = "//" if isinstance(atom, Quotient) else "%"
                factors.append([kind, dim_data(atom.numerator), dim_data(atom.denominator)])
        terms.append([c, factors])
    return {"terms": terms}
