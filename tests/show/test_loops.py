"""A loop on a page: what a step computes, as a recurrence, before the expression that reads it."""

from __future__ import annotations

import chainrule as cr

x, h0 = cr.input("x", ("time", "batch", 3)), cr.input("h0", ("batch", 5))
W, U = cr.parameter("W", (3, 5)), cr.parameter("U", (5, 5))


def step(h: cr.Tensor, v: cr.Tensor) -> tuple[cr.Tensor, cr.Tensor]:
    h = cr.tanh(v @ W + h @ U).named("h")
    return h, h


def test_a_loop_prints_as_a_recurrence() -> None:
    final, _ = cr.scan(step, h0, x)
    assert str(final).splitlines() == [
        "h[t] = tanh(x[t] @ W + h[t-1] @ U)",
        "scan.final(h0, x, W, U)",
    ]
    backwards, _ = cr.scan(step, h0, x, reverse=True)
    assert "h[t+1] @ U" in str(backwards)


def test_its_derivative_is_the_recurrence_the_other_way() -> None:
    final, _ = cr.scan(step, h0, x)
    lines = str(cr.grad(cr.sum(final**2), W)).splitlines()
    assert lines[0] == "h[t] = tanh(x[t] @ W + h[t-1] @ U)"
    assert "dh[t] = y[t] @ Uᵀ" in lines
    assert "y[t] = dh[t+1] ⊙ (1 - h_2²)" in lines
    assert lines[-1].startswith("dW = ")


def test_a_body_stands_below_the_first_node_that_needs_it() -> None:
    final, _ = cr.scan(step, h0, x)
    text = cr.compile(final).show("graph")
    assert text.count("tanh") == 1
    assert "\n    update %h <- %3\n" in text
