"""Metrics beside their definitions, counted pair by pair in NumPy, and beside scikit-learn's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import CompileError, DTypeError, FeedError, ShapeError
from chainrule.nn import metrics as m

SEEDS = range(2)


def value(
    metric: Callable[..., cr.Tensor], p: np.ndarray, y: np.ndarray, backend: str = "cpu"
) -> Any:
    """A metric of a symbolic number of rows."""
    x = cr.input("x", ("n", *p.shape[1:]), dtype=p.dtype)
    t = cr.input("t", ("n", *y.shape[1:]), dtype=y.dtype)
    return cr.compile(metric(x, t), backend=backend)(x=p, t=y)


def several(seed: int, rows: int = 60, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits, some of them equal, and labels in which the last class never occurs."""
    rng = np.random.default_rng(seed)
    z = np.round(rng.normal(size=(rows, classes)), 1)
    return z, rng.integers(0, classes - 1, rows).astype(np.int32)


def two(seed: int, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Scores, many of them equal, and labels 0 or 1."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows).astype(np.int32)
    return np.round(rng.normal(size=rows) + y, 1), y


def scores(found: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 of one class, with 0 for 0/0."""
    tp = float((found & true).sum())
    p = tp / found.sum() if found.any() else 0.0
    r = tp / true.sum() if true.any() else 0.0
    return p, r, 2 * p * r / (p + r) if p + r else 0.0


def averaged(z: np.ndarray, y: np.ndarray, average: str) -> np.ndarray:
    """Precision, recall and F1 of several classes, as scikit-learn averages them."""
    found = z.argmax(1)
    if average == "micro":
        return np.array([(found == y).mean()] * 3)
    classes = sorted({*found, *y})
    each = np.array([scores(found == c, y == c) for c in classes])
    weights = [(y == c).sum() for c in classes] if average == "weighted" else None
    mean: np.ndarray = np.average(each, axis=0, weights=weights)
    return mean


def pairs_won(p: np.ndarray, y: np.ndarray) -> float:
    """The area under the ROC curve, counted pair by pair."""
    up, down = p[y == 1][:, None], p[y == 0][None]
    return float(((up > down) + 0.5 * (up == down)).mean())


@pytest.mark.parametrize("seed", SEEDS)
def test_of_several_classes(seed: int, backend: str) -> None:
    z, y = several(seed)
    assert value(m.accuracy, z, y, backend) == pytest.approx((z.argmax(1) == y).mean())
    order = np.argsort(-z, axis=1, kind="stable")  # of equal logits the first
    for k in (1, 2, 4, 5, 9):
        hits = (order[:, :k] == y[:, None]).any(1).mean()
        got = value(lambda a, b, k=k: m.top_k_accuracy(a, b, k), z, y, backend)
        assert got == pytest.approx(hits)
    for average in ("macro", "micro", "weighted"):
        for metric, expected in zip(
            (m.precision, m.recall, m.f1), averaged(z, y, average), strict=True
        ):
            got = value(lambda a, b, f=metric, v=average: f(a, b, v), z, y, backend)
            assert got == pytest.approx(expected, rel=1e-12), (metric, average)
    table = value(m.confusion_matrix, z, y, backend)
    assert table.dtype == np.int64 and table.sum() == len(y)
    for i in range(5):
        for j in range(5):
            assert table[i, j] == ((y == i) & (z.argmax(1) == j)).sum()
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    expected = np.exp(-log_p[np.arange(len(y)), y].mean())
    assert value(m.perplexity, z, y, backend) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [np.int32, np.bool_, np.float32])
@pytest.mark.parametrize("seed", SEEDS)
def test_of_two_classes(seed: int, kind: type, backend: str) -> None:
    p, y = two(seed)
    labels = y.astype(kind)
    assert value(m.auc, p, labels, backend) == pytest.approx(pairs_won(p, y), rel=1e-12)
    for threshold in (0.0, 0.5):
        found = p > threshold
        right = (found == (y == 1)).mean()
        got = value(lambda a, b, t=threshold: m.binary_accuracy(a, b, t), p, labels, backend)
        assert got == pytest.approx(right)
        for metric, expected in zip(
            (m.precision, m.recall, m.f1), scores(found, y == 1), strict=True
        ):
            got = value(
                lambda a, b, f=metric, t=threshold: f(a, b, threshold=t), p, labels, backend
            )
            assert got == pytest.approx(expected, rel=1e-12)


def test_of_numbers(backend: str) -> None:
    rng = np.random.default_rng(0)
    for shape in ((40,), (40, 3)):
        p, t = rng.normal(size=shape), rng.normal(size=shape)
        d = p - t
        spread = ((t - t.mean(0)) ** 2).sum(0)
        expected = (1 - (d * d).sum(0) / spread).mean()
        assert value(m.r2, p, t, backend) == pytest.approx(expected, rel=1e-10)
        assert value(m.mae, p, t, backend) == pytest.approx(abs(d).mean())
        assert value(m.mse, p, t, backend) == pytest.approx((d * d).mean())
        assert value(m.rmse, p, t, backend) == pytest.approx(math.sqrt((d * d).mean()))
    flat = np.ones(5)
    assert value(m.r2, flat, flat, backend) == 1.0
    assert value(m.r2, flat * 2, flat, backend) == 0.0


def test_against_scikit_learn() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    for seed in SEEDS:
        z, y = several(seed)
        found = z.argmax(1)
        for average in ("macro", "micro", "weighted"):
            for ours, theirs in (
                (m.precision, sk.precision_score),
                (m.recall, sk.recall_score),
                (m.f1, sk.f1_score),
            ):
                got = value(lambda a, b, f=ours, v=average: f(a, b, v), z, y)
                assert got == pytest.approx(theirs(y, found, average=average, zero_division=0))
        table = sk.confusion_matrix(y, found, labels=range(5))
        np.testing.assert_array_equal(value(m.confusion_matrix, z, y), table)
        p, y = two(seed)
        assert value(m.auc, p, y) == pytest.approx(sk.roc_auc_score(y, p), rel=1e-12)
        assert value(m.f1, p, y) == pytest.approx(sk.f1_score(y, p > 0))
        a, b = z[:, :2], z[:, 2:4]
        assert value(m.r2, a, b) == pytest.approx(sk.r2_score(b, a))


def test_auc_at_its_ends(backend: str) -> None:
    y = np.array([0, 0, 1, 1], np.int32)
    p = np.arange(4.0)
    assert value(m.auc, p, y, backend) == 1.0
    assert value(m.auc, -p, y, backend) == 0.0
    assert value(m.auc, p * 0, y, backend) == 0.5
    assert math.isnan(value(m.auc, p, y * 0, backend))
    assert math.isnan(value(m.auc, np.array([0, np.nan, 1, 2]), y, backend))
    assert value(m.auc, np.array([-np.inf, 0, 1, np.inf]), y, backend) == 1.0


def test_auc_is_exact_of_many_rows() -> None:
    """200 000 rows in float32: the pairs are counted in float64, without a float32 sum."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 200_000).astype(np.int32)
    p = np.round(rng.normal(size=y.size) + 0.1 * y, 3).astype(np.float32)
    order = np.sort(p[y == 0])
    left, right = (np.searchsorted(order, p[y == 1], side) for side in ("left", "right"))
    expected = (left + right).sum() / 2 / (y == 1).sum() / (y == 0).sum()
    assert value(m.auc, p, y) == pytest.approx(expected, rel=1e-7)


def test_nothing_found_counts_as_nothing(backend: str) -> None:
    p, y = np.full(4, -1.0), np.zeros(4, np.int32)
    for metric in (m.precision, m.recall, m.f1):
        assert value(metric, p, y, backend) == 0.0


def test_in_a_training_step() -> None:
    """Beside the loss, and with the type of the predictions."""
    x, y = cr.input("x", ("n", 3)), cr.input("y", ("n",), dtype="int32")
    z = x @ cr.parameter("w", (3, 4))
    measured = {
        "accuracy": m.accuracy(z, y),
        "f1": m.f1(z, y),
        "top": m.top_k_accuracy(z, y, 2),
        "auc": m.auc(z[:, 0], y == 0),
    }
    assert {t.dtype.name for t in measured.values()} == {"float32"}
    step = cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.SGD(0.1), metrics=measured)
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(30, 3)).astype("f"), "y": rng.integers(0, 4, 30).astype("i")}
    w = step.parameters["w"].copy()
    step(**data)
    assert step.metrics["accuracy"] == pytest.approx(
        ((data["x"] @ w).argmax(1) == data["y"]).mean()
    )
    step.run(**data, batch_size=10)
    assert step.metrics["f1"].shape == (3,)


def test_what_does_not_fit() -> None:
    z, y = cr.input("z", ("n", 10)), cr.input("y", ("n",), dtype="int32")
    p = cr.input("p", ("n",))
    with pytest.raises(ShapeError, match="one prediction a label"):
        m.auc(z, y)
    with pytest.raises(DTypeError, match="float predictions"):
        m.binary_accuracy(y, y)
    with pytest.raises(DTypeError, match="class numbers"):
        m.accuracy(z, p)
    with pytest.raises(DTypeError, match="average is 'binary'"):
        m.f1(p, y, "macro")
    with pytest.raises(DTypeError, match="average is 'macro' or 'micro' or 'weighted'"):
        m.recall(z, y, "binary")
    for k in (0, True, 2.5):
        with pytest.raises(FeedError, match="k is an int from 1 on"):
            m.top_k_accuracy(z, y, k)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="known number of classes"):
        m.confusion_matrix(cr.input("q", ("n", "c")), y)
    with pytest.raises(FeedError, match="threshold"):
        m.precision(p, y, threshold=math.nan)
    with pytest.raises(CompileError, match="no metric called 'acuracy'") as error:
        m.get("acuracy")
    assert "did you mean accuracy" in str(error.value)
    assert m.get("f1") is m.f1 and m.get(m.auc) is m.auc
