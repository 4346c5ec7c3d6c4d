"""Jacobians and Hessians against PyTorch's, and against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr

Array = np.ndarray[Any, Any]
#: sums in float64, in two orders
CLOSE = {"rtol": 1e-9, "atol": 1e-12}

x = cr.input("x", ("batch", 3), dtype="float64")
W = cr.parameter("W", (3, 4), dtype="float64")
V = cr.parameter("V", (4, 2), dtype="float64")
b = cr.parameter("b", (4,), dtype="float64")
FEEDS = {
    t.name: np.random.default_rng(i).normal(size=(2, 3) if t is x else t.shape)
    for i, t in enumerate([x, W, V, b])
}
VECTORS: dict[str, tuple[cr.Tensor, list[cr.Tensor]]] = {
    "matmul": (x @ W, [x, W]),
    "tanh": (cr.tanh(x), [x]),
    "softmax": (cr.softmax(x @ W + b), [x, b]),
    "mlp": (cr.tanh(x @ W + b) @ V, [W, b, V, x]),
    "sum": (cr.sum(x * x, axis=0), [x]),
    "transpose": ((x @ W).T, [W]),
    "scan": (cr.scan(lambda h, r: (h * cr.tanh(r @ W + h), r @ W), b, x)[1], [W, x]),
    "scan's end": (cr.scan(lambda h, r: (cr.tanh(r @ W + h), None), b, x)[0], [W, b, x]),
}
SCALARS: dict[str, tuple[cr.Tensor, list[cr.Tensor]]] = {
    "quadratic": (cr.sum((x @ W) ** 2), [W, x]),
    "logsumexp": (cr.logsumexp(x @ W + b), [b, W]),
    "mlp": (cr.sum(cr.sigmoid(cr.tanh(x @ W + b) @ V)), [W, b, V]),
    "linear": (cr.sum(x @ W), [W, b]),
    "scan": (cr.sum(cr.scan(lambda h, r: (cr.tanh(r @ W + h), None), b, x)[0]), [W, b]),
}


def differences(of: cr.Tensor, wrt: cr.Tensor) -> Array:
    """Central differences of each element of `of` by each of `wrt`, Richardson's extrapolation."""
    fn = cr.compile(of, backend="reference")
    fed = {name: FEEDS[name] for name in fn.inputs}
    value, at = fn(**fed), FEEDS[str(wrt.name)]
    out = np.zeros((*np.shape(value), *at.shape))
    if wrt.name not in fed:
        return out
    for index in np.ndindex(at.shape):

        def slope(h: float, index: tuple[int, ...] = index) -> Array:
            ends = []
            for step in (h, -h):
                moved = at.copy()
                moved[index] += step
                ends.append(fn(**{**fed, str(wrt.name): moved}))
            return np.asarray((ends[0] - ends[1]) / (2 * h))

        out[(..., *index)] = (4 * slope(5e-4) - slope(1e-3)) / 3
    return out


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", VECTORS)
def test_jacobian_is_that_of_finite_differences(name: str, backend: str) -> None:
    y, wrt = VECTORS[name]
    found = cr.jacobian(y, wrt)
    assert [j.shape for j in found] == [(*y.shape, *w.shape) for w in wrt]
    fn = cr.compile(found, backend=backend)
    for got, w in zip(fn(**{n: FEEDS[n] for n in fn.inputs}), wrt, strict=True):
        np.testing.assert_allclose(got, differences(y, w), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", SCALARS)
def test_hessian_is_symmetric_and_that_of_finite_differences(name: str) -> None:
    loss, wrt = SCALARS[name]
    found = cr.hessian(loss, wrt)
    assert [[h.shape for h in row] for row in found] == [
        [(*p.shape, *q.shape) for q in wrt] for p in wrt
    ]
    fn = cr.compile(found)
    got = fn(**{n: FEEDS[n] for n in fn.inputs})
    for i, p in enumerate(wrt):
        slope = cr.grad(loss, p, unused="zeros")
        for j, q in enumerate(wrt):
            np.testing.assert_allclose(got[i][j], differences(slope, q), rtol=1e-7, atol=1e-8)
            turned = np.moveaxis(got[j][i], range(q.ndim), range(-q.ndim, 0))
            np.testing.assert_allclose(got[i][j], turned, **CLOSE)


TORCH: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "softmax": (
        lambda w, v: cr.softmax(x @ w, axis=1) @ v,
        lambda t, a, w, v: t.softmax(a @ w, 1) @ v,
    ),
    "gelu": (lambda w, v: cr.gelu(x @ w) @ v, lambda t, a, w, v: t.nn.functional.gelu(a @ w) @ v),
}


@pytest.mark.parametrize("name", TORCH)
def test_both_are_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.autograd import functional

    ours, theirs = TORCH[name]
    a, w, v = (torch.tensor(FEEDS[n]) for n in "xWV")
    y = ours(W, V)
    fn = cr.compile([cr.jacobian(y, [W, V]), cr.hessian(cr.sum(y**2), [W, V])])
    jacobian, hessian = fn(x=FEEDS["x"], W=FEEDS["W"], V=FEEDS["V"])
    want = functional.jacobian(lambda w, v: theirs(torch, a, w, v), (w, v))
    for got, e in zip(jacobian, want, strict=True):
        np.testing.assert_allclose(got, e.numpy(), **CLOSE)
    rows = functional.hessian(lambda w, v: (theirs(torch, a, w, v) ** 2).sum(), (w, v))
    for row, other in zip(hessian, rows, strict=True):
        for got, e in zip(row, other, strict=True):
            np.testing.assert_allclose(got, e.numpy(), **CLOSE)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_sizes_may_be_symbolic_and_nothing_is_unrolled(batch: int) -> None:
    fn = compiled()
    rows = np.random.default_rng(2).normal(size=(batch, 3))
    got = fn(x=rows, W=FEEDS["W"])
    assert got.shape == (batch, 4, batch, 3)
    for i in range(batch):
        for j in range(batch):
            slope = 1 - np.tanh(rows[i] @ FEEDS["W"]) ** 2
            want = slope[:, None] * FEEDS["W"].T if i == j else np.zeros((4, 3))
            np.testing.assert_allclose(got[i, :, j], want, **CLOSE)
    assert len(fn.report().kernels) < 12


_made: list[Any] = []


def compiled() -> Any:
    if not _made:
        _made.append(cr.compile(cr.jacobian(cr.tanh(x @ W), x)))
    return _made[0]


def test_structures_are_kept_and_what_is_independent_is_zero() -> None:
    loss = cr.sum(cr.exp(b))
    found = cr.hessian(loss, {"b": b, "more": (W,)})
    assert set(found) == {"b", "more"}
    assert found["more"][0]["b"].shape == (3, 4, 4)
    assert isinstance(found["b"]["more"], tuple)
    got = cr.compile(found)(b=np.zeros(4))
    np.testing.assert_array_equal(got["b"]["b"], np.eye(4))
    assert not got["b"]["more"][0].any()
    assert not cr.compile(cr.jacobian(cr.exp(b), W))().any()
    assert cr.jacobian(cr.sum(b * b), b).shape == (4,)
    assert cr.hessian(cr.sum(b * b), b).shape == (4, 4)


def test_what_is_no_float_is_refused() -> None:
    i = cr.input("i", (3,), dtype="int32")
    for y, wrt in [(i, b), (b * 2, i)]:
        with pytest.raises(cr.errors.GradientError, match="only floats") as caught:
            cr.jacobian(y, wrt)
        assert "test_jacobian.py" in str(caught.value)
    with pytest.raises(cr.errors.GradientError, match="of a scalar"):
        cr.hessian(b, b)
