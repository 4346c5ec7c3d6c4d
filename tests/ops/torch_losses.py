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
    return cr.losses.mse(x, y) if reduction == "mean" else finished(cr.square(x - y), reduction)


@entry("nn.functional.l1_loss")
def l1(x: T, y: T, reduction: str = "mean") -> T:
    return cr.losses.mae(x, y) if reduction == "mean" else finished(cr.abs(x - y), reduction)


@entry("nn.functional.huber_loss")
def huber(x: T, y: T, reduction: str = "mean", delta: float = 1.0) -> T:
    if reduction == "mean":
        return cr.losses.huber(x, y, delta)
    d = cr.abs(x - y)
    return finished(cr.where(d <= delta, 0.5 * cr.square(d), delta * (d - 0.5 * delta)), reduction)


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
    if weight is None and pos_weight is None and reduction == "mean":
        return cr.losses.binary_cross_entropy(x, y)
    positive = 1.0 if pos_weight is None else pos_weight
    loss = -(positive * y * cr.log_sigmoid(x) + (1 - y) * cr.log_sigmoid(-x))
    return finished(loss if weight is None else loss * weight, reduction)


@entry("nn.functional.binary_cross_entropy")
def bce(x: T, y: T, weight: Any = None, reduction: str = "mean") -> T:
    loss = -(y * cr.maximum(cr.log(x), -100.0) + (1 - y) * cr.maximum(cr.log(1 - x), -100.0))
    return finished(loss if weight is None else loss * weight, reduction)


def classes_last(x: T) -> T:
    return x if x.ndim < 2 else cr.moveaxis(x, 1, -1)


def nll_of(
    logs: T, y: T, weight: Any, ignore_index: int, reduction: str, smoothing: float = 0.0
) -> T:
    """The loss of logarithms of probabilities, classes last, at class numbers."""
    kept = y != ignore_index
    safe = cr.where(kept, y, 0)
    picked = cr.pick(logs, safe) * (1 - smoothing)
    scale = 1.0 if weight is None else cr.take(weight, safe, axis=0)
    each = -picked * scale
    if smoothing:
        w = logs if weight is None else logs * weight
        each = each - cr.sum(w, axis=-1) * (smoothing / logs.shape[-1])
    each = cr.where(kept, each, 0.0)
    if reduction != "mean":
        return finished(each, reduction)
    ones = cr.where(kept, cr.ones_like(each) * scale, 0.0)
    return cr.sum(each) / cr.sum(ones)


@entry("nn.functional.nll_loss")
def nll(
    x: T,
    y: T,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    **_: Any,
) -> T:
    return nll_of(classes_last(x), y, weight, ignore_index, reduction)


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
        if weight is None and ignore_index < 0 and reduction == "mean" and not label_smoothing:
            return cr.losses.cross_entropy(z, y)
        return nll_of(cr.log_softmax(z), y, weight, ignore_index, reduction, label_smoothing)
    p = classes_last(y)
    if label_smoothing:
        p = p * (1 - label_smoothing) + label_smoothing / z.shape[-1]
    logs = cr.log_softmax(z) if weight is None else cr.log_softmax(z) * weight
    each = -cr.sum(p * logs, axis=-1)
    rows = math.prod(each.shape)
    return cr.sum(each) / float(rows) if reduction == "mean" else finished(each, reduction)


@entry("nn.functional.kl_div")
def kl_div(
    x: T,
    y: T,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> T:
    each = cr.exp(y) * (y - x) if log_target else cr.xlogy(y, y) - y * x
    if reduction == "batchmean":
        return cr.sum(each) / float(x.shape[0])
    return finished(each, reduction)


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
    # the bound passes its cotangent on to the variance: it is set under no_grad
    safe = var + cr.stop_gradient(cr.clip(var, eps) - var)
    loss = 0.5 * (cr.log(safe) + cr.square(x - y) / safe)
    return finished(loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


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
