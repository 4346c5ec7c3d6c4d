"""How a program is made to fit a budget of memory: kernels run again, or loops too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.passes import Pass, run_passes
from chainrule.ir.size import Dim
from chainrule.rewrite.passes import drop_unread
from chainrule.rewrite.segments import in_segments
from chainrule.schedule.budget import Budget
from chainrule.schedule.fuse import fuse
from chainrule.schedule.kernel import Kernel, every
from chainrule.schedule.materialize import materialize
from chainrule.schedule.reading import storage
from chainrule.schedule.recompute import Fitted, OverBudget, arena_of, fit

#: What a graph goes through once its loops are in segments.
AFTER = tuple(Pass(p.__name__, p, p.__doc__ or "") for p in (drop_unread, materialize))


def made_to_fit(
    graph: Graph, finite: Sequence[int], kernels: list[Kernel], budget: Budget
) -> tuple[Graph, Fitted]:
    """The graph and its kernels within a budget.

    `kernels` are the graph's own. Where they can't fit whatever else is computed again, loops run
    again too, in segments of so many steps as take the least memory. Raises CompileError.
    """
    try:
        return graph, fit(kernels, kept_memory(graph), budget)
    except OverBudget as error:
        ways = [(steps, run_passes(way, AFTER)[0]) for steps, way in in_segments(graph)]
        if not ways:
            raise
        tried = [(steps, way, fused(way, finite)) for steps, way in ways]
        least, tighter = error, min(tried, key=lambda t: arena_of(t[2], kept_memory(t[1]), budget))
    steps, way, again = tighter
    try:
        found = fit(again, kept_memory(way), budget, least.before)
    except OverBudget as other:
        raise min(least, other, key=lambda e: e.least) from None
    more = _flops(again) - _flops(kernels)
    return way, replace(found, steps=steps, looped=more)


def fused(graph: Graph, finite: Sequence[int]) -> list[Kernel]:
    """The kernels of a graph whose outputs numbered in `finite` are tested."""
    return fuse(graph, [graph.outputs[i] for i in finite])


def kept_memory(graph: Graph) -> list[Node]:
    """Values with memory of their own: what the caller reads after the call."""
    return [storage(o) for o in graph.outputs]


def _flops(kernels: Sequence[Kernel]) -> Dim:
    total: Dim = 0
    for kernel in every(kernels):
        total = total + kernel.flops
    return total
