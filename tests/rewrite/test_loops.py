"""Passes on loops: bodies go through every pass, and what is not read or known is not computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver.lower import PASSES
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.passes import Pass, in_bodies, run_passes, size_of
from chainrule.ops.scan import Scan
from chainrule.rewrite.passes import drop_unread, expand_composites, share_steps, simplify

x = cr.input("x", ("time", 3), dtype="float64")
h0 = cr.input("h", (3,), dtype="float64")
W = cr.input("W", (3, 3), dtype="float64")
lone = cr.input("lone", ("time", 2), dtype="float64")


def values(graph: Graph) -> list[Any]:
    rng = np.random.default_rng(0)
    feeds = {}
    for n in (x.node, h0.node, W.node, lone.node):
        shape = tuple(d if isinstance(d, int) else 4 for d in n.type.shape)
        feeds[n] = rng.normal(size=shape)
    return evaluate(graph.outputs, feeds)


def same(before: Graph, after: Graph) -> None:
    for a, b in zip(values(before), values(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def bodies(graph: Graph) -> list[Graph]:
    return list(dict.fromkeys(b for n in graph.nodes for b in n.op.bodies()))


def names(graph: Graph) -> set[str]:
    return {str(n.op.name) for n in graph.nodes}


def loops(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if isinstance(n.op, Scan)]


def test_passes_reach_the_bodies_of_loops_in_loops() -> None:
    def outer(h: cr.Tensor, row: cr.Tensor) -> Any:
        h, _ = cr.scan(lambda g, v: (cr.softmax(g * v + h), None), h, cr.outer(row, row))
        return h, None

    final, _ = cr.scan(outer, h0, x)
    graph = Graph((final.node,))
    assert size_of(graph) > len(graph)
    opened = in_bodies(expand_composites, graph)
    (body,) = bodies(opened)
    (inner,) = bodies(body)
    assert "softmax" not in names(inner)
    same(graph, opened)
    final_graph, records = run_passes(graph, PASSES)
    assert {r.name for r in records} == {p.name for p in PASSES}
    assert "softmax" not in names(bodies(bodies(final_graph)[0])[0])


def test_rules_used_in_a_body_are_counted() -> None:
    final, _ = cr.scan(lambda h, v: (cr.negative(cr.negative(h)) + v, None), h0, x)
    _, (record,) = run_passes(Graph((final.node,)), [Pass("simplify", simplify)])
    assert record.rules["negative_twice"] == 1
    assert record.nodes_after < record.nodes_before


def test_a_body_that_a_pass_breaks_is_refused() -> None:
    _, ys = cr.scan(lambda h, v: (cr.tanh(h + v), h), h0, x)

    def broken(graph: Graph) -> Graph:
        inside = any(leaf.op.name == "local" for leaf in graph.nodes)
        outputs = (cr.sum(cr.Tensor(y)).node for y in graph.outputs) if inside else graph.outputs
        return Graph(tuple(outputs), graph.updates)

    with pytest.raises(cr.errors.CompileError, match="after break it"):
        run_passes(Graph((ys.node,)), [Pass("break it", broken)])


def test_what_nobody_reads_is_dropped_with_its_operands() -> None:
    def body(carry: Any, v: Any) -> Any:
        a, c = carry
        return (cr.tanh(a + v[0]), c + cr.sum(v[1])), (cr.exp(c), a * 2)

    (a, _), (_, twice) = cr.scan(body, (h0, cr.constant(0.0, dtype="float64")), (x, lone))
    graph = Graph((a.node, twice.node))
    small = drop_unread(graph)
    assert lone.node not in small.nodes
    (body_graph,) = bodies(small)
    assert len(body_graph.updates) == len(body_graph.outputs) == 1
    assert "exp" not in names(body_graph)
    assert drop_unread(small) == small
    same(graph, small)


def test_a_derivative_reads_what_its_loop_computed() -> None:
    def body(h: cr.Tensor, v: cr.Tensor) -> Any:
        return cr.tanh(v @ W + h @ W), None

    final, _ = cr.scan(body, h0, x)
    graph = simplify(Graph((final.node, cr.grad(cr.sum(final), h0).node)))
    shared = drop_unread(share_steps(graph))
    forward, backward = bodies(shared)
    assert sum(n.op.name == "contract" for n in forward.nodes) == 2
    assert sum(n.op.name == "contract" for n in backward.nodes) == 1
    assert "tanh" not in names(backward)
    assert x.node not in {
        i for n in loops(shared) if n.op.bodies()[0] == backward for i in n.inputs
    }
    same(graph, shared)
    assert share_steps(shared) == shared


def test_what_is_cheap_is_computed_again() -> None:
    final, _ = cr.scan(lambda h, v: (cr.sin(h + v), None), h0, x)
    graph = Graph((final.node, cr.grad(cr.sum(final), h0).node))
    assert share_steps(graph) == graph
