"""Passes in order: each a function from a graph to a graph, timed, counted and verified."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import field

from chainrule.ir import provenance
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Node, apply, rebuild
from chainrule.ir.verify import verify
from chainrule.records import dataclass


@dataclass(frozen=True)
class Pass:
    """A step of compilation. `doc` says what disappears and what appears."""

    name: str
    run: Callable[[Graph], Graph]
    doc: str = ""


@dataclass(frozen=True)
class PassRecord:
    """What a pass did: sizes before and after, time, how often each rewrite rule was used."""

    name: str
    nodes_before: int
    nodes_after: int
    seconds: float
    rules: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        change = f"{self.nodes_before} -> {self.nodes_after} nodes"
        used = ", ".join(f"{name} ×{n}" if n > 1 else name for name, n in self.rules.items())
        done = f"{self.name}: {change}, {self.seconds * 1e3:.1f} ms"
        return f"{done}  ({used})" if used else done


Observer = Callable[[PassRecord, Graph], None]
_rules: ContextVar[Counter[str] | None] = ContextVar("rules", default=None)


def count_rules(applied: Mapping[str, int]) -> None:
    """Let the record of the running pass, if one runs, hold how often rules were used."""
    counter = _rules.get()
    if counter is not None:
        counter.update(applied)


def in_bodies(run: Callable[[Graph], Graph], graph: Graph, kept: Sequence[Node] = ()) -> Graph:
    """The graph with a pass run over the body of every loop in it, and over the bodies in those.

    What lies behind nodes in `kept` stays as it is.
    """
    if not any(node.op.bodies() for node in graph.nodes):
        return graph
    memo: dict[Node, Node] = {n: n for n in walk(kept)}
    done: dict[Graph, Graph] = {}

    def changed(body: Graph) -> Graph:
        if body not in done:
            done[body] = in_bodies(run, run(body))
        return done[body]

    for node in graph.nodes:
        if node in memo:
            continue
        new = rebuild(node, [memo[i] for i in node.inputs])
        bodies = new.op.bodies()
        if bodies:
            op = new.op.with_bodies([changed(body) for body in bodies])
            with provenance.derived_from(node):
                new = apply(op, *new.inputs)
        memo[node] = provenance.inherit(new, node)
    return graph.with_roots([memo[r] for r in graph.roots])


def size_of(graph: Graph) -> int:
    """How many nodes a graph has, those of the bodies in it counted once each."""
    bodies = {body for node in graph.nodes for body in node.op.bodies()}
    return len(graph) + sum(map(size_of, bodies))


def run_passes(
    graph: Graph, passes: Sequence[Pass], on_pass: Observer | None = None, check: bool = True
) -> tuple[Graph, tuple[PassRecord, ...]]:
    """The graph after all passes, and a record of each; the bodies of loops go through them too.

    With `check` the graph is verified before the first and after each: CompileError names the pass
    that broke it. `on_pass` is called after each with its record and the graph it left.
    """
    records = []
    size = size_of(graph)
    checked: set[Node] = set()
    if check:
        verify(graph, "building", None, checked)
    for step in passes:
        before, size_before = graph, size
        counter: Counter[str] = Counter()
        token = _rules.set(counter)
        start = time.perf_counter()
        try:
            graph = in_bodies(step.run, step.run(graph))
        finally:
            _rules.reset(token)
        seconds = time.perf_counter() - start
        if check:
            verify(graph, step.name, before, checked)
        size = size_of(graph)
        records.append(PassRecord(step.name, size_before, size, seconds, dict(counter)))
        if on_pass is not None:
            on_pass(records[-1], graph)
    return graph, tuple(records)
