"""Predictions beside what they are held to: checked before anything is made of them."""

from __future__ import annotations

from chainrule.errors import DTypeError, ShapeError
from chainrule.lang.tensor import Tensor, TensorLike, as_node


def pair(name: str, prediction: TensorLike, target: TensorLike) -> tuple[Tensor, Tensor]:
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


def check_labels(name: str, logits: TensorLike, labels: TensorLike) -> tuple[Tensor, Tensor]:
    """Float logits (..., n) with integer labels (...). Raises DTypeError or ShapeError."""
    z, y = Tensor(as_node(logits)), Tensor(as_node(labels))
    shown = f"logits {z.type}, labels {y.type}"
    if not z.dtype.is_float or z.ndim == 0:
        raise DTypeError(f"{name} needs float logits with classes on the last axis: {shown}")
    if y.ndim == z.ndim and y.shape == z.shape:
        raise DTypeError(
            f"{name} takes one class number a row, not one-hot rows: {shown}",
            "feed the number of each row's class: codes.argmax(axis=-1)",
        )
    if not y.dtype.is_integer:
        raise DTypeError(
            f"{name} takes class numbers, which are integers, not {y.dtype}: {shown}",
            'declare the labels with dtype="int32"; probabilities or bools are not class numbers',
        )
    if y.shape != z.shape[:-1]:
        column = y.ndim > 1 and y.shape[-1] == 1
        raise ShapeError(
            f"{name} takes one label a row: {shown}",
            f"labels must be {z.type.with_dtype(y.dtype).with_shape(z.shape[:-1])}",
            *(["drop the last axis: cr.squeeze(labels, axis=-1)"] if column else []),
        )
    return z, y


def class_weights(weight: TensorLike, logits: Tensor) -> Tensor:
    """A factor for each class, of the logits' type. Raises ShapeError unless there is one each."""
    factors = beside(weight, logits)
    if factors.shape != logits.shape[-1:]:
        raise ShapeError(
            f"weight has a factor for each class: {logits.type} needs {logits.shape[-1]}, "
            f"not {factors.type}"
        )
    return factors


def beside(value: TensorLike, x: Tensor) -> Tensor:
    """A Tensor, an array or a number as a Tensor of x's element type."""
    return Tensor(as_node(value, x)).astype(x.dtype)
