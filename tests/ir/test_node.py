"""Interning, provenance, and graphs that are too deep for recursion."""

from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import pytest

from chainrule.autodiff.reverse import differentiate
from chainrule.ir import node as node_room
from chainrule.ir import provenance
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph, replace, users, walk
from chainrule.ir.node import Node
from chainrule.ir.types import TensorType, bool_, float32, float64, int32
from chainrule.ops import build
from chainrule.ops.contract import matmul
from chainrule.ops.source import constant, full, leaf
from chainrule.rewrite.passes import drop_unused, expand_composites, simplify, stabilize

VECTOR = TensorType(float32, (4,))


def variable(label: str = "x", type: TensorType = VECTOR) -> Node:
    return leaf("input", label, type)


def test_equal_expressions_are_one_node() -> None:
    x, y = variable("x"), variable("y")
    assert build.call("add", x, y) is build.call("add", x, y)
    assert build.call("add", x, y) is not build.call("add", y, x)
    assert build.call("mul", x, 2.0) is build.call("mul", x, 2)


def test_leaves_never_merge() -> None:
    assert variable("x") is not variable("x")


def test_constants_are_told_apart_by_their_bytes() -> None:
    numbers = [
        full(0.0, float32, ()),
        full(-0.0, float32, ()),
        full(0, int32, ()),
        full(False, bool_, ()),
        full(0.0, float64, ()),
        full(1, int32, ()),
        full(True, bool_, ()),
    ]
    assert len(set(numbers)) == len(numbers)
    assert full(float("nan"), float32, ()) is full(float("nan"), float32, ())
    assert constant(np.array([1.0, -0.0])) is not constant(np.array([1.0, 0.0]))
    assert constant(np.array([0.0, -0.0])).op.name == "constant"
    assert constant(np.full((2, 3), 5.0)) is full(5.0, float64, (2, 3))


def test_graphs_are_collected() -> None:
    x = variable()
    gc.collect()  # what other tests have left
    before = len(node_room._interned)
    y = build.call("exp", build.call("add", x, 1.0))
    provenance.set_name(y, "y")
    watch = weakref.ref(y)
    assert len(node_room._interned) == before + 3
    del y
    gc.collect()
    assert watch() is None
    assert len(node_room._interned) == before


def test_nodes_know_the_line_that_made_them() -> None:
    y = build.call("exp", variable())
    line = provenance.line_of(y)
    assert line is not None
    assert line.filename == __file__
    assert 'build.call("exp", variable())' in line.source


def test_names_survive_rewriting() -> None:
    x = variable()
    y = build.call("log", build.call("add", build.call("exp", x), 1.0))
    provenance.set_name(y, "loss")
    (out,) = stabilize(Graph((y,))).outputs
    assert out.op.name == "softplus"
    assert provenance.user_name_of(out) == "loss"
    assert provenance.line_of(out) == provenance.line_of(y)


def test_walk_users_replace() -> None:
    x, y = variable("x"), variable("y")
    s = build.call("add", x, y)
    p = build.call("mul", s, s)
    assert walk([p]) == [x, y, s, p]
    assert users(walk([p]))[s] == [p, p]
    (q,) = replace([p], {y: x})
    assert q is build.call("mul", build.call("add", x, x), build.call("add", x, x))


def chain(n: int, fns: tuple[str, ...] = ("tanh", "sin")) -> tuple[Node, Node]:
    x = variable()
    h = x
    for i in range(n):
        h = build.call(fns[i % len(fns)], h)
    return x, h


def derive(n: int, fns: tuple[str, ...]) -> tuple[float, int]:
    """Seconds and nodes of building a chain, differentiating and rewriting it, and freeing it."""
    start = time.process_time()
    x, h = chain(n, fns)
    (h,) = stabilize(Graph((h,)), [x]).outputs
    (dx,) = differentiate([h], [full(1, float32, h.shape)], [x]).gradients
    assert dx is not None
    graph = drop_unused(expand_composites(simplify(Graph((h, dx)))))
    size = len(graph)
    del h, dx, graph
    gc.collect()
    return time.process_time() - start, size


@pytest.mark.parametrize(
    ("few", "many", "fns"),
    [
        (2_000, 16_000, ("tanh", "sin")),
        (1_000, 8_000, ("tanh", "neg", "square", "sin")),  # signs and numbers move a long way
    ],
)
def test_deep_graphs_take_linear_time_and_no_recursion(
    few: int, many: int, fns: tuple[str, ...]
) -> None:
    live = len(node_room._interned)
    small, nodes = derive(few, fns)
    large, more = derive(many, fns)
    assert more == pytest.approx(many / few * nodes, rel=0.02)
    assert large < 4 * many / few * small + 1, (small, large)
    assert len(node_room._interned) <= live


def test_a_deep_graph_is_evaluated_and_resolved() -> None:
    x, h = chain(20_000)
    (value,) = evaluate([h], {x: np.linspace(-1, 1, 4)})
    assert np.isfinite(value).all()


def test_symbolic_sizes_are_bound_from_feeds() -> None:
    x = leaf("input", "x", TensorType(float64, build.broadcast_shapes([(1, 3)])))
    w = leaf("parameter", "w", TensorType(float64, (3, 2)))
    (y,) = evaluate([matmul(x, w)], {x: np.ones((1, 3)), w: np.ones((3, 2))})
    np.testing.assert_array_equal(y, [[3.0, 3.0]])
