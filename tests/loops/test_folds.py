"""Whole folds of what is made of smaller tensors: in little memory, in the order of a whole row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr

SEED = 5
#: shapes of two factors; the product's elements lie in no one line of memory
FACTORS = [
    ((300, 1), (1, 400)),
    ((300, 1), (1, 41)),
    ((300, 41), (1, 41)),
    ((1000, 1), (1, 3)),
    ((7, 1), (1, 2000)),
    ((2000, 7), (1, 7)),
    ((5, 1), (1, 9)),
    ((20, 1, 9), (1, 5, 9)),
    ((100, 3, 16), (1, 3, 1)),
    ((1, 40, 1), (1, 1, 33)),
    ((64, 1, 33), (1, 1, 33)),
    ((64, 1, 1), (1, 33, 1)),
]


def product_of(names: tuple[Any, ...], shapes: tuple[tuple[int, ...], ...]) -> cr.Tensor:
    """Two inputs' product; `names` are symbolic sizes for axes, None for a number."""
    x, y = (
        cr.input(letter, tuple(n if n and d != 1 else d for n, d in zip(names, s, strict=True)))
        for letter, s in zip("xy", shapes, strict=True)
    )
    return x * y


def check(fold: str, names: tuple[Any, ...], shapes: tuple[tuple[int, ...], ...]) -> None:
    """The bits are those of the product laid down as one row."""
    rng = np.random.default_rng(SEED)
    x, y = (rng.normal(size=s).astype(np.float32) for s in shapes)
    fn = cr.compile(getattr(cr, fold)(product_of(names, shapes)))
    row = cr.compile(getattr(cr, fold)(cr.input("row", ((x * y).size,))))
    np.testing.assert_array_equal(fn(x=x, y=y), row(row=(x * y).reshape(-1)))


@pytest.mark.parametrize("fold", ["sum", "max", "prod"])
@pytest.mark.parametrize("shapes", FACTORS)
def test_a_whole_fold_has_the_order_of_a_row(
    fold: str, shapes: tuple[tuple[int, ...], ...]
) -> None:
    check(fold, (None,) * len(shapes[0]), shapes)


@pytest.mark.parametrize("names", [("n", None), (None, "m"), ("n", "m")])
@pytest.mark.parametrize(("rows", "columns"), [(300, 41), (37, 41), (5, 41), (300, 32), (0, 41)])
def test_so_it_has_where_sizes_are_known_late(
    names: tuple[Any, ...], rows: int, columns: int
) -> None:
    if rows or names[0]:
        check("sum", names, ((rows, 1), (1, columns)))


@pytest.mark.parametrize("shapes", FACTORS)
def test_a_whole_fold_takes_little_room(shapes: tuple[tuple[int, ...], ...]) -> None:
    """A block at most; none where rows are whole vectors, as lanes come out right."""
    z = product_of((None,) * len(shapes[0]), shapes)
    took = cr.compile(cr.sum(z)).report().reserved()["workspace"]
    last = [d for d in z.shape if d != 1][-1]
    assert took == 0 if last % 16 == 0 else took <= 4 * 16 * 1024 // 8


def test_what_is_needed_again_waits_whole() -> None:
    """A row that a later pass reads, and a fold over rows of several axes each."""
    rng = np.random.default_rng(SEED)
    x, y = rng.normal(size=(60, 1)), rng.normal(size=(1, 41))
    u, v = cr.input("x", (60, 1), dtype="float64"), cr.input("y", (1, 41), dtype="float64")
    z = cr.exp(u * v)
    fn = cr.compile({"share": z / cr.sum(z), "gaps": cr.max(z) - cr.min(z)})
    found, truth = fn(x=x, y=y), np.exp(x * y)
    np.testing.assert_allclose(found["share"], truth / truth.sum(), rtol=1e-12)
    np.testing.assert_allclose(found["gaps"], np.ptp(truth), rtol=1e-12)
    many, w = rng.normal(size=(4, 9, 1)), rng.normal(size=(1, 1, 50))
    a, b = (cr.input(n, s.shape, dtype="float64") for n, s in (("a", many), ("b", w)))
    each = cr.compile(cr.sum((a - b) ** 2, axis=(1, 2)), threads=2)(a=many, b=w)
    np.testing.assert_allclose(each, ((many - w) ** 2).sum((1, 2)), rtol=1e-12)
