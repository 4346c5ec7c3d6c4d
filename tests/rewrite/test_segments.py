"""Loops in segments compute what they computed, to the last bit, and keep less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver.lower import PASSES
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph
from chainrule.ir.passes import Pass, run_passes
from chainrule.nn import GRU, LSTM
from chainrule.rewrite.passes import drop_unread
from chainrule.rewrite.segments import in_segments

AFTER = (Pass("drop_unread", drop_unread, ""),)
SEED = 2


def derivatives(layers: int, time: int, **options: Any) -> Graph:
    h = cr.input("x", (2, time, 3), dtype="float64")
    nets = [(LSTM, GRU)[i % 2](4, return_sequences=True, **options) for i in range(layers)]
    for net in nets:
        h = net(h)
    weights = [w for net in nets for w in net.parameters.values()]
    roots = [h, *cr.grad(cr.sum(h * h), weights)]
    return run_passes(Graph(tuple(r.node for r in roots)), PASSES)[0]


def values(graph: Graph, given: dict[Any, Any]) -> list[Any]:
    return evaluate(graph.outputs, given)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("time", [6, 12])
def test_segments_mean_the_same(time: int, layers: int, bidirectional: bool) -> None:
    graph = derivatives(layers, time, bidirectional=bidirectional)
    rng = np.random.default_rng(SEED)
    given = {
        n: rng.standard_normal([int(d) for d in n.type.shape])  # type: ignore[arg-type]
        for n in graph.nodes
        if n.op.name in ("input", "parameter")
    }
    want = values(graph, given)
    ways = [(k, run_passes(way, AFTER)[0]) for k, way in in_segments(graph)]
    assert [k for k, _ in ways] == [k for k in range(2, time) if time % k == 0]
    for k, way in ways:
        for a, b in zip(values(way, given), want, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"segments of {k}")


def test_what_has_no_segments_is_left_alone() -> None:
    """A length without a divisor, a symbolic one, and a loop that nothing is derived of."""
    assert not list(in_segments(derivatives(1, 7)))
    x, u = cr.input("x", ("time", 4)), cr.parameter("u", (4, 4))
    _, hs = cr.scan(lambda h, v: (cr.tanh(v + h @ u),) * 2, cr.zeros(4), x)
    for roots in ([hs], [cr.grad(cr.sum(hs), u)]):
        graph = run_passes(Graph(tuple(r.node for r in roots)), PASSES)[0]
        assert not list(in_segments(graph))
