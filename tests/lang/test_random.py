"""Random tensors as users write them: distributions, shapes, derivatives, dropout, refusals."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ChainruleError, GradientError

SEED = 20261123
BACKENDS = ["cpu", "reference"]


def drawn(tensor: cr.Tensor, seed: int = SEED, **feeds: Any) -> np.ndarray:
    return np.asarray(cr.compile(tensor, training=True, seed=seed)(**feeds))


def check_moments(x: np.ndarray, mean: float, var: float, fourth: float) -> None:
    """Mean and variance within 5 standard errors; `fourth` is the fourth central moment."""
    n, x = x.size, x.astype(np.float64)
    assert abs(x.mean() - mean) < 5 * math.sqrt(var / n), f"seed {SEED}"
    error = math.sqrt(max(fourth - var**2, 1e-12) / n)
    assert abs(((x - mean) ** 2).mean() - var) < 5 * error, f"seed {SEED}"


N = 100_000
MOMENTS: dict[str, tuple[Callable[[], cr.Tensor], float, float, float]] = {
    "uniform": (lambda: cr.random.uniform((N,)), 1 / 2, 1 / 12, 1 / 80),
    "uniform from -3 to 5": (
        lambda: cr.random.uniform((N // 4, 4), -3.0, 5, dtype="float64"), 1, 64 / 12, 4096 / 80,
    ),
    "normal": (lambda: cr.random.normal((N,)), 0, 1, 3),
    "normal of mean 2, deviation 3": (
        lambda: cr.random.normal((N,), 2.0, 3.0, "float64"), 2, 9, 3 * 81,
    ),
    "bernoulli": (lambda: cr.random.bernoulli(0.3, (N,)), 0.3, 0.21, 0.21 * (1 - 3 * 0.21)),
    "integers": (lambda: cr.random.randint(-2, 4, (N,)), 0.5, 35 / 12, 707 / 48),
}  # fmt: skip


@pytest.mark.parametrize("name", MOMENTS)
def test_mean_and_variance(name: str) -> None:
    make, mean, var, fourth = MOMENTS[name]
    check_moments(drawn(make()), mean, var, fourth)


def test_uniform_numbers_lie_between_their_bounds() -> None:
    x = drawn(cr.random.uniform((N,), -1.5, 2.5))
    assert x.min() >= -1.5 and x.max() <= 2.5
    assert x.dtype == np.float32


def test_bernoulli_of_probabilities_that_are_tensors() -> None:
    p = cr.input("p", (5,))
    b = cr.random.bernoulli(p, (20_000, 5), dtype="float32")
    given = np.array([-1, 0, 0.25, 1, np.nan], np.float32)
    mean = drawn(b, p=given).mean(0)
    assert list(mean[[0, 1, 3, 4]]) == [0, 0, 1, 0]
    assert abs(mean[2] - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 20_000), f"seed {SEED}"
    assert cr.random.bernoulli(p).shape == (5,)
    assert drawn(cr.random.bernoulli(1.0)).shape == ()


def test_types_and_shapes() -> None:
    assert cr.random.uniform(3).shape == (3,)
    assert cr.random.normal(("n", 2), dtype="float64").dtype == "float64"
    assert cr.random.bernoulli(0.5, ()).dtype == "bool"
    assert cr.random.randint(0, 5, (2, 2), dtype="uint8").dtype == "uint8"
    x = cr.input("x", ("batch", 4))
    assert cr.random.normal(x.shape).shape == x.shape
    assert drawn(cr.random.normal((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_has_the_same_bits(dtype: str) -> None:
    outputs = {
        "u": cr.random.uniform((3, 7), dtype=dtype),
        "n": cr.random.normal((5, 5), dtype=dtype),
        "b": cr.random.bernoulli(0.4, (33,)),
        "scaled": cr.random.normal((4, 3), 1.5, 0.25, dtype),
    }
    found = [cr.compile(outputs, seed=SEED, backend=b)() for b in BACKENDS]
    for name in outputs:
        np.testing.assert_array_equal(*(f[name] for f in found))


def test_a_compiled_function_is_pure_and_its_seed_decides() -> None:
    x = cr.random.normal((8,))
    fn = cr.compile([x, x, cr.random.normal((8,))])
    first, same, other = fn()
    np.testing.assert_array_equal(first, same)
    assert (first != other).all()
    np.testing.assert_array_equal(fn()[2], other)
    assert (drawn(x, seed=1) != first).all()


def test_the_process_history_does_not_matter() -> None:
    def net() -> cr.Tensor:
        h = cr.dropout(cr.random.normal((6, 5)), 0.3)
        return cr.dropout(h, 0.4)

    first = drawn(net())
    for _ in range(3):
        cr.random.uniform((2,))
    np.testing.assert_array_equal(drawn(net()), first)


def test_neither_seed_nor_draws_are_asked_of_the_user() -> None:
    x = cr.input("x", (3,))
    assert cr.compile(cr.dropout(x, 0.5) + cr.random.normal((3,)), training=True).inputs == ["x"]


# derivatives


def test_reparametrised_normal_numbers_have_gradients() -> None:
    """What trains a variational autoencoder: held to finite differences, of second order too."""
    mean, scale = cr.parameter("mean", (4,)), cr.parameter("scale", (4,))
    z = cr.random.normal(("batch", 4), mean, cr.exp(scale))
    x = cr.input("x", ("batch", 4))
    loss = cr.mean(cr.square(cr.tanh(z) - x))
    feeds = {"x": np.linspace(-1, 1, 12).reshape(3, 4), "mean": np.full(4, 0.3),
             "scale": np.linspace(-1, 0.5, 4)}  # fmt: skip
    cr.check_gradients(loss, [mean, scale], feeds)
    slope = cr.grad(loss, scale)
    cr.check_gradients(cr.sum(slope * slope), [mean, scale], feeds)


def test_the_bounds_of_uniform_numbers_have_gradients() -> None:
    low, high = cr.parameter("low", ()), cr.parameter("high", (3,))
    u = cr.random.uniform((50, 3), low, high)
    cr.check_gradients(cr.sum(u**3), [low, high], {"low": -1.0, "high": np.arange(1.0, 4.0)})
    found = cr.compile([u, cr.grad(cr.sum(u), low)], seed=3)(low=np.float32(2), high=[2.0, 3, 4])
    assert (found[0][:, 0] == 2).all() and (found[0] >= 2).all()
    assert found[1] == pytest.approx(
        150 - drawn(cr.random.uniform((50, 3)), seed=3).sum(), rel=1e-5
    )


def test_draws_are_constants() -> None:
    p = cr.parameter("p", (3,))
    with pytest.raises(GradientError):
        cr.grad(cr.sum(cr.random.bernoulli(p, dtype="float32")), p)


def test_gradients_are_checked_with_the_same_numbers_each_time() -> None:
    w = cr.parameter("w", (6, 6))

    def loss() -> cr.Tensor:
        return cr.sum(cr.square(cr.dropout(cr.sin(w), 0.5)))

    at = {"w": np.linspace(0.1, 3, 36).reshape(6, 6)}
    first = cr.check_gradients(loss(), w, at)
    cr.random.uniform((2,))
    assert cr.check_gradients(loss(), w, at) == first


# dropout


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_drops_in_training_and_does_nothing_else(backend: str) -> None:
    x = cr.input("x", ("batch", 50))
    h = cr.dropout(x, 0.2)
    data = np.random.default_rng(1).uniform(1, 2, (40, 50)).astype("f4")
    train, infer = (cr.compile(h, backend, training=t, seed=4)(x=data) for t in (True, False))
    np.testing.assert_array_equal(infer, data)
    kept = train != 0
    np.testing.assert_array_equal(train[kept], (data * np.float32(1.25))[kept])
    assert abs(kept.mean() - 0.8) < 5 * math.sqrt(0.16 / data.size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_dropped_has_neither_value_nor_gradient(backend: str) -> None:
    x = cr.input("x", (64,))
    h = cr.dropout(x, 0.5)
    outputs = [h, cr.grad(cr.sum(cr.exp(h)), x)]
    fn = cr.compile(outputs, backend, training=True)
    plain, slope = fn(x=np.zeros(64, "f4"))
    dropped = slope == 0
    assert 10 < dropped.sum() < 54
    np.testing.assert_array_equal(slope[~dropped], 2)
    for bad in (np.inf, np.nan):
        value, slope = fn(x=np.where(dropped, bad, 0).astype("f4"))
        np.testing.assert_array_equal(value, plain)
        np.testing.assert_array_equal(slope, np.where(dropped, 0, 2))


def test_the_ends_of_the_rate() -> None:
    x = cr.input("x", (5,))
    assert cr.dropout(x, 0).node is x.node
    h = cr.dropout(x, 1)
    for backend in BACKENDS:
        fn = cr.compile([h, cr.grad(cr.sum(h), x)], backend, training=True)
        out, slope = fn(x=np.full(5, np.inf, "f4"))
        assert (out == 0).all() and (slope == 0).all()
    np.testing.assert_array_equal(cr.compile(cr.dropout(x, 1))(x=np.ones(5, "f4")), 1)


def test_dropout_has_derivatives_of_every_order() -> None:
    w = cr.parameter("w", (4, 3))
    h = cr.dropout(cr.tanh(w), 0.3)
    at = {"w": np.linspace(-1, 1, 12).reshape(4, 3)}
    loss = cr.sum(h**3)
    slope = cr.grad(loss, w)
    cr.check_gradients(loss, w, at)
    cr.check_gradients(cr.sum(cr.square(slope)), w, at)
    v = cr.constant(np.ones((4, 3), "f4"))
    curve = cr.compile([cr.hvp(loss, w, v), cr.jvp(slope, w, v)], training=True)(w=at["w"])
    np.testing.assert_allclose(curve[0], curve[1], rtol=1e-6)


def test_a_net_with_dropout_is_that_of_pytorch_with_its_masks() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, w1, w2 = cr.input("x", ("batch", 6)), cr.parameter("w1", (6, 8)), cr.parameter("w2", (8, 2))
    h = cr.dropout(cr.relu(x @ w1), 0.25)
    loss = cr.mean(cr.square(h @ w2))
    ones = cr.compile(cr.dropout(cr.ones((5, 8)), 0.25), training=True, seed=9)()
    feeds = {"x": rng.normal(size=(5, 6)).astype("f4"), "w1": rng.normal(size=(6, 8)).astype("f4"),
             "w2": rng.normal(size=(8, 2)).astype("f4")}  # fmt: skip
    fn = cr.compile([loss, *cr.grad(loss, [w1, w2])], training=True, seed=9)
    got = fn(**feeds)
    t = {k: torch.tensor(v, requires_grad=k != "x") for k, v in feeds.items()}
    want = (((torch.relu(t["x"] @ t["w1"]) * torch.tensor(ones)) @ t["w2"]) ** 2).mean()
    want.backward()
    assert got[0] == pytest.approx(want.item(), rel=1e-5)
    for g, name in zip(got[1:], ("w1", "w2"), strict=True):
        np.testing.assert_allclose(g, t[name].grad.numpy(), rtol=1e-4, atol=1e-5)


# as it prints


def test_it_prints_as_one_would_write_it() -> None:
    x, w = cr.input("x", ("batch", 4)), cr.parameter("W", (4, 3))
    h = cr.dropout(cr.tanh(x @ w).named("h"), 0.5)
    assert str(h) == "h = tanh(x @ W)\ndropout(h, 0.5)"
    page = str(cr.grad(cr.sum(cr.square(h)), w))
    assert "mask1 = bernoulli(0.5)\n" in page
    assert "2 * dropout(h, 0.5, mask1) ⊙ mask1 / 0.5" in page
    mean, std = cr.parameter("μ", (3,)), cr.parameter("σ", (3,))
    assert str(cr.random.normal((5, 3), mean, std)) == "ε1 = normal(0, 1)\nμ + σ ⊙ ε1"
    tex = cr.random.normal((5, 3), mean, std).latex()
    assert r"\epsilon_{1} &= \mathcal{N}\left(0, 1\right)" in tex
    assert r"\operatorname{dropout}\left(h, 0.5\right)" in h.latex()


def test_the_page_says_what_comes_out() -> None:
    page = (Path(__file__).parents[2] / "docs/random.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n((?:(?!```).*\n)*)```\n\n((?:    .*\n)+)", page)
    assert len(blocks) == 2
    for code, said in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, names)
        assert out.getvalue() == re.sub(r"^    ", "", said, flags=re.M)


def test_a_given_mask_is_seen_and_read_back() -> None:
    x, mask = cr.input("x", (3, 4)), cr.input("mask", (3, 4), dtype="bool")
    h = cr.parse("dropout(x, 0.25, mask)", [x, mask])
    assert str(h) == "dropout(x, 0.25, mask)"


# refusals

X, I = cr.input("x", ("batch", 5)), cr.input("i", (3,), dtype="int32")
WRONG: dict[str, Callable[[], Any]] = {
    "rate above 1": lambda: cr.dropout(X, 1.5),
    "rate below 0": lambda: cr.dropout(X, -0.1),
    "rate NaN": lambda: cr.dropout(X, math.nan),
    "rate a word": lambda: cr.dropout(X, "half"),  # type: ignore[arg-type]
    "rate a bool": lambda: cr.dropout(X, True),
    "dropout of integers": lambda: cr.dropout(I),
    "bounds the wrong way round": lambda: cr.random.uniform((3,), 1.0, 0.0),
    "infinite bound": lambda: cr.random.uniform((3,), 0.0, math.inf),
    "integer floats": lambda: cr.random.uniform((3,), dtype="int32"),
    "bounds that do not fit": lambda: cr.random.uniform((3,), cr.input("k", (4,))),
    "bounds of another type": lambda: cr.random.uniform((3,), I),
    "negative size": lambda: cr.random.normal((-1,)),
    "fractional size": lambda: cr.random.normal((1.5,)),
    "negative deviation": lambda: cr.random.normal((3,), 0.0, -1.0),
    "mean NaN": lambda: cr.random.normal((3,), math.nan),
    "probability above 1": lambda: cr.random.bernoulli(1.5, (3,)),
    "probability a bool": lambda: cr.random.bernoulli(True),
    "integer probabilities": lambda: cr.random.bernoulli(I),
    "no integers": lambda: cr.random.randint(3, 3, (2,)),
    "too many integers": lambda: cr.random.randint(0, 2**32, (2,), dtype="int64"),
    "integers beyond the type": lambda: cr.random.randint(0, 300, (2,), dtype="int8"),
    "fractional integers": lambda: cr.random.randint(0.5, 3, (2,)),  # type: ignore[arg-type]
    "floats as integers": lambda: cr.random.randint(0, 3, (2,), dtype="float32"),
    "negative seed": lambda: cr.compile(X, seed=-1),
    "training a number": lambda: cr.compile(X, training=1),  # type: ignore[arg-type]
    "a size that nothing tells": lambda: cr.compile(cr.random.normal(("n",))),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(ChainruleError):
        WRONG[name]()
