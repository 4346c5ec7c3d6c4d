"""Deep graphs: nothing recurses, and code grows with what differs, not with depth."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver.lower import PASSES
from chainrule.ir.graph import Graph
from chainrule.ir.passes import run_passes

CYCLE: tuple[tuple[Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    (cr.tanh, np.tanh),
    (cr.sin, np.sin),
    (lambda h: h * 1.01, lambda h: h * 1.01),
    (lambda h: h + 0.1, lambda h: h + 0.1),
)
#: seconds: some ten times what it takes, so that only another order of growth exceeds it
PATIENCE = 40.0


def chain(length: int) -> tuple[cr.Tensor, cr.Tensor]:
    x = cr.input("x", ("n",), dtype="float64")
    h: Any = x
    for i in range(length):
        h = CYCLE[i % 4][0](h)
    return x, h


def by_hand(x: Any, length: int) -> Any:
    for i in range(length):
        x = CYCLE[i % 4][1](x)
    return x


@pytest.mark.parametrize("length", [5000, pytest.param(20_000, marks=pytest.mark.long)])
def test_a_chain_with_its_gradient(length: int) -> None:
    start = time.process_time()
    x, h = chain(length)
    fn = cr.compile([h, cr.grad(cr.sum(h), x)], threads=1)
    assert time.process_time() - start < PATIENCE * length / 5000
    assert fn.report().functions < 20
    at = np.linspace(-1.0, 1.0, 19)
    value, slope = fn(x=at)
    np.testing.assert_allclose(value, by_hand(at, length), rtol=1e-9)
    assert slope.shape == at.shape and np.isfinite(slope).all()


def test_the_gradient_of_a_chain() -> None:
    x, h = chain(200)
    at, step = np.linspace(-1.0, 1.0, 19), 1e-6
    slope = cr.compile(cr.grad(cr.sum(h), x))(x=at)
    estimate = (by_hand(at + step, 200) - by_hand(at - step, 200)) / (2 * step)
    np.testing.assert_allclose(slope, estimate, atol=1e-7)


@pytest.mark.parametrize("depth", [200])
def test_a_deep_net_with_its_gradient(depth: int) -> None:
    start = time.process_time()
    h = cr.input("x", ("n", 32))
    weights = {}
    for i in range(depth):
        w, b = cr.parameter(f"w{i}", (32, 32)), cr.parameter(f"b{i}", (32,))
        weights |= {f"w{i}": w, f"b{i}": b}
        h = cr.tanh(h @ w + b)
    loss = cr.mean(cr.square(h))
    fn = cr.compile([loss, *cr.grad(loss, weights).values()], threads=1)
    assert time.process_time() - start < PATIENCE
    found = fn.report()
    assert found.functions < 15, "equal layers share their code"
    rng = np.random.default_rng(0)
    feeds = {k: rng.standard_normal(w.shape) * 0.2 for k, w in weights.items()}
    feeds["x"] = rng.standard_normal((5, 32))
    result = fn(**feeds)
    np.testing.assert_allclose(result[0], cr.compile(loss, backend="reference")(**feeds), rtol=1e-4)
    assert all(np.isfinite(g).all() for g in result)


def summed(n: int) -> tuple[cr.Tensor, list[cr.Tensor]]:
    """A sum of n terms, each of one tensor: n users of one node."""
    x = cr.input("x", ("n",), dtype="float64")
    total: Any = x
    for i in range(n):
        total = total + cr.sin(x) * float(i)
    return total, [x]


def doubled(n: int) -> tuple[cr.Tensor, list[cr.Tensor]]:
    """2**n paths from the result to the leaf."""
    x = cr.input("x", ("n",), dtype="float64")
    h: Any = x
    for _ in range(n):
        h = (h + h) * 0.5
    return h, [x]


def shared(n: int) -> tuple[cr.Tensor, list[cr.Tensor]]:
    """Each tensor read twice by the next, where algebra sees no sum of equals."""
    x = cr.input("x", ("n",), dtype="float64")
    h: Any = x
    for _ in range(n):
        h = cr.tanh(h) * h
    return h, [x]


def weighted(n: int) -> tuple[cr.Tensor, list[cr.Tensor]]:
    """A parameter for each term."""
    x = cr.input("x", ("n",), dtype="float64")
    weights = [cr.parameter(f"w{i}", (), dtype="float64") for i in range(n)]
    total: Any = x
    for w in weights:
        total = total + x * w
    return total, weights


@pytest.mark.parametrize("n", [1000, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("make", [summed, doubled, shared, weighted])
def test_a_graph_is_built_differentiated_rewritten_and_printed(
    make: Callable[[int], tuple[cr.Tensor, list[cr.Tensor]]], n: int
) -> None:
    start = time.process_time()
    result, wrt = make(n)
    slopes = cr.grad(cr.sum(result), wrt)
    run_passes(Graph((result.node, *(s.node for s in slopes))), PASSES)
    for text in (str(slopes[0]), slopes[0].latex(), str(result)):
        assert len(text) < 400 * n
    assert time.process_time() - start < PATIENCE * n / 1000


@pytest.mark.parametrize("parts", [300])
def test_many_parts_are_put_together(parts: int) -> None:
    x = cr.input("x", ("n", 3))
    start = time.process_time()
    fn = cr.compile(cr.stack([x * float(i) for i in range(parts)]))
    assert time.process_time() - start < PATIENCE
    found = fn(x=np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found[:, 1, 2], np.arange(parts))
