"""Activations by name: each its formula and PyTorch's, with its derivative, on both sides of 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import CompileError, DTypeError
from chainrule.nn.activations import BY_NAME, activation

X = np.array([[-20.0, -3.0, -1.5, -1.0, -0.25], [0.5, 1.0, 2.5, 6.5, 30.0]])


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softplus(x: Any) -> Any:
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


FORMULAS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda x: x,
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: -softplus(-x),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "celu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: (
        1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
    ),
    "gelu": lambda x: x / 2 * np.vectorize(math.erfc)(-x / math.sqrt(2)),
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "softplus": softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softmax": softmax,
    "log_softmax": lambda x: np.log(softmax(x)),
    "tanhshrink": lambda x: x - np.tanh(x),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_tanh": lambda x: np.clip(x, -1, 1),
}
#: what PyTorch calls otherwise
THEIRS = {
    "linear": "identity",
    "log_sigmoid": "logsigmoid",
    "swish": "silu",
    "hard_sigmoid": "hardsigmoid",
    "hard_swish": "hardswish",
    "hard_tanh": "hardtanh",
}


def run(y: cr.Tensor, x: cr.Tensor, at: Any) -> tuple[Any, Any]:
    fn = cr.compile([y, cr.grad(cr.sum(y * cr.asarray(np.cos(X))), x)])
    value, slope = fn(x=at)
    return value, slope


@pytest.mark.parametrize("name", BY_NAME)
def test_a_name_is_its_formula(name: str) -> None:
    x = cr.input("x", X.shape, dtype="float64")
    value, _ = run(activation(name)(x), x, X)
    # float64: a few operations, each within some ulp
    np.testing.assert_allclose(value, FORMULAS[name](X), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_name_is_pytorchs_with_its_derivative_at_kinks(name: str) -> None:
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    theirs = {"identity": lambda t: t}.get(THEIRS.get(name, name)) or getattr(
        f, THEIRS.get(name, name)
    )
    options = {"dim": -1} if "softmax" in name else {}
    x = cr.input("x", X.shape, dtype="float64")
    value, slope = run(activation(name)(x), x, X)
    t = torch.tensor(X, requires_grad=True)
    y = theirs(t, **options)
    (y * torch.tensor(np.cos(X))).sum().backward()
    np.testing.assert_allclose(value, y.detach(), rtol=1e-11, atol=1e-12)
    # PyTorch's hard_sigmoid multiplies by a float32 1/6
    rtol = 1e-7 if name == "hard_sigmoid" else 1e-10
    np.testing.assert_allclose(slope, t.grad, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_celu_with_an_alpha(alpha: float) -> None:
    x = cr.input("x", X.shape, dtype="float64")
    value, slope = run(cr.celu(x, alpha), x, X)
    want = np.where(X > 0, X, alpha * np.expm1(np.minimum(X, 0) / alpha))
    np.testing.assert_allclose(value, want, rtol=1e-12)
    np.testing.assert_allclose(
        slope, np.cos(X) * np.where(X > 0, 1, np.exp(np.minimum(X, 0) / alpha)), rtol=1e-11
    )
    with pytest.raises(DTypeError, match="above 0"):
        cr.celu(x, 0.0)


def test_a_function_and_nothing_are_activations_too() -> None:
    assert activation(cr.exp) is cr.exp
    assert activation(None) is activation("linear")


@pytest.mark.parametrize(
    ("bad", "hint"), [("sigmoyd", "did you mean sigmoid"), ("qqqq", "there are linear")]
)
def test_an_unknown_name_is_told_what_is_near(bad: str, hint: str) -> None:
    with pytest.raises(CompileError, match=hint):
        activation(bad)
