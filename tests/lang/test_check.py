"""Gradients held to finite differences: right ones pass, wrong ones are named."""

from __future__ import annotations

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import FeedError, GradientError

RNG = np.random.default_rng(0)
FEEDS = {
    "x": RNG.normal(size=(6, 4)),
    "y": RNG.integers(0, 3, 6),
    "W": RNG.normal(size=(4, 3)),
    "b": RNG.normal(size=3),
}


def net() -> tuple[cr.Tensor, cr.Tensor, cr.Tensor]:
    x, y = cr.input("x", ("batch", 4)), cr.input("y", ("batch",), dtype="int32")
    w, b = cr.parameter("W", (4, 3)), cr.parameter("b", (3,))
    return cr.losses.cross_entropy(cr.relu(x @ w + b), y), w, b


def test_right_gradients_pass_and_say_how_well() -> None:
    loss, w, b = net()
    found = cr.check_gradients(loss, {"W": w, "b": b}, FEEDS)
    assert found.deviation < 0.1
    assert found.compared == 3 + 12 + 3 + 3
    assert "slopes hold" in str(found)
    assert found == cr.check_gradients(loss, {"W": w, "b": b}, FEEDS)  # seeded
    assert cr.check_gradients(loss, w, FEEDS, coordinates=2, directions=1, seed=3).compared == 3


def test_feeds_may_go_by_tensor() -> None:
    x = cr.input("x", (3,))
    assert cr.check_gradients(cr.sum(cr.exp(x)), x, {x: [0.1, 0.2, 0.3]}).deviation < 1


def test_an_intermediate_value_is_checked_too() -> None:
    x = cr.input("x", (3,))
    h = cr.tanh(x)
    assert cr.check_gradients(cr.sum(h * x), [x, h], {"x": [0.1, 0.2, 0.3]}).compared == 12


@pytest.mark.parametrize("factor", [1.001, -1.0, 0.0])
def test_a_wrong_derivative_is_named(factor: float) -> None:
    @cr.custom_derivative(vjp=lambda ct, out, x: ct * cr.cos(x) * factor)
    def wrong(x: cr.Tensor) -> cr.Tensor:
        return cr.sin(x)

    w = cr.parameter("W", (2, 3))
    at = {"W": RNG.normal(size=(2, 3))}
    with pytest.raises(GradientError, match="by W is wrong along a random direction") as error:
        cr.check_gradients(cr.sum(wrong(w)), w, at)
    assert "measured" in str(error.value)
    with pytest.raises(GradientError, match=r"by W is wrong at \[0, 0\]"):
        cr.check_gradients(cr.sum(wrong(w)), w, at, directions=0)


def test_one_wrong_element_is_found() -> None:
    mask = np.ones((2, 3))
    mask[1, 2] = 1.01

    @cr.custom_derivative(vjp=lambda ct, out, x: ct * 2 * x * cr.constant(mask, dtype="float32"))
    def wrong(x: cr.Tensor) -> cr.Tensor:
        return cr.square(x)

    w = cr.parameter("W", (2, 3))
    with pytest.raises(GradientError, match=r"at \[1, 2\]"):
        cr.check_gradients(cr.sum(wrong(w)), w, {"W": 1 + RNG.random((2, 3))}, directions=0)


def test_at_a_kink_the_slope_lies_between_both_sides() -> None:
    x = cr.input("x", (3,))
    found = cr.check_gradients(cr.sum(cr.relu(x) + cr.abs(x)), x, {"x": np.zeros(3)})
    assert found.kinks == found.compared

    @cr.custom_derivative(vjp=lambda ct, out, x: ct * 2)
    def wrong(x: cr.Tensor) -> cr.Tensor:
        return cr.relu(x)

    with pytest.raises(GradientError, match="wrong"):
        cr.check_gradients(cr.sum(wrong(x)), x, {"x": np.zeros(3)})


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_scale_does_not_matter(scale: float) -> None:
    x = cr.input("x", (4,))
    at = {"x": scale * np.array([1.0, -2.0, 3.0, 0.5])}
    assert cr.check_gradients(cr.sum(cr.square(x)) + cr.sum(x), x, at).deviation < 1


def test_feeds_that_do_not_fit_are_refused() -> None:
    loss, w, _ = net()
    with pytest.raises(FeedError, match="missing for b, y"):
        cr.check_gradients(loss, w, {k: FEEDS[k] for k in ("x", "W")})
    with pytest.raises(FeedError, match="'v'"):
        cr.check_gradients(loss, w, FEEDS | {"v": 1.0})
    empty = cr.input("e", (0,))
    with pytest.raises(GradientError, match="nothing to check"):
        cr.check_gradients(cr.sum(empty), empty, {"e": np.zeros(0)})
