"""Running sums and products and their derivatives, beside zeros, along any axis, of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.node import apply
from chainrule.lang.tensor import Tensor
from chainrule.ops.running import CumulativeProd, Recurrence

Array = np.ndarray[Any, Any]
#: 1e-9 relative: some hundred roundings of float64, in another order
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
CASES = (((4,), 0), ((3, 5), 1), ((3, 5), 0), ((2, 3, 4), 1), ((400,), 0), ((1,), 0))
EMPTY = (((0,), 0), ((0, 3), 0), ((3, 0), 0), ((3, 0), 1))


def leaves(rank: int) -> tuple[Any, Any]:
    sizes = tuple(f"n{i}" for i in range(rank))
    return cr.input("x", sizes, dtype="float64"), cr.input("v", sizes, dtype="float64")


def running_product(x: Any, axis: int, reverse: bool = False) -> Any:
    return Tensor(apply(CumulativeProd(axis, reverse), x.node))


def data(shape: tuple[int, ...]) -> tuple[Array, Array]:
    rng = np.random.default_rng(11)
    x = rng.standard_normal(shape)
    x[rng.random(shape) < 0.2] = 0.0
    return x, rng.standard_normal(shape)


def others(x: Array, axis: int) -> Array:
    """For each element the product of the others, as it is defined."""
    rows = np.moveaxis(x, axis, -1)
    left = [np.delete(rows, i, -1).prod(-1) for i in range(rows.shape[-1])]
    return np.moveaxis(np.stack(left, -1), -1, axis)


def products_slope(x: Array, v: Array, axis: int) -> Array:
    """The gradient of sum(v * cumprod(x)), by its definition."""
    x, v = np.moveaxis(x, axis, -1), np.moveaxis(v, axis, -1)
    out = np.zeros_like(x)
    for i in range(x.shape[-1]):
        part = x[..., : i + 1]
        left = [np.delete(part, j, -1).prod(-1) for j in range(i + 1)]
        out[..., : i + 1] += v[..., i : i + 1] * np.stack(left, -1)
    return np.moveaxis(out, -1, axis)


@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_values_and_gradients_beside_zeros(shape: tuple[int, ...], axis: int) -> None:
    x, v = leaves(len(shape))
    y, p = running_product(x, axis), cr.prod(x, axis=axis, keepdims=True)
    total = cr.cumulative_sum(x, axis=axis)
    slopes = [cr.grad(cr.sum(y * v), x), cr.grad(cr.sum(p), x)]
    at, by = data(shape)
    found = cr.compile([y, total, *slopes])(x=at, v=by)
    want = np.cumprod(at, axis), np.cumsum(at, axis), products_slope(at, by, axis), others(at, axis)
    for one, other in zip(found, want, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE, err_msg="seed 11")


def test_second_derivatives_of_a_product_beside_zeros() -> None:
    """Of a product by two factors: that of all but these two, and 0 by one factor twice."""
    x, v = leaves(1)
    for n, zeros in ((5, [1]), (6, [0, 3]), (300, [7])):
        at = np.random.default_rng(n).uniform(0.9, 1.1, n)
        at[zeros] = 0.0
        by = np.ones(n)
        twice = cr.grad(cr.sum(cr.grad(cr.prod(x), x) * v), x)
        pairs = np.zeros((n, n))
        for i in zeros:
            for j in range(n):
                if i != j:
                    pairs[i, j] = pairs[j, i] = np.delete(at, [i, j]).prod()
        np.testing.assert_allclose(cr.compile(twice)(x=at, v=by), pairs.sum(0), **CLOSE)


@pytest.mark.parametrize(("shape", "axis"), EMPTY)
def test_nothing_runs(shape: tuple[int, ...], axis: int) -> None:
    x, v = leaves(len(shape))
    y, total = running_product(x, axis), cr.cumulative_sum(x, axis=axis)
    slope = cr.grad(cr.sum(y * v) + cr.sum(cr.prod(x, axis=axis)), x)
    for found in cr.compile([y, total, slope])(x=np.zeros(shape), v=np.zeros(shape)):
        assert found.shape == shape


@pytest.mark.parametrize("reverse", [False, True])
def test_a_recurrence_begins_without_its_first_factor(reverse: bool) -> None:
    a, b = leaves(1)
    z = Tensor(apply(Recurrence(0, reverse), a.node, b.node))
    at, by = np.array([np.inf, 2.0, 3.0]), np.array([1.0, 10.0, 100.0])
    if reverse:
        at, by = at[::-1], by[::-1]
    want = np.array([1.0, 12.0, 136.0])
    for backend in ("cpu", "reference"):
        found = cr.compile(z, backend=backend)(x=at, v=by)
        np.testing.assert_array_equal(found, want[::-1] if reverse else want)
