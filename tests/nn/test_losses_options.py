"""Losses with their options: against NumPy by hand, and against PyTorch over many of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import CompileError, DTypeError, FeedError, ShapeError
from chainrule.nn import losses

RNG = np.random.default_rng(5)
ROWS, CLASSES = 7, 4
Z, P, T = (RNG.normal(size=(ROWS, CLASSES)) for _ in range(3))
UNIT = RNG.uniform(size=(ROWS, CLASSES))
SIGNS = np.sign(T)
SOFT = RNG.dirichlet(np.ones(CLASSES), ROWS)
LABELS = RNG.integers(0, CLASSES, ROWS)
LABELS[:2] = 0, 2
WEIGHT = np.array([0.5, 1.0, 2.0, 3.5])
POS = np.array([0.5, 1.0, 2.0, 10.0])
LOG_Q = np.log(RNG.dirichlet(np.ones(CLASSES), ROWS))
REDUCTIONS = ("mean", "sum", "none")


def value(
    loss: Callable[..., cr.Tensor], *arrays: np.ndarray, backend: str = "reference"
) -> tuple[np.ndarray, np.ndarray]:
    """A loss, and the gradient of its sum by the first operand."""
    leaves = [cr.input(f"a{i}", a.shape, dtype=a.dtype) for i, a in enumerate(arrays)]
    out = loss(*leaves)
    fn = cr.compile([out, cr.grad(cr.sum(out), leaves[0])], backend=backend)
    feeds = {f"a{i}": a for i, a in enumerate(arrays)}
    a, g = fn(**{n: feeds[n] for n in fn.inputs})
    return a, g


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    shifted: np.ndarray = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return shifted


def softplus(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, z)


def held(name: str, each: np.ndarray, got: Callable[..., cr.Tensor], *arrays: np.ndarray) -> None:
    """Every reduction of a loss against its elements."""
    wanted = {"none": each, "sum": each.sum(), "mean": each.mean()}
    for reduction, expected in wanted.items():
        a, g = value(lambda *x, r=reduction: got(*x, reduction=r), *arrays)
        np.testing.assert_allclose(
            a, expected, rtol=1e-12, atol=1e-14, err_msg=f"{name} {reduction}"
        )
        assert g.shape == arrays[0].shape


def test_against_numpy() -> None:
    d = P - T
    far = np.where(abs(d) <= 0.7, d * d / 2, 0.7 * (abs(d) - 0.35))
    held("mse", d * d, losses.mse, P, T)
    held("mae", abs(d), losses.mae, P, T)
    held("huber", far, lambda x, y, **o: losses.huber(x, y, 0.7, **o), P, T)
    bce = UNIT * POS * softplus(-P) + (1 - UNIT) * softplus(P)
    held(
        "bce",
        bce * WEIGHT,
        lambda x, y, **o: losses.binary_cross_entropy(x, y, WEIGHT, POS, **o),
        P,
        UNIT,
    )
    held("hinge", np.maximum(0, 1 - SIGNS * P), losses.hinge, P, SIGNS)
    held("squared_hinge", np.maximum(0, 1 - SIGNS * P) ** 2, losses.squared_hinge, P, SIGNS)
    cos = (P * T).sum(1) / np.linalg.norm(P, axis=1) / np.linalg.norm(T, axis=1)
    held("cosine", 1 - cos, losses.cosine_similarity, P, T)
    held("poisson", np.exp(P) - UNIT * P, losses.poisson_nll, P, UNIT)
    gauss = 0.5 * (np.log(UNIT) + (P - T) ** 2 / UNIT)
    held("gaussian", gauss, losses.gaussian_nll, P, T, UNIT)
    near, away = (np.linalg.norm(Z - v + 1e-6, axis=1) for v in (P, T))
    held("triplet", np.maximum(0, near - away + 1), losses.triplet, Z, P, T)
    soft = -(SOFT * log_softmax(Z)).sum(1)
    held("categorical", soft, losses.categorical_cross_entropy, Z, SOFT)


def test_kl_divergence() -> None:
    """The sum over the last axis of p·log(p/q), its mean over rows; prediction first, as a log."""
    terms = SOFT * (np.log(SOFT) - LOG_Q)
    a, g = value(losses.kl_divergence, LOG_Q, SOFT)
    assert float(a) == pytest.approx(terms.sum(1).mean(), rel=1e-12)
    np.testing.assert_allclose(g, -SOFT / ROWS, rtol=1e-12)
    a, _ = value(
        lambda q, p: losses.kl_divergence(q, p, log_target=True, reduction="sum"),
        LOG_Q,
        np.log(SOFT),
    )
    assert float(a) == pytest.approx(terms.sum(), rel=1e-12)
    a, _ = value(lambda q, p: losses.kl_divergence(q, p, reduction="none"), LOG_Q, SOFT)
    np.testing.assert_allclose(a, terms, rtol=1e-12)
    three = [v.reshape(1, ROWS, CLASSES) for v in (LOG_Q, SOFT)]
    assert float(value(losses.kl_divergence, *three)[0]) == pytest.approx(terms.sum(1).mean())
    sure = np.eye(CLASSES)[:1]  # 0·log(0) is 0
    a, g = value(losses.kl_divergence, LOG_Q[:1], sure)
    assert float(a) == pytest.approx(-LOG_Q[0, 0]) and np.isfinite(g).all()


def rows(weight: Any, smoothing: float, ignored: int | None) -> tuple[np.ndarray, np.ndarray]:
    """cross_entropy row by row, and what each counts in the mean."""
    logs, w = log_softmax(Z), np.ones(CLASSES) if weight is None else weight
    each, size = [], []
    for i, y in enumerate(LABELS):
        spread = -(w * logs[i]).mean()
        kept = y != ignored
        each.append(kept * ((1 - smoothing) * -w[y] * logs[i, y] + smoothing * spread))
        size.append(kept * w[y])
    return np.array(each), np.array(size)


OPTIONS = list(itertools.product((None, WEIGHT), (0.0, 0.3), (None, 2, -100)))


@pytest.mark.parametrize(("weight", "smoothing", "ignored"), OPTIONS)
def test_cross_entropy(weight: Any, smoothing: float, ignored: int | None) -> None:
    each, size = rows(weight, smoothing, ignored)
    wanted = {"none": each, "sum": each.sum(), "mean": each.sum() / size.sum()}
    labels = LABELS.astype(np.int32)
    for reduction, expected in wanted.items():
        options = {"label_smoothing": smoothing, "ignore_index": ignored, "reduction": reduction}
        for backend in ("cpu", "reference"):
            a, _ = value(
                lambda z, y, o=options: losses.cross_entropy(z, y, weight, **o),
                Z,
                labels,
                backend=backend,
            )
            np.testing.assert_allclose(a, expected, rtol=1e-12)


def test_labels_that_are_ignored_need_be_no_class() -> None:
    y = LABELS.astype(np.int32)
    y[3] = -100
    x, t = cr.input("x", ("n", CLASSES)), cr.input("t", ("n",), dtype="int32")
    for backend in ("cpu", "reference"):
        loss = losses.cross_entropy(x, t, ignore_index=-100)
        fn = cr.compile([loss, cr.grad(loss, x)], backend=backend)
        a, g = fn(x=Z, t=y)
        kept = np.arange(ROWS) != 3
        logs = log_softmax(Z)[kept, y[kept]]
        assert float(a) == pytest.approx(-logs.mean(), rel=1e-6)
        assert (g[3] == 0).all() and (g[0] != 0).all()
        bad = y.copy()
        bad[5] = CLASSES
        with pytest.raises(FeedError, match="4"):
            fn(x=Z, t=bad)
        none, _ = fn(x=Z, t=np.full(ROWS, -100, np.int32))
        assert math.isnan(none)  # the mean of no rows, as in PyTorch


def test_nll_is_cross_entropy_of_logs() -> None:
    y = LABELS.astype(np.int32)
    a, _ = value(lambda z, t: losses.nll(z, t, WEIGHT, ignore_index=2), log_softmax(Z), y)
    b, _ = value(lambda z, t: losses.cross_entropy(z, t, WEIGHT, ignore_index=2), Z, y)
    assert float(a) == pytest.approx(float(b), rel=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("weight", "smoothing", "ignored"), OPTIONS)
def test_cross_entropy_against_torch(
    weight: Any, smoothing: float, ignored: int | None, reduction: str
) -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(Z, requires_grad=True)
    w = None if weight is None else torch.tensor(weight)
    options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction}
    extra = {} if ignored is None else {"ignore_index": ignored}
    function = torch.nn.functional.cross_entropy
    loss = function(x, torch.tensor(LABELS), weight=w, **options, **extra)
    loss.sum().backward()
    a, g = value(
        lambda z, y: losses.cross_entropy(z, y, weight, ignore_index=ignored, **options),
        Z,
        LABELS.astype(np.int32),
    )
    np.testing.assert_allclose(a, loss.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(g, x.grad.numpy(), rtol=1e-10, atol=1e-14)
    if ignored is None:
        x.grad = None
        loss = function(x, torch.tensor(SOFT), weight=w, **options)
        loss.sum().backward()
        a, g = value(
            lambda z, t: losses.categorical_cross_entropy(z, t, weight, **options), Z, SOFT
        )
        np.testing.assert_allclose(a, loss.detach().numpy(), rtol=1e-12)
        np.testing.assert_allclose(g, x.grad.numpy(), rtol=1e-10, atol=1e-14)


Loss = Callable[..., Any]
BESIDE: list[tuple[str, Loss, Loss, tuple[np.ndarray, ...]]] = [
    ("mse", losses.mse, lambda F, x, y, **o: F.mse_loss(x, y, **o), (P, T)),
    ("mae", losses.mae, lambda F, x, y, **o: F.l1_loss(x, y, **o), (P, T)),
    ("huber", losses.huber, lambda F, x, y, **o: F.huber_loss(x, y, **o), (P, 3 * T)),
    (
        "bce",
        lambda x, y, **o: losses.binary_cross_entropy(x, y, WEIGHT, POS, **o),
        lambda F, x, y, **o: F.binary_cross_entropy_with_logits(
            x, y, x.new_tensor(WEIGHT), pos_weight=x.new_tensor(POS), **o
        ),
        (P, UNIT),
    ),
    (
        "gaussian_nll",
        lambda x, y, v, **o: losses.gaussian_nll(x, y, v, full=True, **o),
        lambda F, x, y, v, **o: F.gaussian_nll_loss(x, y, v, full=True, **o),
        (P, T, UNIT),
    ),
    (
        "gaussian_nll by the variance",
        lambda v, x, y, **o: losses.gaussian_nll(x, y, v, eps=0.3, **o),
        lambda F, v, x, y, **o: F.gaussian_nll_loss(x, y, v, eps=0.3, **o),
        (UNIT, P, T),
    ),
    (
        "poisson_nll",
        losses.poisson_nll,
        lambda F, x, y, **o: F.poisson_nll_loss(x, y, **o),
        (P, UNIT),
    ),
    (
        "kl_divergence, log_target",
        lambda q, p, **o: losses.kl_divergence(q, p, True, **o),
        lambda F, q, p, reduction: F.kl_div(
            q, p, log_target=True, reduction={"mean": "batchmean"}.get(reduction, reduction)
        ),
        (LOG_Q, np.log(SOFT)),
    ),
    (
        "kl_divergence",
        losses.kl_divergence,
        lambda F, q, p, reduction: F.kl_div(
            q, p, reduction={"mean": "batchmean"}.get(reduction, reduction)
        ),
        (LOG_Q, SOFT),
    ),
    (
        "cosine",
        losses.cosine_similarity,
        lambda F, x, y, reduction: {"mean": lambda a: a.mean(), "sum": lambda a: a.sum()}.get(
            reduction, lambda a: a
        )(1 - F.cosine_similarity(x, y, dim=-1)),
        (P, T),
    ),
    (
        "triplet",
        losses.triplet,
        lambda F, *x, **o: F.triplet_margin_loss(*x, **o),
        (Z, P, T),
    ),
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", BESIDE, ids=[case[0] for case in BESIDE])
def test_against_torch(case: Any, reduction: str) -> None:
    torch = pytest.importorskip("torch")
    _, ours, theirs, arrays = case
    x, *others = (torch.tensor(a) for a in arrays)
    x.requires_grad_()
    loss = theirs(torch.nn.functional, x, *others, reduction=reduction)
    loss.sum().backward()
    a, g = value(lambda *t: ours(*t, reduction=reduction), *arrays)
    np.testing.assert_allclose(a, loss.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(g, x.grad.numpy(), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_large_logits_stay_finite(size: float, kind: type) -> None:
    z = np.array([[size, -size, 0.0, size / 3], [-size, size, 1.0, 0.0]], kind)
    soft, y = SOFT[:2].astype(kind), np.array([1, 0], np.int32)
    cases: list[tuple[Loss, tuple[np.ndarray, ...]]] = [
        (lambda x, t: losses.binary_cross_entropy(x, t, pos_weight=POS), (z, soft)),
        (lambda x, t: losses.categorical_cross_entropy(x, t, WEIGHT, 0.1), (z, soft)),
        (lambda x, t: losses.cross_entropy(x, t, WEIGHT, 0.1, 0), (z, y)),
        (lambda x, t: losses.kl_divergence(cr.log_softmax(x), t), (z, soft)),
        (losses.hinge, (z, np.sign(z) + (z == 0).astype(kind))),
        (losses.cosine_similarity, (z, soft)),
    ]
    for loss, arrays in cases:
        for backend in ("cpu", "reference"):
            a, g = value(loss, *arrays, backend=backend)
            assert np.isfinite(a) and np.isfinite(g).all()


def test_what_does_not_fit() -> None:
    z, y = cr.input("z", ("n", 10)), cr.input("y", ("n",), dtype="int32")
    t = cr.input("t", ("n", 10))
    with pytest.raises(ShapeError, match="a factor for each class"):
        losses.cross_entropy(z, y, weight=np.ones(9))
    with pytest.raises(ShapeError, match="weights must broadcast"):
        losses.binary_cross_entropy(z, t, weight=np.ones((3, 1, 10)))
    for bad in (-0.1, 1.5, math.nan, "much"):
        with pytest.raises(FeedError, match="label_smoothing"):
            losses.cross_entropy(z, y, label_smoothing=bad)  # type: ignore[arg-type]
    with pytest.raises(FeedError, match="ignore_index"):
        losses.cross_entropy(z, y, ignore_index=1.0)  # type: ignore[arg-type]
    for name in set(losses.BY_NAME.values()):
        wrong = cr.input("wrong", ("n",), dtype="float32")
        with pytest.raises((ShapeError, DTypeError), match="test_losses_options"):
            name(z, wrong)
    for loss in (losses.mse, losses.cross_entropy, losses.kl_divergence):
        with pytest.raises(DTypeError, match="reduction is 'mean' or 'sum' or 'none'"):
            loss(z, y if loss is losses.cross_entropy else t, reduction="average")
    scalar = cr.input("s", ())
    for loss in (losses.kl_divergence, losses.cosine_similarity, losses.categorical_cross_entropy):
        with pytest.raises(ShapeError, match="last axis"):
            loss(scalar, scalar)


def test_by_name() -> None:
    assert losses.get("cross_entropy") is losses.cross_entropy
    assert losses.get(losses.mse) is losses.mse
    with pytest.raises(CompileError, match="no loss called 'crossentropy'") as error:
        losses.get("crossentropy")
    assert "cross_entropy" in str(error.value)
    with pytest.raises(CompileError, match="there is no loss 3"):
        losses.get(3)  # type: ignore[arg-type]
    assert type(cr.optim.get("adam")) is cr.optim.Adam
    own = cr.optim.SGD(0.1)
    assert cr.optim.get(own) is own
    with pytest.raises(CompileError, match="no optimizer called 'adma'") as error:
        cr.optim.get("adma")
    assert "did you mean adam" in str(error.value)
    with pytest.raises(CompileError, match=r"(?s)Adam is a class.*Adam\(1e-3\)"):
        cr.optim.get(cr.optim.Adam)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    """Of every width, and without a warning on the way."""
    z, y = cr.input("z", ("n", 4)), cr.input("y", ("n",), dtype="int32")
    assert losses.cross_entropy(z, y, ignore_index=np.int64(-1)).ndim == 0
    assert cr.metrics.top_k_accuracy(z, y, k=np.int32(2)).ndim == 0
    cr.optim.SGD(np.float32(0.1), momentum=np.float16(0.5))
    for delta in ("a", 0, -1, float("nan"), True):
        with pytest.raises(FeedError, match="delta is a number above 0"):
            losses.huber(z, z, delta=delta)  # type: ignore[arg-type]
    with pytest.raises(FeedError, match="lr is a number"):
        cr.optim.SGD(10**400)
