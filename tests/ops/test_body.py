"""Bodies of loops: closed over what they read, equal where they do the same."""

from __future__ import annotations

from typing import Any

import numpy as np

import chainrule as cr
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import walk
from chainrule.ops.body import is_local
from chainrule.ops.scan import Scan

x = cr.input("x", ("time", "batch", 3), dtype="float64")
h0 = cr.input("h", ("batch", 3), dtype="float64")
W = cr.input("W", (3, 3), dtype="float64")


def body_of(t: cr.Tensor) -> Any:
    assert isinstance(t.node.op, Scan)
    return t.node.op.body_of_step


def test_loops_that_do_the_same_are_the_same() -> None:
    def run() -> cr.Tensor:
        return cr.scan(lambda h, v: (cr.tanh(h @ W + v), None), h0, x)[0]

    assert run().node is run().node
    other, _ = cr.scan(lambda h, v: (cr.tanh(h @ W - v), None), h0, x)
    assert other.node is not run().node


def test_what_does_not_change_is_handed_in_computed() -> None:
    scale = cr.exp(W)

    def step(h: cr.Tensor, v: cr.Tensor) -> Any:
        return h @ (scale @ scale).T + cr.broadcast_to(W[0], v.shape) + 2.0, None

    final, _ = cr.scan(step, h0, x)
    body = body_of(final)
    assert len(body.constants) == 2  # the product, and W: a view of it costs nothing
    names = {str(n.op.name) for n in walk(body.roots)}
    assert "exp" not in names
    assert {"permute", "slice"} <= names
    assert all(is_local(n) for n in walk(body.roots) if n.op.role == "leaf")
    assert W.node in final.node.inputs


def test_a_body_opened_has_no_leaf_in_common_with_another() -> None:
    final, _ = cr.scan(lambda h, v: (cr.tanh(h @ W + v), None), h0, x)
    body = body_of(final)
    one, two = body.opened(), body.opened()
    assert not set(one.leaves) & (set(two.leaves) | set(body.leaves))
    closed = one.renamed(dict(zip(one.leaves, body.leaves, strict=True)))
    assert closed == body


def test_reach_is_over_any_number_of_steps() -> None:
    def step(carry: Any, v: cr.Tensor) -> Any:
        a, b, c = carry
        return (b, c, v), a * 2

    (a, _, c), ys = cr.scan(step, (h0, h0 * 2, h0 * 3), x)
    reached = [[t.node.op.reaches(i) for i in range(4)] for t in (a, c, ys)]
    assert reached[0] == [True, True, True, True]
    assert reached[1] == [False, False, True, True]  # it ends as it began where there is no step
    assert reached[2] == [True, True, True, True]


def test_sizes_in_a_body_are_resolved() -> None:
    def step(h: cr.Tensor, v: cr.Tensor) -> Any:
        return h + cr.sum(v) / cr.mean(cr.ones_like(v)), cr.flip(v, axis=0)

    final, ys = cr.scan(step, h0, x)
    op = ys.node.op.resolve({"time": 2, "batch": 4})
    assert op.length == 2
    assert op.infer(*_operands(op)).shape == (2, 4, 3)
    feeds = {x.node: np.ones((2, 4, 3)), h0.node: np.zeros((4, 3))}
    value, stack = evaluate([final.node, ys.node], feeds)
    assert value.shape == (4, 3)
    np.testing.assert_allclose(value, 24)
    assert stack.dtype == np.float64
    wide = evaluate([final.node], feeds, widen=True)[0]
    np.testing.assert_array_equal(wide, value)


def _operands(op: Any) -> list[Any]:
    body = op.body_of_step
    stacks = [op.stack_of(n.type) for n in body.slices]
    return [*(n.type for n in body.carries), *stacks, *(n.type for n in body.constants)]
