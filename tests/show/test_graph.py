"""The graph as typed text and for networkx."""

from __future__ import annotations

import chainrule as cr
from chainrule.ir.graph import Graph, users, walk
from chainrule.show.graph import graph_text


def loss() -> cr.Tensor:
    x, w = cr.input("x", ("batch", 4)), cr.parameter("w", (4, 3))
    return cr.sum(cr.tanh(x @ w).named("h"))


def test_graph_text_is_typed_named_and_says_the_line() -> None:
    lines = graph_text(Graph((loss().node,))).splitlines()
    assert lines[0].startswith("%x = input : f32[batch, 4]")
    assert lines[2].startswith("%0 = contract[ab,bc->ac] %x, %w : f32[batch, 3]")
    assert "# h  " in lines[3] and "test_graph.py:" in lines[3]
    assert lines[-1] == "return %2"


def test_equal_graphs_have_equal_text() -> None:
    assert graph_text(Graph((loss().node,))) == graph_text(Graph((loss().node,)))


def test_updates_and_repeated_labels() -> None:
    a, b = cr.state("s", (2,)), cr.state("s", (2,))
    shown = graph_text(Graph((), ((a.node, (a + b).node),)))
    assert "%s' = state" in shown and shown.endswith("update %s <- %0")


def test_networkx_has_every_node_and_edge_with_its_facts() -> None:
    import networkx

    root = loss()
    graph, nodes = cr.to_networkx(root), walk([root.node])
    assert len(graph) == len(nodes)
    assert graph.number_of_edges() == sum(len(r) for r in users(nodes).values())
    assert networkx.is_directed_acyclic_graph(graph)
    facts = {d["op"]: d for _, d in graph.nodes(data=True)}
    assert facts["input"]["shape"] == ("batch", 4) and facts["input"]["name"] == "x"
    assert facts["tanh"]["dtype"] == "float32" and facts["tanh"]["name"] == "h"
    assert networkx.dag_longest_path_length(graph) == 3
