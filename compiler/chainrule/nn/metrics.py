"""Metrics: how good predictions are, as scalars to look at. Each is a few lines of expressions.

    step = cr.training_step(loss, optimizer, metrics={"accuracy": cr.metrics.accuracy(z, y)})

They are computed natively, exactly over the rows that they are given, as float32 or, of float64
predictions, float64. Predictions are logits as they come out of a net. Of two classes, they have
the shape of their labels, which are 0 or 1 of any type; what is above `threshold` counts as class
1: 0 for logits, 0.5 for probabilities. Of several classes, they lie along the last axis, (..., n)
with integer labels (...); of equal ones the first counts. scikit-learn's meaning, with 0 where it
divides by 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from chainrule.errors import DTypeError, ShapeError
from chainrule.lang import functions as f
from chainrule.lang.arguments import one_of
from chainrule.lang.creation import arange
from chainrule.lang.elementary import isnan
from chainrule.lang.manipulation import concat
from chainrule.lang.searching import argmax, argsort, scatter_add
from chainrule.lang.statistics import any as any_
from chainrule.lang.statistics import cumulative_sum
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.nn import losses
from chainrule.nn.lookup import by_name
from chainrule.nn.numbers import check, check_int
from chainrule.nn.targets import check_labels, pair

__all__ = [
    "accuracy",
    "auc",
    "binary_accuracy",
    "confusion_matrix",
    "f1",
    "get",
    "mae",
    "mse",
    "perplexity",
    "precision",
    "r2",
    "recall",
    "rmse",
    "top_k_accuracy",
]


def accuracy(logits: TensorLike, labels: TensorLike) -> Tensor:
    """The share of rows whose label has the largest logit; classes on the last axis."""
    z, y = check_labels("accuracy", logits, labels)
    return _share_of(argmax(z, axis=-1) == y, z)


def binary_accuracy(prediction: TensorLike, labels: TensorLike, threshold: float = 0.0) -> Tensor:
    """The share of elements on the right side of the threshold, of two classes."""
    p, y = _two_classes("binary_accuracy", prediction, labels)
    return _share_of((p > check("threshold", threshold, least=-_FAR)) == y, p)


def top_k_accuracy(logits: TensorLike, labels: TensorLike, k: int = 5) -> Tensor:
    """The share of rows whose label is among the k largest logits; of equal ones the first are."""
    z, y = check_labels("top_k_accuracy", logits, labels)
    k = check_int("k", k, least=1)
    own, place = f.expand_dims(f.pick(z, y), -1), f.expand_dims(y, -1)
    before = arange(z.shape[-1], dtype=y.dtype) < place
    ahead = f.logical_or(f.logical_not(z <= own), f.logical_and(z == own, before))
    return _share_of(f.sum(ahead.astype("int32"), axis=-1) < k, z)


def precision(
    prediction: TensorLike,
    labels: TensorLike,
    average: str | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """The share of what was found that is right: tp / (tp + fp).

    `average` is "binary", that of class 1 of two, by default where predictions have the labels'
    shape; else "macro", by default, the mean over the classes that occur; "weighted", that mean
    weighted by how often each is a label; or "micro", of all classes together.
    """
    c = _count("precision", prediction, labels, average, threshold)
    return _averaged(c, lambda tp, found, true: _ratio(tp, found))


def recall(
    prediction: TensorLike,
    labels: TensorLike,
    average: str | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """The share of what is there that was found: tp / (tp + fn); `average` as in precision."""
    c = _count("recall", prediction, labels, average, threshold)
    return _averaged(c, lambda tp, found, true: _ratio(tp, true))


def f1(
    prediction: TensorLike,
    labels: TensorLike,
    average: str | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """The harmonic mean of precision and recall: 2·tp / (2·tp + fp + fn); `average` as there."""
    c = _count("f1", prediction, labels, average, threshold)
    return _averaged(c, lambda tp, found, true: _ratio(2.0 * tp, found + true))


class _Counts(NamedTuple):
    """For each class how often it was found where it is, found, and there; and how to average."""

    right: Tensor
    found: Tensor
    true: Tensor
    average: str
    dtype: Any


def _count(
    name: str, prediction: TensorLike, labels: TensorLike, average: str | None, threshold: float
) -> _Counts:
    p, y = Tensor(as_node(prediction)), Tensor(as_node(labels))
    binary = p.ndim == y.ndim
    kind = ("binary" if binary else "macro") if average is None else average
    one_of("average", kind, *(["binary"] if binary else ["macro", "micro", "weighted"]))
    if binary:
        p, y = _two_classes(name, p, y)
        found, true = p > check("threshold", threshold, least=-_FAR), y
        axes: Any = None
    else:
        z, y = check_labels(name, p, y)
        classes = arange(z.shape[-1], dtype=y.dtype)
        true = f.expand_dims(y, -1) == classes
        found = f.expand_dims(argmax(z, axis=-1).astype(y.dtype), -1) == classes
        axes = tuple(range(y.ndim))
    both = f.logical_and(found, true)
    tp, fp_tp, fn_tp = (
        f.sum(t.astype("int64"), axis=axes).astype("float64") for t in (both, found, true)
    )
    return _Counts(tp, fp_tp, fn_tp, kind, _kind(p))


def _averaged(c: _Counts, score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    if c.average in ("binary", "micro"):
        return score(f.sum(c.right), f.sum(c.found), f.sum(c.true)).astype(c.dtype)
    each = score(c.right, c.found, c.true)
    occurs = (c.found + c.true > 0.0).astype("float64")
    weights = c.true if c.average == "weighted" else occurs
    return _ratio(f.sum(each * weights), f.sum(weights)).astype(c.dtype)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part/whole, 0 where that is 0/0."""
    return part / f.maximum(whole, 1.0)


def confusion_matrix(logits: TensorLike, labels: TensorLike) -> Tensor:
    """How often class i was taken for class j: an int64 Tensor (n, n), a row for each label."""
    z, y = check_labels("confusion_matrix", logits, labels)
    n = z.shape[-1]
    if not isinstance(n, int):
        raise ShapeError(f"confusion_matrix needs a known number of classes: {z.type}")
    places = y.astype("int64") * n + argmax(z, axis=-1).astype("int64")
    flat = f.reshape(places, (-1,))
    return f.reshape(scatter_add(f.zeros(n * n, dtype="int64"), flat, f.ones_like(flat)), (n, n))


def auc(prediction: TensorLike, labels: TensorLike) -> Tensor:
    """The area under the ROC curve: how often a 1 is above a 0, where equal ones count half.

    Exact, by ranks: Mann & Whitney (Ann. Math. Stat. 18, 1947). Only the order of predictions
    matters. NaN where all labels are of one class, and where a prediction is NaN.
    """
    p, y = _two_classes("auc", prediction, labels)
    scores = f.reshape(p, (-1,))
    order = argsort(scores)
    scores = f.take(scores, order)
    ones = f.take(f.reshape(y, (-1,)).astype("float64"), order)
    # rows of one score are a group; each 1 is above the zeros of the groups before its own, and
    # above a half of those in it
    fresh = (scores[1:] != scores[:-1]).astype("int64")
    group = concat([f.zeros((1,), dtype="int64"), cumulative_sum(fresh)])
    none = f.zeros_like(ones)
    up, down = scatter_add(none, group, ones), scatter_add(none, group, 1.0 - ones)
    wins = f.sum(up * (cumulative_sum(down) - 0.5 * down))
    area = wins / (f.sum(up) * f.sum(down))
    return f.where(any_(isnan(p)), math.nan, area).astype(_kind(p))


def r2(prediction: TensorLike, target: TensorLike) -> Tensor:
    """1 - sum((target - prediction)²) / sum((target - mean target)²), over rows.

    For targets of several columns the mean of each one's. A target that never changes counts 1
    where it is met exactly, else 0.
    """
    p, t = pair("r2", prediction, target)
    if p.ndim == 0:
        raise ShapeError("r2 is over rows: there is but one number")
    missed = f.sum(f.square(t - p), axis=0)
    spread = f.sum(f.square(t - f.mean(t, axis=0, keepdims=True)), axis=0)
    flat = spread == 0.0
    exact = (missed == 0.0).astype(p.dtype)
    return f.mean(f.where(flat, exact, 1.0 - missed / f.where(flat, 1.0, spread)))


def perplexity(logits: TensorLike, labels: TensorLike, ignore_index: int | None = None) -> Tensor:
    """exp(cross_entropy): among how many equally likely classes it is as hard to choose."""
    return f.exp(losses.cross_entropy(logits, labels, ignore_index=ignore_index))


def mae(prediction: TensorLike, target: TensorLike) -> Tensor:
    """The mean over all elements of |prediction - target|."""
    return losses.mae(prediction, target)


def mse(prediction: TensorLike, target: TensorLike) -> Tensor:
    """The mean over all elements of (prediction - target)²."""
    return losses.mse(prediction, target)


def rmse(prediction: TensorLike, target: TensorLike) -> Tensor:
    """The root of the mean over all elements of (prediction - target)²."""
    return f.sqrt(losses.mse(prediction, target))


_FAR = float("inf")


def _two_classes(name: str, prediction: TensorLike, labels: TensorLike) -> tuple[Tensor, Tensor]:
    """Float predictions, and labels of the same shape as bools. DTypeError or ShapeError."""
    p, y = Tensor(as_node(prediction)), Tensor(as_node(labels))
    shown = f"predictions {p.type}, labels {y.type}"
    if not p.dtype.is_float:
        raise DTypeError(f"{name} compares float predictions with a threshold: {shown}")
    if p.shape != y.shape:
        raise ShapeError(f"{name} takes one prediction a label: {shown}", "cr.reshape one of them")
    return p, y if y.dtype.name == "bool" else y > 0


def _share_of(right: Tensor, p: Tensor) -> Tensor:
    """How many of some bools are true, of 1."""
    return f.mean(right.astype(_kind(p)))


def _kind(p: Tensor) -> Any:
    """The element type of a metric of predictions."""
    return p.dtype.wide


Metric = Callable[..., Tensor]
#: each metric by the name that it goes by in a text
BY_NAME: dict[str, Metric] = {
    "accuracy": accuracy,
    "binary_accuracy": binary_accuracy,
    "top_k_accuracy": top_k_accuracy,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "auc": auc,
    "r2": r2,
    "perplexity": perplexity,
    "mae": mae,
    "mse": mse,
    "rmse": rmse,
}


def get(metric: str | Metric) -> Metric:
    """A metric by name; a function comes back as it is. Raises CompileError with near names."""
    result: Any = metric if callable(metric) else by_name("metric", BY_NAME, metric)
    return result  # type: ignore[no-any-return]
