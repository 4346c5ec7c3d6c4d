"""Folds on a GPU: the CPU's order up to a length, and beyond it one that shape alone decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.loops.launch import BLOCK
from chainrule.loops.threads import LONG, TALL


def by_lanes(x: np.ndarray, lanes: int) -> np.ndarray:
    """Sums along the first axis in float32: lane i takes every so many, and one tree the lanes."""
    cells = np.zeros((lanes, *x.shape[1:]), np.float32)
    for start in range(0, len(x), lanes):
        rows = x[start : start + lanes]
        cells[: len(rows)] += rows
    while len(cells) > 1:
        cells = cells[: len(cells) // 2] + cells[len(cells) // 2 :]
    return cells[0]


def in_order(x: np.ndarray) -> np.ndarray:
    return np.add.accumulate(x, axis=0, dtype=np.float32)[-1]


@pytest.fixture(params=["gpu", "emulator"])
def device(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("rows", [1, TALL, TALL + 1, 700])
def test_columns_are_added_in_order_or_by_16_lanes(rows: int, device: Any) -> None:
    x = np.random.default_rng(rows).standard_normal((rows, 19), np.float32)
    want = in_order(x) if rows <= TALL else by_lanes(x, 16)
    for size in (rows, "n"):
        fn = cr.compile(cr.sum(cr.input("x", (size, 19)), axis=0) * 2, backend="cuda")
        np.testing.assert_array_equal(fn(x=x), want * 2)


@pytest.mark.parametrize("length", [LONG, LONG + 1])
def test_rows_are_added_by_16_lanes_or_by_a_block(length: int, device: Any) -> None:
    x = np.random.default_rng(length).standard_normal((3, length), np.float32)
    want = by_lanes(x.T, 16 if length == LONG else BLOCK)
    fn = cr.compile(cr.sum(cr.input("x", (3, length)), axis=1), backend="cuda")
    np.testing.assert_array_equal(fn(x=x), want)


@pytest.mark.parametrize("length", [1, 15, 300, 5000])
def test_a_row_of_unknown_length_is_added_by_a_block(length: int, device: Any) -> None:
    x = np.random.default_rng(length).standard_normal((2, length), np.float32)
    fn = cr.compile(cr.sum(cr.input("x", (2, "n")), axis=1), backend="cuda")
    np.testing.assert_array_equal(fn(x=x), by_lanes(x.T, BLOCK))


def test_the_largest_and_products_too(device: Any) -> None:
    x = np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32)
    t = cr.input("x", (300, 5))
    top, where, many = cr.compile(
        [cr.max(t, axis=0), cr.argmax(t, axis=0), cr.prod(1 + t * 0.01, axis=0)], backend="cuda"
    )(x=x)
    np.testing.assert_array_equal(top, x.max(0))
    np.testing.assert_array_equal(where, x.argmax(0))
    np.testing.assert_allclose(many, (1 + x * 0.01).prod(0), rtol=1e-5)  # 300 roundings of 6e-8


@pytest.mark.parametrize("rows", [0, 300])
def test_of_nothing_and_of_several_axes(rows: int, device: Any) -> None:
    x = np.random.default_rng(0).standard_normal((rows, 3, 4), np.float32)
    t = cr.input("x", ("n", 3, 4))
    sums = cr.compile([cr.sum(t, axis=(0, 1)), cr.sum(t)], backend="cuda")(x=x)
    np.testing.assert_allclose(sums[0], x.astype("f8").sum((0, 1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums[1], x.astype("f8").sum(), rtol=1e-4, atol=1e-4)
