"""Losses, metrics and optimizers by the names that a model takes for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chainrule.errors import CompileError
from chainrule.lang import functions as f
from chainrule.lang.searching import argmax
from chainrule.lang.tensor import Tensor
from chainrule.nn import losses, optim

Measure = Callable[..., Tensor]
LOSSES = {n: getattr(losses, n) for n in ("mse", "mae", "huber", "binary_cross_entropy", "cross_entropy")}


def _acc(z: Tensor, y: Tensor) -> Tensor:
    return f.mean((argmax(z, axis=-1) == y).astype(z.dtype))


METRICS: dict[str, Measure] = {"accuracy": _acc}


def loss(given: Any) -> Measure:
    """A loss by name, or the function itself."""
    return LOSSES[given] if isinstance(given, str) else given


def metrics(given: Any) -> dict[str, Measure]:
    """Metrics by the names that they are told by."""
    if isinstance(given, Mapping):
        return {n: METRICS[m] if isinstance(m, str) else m for n, m in given.items()}
    return {m if isinstance(m, str) else m.__name__: METRICS[m] if isinstance(m, str) else m for m in given}


def optimizer(given: Any) -> optim.Optimizer:
    """An optimizer by name, or itself."""
    return given
