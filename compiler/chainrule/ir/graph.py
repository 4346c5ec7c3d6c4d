"""A graph: what is computed and what is changed, and walks over it. No walk recurses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.node import Node, rebuild
from chainrule.records import dataclass


@dataclass(frozen=True)
class Graph:
    """Outputs to compute, and updates `(leaf, next value)` that take effect together at the end."""

    outputs: tuple[Node, ...]
    updates: tuple[tuple[Node, Node], ...] = ()

    @property
    def roots(self) -> tuple[Node, ...]:
        """Every node the graph is for."""
        return (*self.outputs, *(value for _, value in self.updates))

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node, operands before what uses them."""
        return tuple(walk(self.roots))

    def with_roots(self, roots: Sequence[Node]) -> Graph:
        """The graph with other roots in the places of these."""
        n = len(self.outputs)
        leaves = (leaf for leaf, _ in self.updates)
        return Graph(tuple(roots[:n]), tuple(zip(leaves, roots[n:], strict=True)))

    def __len__(self) -> int:
        return len(self.nodes)


def walk(roots: Iterable[Node], stop: Callable[[Node], bool] | None = None) -> list[Node]:
    """The nodes that roots depend on, operands first, in an order that depends on the graph alone.

    Nothing behind a node for which `stop` holds is visited.
    """
    order: list[Node] = []
    done: dict[Node, bool] = {}  # False while what stands behind a node is visited
    for root in roots:
        stack = [(root, False)]
        while stack:
            node, after = stack.pop()
            if after:
                done[node] = True
                order.append(node)
            elif node not in done:
                done[node] = False
                stack.append((node, True))
                if stop is None or not stop(node):
                    for i in reversed(node.inputs):
                        if not (known := done.get(i)):
                            if known is not None:
                                raise cyclic(i)
                            stack.append((i, False))
    return order


def cyclic(node: Node) -> CompileError:
    """The error of a node that stands behind itself. Nodes can't be made so, only changed so."""
    return CompileError(
        f"the graph is cyclic: {node!r} depends on itself",
        "nodes are immutable: make new ones instead of changing one",
        where=provenance.line_of(node),
    )


def users(nodes: Iterable[Node]) -> dict[Node, list[Node]]:
    """For each node, the nodes that read it, once for each place they read it at."""
    readers: dict[Node, list[Node]] = {}
    for node in nodes:
        for i in node.inputs:
            readers.setdefault(i, []).append(node)
    return readers


def replace(roots: Sequence[Node], values: dict[Node, Node]) -> list[Node]:
    """The roots with some nodes replaced by others."""
    memo = dict(values)
    for node in walk(roots, stop=memo.__contains__):
        if node not in memo:
            memo[node] = rebuild(node, [memo[i] for i in node.inputs])
    return [memo[r] for r in roots]
