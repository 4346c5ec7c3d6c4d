"""Forward mode: against reverse mode for every op, against differences, and as it prints."""

from __future__ import annotations

import time
import zlib
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.autodiff.forward import push_forward
from chainrule.autodiff.reverse import differentiate
from chainrule.errors import DTypeError, GradientError, ShapeError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.node import Op, apply
from chainrule.ir.types import TensorType
from chainrule.ops.registry import ops
from chainrule.ops.source import constant, leaf

SAMPLES = [
    pytest.param(op, types, id=f"{entry.name}-{i}")
    for entry in ops()
    for i, (op, types) in enumerate(entry.samples)
    if any(t.dtype.is_float and op.reaches(k) for k, t in enumerate(types))
    and op.infer(*types).dtype.is_float
]


def values(tensors: list[cr.Tensor], feeds: dict[cr.Tensor, Any]) -> list[np.ndarray[Any, Any]]:
    fed = {t.node: np.asarray(a) for t, a in feeds.items()}
    return evaluate([t.node for t in tensors], fed, widen=True)


@pytest.mark.parametrize(("op", "types"), SAMPLES)
def test_it_is_the_transpose_of_reverse_mode(op: Op, types: list[TensorType]) -> None:
    rng = np.random.default_rng(zlib.crc32(str(op.name).encode()))
    leaves = [leaf("input", f"x{i}", t) for i, t in enumerate(types)]
    feeds = {}
    for node in leaves:
        drawn = rng.uniform(*op.domain, node.shape)
        feeds[node] = drawn > 0 if node.dtype.is_bool else drawn.astype(node.dtype.numpy)
    out = apply(op, *leaves)
    wrt = [n for n in leaves if n.dtype.is_float]
    tangents = [constant(rng.normal(size=n.shape), n.dtype) for n in wrt]
    ct = constant(rng.normal(size=out.shape), out.dtype)
    (pushed,) = push_forward([out], wrt, tangents)
    pulled = differentiate([out], [ct], wrt).gradients
    back = [(g, t) for g, t in zip(pulled, tangents, strict=True) if g is not None]
    found = evaluate([n for pair in back for n in pair], feeds)
    want = sum(float(np.sum(g * t)) for g, t in zip(found[::2], found[1::2], strict=True))
    if pushed is None:
        assert want == 0
        return
    assert pushed.type == out.type
    one, other = evaluate([pushed, ct], feeds)
    assert float(np.sum(one * other)) == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_a_net_against_differences() -> None:
    rng = np.random.default_rng(1)
    x, w = cr.input("x", ("batch", 3)), cr.parameter("w", (3, 4))
    dx, dw = cr.input("dx", ("batch", 3)), cr.input("dw", (3, 4))
    outputs = {"z": cr.softmax(cr.tanh(x @ w)), "s": [cr.sum(cr.exp(x))]}
    tangents = cr.jvp(outputs, (x, w), (dx, dw))
    at = {t: rng.normal(size=(2, 3)) for t in (x, dx)} | {
        t: rng.normal(size=(3, 4)) for t in (w, dw)
    }
    found = values([tangents["z"], tangents["s"][0]], at)
    roots = [outputs["z"], outputs["s"][0]]
    h = 1e-6
    up = values(roots, at | {x: at[x] + h * at[dx], w: at[w] + h * at[dw]})
    down = values(roots, at | {x: at[x] - h * at[dx], w: at[w] - h * at[dw]})
    for got, a, b in zip(found, up, down, strict=True):
        np.testing.assert_allclose(got, (a - b) / (2 * h), rtol=1e-7, atol=1e-9)


def test_it_prints_as_one_would_write_it() -> None:
    x, w1, w2 = cr.input("x", ("batch", 4)), cr.parameter("W1", (4, 5)), cr.parameter("W2", (5, 3))
    h = cr.tanh(x @ w1)
    d1, d2 = cr.input("V1", (4, 5)), cr.input("V2", (5, 3))
    assert str(cr.jvp(h @ w2, [w1, w2], [d1, d2])).splitlines() == [
        "h1 = tanh(x @ W1)",
        "dh1 = (x @ V1) ⊙ (1 - h1²)",
        "h1 @ V2 + dh1 @ W2",
    ]
    assert str(cr.jvp(cr.square(x), x, x)) in ("2 * x²", "2 * (x ⊙ x)")


def test_what_does_not_depend_is_zero() -> None:
    x, w = cr.input("x", (3,)), cr.input("w", (3,))
    a, b, c = cr.jvp([cr.exp(x), cr.sign(w), x], [w], [w])
    assert [str(t) for t in (a, b, c)] == ["0", "0", "0"]
    assert a.type == x.type
    assert cr.jvp(w, w, x).node is x.node


def test_derivatives_by_intermediates_are_total() -> None:
    x = cr.input("x", (), dtype="float64")
    y = cr.square(x)
    one = cr.constant(np.float64(1))
    (got,) = values([cr.jvp(x * y, [x, y], [one, one])], {x: 3.0})
    assert got == 3 * 9 + 3  # ∂(x·y)/∂x with y = x² is 3x², by y alone x


def test_second_derivatives_by_both_modes_agree() -> None:
    rng = np.random.default_rng(5)
    w, v = cr.parameter("w", (4,), dtype="float64"), cr.input("v", (4,), dtype="float64")
    loss = cr.sum(cr.exp(cr.sin(w)) * cr.sum(cr.square(w)))
    at = {w: rng.normal(size=4), v: rng.normal(size=4)}
    over, product = values([cr.jvp(cr.grad(loss, w), w, v), cr.hvp(loss, w, v)], at)
    np.testing.assert_allclose(over, product, rtol=1e-12)
    h = 1e-5
    g = cr.grad(loss, w)
    (up,), (down,) = (values([g], at | {w: at[w] + s * h * at[v]}) for s in (1, -1))
    np.testing.assert_allclose(product, (up - down) / (2 * h), rtol=1e-7, atol=1e-8)


def test_hvp_over_structures_is_the_whole_hessian() -> None:
    a, b = cr.parameter("a", (2,), dtype="float64"), cr.parameter("b", (2,), dtype="float64")
    u, v = cr.input("u", (2,), dtype="float64"), cr.input("v", (2,), dtype="float64")
    found = cr.hvp(cr.sum(cr.square(a) * b), {"a": a, "b": b}, {"a": u, "b": v})
    at = {a: [1.0, 2.0], b: [3.0, 4.0], u: [1.0, 0.5], v: [2.0, 1.0]}
    by_a, by_b = values([found["a"], found["b"]], at)
    np.testing.assert_allclose(by_a, [2 * 3 * 1 + 2 * 1 * 2, 2 * 4 * 0.5 + 2 * 2 * 1])
    np.testing.assert_allclose(by_b, [2 * 1 * 1, 2 * 2 * 0.5])


def test_wrong_types_are_refused() -> None:
    x, y = cr.input("x", (3,)), cr.input("y", (3,), dtype="int32")
    with pytest.raises(ShapeError, match="as many tangents"):
        cr.jvp(x, [x], [])
    with pytest.raises(ShapeError, match="has its shape"):
        cr.jvp(x, x, cr.input("v", (4,)))
    with pytest.raises(DTypeError, match="has its type"):
        cr.jvp(x, x, cr.input("v", (3,), dtype="float64"))
    with pytest.raises(GradientError, match="only floats"):
        cr.jvp(x, y, y)
    with pytest.raises(GradientError, match="only floats"):
        cr.jvp(y, x, x)


def test_deep_graphs_take_linear_time() -> None:
    def seconds(depth: int) -> float:
        x = h = cr.input("x", (2,))
        for _ in range(depth):
            h = cr.tanh(h)
        start = time.process_time()
        cr.jvp(h, x, x)
        return time.process_time() - start

    seconds(100)
    short, long = seconds(1000), seconds(8000)
    assert long < 30 * short, (short, long)
