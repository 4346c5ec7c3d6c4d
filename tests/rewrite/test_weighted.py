"""Sums of exponentials with weights, some of them 0: value and both gradients against mpmath."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

import chainrule as cr

mpmath.mp.dps = 60
SCALE = [0.5, -1.0, 2.0]


def parts(x: list[Any], y: list[Any]) -> list[Any]:
    return [mpmath.exp(a) * b for a, b in zip(x, y, strict=True)]


def shares(x: list[Any]) -> list[Any]:
    total = sum(map(mpmath.exp, x))
    return [mpmath.exp(a) / total for a in x]


def scaled(values: list[Any]) -> Any:
    return sum(v * s for v, s in zip(values, SCALE, strict=True))


def over(number: float) -> Callable[[Any, Any], Any]:
    return lambda x, y: scaled([p / (sum(parts(x, y)) + number) for p in parts(x, y)])


def written_over(number: float) -> Callable[[cr.Tensor, cr.Tensor], cr.Tensor]:
    def form(x: cr.Tensor, y: cr.Tensor) -> cr.Tensor:
        weighted = cr.exp(x) * y
        return cr.sum(weighted / (cr.sum(weighted) + number) * np.array(SCALE, x.dtype.name))

    return form


FORMS = {
    "normalised": (written_over(0), over(0)),
    "and a number": (written_over(0.5), over(0.5)),
    "log": (
        lambda x, y: cr.log(cr.sum(cr.exp(x) * y)),
        lambda x, y: mpmath.log(sum(parts(x, y))),
    ),
    "log of softmax": (
        lambda x, y: cr.log(cr.sum(cr.softmax(x) * y)),
        lambda x, y: mpmath.log(sum(a * b for a, b in zip(shares(x), y, strict=True))),
    ),
}
#: x, and weights of which a 0 shuts out what is small, what is largest, and neither
POINTS = [
    ([0.1, 0.2, 0.3], [1.0, 0.0, 2.0]),
    ([0.1, 20.0, 0.3], [1.0, 0.0, 2.0]),
    ([1e4, 1e4 + 3.0, 1e4 - 2.0], [0.25, 0.0, 1.5]),
    ([-1e4, -1e4 - 50.0, 1.0 - 1e4], [0.25, 0.0, 1.5]),
    ([0.0, 0.0, 1.0], [0.0, 0.0, 3.0]),
    ([100.0, -3.0, 2.0], [0.5, 1.0, 2.0]),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_a_weight_of_0_has_its_gradient(form: str, dtype: str) -> None:
    written, truth = FORMS[form]
    x, y = cr.input("x", (3,), dtype=dtype), cr.input("y", (3,), dtype=dtype)
    out = written(x, y)
    both = dict(zip("xy", cr.grad(out, [x, y]), strict=True))
    fn = cr.compile({"out": out, **both}, threads=1)
    rtol = 1e-5 if dtype == "float32" else 1e-12
    for at in POINTS:
        found = fn(x=np.array(at[0], dtype), y=np.array(at[1], dtype))
        exact = [[mpmath.mpf(v) for v in np.array(vs, dtype).tolist()] for vs in at]
        assert float(found["out"]) == pytest.approx(float(truth(*exact)), rel=rtol, abs=rtol)
        for name, place in (("x", 0), ("y", 1)):
            slopes = [float(slope(truth, exact, place, j)) for j in range(3)]
            np.testing.assert_allclose(found[name], slopes, rtol=4 * rtol, atol=4 * rtol)


@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16(form: str) -> None:
    """It was refused: what was added to a bfloat16 was a float32."""
    written, truth = FORMS[form]
    x, y = cr.input("x", (3,), dtype="bfloat16"), cr.input("y", (3,), dtype="bfloat16")
    given = [np.array(vs, x.dtype.numpy) for vs in ([0.5, 2.0, 1.0], [1.0, 0.0, 2.0])]
    counted = [[mpmath.mpf(float(v)) for v in vs] for vs in given]
    out = written(x, y)
    value, _, gy = cr.compile([out, *cr.grad(out, [x, y])], threads=1)(x=given[0], y=given[1])
    assert float(value) == pytest.approx(float(truth(*counted)), rel=0.05)
    slopes = [float(slope(truth, counted, 1, j)) for j in range(3)]
    np.testing.assert_allclose(gy.astype(float), slopes, rtol=0.05, atol=0.02)


def slope(truth: Callable[[Any, Any], Any], at: list[list[Any]], place: int, j: int) -> Any:
    def along(v: Any) -> Any:
        moved = [list(vs) for vs in at]
        moved[place][j] = v
        return truth(*moved)

    return mpmath.diff(along, at[place][j], h=mpmath.mpf(10) ** -25)


@pytest.mark.parametrize("form", ["normalised", "and a number"])
def test_what_is_shut_out_may_be_largest(form: str) -> None:
    written, _ = FORMS[form]
    x, y = cr.input("x", (3,)), cr.input("y", (3,))
    out = written(x, y)
    gx, gy = cr.grad(out, [x, y])
    fn = cr.compile([out, gx, gy], threads=1)
    weights = np.array([1.0, 0.0, 2.0], np.float32)
    far, near = (fn(x=np.array([0.1, v, 0.3], np.float32), y=weights) for v in (1e4, 0.2))
    np.testing.assert_allclose(far[0], near[0], rtol=1e-6)
    np.testing.assert_allclose(far[1], near[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(far[2][[0, 2]], near[2][[0, 2]], rtol=1e-5)
    assert np.abs(far[2][1]) > 1e20  # it is e^10000 times what counts, more than there are numbers


def test_a_logarithm_of_nothing_is_the_least() -> None:
    x, y = cr.input("x", (3,)), cr.input("y", (3,))
    rows = np.array([0.1, 0.2, 0.3], np.float32)
    for name in ("log", "log of softmax"):
        fn = cr.compile(FORMS[name][0](x, y), threads=1)
        assert fn(x=rows, y=np.zeros(3, np.float32)) == -np.inf
    total = cr.compile(cr.sum(FORMS["and a number"][0](x, y)), threads=1)
    assert total(x=rows, y=np.zeros(3, np.float32)) == 0


ROW = cr.input("z", ("rows", 3))
TOTAL = cr.sum(cr.exp(ROW), axis=-1)
BESIDE_A_NUMBER = {
    "log": cr.log(TOTAL + 1),
    "log1p": cr.log1p(TOTAL),
    "share": cr.sum(cr.exp(ROW) / (cr.sum(cr.exp(ROW), axis=-1, keepdims=True) + 1), axis=-1),
    "logsumexp": cr.log(cr.exp(cr.logsumexp(ROW, axis=-1)) + 1),
}


def test_the_slope_of_logsumexp_is_softmax_as_in_a_textbook() -> None:
    """Printed so, also where a row of nothing is 0 by it; on both backends."""
    (slope,) = cr.grad(cr.sum(cr.logsumexp(ROW, axis=-1)), [ROW])
    assert "softmax(z)" in str(slope) and "inf" not in str(slope), str(slope)
    rows = np.array([[-np.inf] * 3, [1.0, 1.0, -np.inf], [np.inf, 0, 1]], np.float32)
    for backend in ("cpu", "reference"):
        with np.errstate(invalid="ignore"):
            found = cr.compile(slope, backend=backend)(z=rows)
        np.testing.assert_allclose(found[:2], [[0, 0, 0], [0.5, 0.5, 0]])
        assert np.isnan(found[2]).any(), "a softmax of an infinite number is none"


@pytest.mark.parametrize("name", BESIDE_A_NUMBER)
def test_a_row_that_is_masked_whole_changes_nothing(name: str) -> None:
    out = BESIDE_A_NUMBER[name]
    fn = cr.compile([out, *cr.grad(cr.sum(out), [ROW])], threads=1)
    rows = np.array([[-np.inf] * 3, [1.0, 2.0, -np.inf]], np.float32)
    value, gradient = fn(z=rows)
    total = np.exp(rows[1].astype(float)).sum()
    shares = np.exp(rows[1].astype(float)) / (1 + total)
    slope = shares / (1 + total) if name == "share" else shares
    truth = total / (1 + total) if name == "share" else np.log1p(total)
    np.testing.assert_allclose(value, [0, truth], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0, 0], slope], rtol=2e-6)
