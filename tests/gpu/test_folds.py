"""Folds on a GPU: the CPU's order up to a length, and beyond it one that shape alone decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.loops import threads
from chainrule.loops.launch import BLOCK
from chainrule.loops.threads import LONG, MANY, TALL
from chainrule.loops.tiled import FOUR


def by_lanes(x: np.ndarray, lanes: int) -> np.ndarray:
    """Sums along the first axis in float32: lane i takes every so many, and one tree the lanes."""
    cells = np.zeros((lanes, *x.shape[1:]), np.float32)
    for start in range(0, len(x), lanes):
        rows = x[start : start + lanes]
        cells[: len(rows)] += rows
    while len(cells) > 1:
        cells = cells[: len(cells) // 2] + cells[len(cells) // 2 :]
    return cells[0]


def by_fours(x: np.ndarray) -> np.ndarray:
    """Likewise, thread t of a block four neighbours at a time, which it folds at the end."""
    cells = np.zeros((FOUR * BLOCK, *x.shape[1:]), np.float32)
    for start in range(0, len(x), len(cells)):
        rows = x[start : start + len(cells)]
        cells[: len(rows)] += rows
    a, b, c, d = (cells[u::FOUR] for u in range(FOUR))
    return by_lanes((a + c) + (b + d), BLOCK)


def in_order(x: np.ndarray) -> np.ndarray:
    return np.add.accumulate(x, axis=0, dtype=np.float32)[-1]


@pytest.fixture(params=["gpu", "emulator"])
def device(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("width", "lanes"), [(19, 16), (20, 64)])
@pytest.mark.parametrize("rows", [1, TALL, TALL + 1, 700])
def test_columns_are_added_in_order_or_by_lanes(
    rows: int, width: int, lanes: int, device: Any
) -> None:
    x = np.random.default_rng(rows).standard_normal((rows, width), np.float32)
    want = in_order(x) if rows <= TALL else by_lanes(x, lanes)
    for size in (rows, "n"):
        fn = cr.compile(cr.sum(cr.input("x", (size, width)), axis=0) * 2, backend="cuda")
        np.testing.assert_array_equal(fn(x=x), want * 2)


@pytest.mark.parametrize(
    ("length", "lanes"), [(LONG, 16), (LONG + 1, BLOCK), (LONG + 4, FOUR * BLOCK)]
)
def test_rows_are_added_by_16_lanes_or_by_a_block(length: int, lanes: int, device: Any) -> None:
    x = np.random.default_rng(length).standard_normal((3, length), np.float32)
    t = cr.input("x", (3, length))
    turned = cr.input("y", (length, 3))  # not walked straight through: the same order
    fn = cr.compile([cr.sum(t, axis=1), cr.sum(turned.T * 1.0, axis=1)], backend="cuda")
    want = by_lanes(x.T, lanes) if lanes <= BLOCK else by_fours(x.T)
    for got in fn(x=x, y=np.ascontiguousarray(x.T)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("length", [64, 68, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_rows_are_folded_by_four_threads_in_the_order_of_16_lanes(
    length: int, dtype: str, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(length)
    feeds = {n: rng.standard_normal((2, 5, length)).astype(dtype) for n in "xy"}
    x, y = (cr.input(n, ("n", 5, length), dtype=dtype) for n in "xy")
    labels = cr.argmax(y, axis=-1)
    gradients = cr.grad(cr.sum(cr.softmax(x * y, axis=-1) * y), [x])
    outputs = [cr.sum(x * y, axis=-1), cr.losses.cross_entropy(x, labels), *gradients]
    outputs += [cr.max(x, axis=-1), cr.any(x > 3, axis=-1), cr.std(y, axis=-1)]
    monkeypatch.setenv("CHAINRULE_CACHE", "0")  # programs are found by what was written alone
    seen = set()
    for output, names in zip(outputs, ("xy", "xy", "xy", "x", "x", "y"), strict=True):
        given = {n: feeds[n] for n in names}
        want = cr.compile(output)(**given)
        for many in (MANY, 1):
            monkeypatch.setattr(threads, "MANY", many)
            fn = cr.compile(output, backend="cuda")
            seen |= {(many, "of 4 lanes" in fn.show("loops"))}
            np.testing.assert_array_equal(fn(**given), want)
    assert seen >= {(MANY, False), (1, True)} and (MANY, True) not in seen


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
