"""Ops from formulas: their derivatives are right, finite far out, and safe to read."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

from chainrule.autodiff.reverse import differentiate
from chainrule.errors import DTypeError, FormulaError, ShapeError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply
from chainrule.ir.types import DType, TensorType, float32, float64, int64
from chainrule.ops.derive import define_elementwise
from chainrule.ops.source import full, leaf
from chainrule.rewrite.passes import expand_composites, simplify, stabilize

FAR = [s * v for v in (0.0, 1e-3, 1.0, 30.0, 100.0, 1e3, 1e4) for s in (1, -1)]
exp, tanh, sqrt = mpmath.exp, mpmath.tanh, mpmath.sqrt


def softplus(x: Any) -> Any:
    return mpmath.log1p(exp(x)) if x < 0 else x + mpmath.log1p(exp(-x))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + exp(-x))


STABLE = {
    "x*tanh(log(1 + exp(x)))": lambda x: x * tanh(softplus(x)),
    "log(1 + exp(x))": softplus,
    "x/(1+exp(-x))": lambda x: x / (1 + exp(-x)),
    "x*(1 + erf(x/sqrt(2)))/2": lambda x: x * (1 + mpmath.erf(x / sqrt(2))) / 2,
    "exp(-x**2)": lambda x: exp(-(x**2)),
    "0.5*x*(1 + tanh(sqrt(2/pi)*(x + 0.044715*x**3)))": lambda x: (
        x / 2 * (1 + tanh(sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))
    ),
    "(exp(x) - exp(-x))/(exp(x) + exp(-x))": tanh,
    "x*sigmoid(1.702*x)": lambda x: x * sigmoid(mpmath.mpf("1.702") * x),
    "exp(x)/(1 + exp(x))": sigmoid,
    "where(x > 0, x, exp(x) - 1)": lambda x: x if x > 0 else mpmath.expm1(x),
    "x/(1 + Abs(x))": lambda x: x / (1 + abs(x)),
}
SMOOTH = {  # two arguments and more, against central differences
    "a*x**2 + b*x": ("a", "x", "b"),
    "sqrt(x**2 + y**2)": ("x", "y"),
    "x**3*y + sin(x*y)/y": ("x", "y"),
    "x**y": ("x", "y"),
    "Max(x, y, 2*x*y)": ("x", "y"),
    "log(x/(1 + x))*Min(x, y)": ("x", "y"),
    "relu(x - y)*rsqrt(y) + softplus(x*E)": ("x", "y"),
}


def forms(node: Node, x: Node) -> list[Graph]:
    """The derivative as derived, stabilised, and with composites expanded."""
    (gradient,) = differentiate([node], [full(1, node.dtype, node.shape)], [x]).gradients
    assert gradient is not None
    plain = Graph((node, gradient))
    return [plain, stabilize(plain, [x]), simplify(expand_composites(stabilize(plain)))]


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("text", STABLE)
def test_value_and_derivative_are_right_far_out(text: str, dtype: DType) -> None:
    x = leaf("input", "x", TensorType(dtype, (len(FAR),)))
    node = apply(define_elementwise("f", text), x)
    at = np.asarray(FAR, dtype.numpy)
    with mpmath.workdps(120):
        truth = STABLE[text]
        want = [float(truth(mpmath.mpf(float(v)))) for v in at]
        h = mpmath.mpf(10) ** -40
        points = [mpmath.mpf(float(v)) for v in at]
        slopes = [float((truth(p + h) - truth(p - h)) / (2 * h)) for p in points]
    skip = np.asarray(at == 0) & ("where" in text)  # the slope at a kink is a convention
    eps = float(np.finfo(dtype.numpy).eps)
    for graph in forms(node, x):
        value, slope = evaluate(graph.outputs, {x: at})
        assert np.isfinite(slope).all()
        np.testing.assert_allclose(value, want, rtol=32 * eps, atol=32 * eps)
        np.testing.assert_allclose(
            slope[~skip], np.asarray(slopes)[~skip], rtol=64 * eps, atol=64 * eps
        )


@pytest.mark.parametrize("text", SMOOTH)
def test_partial_derivatives_by_every_parameter(text: str) -> None:
    op = define_elementwise("f", text)
    assert op.params == SMOOTH[text]
    leaves = [leaf("input", p, TensorType(float64, (20,))) for p in op.params]
    rng = np.random.default_rng(4)
    at = [rng.uniform(0.5, 2, 20) for _ in leaves]
    out = apply(op, *leaves)
    found = differentiate([out], [full(1, float64, (20,))], leaves).gradients
    for i, gradient in enumerate(found):
        assert gradient is not None
        (got,) = evaluate([gradient], dict(zip(leaves, at, strict=True)))
        h = 1e-6
        up, down = ([a + s * h * (j == i) for j, a in enumerate(at)] for s in (1, -1))
        np.testing.assert_allclose(got, (op.ref(*up) - op.ref(*down)) / (2 * h), rtol=2e-8)


def test_equal_definitions_are_one_op() -> None:
    x = leaf("input", "x", TensorType(float64, (2,)))
    swish = define_elementwise("swish", "x/(1 + exp(-x))")
    assert define_elementwise("swish", "x/(1 + exp(-x))") is swish
    assert apply(swish, x) is apply(define_elementwise("swish", "x/(1 + exp(-x))"), x)
    assert apply(swish, x) is not apply(define_elementwise("swish", "x*x"), x)


def test_names_may_repeat_a_built_ins() -> None:
    x = leaf("input", "x", TensorType(float64, ()))
    fake = define_elementwise("tanh", "x*x*x")
    (value,) = evaluate([apply(fake, x)], {x: np.float64(2.0)})
    assert value == 8
    (value,) = evaluate(stabilize(Graph((apply(fake, x),))).outputs, {x: np.float64(2.0)})
    assert value == 8
    odd = stabilize(Graph((apply(fake, apply(define_elementwise("neg", "x + 1"), x)),)))
    assert evaluate(odd.outputs, {x: np.float64(2.0)})[0] == 27


def test_parameters_in_an_order_of_choice() -> None:
    op = define_elementwise("f", "a - b", ("b", "a"))
    assert float(op.ref(np.float64(1.0), np.float64(5.0))) == 4
    for params in (("a",), ("a", "a", "b"), ("a", "b", "out")):
        with pytest.raises(FormulaError):
            define_elementwise("f", "a - b", params)


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        ("x + cbrt(x)", "'cbrt'", 4),
        ("__import__(x)", "'__import__'", 0),
        ("x*eval(x)", "'eval'", 2),
        ("gamma(x)", "'gamma'", 0),
    ],
)
def test_an_unknown_function_is_named_with_its_place(text: str, what: str, place: int) -> None:
    with pytest.raises(FormulaError, match=what) as caught:
        define_elementwise("f", text)
    assert caught.value.details[:2] == (text, " " * place + "^")


@pytest.mark.parametrize("text", ["", "1 + 2", "exp(x, y)", "x.y", "x; y", "pi", "out + x"])
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(FormulaError):
        define_elementwise("f", text)


def test_operands_must_be_floats_of_one_shape() -> None:
    op = define_elementwise("f", "x*y")
    with pytest.raises(DTypeError):
        apply(op, *[leaf("input", "x", TensorType(int64, (2,)))] * 2)
    with pytest.raises(ShapeError):
        op.infer(TensorType(float64, (2,)), TensorType(float64, (3,)))


def test_tanh_keeps_its_own_derivative():
    """1/cosh² is shorter to SymPy, but overflows on the way and again in the second derivative."""
    op = define_elementwise("steep", "x*tanh(log(1 + exp(x)))")
    assert "cosh" not in str(op.partials)
