"""Losses: PyTorch's operators spelled in chainrule."""

from __future__ import annotations

import math
from typing import Any

from torch_layers import distance
from torch_table import (
    entry,
    finished,
)

import chainrule as cr

T = Any

# losses


@entry("nn.functional.mse_loss")
def mse(x: T, y: T, reduction: str = "mean") -> T:
    return cr.losses.mse(x, y, reduction)


@entry("nn.functional.l1_loss")
def l1(x: T, y: T, reduction: str = "mean") -> T:
    return cr.losses.mae(x, y, reduction)


@entry("nn.functional.huber_loss")
def huber(x: T, y: T, reduction: str = "mean", delta: float = 1.0) -> T:
    return cr.losses.huber(x, y, delta, reduction)


@entry("nn.functional.smooth_l1_loss")
def smooth_l1(x: T, y: T, reduction: str = "mean", beta: float = 1.0) -> T:
    if beta == 0:
        return l1(x, y, reduction)
    d = cr.abs(x - y)
    near = 0.5 * cr.square(d) / beta
    return finished(cr.where(d < beta, near, d - 0.5 * beta), reduction)


@entry("nn.functional.binary_cross_entropy_with_logits")
def bce_logits(
    x: T, y: T, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> T:
    return cr.losses.binary_cross_entropy(x, y, weight, pos_weight, reduction)


@entry("nn.functional.binary_cross_entropy")
def bce(x: T, y: T, weight: Any = None, reduction: str = "mean") -> T:
    loss = -(y * cr.maximum(cr.log(x), -100.0) + (1 - y) * cr.maximum(cr.log(1 - x), -100.0))
    return finished(loss if weight is None else loss * weight, reduction)


def classes_last(x: T) -> T:
    return x if x.ndim < 2 else cr.moveaxis(x, 1, -1)


@entry("nn.functional.nll_loss")
def nll(
    x: T,
    y: T,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    **_: Any,
) -> T:
    return cr.losses.nll(classes_last(x), y, weight, ignore_index, reduction)


@entry("nn.functional.cross_entropy")
def cross_entropy(
    x: T,
    y: T,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    **_: Any,
) -> T:
    z = classes_last(x)
    if y.dtype.is_integer:
        return cr.losses.cross_entropy(z, y, weight, label_smoothing, ignore_index, reduction)
    p = classes_last(y)
    return cr.losses.categorical_cross_entropy(z, p, weight, label_smoothing, reduction)


@entry("nn.functional.kl_div")
def kl_div(
    x: T,
    y: T,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> T:
    if reduction == "batchmean":
        return cr.losses.kl_divergence(x, y, log_target, "sum") / float(x.shape[0])
    return finished(cr.losses.kl_divergence(x, y, log_target, "none"), reduction)


@entry("nn.functional.hinge_embedding_loss")
def hinge_embedding(x: T, y: T, margin: float = 1.0, reduction: str = "mean") -> T:
    far = cr.where(y == 1, 0.0, cr.clip(margin - x, 0.0))
    near = cr.where(y == -1, 0.0, x)
    return finished(far + near, reduction)


@entry("nn.functional.margin_ranking_loss")
def margin_ranking(a: T, b: T, y: T, margin: float = 0.0, reduction: str = "mean") -> T:
    return finished(cr.clip(-y * (a - b) + margin, 0.0), reduction)


@entry("nn.functional.soft_margin_loss")
def soft_margin(x: T, y: T, reduction: str = "mean", **_: Any) -> T:
    return finished(cr.softplus(-y * x), reduction)


@entry("nn.functional.poisson_nll_loss")
def poisson(
    x: T,
    y: T,
    log_input: bool = True,
    full: bool = False,
    size_average: Any = None,
    eps: float = 1e-8,
    reduce: Any = None,
    reduction: str = "mean",
) -> T:
    loss = cr.exp(x) - y * x if log_input else x - y * cr.log(x + eps)
    if full:
        stirling = y * cr.log(y) - y + 0.5 * cr.log(2 * math.pi * y)
        loss = loss + cr.where(y <= 1, 0.0, stirling)
    return finished(loss, reduction)


@entry("nn.functional.gaussian_nll_loss")
def gaussian(
    x: T, y: T, var: T, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> T:
    if var.ndim == x.ndim - 1:
        var = cr.expand_dims(var, axis=-1)
    return cr.losses.gaussian_nll(*cr.broadcast_arrays(x, y, var), full, eps, reduction)


@entry("nn.functional.triplet_margin_loss")
def triplet(
    a: T,
    p: T,
    n: T,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
    **options: Any,
) -> T:
    near, far = distance(a, p, **options), distance(a, n, **options)
    far = cr.minimum(far, distance(p, n, **options)) if swap else far
    return finished(cr.clip(near - far + margin, 0.0), reduction)


@entry("nn.functional.cosine_embedding_loss")
def cosine_embedding(a: T, b: T, y: T, margin: float = 0.0, reduction: str = "mean", **_: Any) -> T:
    tiny = {"float32": 1e-12, "float64": 1e-12}[str(a.dtype.name)]
    dot, aa, bb = (cr.sum(u * v, axis=-1) for u, v in ((a, b), (a, a), (b, b)))
    cosine = dot / cr.sqrt((aa + tiny) * (bb + tiny))
    near = cr.where(y == 1, 1 - cosine, 0.0)
    far = cr.where(y == -1, cr.clip(cosine - margin, 0.0), 0.0)
    return finished(near + far, reduction)
