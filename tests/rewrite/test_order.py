"""Products in a cheap order: the same value, never more work, nothing computed twice."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph
from chainrule.ops.contract import Contract
from chainrule.rewrite.order import EXACT, MOST, TYPICAL, order_contractions
from chainrule.rewrite.passes import canonicalize

N = 100


def of(name: str, *shape: int | str) -> cr.Tensor:
    return cr.input(name, shape, dtype="float64")


A, B, C = (of(n, N, N) for n in "ABC")
X, Y, v = of("X", N, "batch"), of("Y", N, "batch"), of("v", N)


def ordered(*tensors: cr.Tensor) -> Graph:
    return order_contractions(canonicalize(Graph(tuple(t.node for t in tensors))))


def text(*tensors: cr.Tensor) -> list[str]:
    return [str(cr.Tensor(n)).replace("\n", "; ") for n in ordered(*tensors).outputs]


@pytest.mark.parametrize(
    ("written", "becomes"),
    [
        (A @ B @ C @ v, "z1 = C @ v; z2 = B @ z1; A @ z2"),
        (A @ B @ X, "z1 = B @ X; A @ z1"),
        (A @ B @ C, "z1 = A @ B; z1 @ C"),
        (A @ (B @ X), "z1 = B @ X; A @ z1"),
        ((A @ B).T @ v, "z1 = Aᵀ @ v; z1 @ B"),
        ((B.T @ A.T) @ v, "z1 = Aᵀ @ v; Bᵀ @ z1"),
        (-(A @ B * 2.0) @ (C @ v) / 4.0, "z1 = C @ v; z2 = B @ z1; -2 * (A @ z2) / 4"),
        (cr.outer(v, v) @ v, "z1 = v @ v; v * z1"),
        (cr.einsum("ij,jk,kl,l->i", A, B, C, v), "z1 = C @ v; z2 = B @ z1; A @ z2"),
        (A @ X + A @ Y, "A @ (X + Y)"),
        (A @ X - A @ Y, "A @ (X - Y)"),
        (X.T @ A + Y.T @ A, "(X + Y)ᵀ @ A"),
        (A @ X + A @ Y + A @ (X * Y), "A @ (X + Y + X ⊙ Y)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_cheap_order_is_taken(written: cr.Tensor, becomes: str) -> None:
    (found,) = text(written)
    assert found == becomes


def test_what_others_read_is_not_taken_apart() -> None:
    h = A @ B
    first, second = ordered(h @ v, h).outputs
    assert first.inputs[0] is second
    both = A @ X
    total = ordered(both + A @ Y, both).outputs[0]
    assert total.op.name == "add"


def test_one_order_serves_every_batch() -> None:
    """Narrow, wide, narrow: from the right for all but the smallest batches, and so for all."""
    x = of("x", "batch", 10)
    z = x @ of("U", 10, 1000) @ of("W", 1000, 10)
    (out,) = ordered(z).outputs
    assert out.inputs[0].op.name == "input"
    assert TYPICAL == 64


def cost(graph: Graph) -> int:
    total = 0
    for node in graph.nodes:
        if isinstance(node.op, Contract):
            types = [i.type for i in node.inputs]
            flops = node.op.flops(node.type, *types)
            assert isinstance(flops, int)
            total += flops // 2 + int(np.prod(node.shape, dtype=int))
    return total


def cheapest(parts: Sequence[str], out: str, sizes: dict[str, int]) -> int:
    """The least work of any order, by trying them all."""
    if len(parts) == 1:
        return 0
    best = None
    for i, j in itertools.combinations(range(len(parts)), 2):
        rest = [p for k, p in enumerate(parts) if k not in (i, j)]
        both = set(parts[i] + parts[j])
        kept = "".join(sorted(c for c in both if c in out or any(c in r for r in rest)))
        work = np.prod([sizes[c] for c in both], dtype=int)
        work += np.prod([sizes[c] for c in kept], dtype=int)
        total = int(work) + cheapest([*rest, kept], out, sizes)
        best = total if best is None else min(best, total)
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(60))
def test_random_trees_of_products(seed: int) -> None:
    rng = np.random.default_rng(seed)
    letters = list("abcdefg")
    sizes = {c: int(rng.integers(1, 6)) for c in letters}
    count = int(rng.integers(3, 6 if seed % 2 else EXACT + 4))
    parts = ["".join(rng.permutation(letters)[: int(rng.integers(1, 4))]) for _ in range(count)]
    used = sorted(set("".join(parts)))
    out = "".join(rng.permutation([c for c in used if rng.random() < 0.4]))
    tensors = [of(f"t{i}", *(sizes[c] for c in p)) for i, p in enumerate(parts)]
    graph = canonicalize(Graph((cr.einsum(",".join(parts) + "->" + out, *tensors).node,)))
    better = order_contractions(graph)
    feeds = {
        t.node: rng.normal(size=[sizes[c] for c in p]) for t, p in zip(tensors, parts, strict=True)
    }
    (a,), (b,) = evaluate(graph.outputs, feeds), evaluate(better.outputs, feeds)
    np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9, err_msg=f"{parts} -> {out}")
    assert cost(better) <= cost(graph), seed


@pytest.mark.parametrize("seed", range(20))
def test_of_few_factors_no_order_is_cheaper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in rng.integers(2, 40, size=7)]
    letters = "abcdefg"
    parts = [letters[i : i + 2] for i in range(6)]
    tensors = [of(f"t{i}", sizes[i], sizes[i + 1]) for i in range(6)]
    product = tensors[0]
    for t in tensors[1:]:
        product = product @ t
    least = cheapest(parts, "ag", dict(zip(letters, sizes, strict=True)))
    found = cost(ordered(product))
    assert least <= found <= max(least, least / 0.9)  # the written one stays if within a tenth


def test_a_training_step_keeps_its_products() -> None:
    x, y = cr.input("x", ("batch", 64)), cr.input("y", ("batch",), dtype="int32")
    W1, W2 = cr.parameter("W1", (64, 32)), cr.parameter("W2", (32, 10))
    loss = cr.losses.cross_entropy(cr.relu(x @ W1) @ W2, y)
    graph = canonicalize(Graph(tuple(g.node for g in cr.grad(loss, [W1, W2]))))
    assert order_contractions(graph) is not None
    assert [n.op for n in order_contractions(graph).nodes] == [n.op for n in graph.nodes]


def test_a_weights_gradient_is_a_product() -> None:
    x, W = cr.input("x", ("batch", 64)), cr.parameter("W", (64, 10))
    text = cr.compile(cr.grad(cr.sum(cr.tanh(x @ W)), W)).show("kernels")
    assert "batch, 64, 10" not in text


def test_long_chains_take_linear_time() -> None:
    def seconds(count: int) -> float:
        z, width = of("h", 8, 8), 8
        rng = np.random.default_rng(count)
        for i in range(count):
            wide = int(rng.integers(4, 40))
            z, width = z @ of(f"w{i}", width, wide), wide
        start = time.process_time()
        order_contractions(Graph((z.node,)))
        return time.process_time() - start

    seconds(2 * MOST)
    few, many = (min(seconds(n) for _ in range(3)) for n in (500, 2000))
    assert many < 10 * max(few, 0.05)  # four times as many


def test_nothing_is_done_to_graphs_without_products() -> None:
    graph = Graph((cr.exp(v).node,))
    assert order_contractions(graph) is graph


def test_compiled_chains_are_right() -> None:
    rng = np.random.default_rng(0)
    fn = cr.compile(A @ B @ X)
    a, b, x = rng.normal(size=(N, N)), rng.normal(size=(N, N)), rng.normal(size=(N, 5))
    np.testing.assert_allclose(fn(A=a, B=b, X=x), a @ b @ x, rtol=1e-9)
    assert "order_contractions" in fn.show("passes")
