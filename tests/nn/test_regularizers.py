from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import CompileError, FeedError
from chainrule.nn import regularizers as r

W, B = np.random.default_rng(0).normal(size=(3, 4)), np.random.default_rng(1).normal(size=4)


def value(make: Any) -> tuple[float, np.ndarray]:
    w, b = cr.parameter("w", W.shape, dtype="float64"), cr.parameter("b", B.shape, dtype="float64")
    cost = make(w, b)
    a, g = cr.compile([cost, cr.grad(cost, w)])(w=W, b=B)
    return float(a), g


class Holder:
    """Anything with parameters by name, as layers have."""

    def __init__(self, **parameters: cr.Tensor) -> None:
        self.parameters = parameters


@pytest.mark.parametrize(
    "given",
    [
        lambda w, b: [w, b],
        lambda w, b: {"w": w, "b": b},
        lambda w, b: Holder(w=w, b=b),
        lambda w, b: iter((w, b)),
    ],
)
def test_against_numpy(given: Any) -> None:
    a, g = value(lambda w, b: r.l1(given(w, b), 0.1))
    assert a == pytest.approx(0.1 * (abs(W).sum() + abs(B).sum()), rel=1e-12)
    np.testing.assert_allclose(g, 0.1 * np.sign(W), rtol=1e-12)
    a, g = value(lambda w, b: r.l2(given(w, b), 0.1))
    assert a == pytest.approx(0.1 * ((W**2).sum() + (B**2).sum()), rel=1e-12)
    np.testing.assert_allclose(g, 0.2 * W, rtol=1e-12)
    a, g = value(lambda w, b: r.l1_l2(given(w, b), 0.1, 0.2))
    both = 0.1 * (abs(W).sum() + abs(B).sum()) + 0.2 * ((W**2).sum() + (B**2).sum())
    assert a == pytest.approx(both, rel=1e-12)


def test_one_tensor() -> None:
    assert value(lambda w, b: r.l2(w) + 0.0 * cr.sum(b))[0] == pytest.approx(0.01 * (W**2).sum())


def test_half_of_weight_decay() -> None:
    """Of plain gradient descent, l2(w, d/2) is a weight decay of d."""
    steps = []
    for decay, cost in ((0.3, 0.0), (0.0, 0.15)):
        w = cr.parameter("w", W.shape, init=W, dtype="float64")
        loss = cr.sum(cr.sin(w)) + (r.l2(w, cost) if cost else 0.0)
        steps.append(cr.training_step(loss, cr.optim.SGD(0.1, weight_decay=decay)))
        for _ in range(5):
            steps[-1]()
    np.testing.assert_allclose(*(s.parameters["w"] for s in steps), rtol=1e-12)


def test_what_is_none() -> None:
    w = cr.parameter("w", (2,))
    with pytest.raises(CompileError, match="there are none"):
        r.l2([])
    for bad in (3.0, "w", ["w"], [cr.input("k", (2,), dtype="int32")]):
        with pytest.raises(CompileError, match="a regularizer takes"):
            r.l1(bad)
    with pytest.raises(FeedError, match="factor"):
        r.l2(w, -1.0)
