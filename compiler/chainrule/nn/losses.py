"""Losses: scalars to minimise, with PyTorch's meaning. Each is a few lines of expressions."""

from __future__ import annotations

import math

from chainrule.errors import DTypeError, FeedError, ShapeError
from chainrule.lang import functions as f
from chainrule.lang.tensor import Tensor, TensorLike, as_node


def mse(prediction: TensorLike, target: TensorLike) -> Tensor:
    """The mean over all elements of (prediction - target)².

    Both have one shape: raises ShapeError, as (n,) against (n, 1) would broadcast to (n, n).
    """
    p, t = _pair("mse", prediction, target)
    return f.mean(f.square(p - t))


def mae(prediction: TensorLike, target: TensorLike) -> Tensor:
    """The mean over all elements of |prediction - target|; both have one shape, else ShapeError."""
    p, t = _pair("mae", prediction, target)
    return f.mean(f.abs(p - t))


def huber(prediction: TensorLike, target: TensorLike, delta: float = 1.0) -> Tensor:
    """The mean of d²/2 where |d| <= delta, else delta·(|d| - delta/2), with d the difference.

    Huber, Robust estimation of a location parameter (Ann. Math. Stat. 35, 1964).
    """
    if not 0 < delta < math.inf:
        raise FeedError(f"huber needs a finite delta above 0, not {delta!r}")
    p, t = _pair("huber", prediction, target)
    d = p - t
    size = f.abs(d)
    return f.mean(f.where(size <= delta, 0.5 * f.square(d), delta * (size - 0.5 * delta)))


def binary_cross_entropy(logits: TensorLike, targets: TensorLike) -> Tensor:
    """The mean over all elements of -t·log(p) - (1 - t)·log(1 - p), where p = sigmoid(logits).

    Targets are floats in [0, 1] of the logits' shape, else ShapeError or DTypeError. Computed as
    softplus(z) - z·t, which is the same and finite for every finite logit z.
    """
    z, t = _pair("binary_cross_entropy", logits, targets)
    return f.mean(f.softplus(z) - z * t)


def cross_entropy(logits: TensorLike, labels: TensorLike) -> Tensor:
    """The mean over rows of -log(softmax(logits)) at each row's label.

    Classes lie along the last axis; labels are integers, one a row: logits (..., n), labels (...).
    A label outside 0..n-1 is a FeedError when called. Raises DTypeError for labels of another form.
    """
    z, y = Tensor(as_node(logits)), Tensor(as_node(labels))
    shown = f"logits {z.type}, labels {y.type}"
    if not z.dtype.is_float or z.ndim == 0:
        raise DTypeError(f"cross_entropy needs float logits with classes on the last axis: {shown}")
    if y.ndim == z.ndim and y.shape == z.shape:
        raise DTypeError(
            f"cross_entropy takes one class number a row, not one-hot rows: {shown}",
            "feed the number of each row's class: codes.argmax(axis=-1)",
        )
    if not y.dtype.is_integer:
        raise DTypeError(
            f"cross_entropy takes class numbers, which are integers, not {y.dtype}: {shown}",
            'declare the labels with dtype="int32"; probabilities or bools are not class numbers',
        )
    if y.shape != z.shape[:-1]:
        raise ShapeError(
            f"cross_entropy takes one label a row: {shown}",
            f"labels must be {z.type.with_dtype(y.dtype).with_shape(z.shape[:-1])}",
            *_column_hint(y),
        )
    return -f.mean(f.pick(f.log_softmax(z), y))


def _column_hint(y: Tensor) -> tuple[str, ...]:
    column = y.ndim > 1 and y.shape[-1] == 1
    return ("drop the last axis: cr.squeeze(labels, axis=-1)",) if column else ()


def _pair(name: str, prediction: TensorLike, target: TensorLike) -> tuple[Tensor, Tensor]:
    """Both operands as Tensors of one shape and of float type; never broadcast."""
    p, t = Tensor(as_node(prediction)), Tensor(as_node(target))
    shown = f"{p.type} and {t.type}"
    for tensor in (p, t):
        if not tensor.dtype.is_float:
            raise DTypeError(
                f"{name} compares floats: {shown}",
                f'convert: .astype("{p.dtype}"), or declare it so',
            )
    if p.shape != t.shape:
        raise ShapeError(
            f"{name} compares element by element, so both need one shape: {shown}",
            "broadcasting here would compare everything with everything: cr.reshape one of them",
        )
    return p, t
