"""The pass runner, what it verifies, and the passes that expand and clean."""

from __future__ import annotations

import pytest

from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply
from chainrule.ir.passes import Pass, PassRecord, run_passes
from chainrule.ir.types import TensorType, float32, float64
from chainrule.ir.verify import verify
from chainrule.ops.build import call
from chainrule.ops.cast import Cast
from chainrule.ops.composite import Softmax
from chainrule.ops.derive import define_elementwise
from chainrule.ops.source import leaf
from chainrule.rewrite.passes import drop_unused, expand_composites, simplify, stabilize

MATRIX = TensorType(float32, (2, 3))


def var(label: str = "x", type: TensorType = MATRIX) -> Node:
    return leaf("parameter", label, type)


def naive(x: Node) -> Node:
    return call("log", call("add", call("exp", x), 1.0))


def test_passes_run_in_order_and_are_recorded() -> None:
    graph = Graph((naive(var()),))
    seen: list[tuple[PassRecord, Graph]] = []
    steps = [Pass("stabilize", stabilize, "d"), Pass("simplify", simplify)]
    out, records = run_passes(graph, steps, on_pass=lambda r, g: seen.append((r, g)))
    assert out.outputs[0].op.name == "softplus"
    assert [r.name for r in records] == ["stabilize", "simplify"]
    assert (records[0].nodes_before, records[0].nodes_after) == (len(graph), 2)
    assert records[0].rules == {"softplus": 1}
    assert records[1].rules == {}
    assert [r for r, _ in seen] == list(records)
    assert seen[-1][1] is out
    assert str(records[0]).startswith(f"stabilize: {len(graph)} -> 2 nodes")


def broken(graph: Graph) -> Graph:
    return graph.with_roots([apply(Cast(float64), r) for r in graph.roots])


def test_a_pass_that_changes_a_type_is_named() -> None:
    graph = Graph((naive(var()),))
    with pytest.raises(CompileError, match="after widen: <cast"):
        run_passes(graph, [Pass("widen", broken)])
    out, _ = run_passes(graph, [Pass("widen", broken)], check=False)
    assert out.outputs[0].dtype is float64


def test_verify_finds_what_does_not_hold() -> None:
    x, y = var("x"), var("y")
    good = call("exp", x)
    verify(Graph((good,), ((x, good),)), "test")
    other = call("exp", var("w", TensorType(float64, (2, 3))))
    lie = Node(good.op, (other,), good.type)
    for graph, what in (
        (Graph((lie,)), "its operands make it"),
        (Graph((), ((x, other),)), "their types differ"),
        (Graph((), ((good, good),)), "no leaf"),
        (Graph((), ((x, good), (x, good))), "twice"),
    ):
        with pytest.raises(CompileError, match=what):
            verify(graph, "test")
    before = Graph((good,), ((x, good),))
    for graph in (Graph(()), Graph((good,), ((y, good),))):
        with pytest.raises(CompileError):
            verify(graph, "test", before)


def test_composites_disappear_with_their_names_kept() -> None:
    x = var()
    y = apply(define_elementwise("f", "x*sigmoid(x)"), apply(Softmax(1), x))
    provenance.set_name(y, "y")
    out = expand_composites(Graph((y,), ((x, y),)))
    assert not any(n.op.composite for n in out.nodes)
    assert provenance.user_name_of(out.outputs[0]) == "y"
    assert out.updates[0][1] is out.outputs[0]
    verify(out, "expand_composites", Graph((y,), ((x, y),)))


def test_what_computes_nothing_is_dropped() -> None:
    x, w = var("x"), var("w")
    y = call("exp", call("stop_gradient", apply(Cast(float32), x)))
    kept = apply(Cast(float64), x)
    out = drop_unused(Graph((y, kept), ((x, call("stop_gradient", x)), (w, y))))
    assert out == Graph((call("exp", x), kept), ((w, call("exp", x)),))
