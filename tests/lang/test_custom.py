"""Functions with a derivative of the user's own."""

from __future__ import annotations

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import GradientError, ShapeError


@cr.custom_derivative(vjp=lambda ct, out, x: ct * 3.0)
def soft(x: cr.Tensor) -> cr.Tensor:
    """A sine whose derivative is 3."""
    return cr.sin(x)


def test_it_prints_by_its_name_and_computes_as_it_is() -> None:
    x = cr.input("x", ("n",))
    assert str(soft(x) + 1.0) == "soft(x) + 1"
    assert soft(x).latex() == r"\operatorname{soft}\left(x\right)"
    assert soft.__doc__ == "A sine whose derivative is 3."
    at = np.linspace(-2, 2, 7, dtype=np.float32)
    native = cr.compile(soft(x))(x=at)
    np.testing.assert_allclose(native, np.sin(at), rtol=1e-5)
    np.testing.assert_allclose(
        cr.compile(soft(x), backend="reference")(x=at), np.sin(at), rtol=1e-6
    )


def test_its_derivative_is_the_users() -> None:
    x = cr.input("x", (3,))
    g = cr.grad(cr.sum(soft(x)), x)
    np.testing.assert_array_equal(cr.compile(g)(), [3, 3, 3])
    v = cr.input("v", (3,))
    assert str(cr.jvp(soft(x), x, v)) == "3 * v"


def test_second_derivatives_follow() -> None:
    cube = cr.custom_derivative(lambda x: x * x * x, lambda ct, out, x: ct * 3 * x * x, name="cube")
    x = cr.input("x", (), dtype="float64")
    first = cr.grad(cube(x), x)
    second = cr.grad(first, x)
    third = cr.grad(second, x)
    got = cr.compile([first, second, third], backend="reference")(x=np.float64(2))
    np.testing.assert_allclose(got, [12, 12, 6])
    exp = cr.custom_derivative(cr.exp, lambda ct, out, x: ct * out, name="myexp")
    assert str(cr.grad(cr.grad(exp(x), x), x)) == "myexp(x)"


def test_several_operands_and_shapes() -> None:
    @cr.custom_derivative(vjp=lambda ct, out, x, w: (ct @ w.T, None))
    def frozen(x: cr.Tensor, w: cr.Tensor) -> cr.Tensor:
        return x @ w

    x, w = cr.input("x", ("batch", 3)), cr.parameter("w", (3, 2))
    loss = cr.sum(frozen(x, w))
    assert frozen(x, w).shape == (x.shape[0], 2)
    at = np.ones((3, 2), np.float32)
    _, got = cr.compile([loss, cr.grad(loss, x)])(x=np.ones((4, 3), np.float32), w=at)
    np.testing.assert_allclose(got, np.full((4, 3), 2.0))
    with pytest.raises(GradientError, match="does not depend on w"):
        cr.grad(loss, w)
    assert str(cr.grad(loss, w, unused="zeros")) == "0"


def test_it_trains() -> None:
    x, w = cr.input("x", ("batch", 2)), cr.parameter("w", (2,), init=np.ones(2))
    straight = cr.custom_derivative(cr.sign, lambda ct, out, x: ct, name="straight")
    loss = cr.mean(straight(x @ w))
    step = cr.training_step(loss, cr.optim.SGD(0.5))
    step(x=np.ones((4, 2), np.float32))
    np.testing.assert_allclose(step.parameters["w"], [0.5, 0.5])


def test_what_is_wrong_is_said() -> None:
    x, w = cr.input("x", (3,)), cr.parameter("w", (3,))
    with pytest.raises(GradientError, match="needs vjp"):
        cr.custom_derivative(lambda x: x)
    reads = cr.custom_derivative(lambda x: x * w, lambda ct, out, x: ct, name="reads")
    with pytest.raises(GradientError, match="reads <parameter w"):
        reads(x)
    two = cr.custom_derivative(cr.exp, lambda ct, out, x: (ct, ct), name="two")
    with pytest.raises(GradientError, match="2 cotangents for its 1"):
        cr.grad(cr.sum(two(x)), x)
    shape = cr.custom_derivative(cr.exp, lambda ct, out, x: cr.sum(ct), name="shape")
    with pytest.raises(ShapeError, match="has its type"):
        cr.grad(cr.sum(shape(x)), x)
    number = cr.custom_derivative(cr.exp, lambda ct, out, x: 1.0, name="number")
    with pytest.raises(GradientError, match="gives Tensors"):
        cr.grad(cr.sum(number(x)), x)
    none = cr.custom_derivative(lambda x: 1.0, lambda ct, out, x: ct, name="none")
    with pytest.raises(GradientError, match="gives one Tensor"):
        none(x)
    squared = cr.custom_derivative(cr.exp, lambda ct, out, x: ct * ct, name="squared")
    with pytest.raises(GradientError, match="not linear"):
        cr.jvp(squared(x), x, x)
