"""Sums of exponentials as users spell them: value and gradient against mpmath, far out and in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

import chainrule as cr

mpmath.mp.dps = 60
exp, log = mpmath.exp, mpmath.log
ROWS = [
    (0, 0.5, 0),
    (1, 2, 3),
    (-1e4, 0, 1e4),
    (1e4, 1e4, 1e4),
    (-1e4, -1e4, -1e4),
    (100, -100, 0),
    (-1e3, -1001, -998),
    (1e4, -1e4, -1e4),
]
Row = list[Any]
Build = Callable[[cr.Tensor], cr.Tensor]
W, MASK, CODE = (np.float32(v) for v in ([1, 2, 3], [1, 0, 1], [0, 1, 0]))


def total(x: cr.Tensor) -> cr.Tensor:
    return cr.sum(x, axis=1, keepdims=True)


def lse(row: Row) -> Any:
    top = max(row)
    return top + log(sum(exp(v - top) for v in row))


def softmax(row: Row) -> Row:
    return [exp(v - lse(row)) for v in row]


def times(c: float) -> Callable[[Row], Row]:
    return lambda row: [c * p for p in softmax(row)]


def others(row: Row) -> Row:
    return [lse([v for j, v in enumerate(row) if j != i]) - lse(row) for i in range(3)]


def weighted(row: Row, w: Any) -> Row:
    first = lse([v + log(f) for v, f in zip(row, map(float, w), strict=True) if f])
    return [f * exp(v - first) for v, f in zip(row, map(float, w), strict=True)]


def mean_of(row: Row, w: Any) -> Any:
    return sum(p * f for p, f in zip(softmax(row), w, strict=True))


def log_weighted(row: Row, w: Any) -> Any:
    return lse([v + log(f) for v, f in zip(row, map(float, w), strict=True) if f])


def complement(v: Any) -> Any:  # log(1 - sigmoid(2 v)) = -softplus(2 v)
    return -log(1 + exp(2 * v))


def probability(v: Any) -> Any:
    return 1 / (1 + exp(-v))


def length(row: Row) -> Any:
    return mpmath.sqrt(sum(v * v for v in row))


def log_three_and_twice(row: Row) -> Row:
    return [lse([v + log(2), log(3)]) for v in row]


def over_mean(x: cr.Tensor) -> cr.Tensor:
    return cr.exp(x) / cr.mean(cr.exp(x), axis=1, keepdims=True)


def masked(x: cr.Tensor) -> cr.Tensor:
    return cr.exp(x) * MASK / total(cr.exp(x) * MASK)


def masked_with_eps(x: cr.Tensor) -> cr.Tensor:
    return cr.exp(x) * MASK / (total(cr.exp(x) * MASK) + 2.0**-30)


def masked_with_eps_truth(row: Row) -> Row:
    below = exp(row[0]) + exp(row[2]) + mpmath.mpf(2) ** -30
    return [exp(row[0]) / below, mpmath.mpf(0), exp(row[2]) / below]


def two(x: cr.Tensor) -> tuple[cr.Tensor, cr.Tensor]:
    return cr.exp(x[:, 0]), cr.exp(x[:, 1])


def js(x: cr.Tensor) -> cr.Tensor:
    p, q = cr.softmax(x), cr.softmax(-x)
    return total(p * cr.log(p / ((p + q) / 2)))


def js_truth(row: Row) -> Row:
    p, q = softmax(row), softmax([-v for v in row])
    logs = [v - lse(row) for v in row]
    pairs = zip(p, q, logs, strict=True)
    return [sum(a * (u - log((a + b) / 2)) for a, b, u in pairs)]


FORMULAS: dict[str, tuple[Build, Callable[[Row], Row]]] = {
    "exp * 3 / sum": (lambda x: cr.exp(x) * 3 / total(cr.exp(x)), times(3)),
    "exp / (2 sum)": (lambda x: cr.exp(x) / (2 * total(cr.exp(x))), times(0.5)),
    "3 exp / (2 sum)": (lambda x: 3 * cr.exp(x) / (2 * total(cr.exp(x))), times(1.5)),
    "exp / mean": (over_mean, times(3)),
    "exp * sum**-1": (lambda x: cr.exp(x) * total(cr.exp(x)) ** -1, softmax),
    "log(3 exp / sum)": (
        lambda x: cr.log(3 * cr.exp(x) / total(cr.exp(x))),
        lambda row: [log(3) + v - lse(row) for v in row],
    ),
    "exp w / sum(exp w)": (
        lambda x: cr.exp(x) * W / total(cr.exp(x) * W),
        lambda row: weighted(row, W),
    ),
    "masked": (masked, lambda row: weighted(row, MASK)),
    "masked, eps": (masked_with_eps, masked_with_eps_truth),
    "sum(w exp) / sum(exp)": (
        lambda x: total(W * cr.exp(x)) / total(cr.exp(x)),
        lambda row: [mean_of(row, W)],
    ),
    "sum(x exp) / sum(exp)": (
        lambda x: total(x * cr.exp(x)) / total(cr.exp(x)),
        lambda row: [mean_of(row, row)],
    ),
    "exp @ w / sum(exp)": (
        lambda x: (cr.exp(x) @ W) / cr.sum(cr.exp(x), axis=1),
        lambda row: [mean_of(row, W)],
    ),
    "exp[0] / sum(exp)": (
        lambda x: cr.exp(x[:, 0]) / cr.sum(cr.exp(x), axis=1),
        lambda row: softmax(row)[:1],
    ),
    "log(2 sum exp)": (lambda x: cr.log(2 * total(cr.exp(x))), lambda r: [log(2) + lse(r)]),
    "log(sum 2 exp)": (lambda x: cr.log(total(2 * cr.exp(x))), lambda r: [log(2) + lse(r)]),
    "log(sum w exp)": (lambda x: cr.log(total(cr.exp(x) * W)), lambda r: [log_weighted(r, W)]),
    "log(exp @ w)": (lambda x: cr.log(cr.exp(x) @ W), lambda r: [log_weighted(r, W)]),
    "log(1 / sum exp)": (lambda x: cr.log(1 / total(cr.exp(x))), lambda r: [-lse(r)]),
    "log(sqrt(sum exp))": (lambda x: cr.log(cr.sqrt(total(cr.exp(x)))), lambda r: [lse(r) / 2]),
    "log((sum exp)**2)": (lambda x: cr.log(total(cr.exp(x)) ** 2), lambda r: [2 * lse(r)]),
    "log1p(sum exp)": (lambda x: cr.log1p(total(cr.exp(x))), lambda r: [lse([*r, 0])]),
    "log of four": (
        lambda x: cr.log(2 * cr.exp(x[:, 2]) + sum(two(x)) + 1),  # type: ignore[arg-type]
        lambda r: [lse([r[2] + log(2), r[0], r[1], 0])],
    ),
    "log of three, one scaled": (
        lambda x: cr.log(2 * two(x)[0] + two(x)[1] + 1),
        lambda r: [lse([r[0] + log(2), r[1], 0])],
    ),
    "log of two, the second scaled": (
        lambda x: cr.log(two(x)[0] + 2 * two(x)[1]),
        lambda r: [lse([r[0], r[1] + log(2)])],
    ),
    "log(3 + 2 exp)": (lambda x: cr.log(3 + 2 * cr.exp(x)), log_three_and_twice),
    "(e0 - e1) / (e0 + e1)": (
        lambda x: (two(x)[0] - two(x)[1]) / (two(x)[0] + two(x)[1]),
        lambda r: [mpmath.tanh((r[0] - r[1]) / 2)],
    ),
    "log(1 - softmax)": (lambda x: cr.log(1 - cr.softmax(x)), others),
    "log1p(-softmax)": (lambda x: cr.log1p(-cr.softmax(x)), others),
    "log(1 - softmax[1])": (lambda x: cr.log(1 - cr.softmax(x)[:, 1]), lambda r: others(r)[1:2]),
    "log((1 - softmax)[1])": (
        lambda x: cr.log((1 - cr.softmax(x))[:, 1]),
        lambda r: others(r)[1:2],
    ),
    "log(softmax / (1 - softmax))": (
        lambda x: cr.log(cr.softmax(x) / (1 - cr.softmax(x))),
        lambda r: [v - lse(r) - u for v, u in zip(r, others(r), strict=True)],
    ),
    "-log(softmax[1])": (lambda x: -cr.log(cr.softmax(x)[:, 1]), lambda r: [lse(r) - r[1]]),
    "-log(take)": (
        lambda x: -cr.log(cr.take(cr.softmax(x), np.array([1]), axis=1)),
        lambda r: [lse(r) - r[1]],
    ),
    "-log(sum(code softmax))": (
        lambda x: -cr.log(cr.sum(CODE * cr.softmax(x), axis=1)),
        lambda r: [lse(r) - r[1]],
    ),
    "-log(sum(code exp) / sum(exp))": (
        lambda x: -cr.log(total(CODE * cr.exp(x)) / total(cr.exp(x))),
        lambda r: [lse(r) - r[1]],
    ),
    "entropy by xlogy": (
        lambda x: -total(cr.xlogy(cr.softmax(x), cr.softmax(x))),
        lambda r: [lse(r) - mean_of(r, r)],
    ),
    "Jensen-Shannon": (js, js_truth),
    "log of a mixture of sigmoids": (
        lambda x: cr.log((cr.sigmoid(x) + cr.sigmoid(2 * x)) / 2),
        lambda r: [log((probability(v) + probability(2 * v)) / 2) for v in r],
    ),
    "log(0.5 - 0.5 tanh)": (
        lambda x: cr.log(0.5 - 0.5 * cr.tanh(x)),
        lambda r: [complement(v) for v in r],
    ),
    "log(0.5 + 0.5 tanh)": (
        lambda x: cr.log(0.5 + 0.5 * cr.tanh(x)),
        lambda r: [complement(-v) for v in r],
    ),
    "log((1 - tanh) / 2)": (
        lambda x: cr.log((1 - cr.tanh(x)) / 2),
        lambda r: [complement(v) for v in r],
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_are_right_far_out(name: str) -> None:
    build, truth = FORMULAS[name]
    x = cr.input("x", ("n", 3))
    z = build(x)
    z = z if z.ndim == 2 else cr.expand_dims(z, 1)
    weights = np.arange(1, z.shape[1] + 1, dtype=np.float32)  # type: ignore[operator]
    fn = cr.compile([z, cr.grad(cr.sum(z * weights), x)], threads=1)
    values, slopes = fn(x=np.float32(ROWS))
    for row, value, slope in zip(ROWS, values, slopes, strict=True):
        exact = [mpmath.mpf(float(np.float32(v))) for v in row]
        np.testing.assert_allclose(value, [*map(float, truth(exact))], rtol=1e-5, atol=1e-5)
        want = [float(_slope(truth, exact, j, weights)) for j in range(3)]
        # float32 near 1e4 goes in steps of 1e-3, by which an exponential of a difference is off
        np.testing.assert_allclose(slope, want, rtol=2e-3, atol=1e-4, err_msg=str(row))


def _slope(truth: Callable[[Row], Row], row: Row, j: int, weights: Any) -> Any:
    h = mpmath.mpf(10) ** -25
    ends = [truth([*row[:j], row[j] + s * h, *row[j + 1 :]]) for s in (1, -1)]
    pairs = zip(*ends, map(float, weights), strict=True)
    return sum(w * (a - b) for a, b, w in pairs) / (2 * h)


def test_a_quotient_by_three_terms_of_which_one_is_scaled() -> None:
    x = cr.input("x", ("n", 3))
    z = 2 * two(x)[0] / (2 * two(x)[0] + two(x)[1] + 1)
    fn = cr.compile([z, cr.grad(cr.sum(z), x)], threads=1)
    rows = [(200, 199, 0), (199, 200, 0), (-200, -199, 0), (1, 2, 0)]
    values, slopes = fn(x=np.float32(rows))

    def truth(row: Row) -> Row:
        return [exp(row[0] + log(2) - lse([row[0] + log(2), row[1], 0]))]

    for row, value, slope in zip(rows, values, slopes, strict=True):
        np.testing.assert_allclose(value, float(truth([*row])[0]), rtol=1e-4, atol=1e-30)
        want = [float(_slope(truth, [mpmath.mpf(v) for v in row], j, [1])) for j in range(3)]
        np.testing.assert_allclose(slope, want, rtol=2e-3, atol=1e-6)


def test_a_product_over_the_sums_of_other_rows_is_no_softmax() -> None:
    """Sums of rows that stand along the columns, as a square allows."""
    rng = np.random.default_rng(0)
    given, y = rng.standard_normal((3, 3)), rng.standard_normal((3, 3))
    x = cr.input("x", (3, 3), dtype="float64")
    z = (cr.exp(x) @ y) / cr.sum(cr.exp(x), axis=1)
    want = (np.exp(given) @ y) / np.exp(given).sum(1)
    np.testing.assert_allclose(cr.compile(z, threads=1)(x=given), want, rtol=1e-12)


def test_a_number_less_a_part_of_a_softmax_is_that_number() -> None:
    given = np.random.default_rng(0).standard_normal((2, 3))
    x = cr.input("x", given.shape, dtype="float64")
    fn = cr.compile(cr.log(2 - cr.softmax(x)[:, 1]), threads=1)
    p = np.exp(given[:, 1]) / np.exp(given).sum(1)
    np.testing.assert_allclose(fn(x=given), np.log(2 - p), rtol=1e-12)


def test_a_product_whose_rows_change_places() -> None:
    rng = np.random.default_rng(0)
    given, y = rng.standard_normal((2, 2, 3)), rng.random((3, 4))
    x = cr.input("x", given.shape, dtype="float64")
    fn = cr.compile(cr.log(cr.einsum("abk,kc->bac", cr.exp(x), y)), threads=1)
    want = np.log(np.einsum("abk,kc->bac", np.exp(given), y))
    np.testing.assert_allclose(fn(x=given), want, rtol=1e-12)


LENGTHS: dict[str, Build] = {
    "root of a mean square": lambda x: cr.sqrt(cr.mean(x**2, axis=1)),
    "root of a sum of three squares": lambda x: cr.sqrt(x[:, 0] ** 2 + x[:, 1] ** 2 + x[:, 2] ** 2),
    "root of a variance": lambda x: cr.sqrt(
        cr.mean((x - cr.mean(x, axis=1, keepdims=True)) ** 2, axis=1)
    ),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_length_of_0_has_gradient_0(name: str) -> None:
    x = cr.input("x", ("n", 3))
    z = LENGTHS[name](x)
    value, slope = cr.compile([z, cr.grad(cr.sum(z), x)], threads=1)(
        x=np.float32([[0, 0, 0], [1, -2, 2]])
    )
    assert value[0] == 0 and (slope[0] == 0).all()
    assert np.isfinite(slope).all() and np.abs(slope[1]).max() > 0.1


def test_a_weight_that_is_fed_may_shut_out_what_is_largest() -> None:
    x, y = cr.input("x", ("n", 3)), cr.input("y", ("n", 3))
    loss = -cr.mean(cr.log(cr.sum(y * cr.softmax(x), axis=1)))
    fn = cr.compile([loss, cr.grad(loss, x)], threads=1)
    value, slope = fn(x=np.float32([[1e4, 0, -1e4]]), y=np.float32([[0, 0, 1]]))
    assert value == 2e4
    np.testing.assert_array_equal(slope, [[1, 0, -1]])
