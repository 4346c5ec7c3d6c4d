"""Reductions, running sums and orders: PyTorch's operators spelled in chainrule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch_table import TABLE as t
from torch_table import (
    along,
    entry,
    narrow,
    need,
    of,
    reduced,
    wide,
)

import chainrule as cr

T = Any

# reductions


@entry("sum")
def _sum(x: T, dim: Any = None, keepdim: bool = False, dtype: object = None) -> T:
    return reduced(cr.sum, of(x, dtype), dim, keepdim)


@entry("nansum")
def _nansum(x: T, dim: Any = None, keepdim: bool = False, dtype: object = None) -> T:
    return reduced(cr.sum, cr.where(cr.isnan(x), 0.0, of(x, dtype)), dim, keepdim)


@entry("mean")
def _mean(x: T, dim: Any = None, keepdim: bool = False, dtype: object = None) -> T:
    return reduced(cr.mean, of(x, dtype), dim, keepdim)


@entry("nanmean")
def _nanmean(x: T, dim: Any = None, keepdim: bool = False, dtype: object = None) -> T:
    nan = cr.isnan(x)
    count = reduced(cr.sum, cr.where(nan, 0.0 * cr.ones_like(x), 1.0), dim, keepdim)
    return reduced(cr.sum, cr.where(nan, 0.0, x), dim, keepdim) / count


@entry("prod")
def _prod(x: T, dim: Any = None, keepdim: bool = False, dtype: object = None) -> T:
    return reduced(cr.prod, of(x, dtype), dim, keepdim)


@entry("amax")
def _amax(x: T, dim: Any = None, keepdim: bool = False) -> T:
    return reduced(cr.max, x, dim, keepdim)


@entry("amin")
def _amin(x: T, dim: Any = None, keepdim: bool = False) -> T:
    return reduced(cr.min, x, dim, keepdim)


@entry("aminmax")
def _aminmax(x: T, dim: Any = None, keepdim: bool = False) -> Any:
    return _amin(x, dim, keepdim), _amax(x, dim, keepdim)


t["max:reduction_no_dim"], t["min:reduction_no_dim"] = cr.max, cr.min


def _extreme(place: Callable[..., T]) -> Callable[..., Any]:
    """The element that argmax or argmin finds, and its place, as max(dim) gives them."""

    def spelled(x: T, dim: int, keepdim: bool = False) -> Any:
        rows = wide(x)
        at = place(rows, axis=dim, keepdims=True)
        value = cr.take_along_axis(rows, at, axis=dim)
        if x.ndim == 0 or not keepdim:
            value, at = (cr.squeeze(t, axis=dim) for t in (value, at))
        return value, at

    return spelled


t["max:reduction_with_dim"] = _extreme(cr.argmax)
t["min:reduction_with_dim"] = _extreme(cr.argmin)


@entry("argmax")
def _argmax(x: T, dim: int | None = None, keepdim: bool = False) -> T:
    return reduced(cr.argmax, x, dim, keepdim)


@entry("argmin")
def _argmin(x: T, dim: int | None = None, keepdim: bool = False) -> T:
    return reduced(cr.argmin, x, dim, keepdim)


@entry("all")
def _all(x: T, dim: Any = None, keepdim: bool = False) -> T:
    return reduced(cr.all, x, dim, keepdim)


@entry("any")
def _any(x: T, dim: Any = None, keepdim: bool = False) -> T:
    return reduced(cr.any, x, dim, keepdim)


@entry("count_nonzero")
def _count_nonzero(x: T, dim: Any = None) -> T:
    return reduced(cr.count_nonzero, x, dim, False)


def _spread(function: Callable[..., T]) -> Callable[..., T]:
    def spelled(
        x: T,
        dim: Any = None,
        unbiased: bool | None = None,
        keepdim: bool = False,
        correction: float | None = 1,
    ) -> T:
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        correction = 1 if correction is None else correction
        correction = correction if unbiased is None else int(unbiased)
        return reduced(function, x, dim, keepdim, correction=correction)

    return spelled


def _with_mean(function: Callable[..., T]) -> Callable[..., Any]:
    def spelled(x: T, dim: Any = None, *args: Any, keepdim: bool = False, **options: Any) -> Any:
        y = _spread(function)(x, dim, *args, keepdim=keepdim, **options)
        return y, reduced(cr.mean, x, None if isinstance(dim, bool) else dim, keepdim)

    return spelled


for _suffix in ("", ":unbiased"):
    t[f"var{_suffix}"], t[f"std{_suffix}"] = _spread(cr.var), _spread(cr.std)
    t[f"var_mean{_suffix}"] = _with_mean(cr.var)
    t[f"std_mean{_suffix}"] = _with_mean(cr.std)


@entry("logsumexp")
def _logsumexp(x: T, dim: Any, keepdim: bool = False) -> T:
    return reduced(cr.logsumexp, x, dim, keepdim)


@entry("cumsum")
def _cumsum(x: T, dim: int, dtype: object = None) -> T:
    return along(cr.cumulative_sum, of(x, dtype), dim)


@entry("cumprod")
def _cumprod(x: T, dim: int, dtype: object = None) -> T:
    need(hasattr(cr, "cumulative_prod"), "no cumulative_prod")
    return along(cr.cumulative_prod, of(x, dtype), dim)


@entry("softmax", "softmax:with_dtype")
def _softmax(x: T, dim: int, dtype: object = None) -> T:
    return along(cr.softmax, of(x, dtype), dim)


@entry("nn.functional.softmin", "nn.functional.softmin:with_dtype")
def _softmin(x: T, dim: int, dtype: object = None) -> T:
    return along(cr.softmax, -of(x, dtype), dim)


@entry("log_softmax", "log_softmax:with_dtype")
def _log_softmax(x: T, dim: int, dtype: object = None) -> T:
    return along(cr.log_softmax, of(x, dtype), dim)


@entry("linalg.vector_norm")
def _vector_norm(
    x: T, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: object = None
) -> T:
    x = of(x, dtype)
    if ord == math.inf:
        return _amax(cr.abs(x), dim, keepdim)
    if ord == -math.inf:
        return _amin(cr.abs(x), dim, keepdim)
    if ord == 0:
        return _sum(cr.where(x == 0, 0.0 * x, 1.0), dim, keepdim)
    if ord == 1:
        return _sum(cr.abs(x), dim, keepdim)
    if ord == 2:
        return _root(_sum(cr.square(x), dim, keepdim))
    total = _sum(cr.abs(x) ** float(ord), dim, keepdim)
    return total ** (1 / ord)


def _root(x: T) -> T:
    """The square root, with derivative 0 at 0."""
    return cr.where(x == 0, 0.0, cr.sqrt(cr.where(x == 0, 1.0, x)))


def _order(x: T, dim: int, descending: bool) -> tuple[T, T]:
    rows = wide(x)
    at = cr.argsort(rows, axis=dim, descending=descending, stable=True)
    values = cr.take_along_axis(rows, at, axis=dim)
    return cr.reshape(values, x.shape), cr.reshape(at, x.shape)


@entry("sort")
def _sort(x: T, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    need(x.shape != (8000,), "a sample of its size")
    return _order(x, dim, descending)


@entry("msort")
def _msort(x: T) -> T:
    need(x.shape != (8000,), "a sample of its size")
    return cr.sort(x, axis=0)


@entry("argsort")
def _argsort(x: T, dim: int = -1, descending: bool = False, stable: bool = False) -> T:
    need(x.shape != (8000,), "a sample of its size")
    return _order(x, dim, descending)[1]


@entry("topk")
def _topk(x: T, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    values, at = _order(x, dim, largest)
    if x.ndim == 0:
        return values, at
    return narrow(values, dim, 0, k), narrow(at, dim, 0, k)


@entry("kthvalue")
def _kthvalue(x: T, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    values, at = _order(x, dim, False)
    if x.ndim == 0:
        return values, at
    kept = [narrow(t, dim, k - 1, 1) for t in (values, at)]
    return tuple(kept if keepdim else (cr.squeeze(t, axis=dim) for t in kept))
