from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import DTypeError, FeedError, ShapeError
from chainrule.nn import losses

RNG = np.random.default_rng(0)
P, T = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 3))
UNIT = RNG.uniform(size=(5, 3))
LABELS = RNG.integers(0, 3, 5).astype(np.int32)


def value(loss: Callable[..., cr.Tensor], p: np.ndarray, t: np.ndarray) -> tuple[float, np.ndarray]:
    """A loss and its gradient by the prediction, through the reference backend."""
    x = cr.input("x", p.shape, dtype=p.dtype)
    y = cr.input("y", t.shape, dtype=t.dtype)
    out = loss(x, y)
    fn = cr.compile([out, cr.grad(out, x)], backend="reference")
    a, b = fn(x=p, y=t)
    return float(a), b


def softplus(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, z)


def test_against_numpy() -> None:
    assert value(losses.mse, P, T)[0] == pytest.approx(np.mean((P - T) ** 2), rel=1e-12)
    assert value(losses.mae, P, T)[0] == pytest.approx(np.mean(abs(P - T)), rel=1e-12)
    d = abs(P - T)
    huber = np.where(d <= 0.7, d**2 / 2, 0.7 * (d - 0.35)).mean()
    assert value(lambda x, y: losses.huber(x, y, 0.7), P, T)[0] == pytest.approx(huber, rel=1e-12)
    bce = np.mean(UNIT * softplus(-P) + (1 - UNIT) * softplus(P))
    assert value(losses.binary_cross_entropy, P, UNIT)[0] == pytest.approx(bce, rel=1e-12)
    log_p = P - np.log(np.exp(P).sum(1, keepdims=True))
    assert value(losses.cross_entropy, P, LABELS)[0] == pytest.approx(
        -np.mean(log_p[np.arange(5), LABELS]), rel=1e-12
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "target"),
    [
        (losses.mse, "mse_loss", T),
        (losses.mae, "l1_loss", T),
        (losses.huber, "huber_loss", 3 * T),
        (losses.binary_cross_entropy, "binary_cross_entropy_with_logits", UNIT),
        (losses.cross_entropy, "cross_entropy", LABELS),
    ],
)
def test_against_torch(ours: Callable[..., cr.Tensor], theirs: str, target: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(P, requires_grad=True)
    t = torch.tensor(target.astype(np.int64) if target is LABELS else target)
    loss = getattr(torch.nn.functional, theirs)(x, t)
    loss.backward()
    a, g = value(ours, P, target)
    assert a == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(g, x.grad.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("size", [0.0, 1e-3, 30.0, 1e4])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_large_logits_stay_finite(size: float, kind: type) -> None:
    z = np.array([[size, -size, 0.0]], kind)
    for t in (0.0, 0.5, 1.0):
        a, g = value(losses.binary_cross_entropy, z, np.full_like(z, t))
        assert np.isfinite(a) and np.isfinite(g).all()
    for label in range(3):
        a, g = value(losses.cross_entropy, z, np.array([label], np.int32))
        assert np.isfinite(a) and np.isfinite(g).all()
        assert a == pytest.approx([0, 2 * size, size][label], abs=2)


def test_leading_axes() -> None:
    z, y = RNG.normal(size=(2, 4, 3)), RNG.integers(0, 3, (2, 4)).astype(np.int64)
    flat = value(losses.cross_entropy, z.reshape(8, 3), y.reshape(8))[0]
    assert value(losses.cross_entropy, z, y)[0] == pytest.approx(flat, rel=1e-12)


@pytest.mark.parametrize(
    "loss", [losses.mse, losses.mae, losses.huber, losses.binary_cross_entropy]
)
def test_shapes_never_broadcast(loss: Callable[..., cr.Tensor]) -> None:
    p, t = cr.input("p", ("n", 1)), cr.input("t", ("n",))
    with pytest.raises(ShapeError, match="one shape") as error:
        loss(p, t)
    assert "f32[n, 1] and f32[n]" in str(error.value) and "test_losses.py" in str(error.value)
    with pytest.raises(DTypeError, match="compares floats"):
        loss(p, cr.input("t", ("n", 1), dtype="int32"))


def test_labels_of_the_wrong_form() -> None:
    z = cr.input("z", ("n", 10))
    for dtype in ("float32", "bool"):
        with pytest.raises(DTypeError, match="class numbers"):
            losses.cross_entropy(z, cr.input("y", ("n",), dtype=dtype))
    for dtype in ("float32", "int32", "bool"):
        with pytest.raises(DTypeError, match="one-hot"):
            losses.cross_entropy(z, cr.input("y", ("n", 10), dtype=dtype))
    with pytest.raises(ShapeError, match="squeeze"):
        losses.cross_entropy(z, cr.input("y", ("n", 1), dtype="int32"))
    with pytest.raises(ShapeError, match=r"labels must be i32\[n\]"):
        losses.cross_entropy(z, cr.input("y", ("m",), dtype="int32"))
    with pytest.raises(DTypeError, match="float logits"):
        losses.cross_entropy(
            cr.input("k", ("n", 10), dtype="int32"), cr.input("y", ("n",), dtype="int32")
        )
    with pytest.raises(FeedError, match="delta"):
        losses.huber(z, z, delta=0.0)


def test_the_gradient_is_recognised() -> None:
    z, y = cr.input("z", ("batch", 10)), cr.input("y", ("batch",), dtype="int32")
    assert "(softmax(z) - onehot(y)) / batch" in str(cr.grad(losses.cross_entropy(z, y), z))
