"""Loops on a page: how they begin, what a step computes, and the same read back."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import walk
from chainrule.ir.node import Node
from chainrule.ops.source import Leaf

SIZES = {"time": 4, "batch": 3}
x, h0 = cr.input("x", ("time", "batch", 3)), cr.input("h0", ("batch", 5))
c0 = cr.input("c0", ("batch", 5))
W, U = cr.parameter("W", (3, 5)), cr.parameter("U", (5, 5))
GATES = {
    k: (cr.parameter(f"W{k}", (3, 5)), cr.parameter(f"U{k}", (5, 5))) for k in ("f", "i", "o", "g")
}
M, v, y = cr.parameter("M", (3, 3)), cr.input("v", (3,)), cr.input("y", (4, 2, 3))
p, q = cr.input("p", ()), cr.input("q", ())

Pair = tuple[cr.Tensor, cr.Tensor]


def step(h: cr.Tensor, v: cr.Tensor) -> Pair:
    h = cr.tanh(v @ W + h @ U).named("h")
    return h, h


def gate(k: str, h: cr.Tensor, v: cr.Tensor, f: Callable[..., cr.Tensor]) -> cr.Tensor:
    return f(v @ GATES[k][0] + h @ GATES[k][1]).named(k)


def lstm(carry: Pair, v: cr.Tensor) -> tuple[Pair, cr.Tensor]:
    h, c = carry
    f, i, o = (gate(k, h, v, cr.sigmoid) for k in "fio")
    c = (f * c + i * gate("g", h, v, cr.tanh)).named("c")
    h = (o * cr.tanh(c)).named("h")
    return (h, c), h


def rows(h: cr.Tensor, row: cr.Tensor) -> Pair:
    def inner(k: cr.Tensor, e: cr.Tensor) -> tuple[cr.Tensor, None]:
        return cr.tanh(M @ k + e).named("k"), None

    k, _ = cr.scan(inner, h, row)
    return k, k * 2


def swap(pair: Pair, _: None) -> tuple[Pair, cr.Tensor]:
    return (pair[1], pair[0] + pair[1]), pair[0]


FINAL, STACK = cr.scan(step, h0, x)
BACK, _ = cr.scan(step, cr.zeros(("batch", 5)), x, reverse=True)
(H, C), HS = cr.scan(lstm, (h0, c0), x)
K, KS = cr.scan(rows, v, y)
(A, B), AS = cr.scan(swap, (p, q), length=6)
ONE, ONES = cr.scan(step, h0, x[:1, :, :], reverse=True)


def test_a_loop_prints_as_a_recurrence() -> None:
    assert str(FINAL).splitlines() == [
        "h[-1] = h0",
        "for t = 0..time-1:",
        "    h[t] = tanh(x[t] @ W + h[t-1] @ U)",
        "h[time-1]",
    ]
    assert str(BACK).splitlines() == [
        "h[time] = zeros((batch, 5))",
        "for t = time-1..0:",
        "    h[t] = tanh(x[t] @ W + h[t+1] @ U)",
        "h[0]",
    ]


def test_its_derivative_is_backpropagation_through_time() -> None:
    """As in Goodfellow et al., Deep Learning (2016), section 10.2.2."""
    assert str(cr.grad(cr.sum(STACK**2), U)).splitlines() == [
        "h[-1] = h0",
        "for t = 0..time-1:",
        "    h[t] = tanh(x[t] @ W + h[t-1] @ U)",
        "hs = h[0:time]",
        "dhs = 2 * hs",
        "gh[time] = zeros((batch, 5))",
        "for t = time-1..0:",
        "    dh[t] = gh[t+1] + dhs[t]",
        "    dz1[t] = dh[t] ⊙ (1 - h[t]²)",
        "    gh[t] = dz1[t] @ Uᵀ",
        "dU = Σ_t h[t-1]ᵀ @ dz1[t]",
    ]


def test_no_line_is_written_twice_and_all_are_short() -> None:
    lines = str(cr.grad(cr.sum(HS**2), GATES["f"][1])).splitlines()
    assert len({line.strip() for line in lines}) == len(lines)
    assert all(len(line) < 80 for line in lines)
    assert lines[-1] == "dUf = Σ_t h[t-1]ᵀ @ dz1[t]"


def test_latex_has_indices_below() -> None:
    tex = cr.grad(cr.sum(STACK**2), U).latex()
    for row in (
        r"h_{t} &= \tanh\left({x}_{t} \, W + h_{t-1} \, U\right) \quad t = 0, \dots, "
        r"\mathrm{time}-1",
        r"\mathrm{d}z_{1,t} &= \mathrm{d}h_{t} \odot \left(1 - h_{t}^{2}\right)",
        r"\sum_{t} h_{t-1}^{\top} \, \mathrm{d}z_{1,t}",
    ):
        assert row in tex
    assert "[" not in tex
    assert r"5 \cdot \mathrm{batch}" in cr.losses.mse(h0, c0).latex()


def cases() -> Iterator[tuple[str, cr.Tensor]]:
    loss = cr.sum(STACK**2) + cr.sum(FINAL)
    yield "final", FINAL
    yield "stack", STACK * 2
    yield "loss", loss
    for w in (W, U, h0, x):
        yield f"gradient by {w.name}", cr.grad(loss, w)
    yield "reverse", cr.grad(cr.sum(BACK**2), U)
    yield "one step the other way", ONE + ONES[0, :, :]
    yield "lstm", cr.grad(cr.sum(HS**2) + cr.sum(C), GATES["f"][1])
    yield "second order", cr.grad(cr.sum(cr.grad(cr.sum(HS), h0) ** 2), c0)
    yield "swap", cr.sum(AS) + A * B
    yield "nested", K
    yield "nested stack", KS
    yield "nested gradient", cr.grad(cr.sum(KS**2), M)
    yield "nested gradient of the beginning", cr.grad(cr.sum(KS**2) + cr.sum(K), v)
    yield "jacobian", cr.jacobian(cr.tanh(M @ v), v)
    yield "jacobian of a matrix", cr.jacobian(cr.tanh(h0 @ U), U)
    yield "hessian", cr.hessian(cr.sum(cr.tanh(M @ v)), v)


CASES = [pytest.param(t, id=name) for name, t in cases()]


def feeds_of(leaves: list[Node]) -> dict[Node, np.ndarray]:
    feeds = {}
    for leaf in leaves:
        assert isinstance(leaf.op, Leaf)
        rng = np.random.default_rng(zlib.crc32(leaf.op.label.encode()))
        feeds[leaf] = rng.normal(
            size=[d if isinstance(d, int) else SIZES[str(d)] for d in leaf.shape]
        )
    return feeds


@pytest.mark.parametrize("tensor", CASES)
def test_the_text_says_all_that_there_is(tensor: cr.Tensor) -> None:
    leaves = [n for n in walk([tensor.node]) if isinstance(n.op, Leaf)]
    names = {n.op.label: cr.Tensor(n) for n in leaves if isinstance(n.op, Leaf)}
    again = cr.parse(str(tensor), names, like=tensor)
    found, wanted = evaluate([again.node, tensor.node], feeds_of(leaves), sizes=SIZES, widen=True)
    # 1e-6: numbers print as float32 has them
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert tensor.latex().count("{") == tensor.latex().count("}")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("for t = 0..time-1:\n    h[t] = x[t] @ W + h[t-1] @ U\nh[time-1]", "'h' is not known"),
        ("h[-1] = h0\nfor t = 0..time-1:\n    k[t] = x[t] @ W\nk", "no step says what h"),
        ("h[-1] = h0\nfor t = 0..time-1:\n    h[t] = h[t-2] @ U\nh", "of the step before"),
        ("for t = 0..2:\n    k[t] = x[t] @ W\nk", "no element for each of 3 steps"),
        ("for t = W..2:\n    k[t] = x[t]\nk", "from size to size"),
        ("for t = 0..time-1:\n    k[t] = x[t]\nk[t]", "'t' is not known"),
        ("for t = 0..time-1:\n    k[s] = x[t]\nk", "'s' is not known"),
        ("for t = 0..time-1:\n    k[t] = x[t]\nk[3]", "there are"),
        ("Σ_t W", "sequences of one length"),
        ("Σ_t " * 60 + "x[t]", "nests at most"),
    ],
)
def test_what_is_missing_is_said(text: str, what: str) -> None:
    with pytest.raises(cr.errors.ChainruleError, match=what):
        cr.parse(text, [x, W, U, h0])


def test_a_proof_through_a_loop_replays() -> None:
    proof = cr.explain(cr.sum(STACK**2).named("L"), U)
    assert proof.check()
    assert "∂L/∂U = Σ_t h[t-1]ᵀ @ dz1[t]" in str(proof)
    assert "by a loop the other way round" in str(proof)


def test_a_body_stands_below_the_first_node_that_needs_it() -> None:
    text = cr.compile(FINAL).show("graph")
    assert text.count("tanh") == 1
    assert "\n    update %h <- %3\n" in text


def test_a_mask_that_is_read_twice_has_a_name() -> None:
    h = cr.dropout(cr.relu(x @ W), 0.4)
    assert "mask" not in str(cr.dropout(h @ U, 0.2))
    lines = str(cr.grad(cr.sum(cr.dropout(h @ U, 0.2) ** 2), W)).splitlines()
    for mask, rate, keep in (("mask1", 0.4, 0.6), ("mask2", 0.2, 0.8)):
        assert f"{mask} = bernoulli({keep})" in lines
        assert any("dropout(" in line and f", {rate}, {mask})" in line for line in lines)
        assert any(line.startswith("d") and f"⊙ {mask} / {keep}" in line for line in lines)
