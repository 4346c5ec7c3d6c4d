"""What elementwise ops mean in NumPy, where NumPy has no function for it."""

from __future__ import annotations

import math

import numpy as np

from chainrule.ir.node import Array


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, e, np.where(np.isnan(x), x, 1)) / (1 + e), x.dtype)


def softplus(x: Array) -> Array:
    """log(1 + exp(x))."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def erf(x: Array) -> Array:
    """The error function."""
    return np.asarray([math.erf(v) for v in x.ravel()], x.dtype).reshape(x.shape)


def erfc(x: Array) -> Array:
    """1 - erf(x)."""
    return np.asarray([math.erfc(v) for v in x.ravel()], x.dtype).reshape(x.shape)


def relu6(x: Array) -> Array:
    """x between 0 and 6, NaN kept."""
    return np.where(x <= 0, np.zeros_like(x), np.where(x >= 6, np.full_like(x, 6), x))


def xlogy(x: Array, y: Array) -> Array:
    """x log(y), 0 where x is 0 and y a number."""
    return np.asarray(np.where((x == 0) & (y == y), 0, x * np.log(y)), x.dtype)


def rsqrt(x: Array) -> Array:
    """1 / sqrt(x)."""
    return np.asarray(1 / np.sqrt(x))


def relu(x: Array) -> Array:
    """x where it is not below 0, NaN kept."""
    return np.where(x <= 0, np.zeros_like(x), x)


def power(x: Array, y: Array) -> Array:
    """x to the power y; of integers, 0 below 0 and from 64 on, but for bases -1 and 1."""
    if x.dtype.kind == "f":
        return np.power(x, y)
    known = np.power(x, np.where((y >= 0) & (y < 64), y, 0).astype(x.dtype))
    odd = np.where(y % 2 != 0, x, x * x)
    unit = np.where(np.abs(x) == 1, odd, np.zeros_like(x))
    return np.asarray(np.where((y >= 0) & (y < 64), known, unit), x.dtype)
