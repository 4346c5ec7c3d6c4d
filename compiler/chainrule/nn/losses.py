"""Losses: scalars to minimise, with PyTorch's meaning. Each is a few lines of expressions.

Every loss takes `reduction`: "mean", "sum" or "none", which gives each element's or each row's own.
Operands never broadcast: a prediction and its target have one shape, else ShapeError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from chainrule.errors import FeedError, ShapeError
from chainrule.lang import functions as f
from chainrule.lang.arguments import one_of
from chainrule.lang.elementary import xlogy
from chainrule.lang.tensor import Tensor, TensorLike
from chainrule.nn.lookup import by_name
from chainrule.nn.numbers import check, check_int
from chainrule.nn.targets import beside, check_labels, class_weights, pair

__all__ = [
    "binary_cross_entropy",
    "categorical_cross_entropy",
    "cosine_similarity",
    "cross_entropy",
    "gaussian_nll",
    "get",
    "hinge",
    "huber",
    "kl_divergence",
    "mae",
    "mse",
    "nll",
    "poisson_nll",
    "squared_hinge",
    "triplet",
]


def mse(prediction: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """The mean over all elements of (prediction - target)².

    Both have one shape: raises ShapeError, as (n,) against (n, 1) would broadcast to (n, n).
    """
    p, t = pair("mse", prediction, target)
    return reduced(f.square(p - t), reduction)


def mae(prediction: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """The mean over all elements of |prediction - target|; both have one shape, else ShapeError."""
    p, t = pair("mae", prediction, target)
    return reduced(f.abs(p - t), reduction)


def huber(
    prediction: TensorLike, target: TensorLike, delta: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """The mean of d²/2 where |d| <= delta, else delta·(|d| - delta/2), with d the difference.

    Huber, Robust estimation of a location parameter (Ann. Math. Stat. 35, 1964).
    """
    delta = check("delta", delta, above=0.0)
    p, t = pair("huber", prediction, target)
    d = p - t
    size = f.abs(d)
    near, far = 0.5 * f.square(d), delta * (size - 0.5 * delta)
    return reduced(f.where(size <= delta, near, far), reduction)


def binary_cross_entropy(
    logits: TensorLike,
    targets: TensorLike,
    weight: TensorLike | None = None,
    pos_weight: TensorLike | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The mean over all elements of -t·log(p) - (1 - t)·log(1 - p), where p = sigmoid(logits).

    Targets are floats in [0, 1] of the logits' shape, else ShapeError or DTypeError. Computed as
    softplus(z) - z·t, which is the same and finite for every finite logit z. `pos_weight` is a
    factor of t·log(p), `weight` one of everything; both broadcast to the logits. The mean is over
    all elements, whatever their weight. PyTorch's binary_cross_entropy_with_logits.
    """
    z, t = pair("binary_cross_entropy", logits, targets)
    if pos_weight is None:
        each = f.softplus(z) - z * t
    else:  # (1 - t)·z + (1 + (q - 1)·t)·softplus(-z)
        q = beside(pos_weight, z)
        each = (1.0 - t) * z + (1.0 + (q - 1.0) * t) * f.softplus(-z)
    if weight is not None:
        each = each * beside(weight, z)
    if each.shape != z.shape:
        raise ShapeError(
            f"weights must broadcast to the logits: {z.type} became {each.type}",
            "one weight a class is a vector as long as the last axis",
        )
    return reduced(each, reduction)


def cross_entropy(
    logits: TensorLike,
    labels: TensorLike,
    weight: TensorLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The mean over rows of -log(softmax(logits)) at each row's label.

    Classes lie along the last axis; labels are integers, one a row: logits (..., n), labels (...).
    A label outside 0..n-1 is a FeedError when called, unless it is `ignore_index`: such rows count
    for nothing, and where all are ignored the mean is 0/0, NaN, as in PyTorch. `weight` has a
    factor for each class; the mean is then weighted by the factors of the rows' labels.
    `label_smoothing` is the share of a row's target that is spread over all classes (Szegedy et
    al., CVPR 2016, section 7). Raises DTypeError for labels of another form: for probabilities
    there is `categorical_cross_entropy`.
    """
    z, y = check_labels("cross_entropy", logits, labels)
    return _of_labels(f.log_softmax(z), y, weight, label_smoothing, ignore_index, reduction)


def nll(
    log_probabilities: TensorLike,
    labels: TensorLike,
    weight: TensorLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The mean over rows of -log_probabilities at each row's label; the rest as cross_entropy.

    Classes lie along the last axis. cross_entropy is the nll of log_softmax(logits).
    """
    z, y = check_labels("nll", log_probabilities, labels)
    return _of_labels(z, y, weight, 0.0, ignore_index, reduction)


def _of_labels(
    logs: Tensor,
    y: Tensor,
    weight: TensorLike | None,
    smoothing: float,
    ignored: int | None,
    reduction: str,
) -> Tensor:
    """The loss of logarithms of probabilities at class numbers."""
    smoothing = _share("label_smoothing", smoothing)
    if weight is None and ignored is None and not smoothing:
        return -reduced(f.pick(logs, y), reduction)
    ignored = None if ignored is None else check_int("ignore_index", ignored)
    counts = None if ignored is None else y != ignored
    safe = y if counts is None else f.where(counts, y, f.zeros_like(y))
    factors = None if weight is None else class_weights(weight, logs)
    each = -f.pick(logs, safe)
    size = None if factors is None else f.take(factors, safe, axis=0)
    if size is not None:
        each = each * size
    if smoothing:
        spread = -f.mean(logs if factors is None else logs * factors, axis=-1)
        each = (1.0 - smoothing) * each + smoothing * spread
    if counts is not None:
        each = f.where(counts, each, 0.0)
        size = f.where(counts, f.ones_like(each) if size is None else size, 0.0)
    if reduction == "mean" and size is not None:
        return f.sum(each) / f.sum(size)
    return reduced(each, reduction)


def categorical_cross_entropy(
    logits: TensorLike,
    targets: TensorLike,
    weight: TensorLike | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The mean over rows of -sum(targets · log(softmax(logits))) along the last axis.

    Targets are probabilities of the logits' shape, such as one-hot rows of floats. `weight` has a
    factor for each class; the mean is over rows, whatever their weight. PyTorch's cross_entropy
    with targets that are floats.
    """
    z, t = pair("categorical_cross_entropy", logits, targets)
    if z.ndim == 0:
        raise ShapeError(f"categorical_cross_entropy needs classes on the last axis: {z.type}")
    smoothing = _share("label_smoothing", label_smoothing)
    if smoothing:
        t = (1.0 - smoothing) * t
    logs = f.log_softmax(z)
    if weight is not None:
        logs = logs * class_weights(weight, logs)
    each = -f.sum(t * logs, axis=-1)
    return reduced(each - smoothing * f.mean(logs, axis=-1) if smoothing else each, reduction)


def kl_divergence(
    log_q: TensorLike, p: TensorLike, log_target: bool = False, reduction: str = "mean"
) -> Tensor:
    """The sum over the last axis of p·(log(p) - log_q), mean over rows: KL(p‖q).

    As in PyTorch's kl_div, the prediction comes first and is given as logarithms of probabilities
    (log_softmax(logits)), the target second as probabilities, with `log_target` as logarithms too.
    Where p is 0 the term is 0. The mean is over rows, PyTorch's reduction="batchmean" for two axes;
    "sum" is over everything, "none" gives every term. Kullback & Leibler (Ann. Math. Stat. 22,
    1951).
    """
    q, t = pair("kl_divergence", log_q, p)
    if q.ndim == 0:
        raise ShapeError(f"kl_divergence sums over the last axis: {q.type} has none")
    each = f.exp(t) * (t - q) if log_target else xlogy(t, t) - t * q
    one_of("reduction", reduction, "mean", "sum", "none")
    return f.mean(f.sum(each, axis=-1)) if reduction == "mean" else reduced(each, reduction)


def hinge(prediction: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """The mean over all elements of max(0, 1 - target·prediction), with targets -1 and 1.

    Cortes & Vapnik, Support-vector networks (Machine Learning 20, 1995).
    """
    return reduced(_margin("hinge", prediction, target), reduction)


def squared_hinge(prediction: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """The mean over all elements of max(0, 1 - target·prediction)², with targets -1 and 1."""
    return reduced(f.square(_margin("squared_hinge", prediction, target)), reduction)


def _margin(name: str, prediction: TensorLike, target: TensorLike) -> Tensor:
    p, t = pair(name, prediction, target)
    return f.relu(1.0 - t * p)


def cosine_similarity(
    prediction: TensorLike, target: TensorLike, eps: float = 1e-8, reduction: str = "mean"
) -> Tensor:
    """The mean over rows of 1 - cos of the angle between the two along the last axis.

    Each norm is at least `eps`, as in PyTorch's cosine_similarity; 1 minus that is its
    cosine_embedding_loss with labels 1, up to where eps stands.
    """
    p, t = pair("cosine_similarity", prediction, target)
    if p.ndim == 0:
        raise ShapeError(f"cosine_similarity compares vectors along the last axis: {p.type}")
    eps = check("eps", eps, above=0.0)
    squares = (f.sum(f.square(v), axis=-1) for v in (p, t))
    first, second = (f.sqrt(f.maximum(s, eps * eps)) for s in squares)
    return reduced(1.0 - f.sum(p * t, axis=-1) / (first * second), reduction)


def gaussian_nll(
    mean: TensorLike,
    target: TensorLike,
    variance: TensorLike,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """The mean over all elements of (log(variance) + (mean - target)²/variance)/2.

    For regression that tells how sure it is: Nix & Weigend (ICNN 1994). All three have one shape; a
    variance counts as `eps` where it is less, in the gradient too, as in PyTorch. `full` adds
    the constant log(2π)/2.
    """
    p, t = pair("gaussian_nll", mean, target)
    _, v = pair("gaussian_nll", mean, variance)
    eps = check("eps", eps, above=0.0)
    held = f.where(v < eps, eps + (v - f.stop_gradient(v)), v)
    each = 0.5 * (f.log(held) + f.square(p - t) / held)
    return reduced(each + 0.5 * math.log(2 * math.pi) if full else each, reduction)


def poisson_nll(log_rate: TensorLike, target: TensorLike, reduction: str = "mean") -> Tensor:
    """The mean over all elements of exp(log_rate) - target·log_rate.

    For counts with a Poisson distribution, without the constant log(target!). PyTorch's
    poisson_nll_loss with its defaults.
    """
    p, t = pair("poisson_nll", log_rate, target)
    return reduced(f.exp(p) - t * p, reduction)


def triplet(
    anchor: TensorLike,
    positive: TensorLike,
    negative: TensorLike,
    margin: float = 1.0,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """The mean over rows of max(0, |anchor - positive| - |anchor - negative| + margin).

    Euclidean distances along the last axis, with `eps` added to each difference, as PyTorch's
    triplet_margin_loss. Schroff et al., FaceNet (CVPR 2015).
    """
    a, p = pair("triplet", anchor, positive)
    _, n = pair("triplet", anchor, negative)
    if a.ndim == 0:
        raise ShapeError(f"triplet compares vectors along the last axis: {a.type}")
    eps, margin = check("eps", eps), check("margin", margin, above=0.0)
    near, far = (f.sqrt(f.sum(f.square(a - v + eps), axis=-1)) for v in (p, n))
    return reduced(f.relu(near - far + margin), reduction)


def reduced(each: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of all elements, or each of them."""
    one_of("reduction", reduction, "mean", "sum", "none")
    return {"mean": f.mean, "sum": f.sum, "none": Tensor.__pos__}[reduction](each)


def _share(name: str, value: float) -> float:
    value = check(name, value)
    if value > 1:
        raise FeedError(f"{name} is a share, from 0 to 1, not {value!r}")
    return value


Loss = Callable[..., Tensor]
#: each loss by the name that it goes by in a text, with the names that Keras has for some
BY_NAME: dict[str, Loss] = {
    "mse": mse,
    "mean_squared_error": mse,
    "mae": mae,
    "mean_absolute_error": mae,
    "huber": huber,
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "categorical_cross_entropy": categorical_cross_entropy,
    "nll": nll,
    "kl_divergence": kl_divergence,
    "hinge": hinge,
    "squared_hinge": squared_hinge,
    "cosine_similarity": cosine_similarity,
    "poisson_nll": poisson_nll,
}
#: what others call a loss by a name that is nearer to that of another one
_ELSEWHERE = {"sparse_categorical_crossentropy": "cross_entropy"}
#: those whose mean is over rows, of the sums along the last axis
ROW_SUMS: frozenset[Loss] = frozenset({kl_divergence})


def get(loss: str | Loss) -> Loss:
    """A loss by name; a function comes back as it is. Raises CompileError with near names."""
    result: Any = loss if callable(loss) else by_name("loss", BY_NAME, loss, _ELSEWHERE)
    return result  # type: ignore[no-any-return]
