"""Orders, held to NumPy's stable sort: every element type, ties, NaN, both zeros, any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.ops.sort import FEW

Array = np.ndarray[Any, Any]
TYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
SHAPES = ((7,), (1,), (FEW,), (FEW + 1,), (300,), (3, 5), (5, 3, 90), (90, 4), (0,), (2, 0))


def numbers(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Numbers among which many are equal, and of floats all that is odd."""
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if not dtype.startswith("float"):
        ends = np.iinfo(dtype)
        some = rng.integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)
        return np.where(rng.random(shape) < 0.3, np.asarray(ends.min, dtype), some)
    odd = [np.nan, -np.nan, -0.0, 0.0, np.inf, -np.inf, np.finfo(dtype).smallest_subnormal]
    some = rng.standard_normal(shape)
    return np.where(rng.random(shape) < 0.6, rng.choice(odd, shape), some).astype(dtype)


def order(x: Array, axis: int, descending: bool) -> Array:
    """NumPy's stable order; the other way round it is that of the array read backwards."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis, "stable"), axis)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", TYPES)
def test_argsort(dtype: str, backend: str) -> None:
    rng = np.random.default_rng(7)
    outputs: dict[str, Any] = {}
    feeds, want = {}, {}
    for shape in SHAPES:
        for symbolic in (False, True):
            name = f"{shape}{symbolic}"
            sizes = tuple(f"n{i}_{len(feeds)}" if symbolic else d for i, d in enumerate(shape))
            x, feeds[name] = cr.input(name, sizes, dtype=dtype), numbers(rng, dtype, shape)
            for axis in range(len(shape)):
                for down in (False, True):
                    key = f"{name} {axis} {down}"
                    outputs[key] = cr.argsort(x, axis=axis, descending=down)
                    want[key] = order(feeds[name], axis, down)
    found = cr.compile(outputs, backend=backend)(**feeds)
    for key, value in found.items():
        np.testing.assert_array_equal(value, want[key], err_msg=f"seed 7, {dtype} {key}")


def test_many_elements() -> None:
    x = cr.input("x", ("n",))
    fn = cr.compile([cr.sort(x), cr.sort(x, descending=True)])
    for n in (0, 1, 255, 100_003):
        at = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        up, down = fn(x=at)
        np.testing.assert_array_equal(up, np.sort(at))
        np.testing.assert_array_equal(down, np.sort(at)[::-1])


def test_top_k_takes_the_first_of_equals() -> None:
    x = cr.input("x", (2, 5))
    values, places = cr.top_k(x, 3)
    smallest, _ = cr.top_k(x, 2, largest=False)
    at = np.array([[1, 3, 3, 0, 3], [2, 2, 2, 2, 2]], np.float32)
    found = cr.compile([values, places, smallest])(x=at)
    np.testing.assert_array_equal(found[0], [[3, 3, 3], [2, 2, 2]])
    np.testing.assert_array_equal(found[1], [[1, 2, 4], [0, 1, 2]])
    np.testing.assert_array_equal(found[2], [[0, 1], [2, 2]])


def test_a_sum_of_what_is_sorted_hands_each_weight_back_to_where_its_element_was() -> None:
    x, w = cr.input("x", ("n",), dtype="float64"), cr.input("w", ("n",), dtype="float64")
    slope = cr.grad(cr.sum(cr.sort(x) * w), x)
    rng = np.random.default_rng(3)
    for n in (5, 200):
        at, weights = rng.standard_normal(n), rng.standard_normal(n)
        want = np.empty(n)
        want[np.argsort(at, kind="stable")] = weights
        np.testing.assert_array_equal(cr.compile(slope)(x=at, w=weights), want)
