"""Naive formulas as users write them: value and derivatives against mpmath, far out and in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from chainrule.autodiff.reverse import differentiate
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply
from chainrule.ir.size import known
from chainrule.ir.types import DType, TensorType, float32, float64
from chainrule.ops import build
from chainrule.ops.axes import Sum
from chainrule.ops.build import call, formula, keep_axes
from chainrule.ops.composite import Softmax
from chainrule.ops.reduce import Max
from chainrule.ops.source import constant, full, leaf
from chainrule.rewrite.passes import drop_unused, expand_composites, simplify, stabilize

mpmath.mp.dps = 60
H = mpmath.mpf(10) ** -25
PLACES = [s * v for v in (0.0, 1e-3, 1.0, 30.0, 100.0, 1e3, 1e4) for s in (1, -1)]
Truth = Callable[[Any], Any]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


def softplus(x: Any) -> Any:
    return mpmath.log1p(mpmath.exp(x)) if x < 0 else x + mpmath.log1p(mpmath.exp(-x))


def derived(truth: Truth) -> tuple[Truth, Truth, Truth]:
    """A smooth function and two derivatives, by differences of numbers of 60 digits."""
    return (
        truth,
        lambda x: mpmath.diff(truth, x, h=mpmath.mpf(10) ** -20),
        lambda x: mpmath.diff(truth, x, 2, h=mpmath.mpf(10) ** -15),
    )


# truth: the value and two derivatives
SOFTPLUS = (softplus, sigmoid, lambda x: sigmoid(x) * sigmoid(-x))
LOG_SIGMOID = (
    lambda x: -softplus(-x),
    lambda x: sigmoid(-x),
    lambda x: -sigmoid(x) * sigmoid(-x),
)
LOG_COMPLEMENT = (
    lambda x: -softplus(x),
    lambda x: -sigmoid(x),
    lambda x: -sigmoid(x) * sigmoid(-x),
)
SIGMOID = (
    sigmoid,
    lambda x: sigmoid(x) * sigmoid(-x),
    lambda x: sigmoid(x) * sigmoid(-x) * (sigmoid(-x) - sigmoid(x)),
)
COMPLEMENT = (lambda x: sigmoid(-x), lambda x: -SIGMOID[1](x), lambda x: -SIGMOID[2](x))
TANH = (
    mpmath.tanh,
    lambda x: mpmath.sech(x) ** 2,
    lambda x: -2 * mpmath.tanh(x) * mpmath.sech(x) ** 2,
)
ABS = (abs, mpmath.sign, lambda x: mpmath.mpf(0))
SQUASHED = (
    lambda x: x * sigmoid(x),
    lambda x: sigmoid(x) * (1 + x * sigmoid(-x)),
    lambda x: SIGMOID[1](x) * (2 + x * (sigmoid(-x) - sigmoid(x))),
)
FORMULAS: dict[str, tuple[Truth, Truth, Truth]] = {
    **dict.fromkeys(
        ["log(1 + exp(x))", "log(exp(x) + 1)", "log1p(exp(x))", "log(1/(1/(1 + exp(x))))"], SOFTPLUS
    ),
    **dict.fromkeys(
        [
            "log(1/(1 + exp(-x)))",
            "log(sigmoid(x))",
            "log(1/(exp(-x) + 1))",
            "-log(1 + exp(-x))",
            "-log1p(exp(-x))",
            "-softplus(-x)",
            "log(exp(x)/(1 + exp(x)))",
            "x - log(1 + exp(x))",
            "log(1 - sigmoid(-x))",
        ],
        LOG_SIGMOID,
    ),
    **dict.fromkeys(
        [
            "log(1 - sigmoid(x))",
            "log(1 - 1/(1 + exp(-x)))",
            "log1p(-sigmoid(x))",
            "log(1/(1 + exp(x)))",
            "log(exp(-x)/(1 + exp(-x)))",
            "log(-sigmoid(x) + 1)",
        ],
        LOG_COMPLEMENT,
    ),
    **dict.fromkeys(
        [
            "1/(1 + exp(-x))",
            "1/(exp(-x) + 1)",
            "(1 + exp(-x))**-1",
            "exp(x)/(1 + exp(x))",
            "exp(x)/(exp(x) + 1)",
            "1 - 1/(1 + exp(x))",
            "1/(1 + 1/exp(x))",
            "exp(log(sigmoid(x)))",
            "exp(-log(1 + exp(-x)))",
            "(tanh(x/2) + 1)/2",
            "exp(x/2)/(exp(x/2) + exp(-x/2))",
        ],
        SIGMOID,
    ),
    **dict.fromkeys(
        ["1 - sigmoid(x)", "1 - 1/(1 + exp(-x))", "exp(-x)/(1 + exp(-x))", "1/(1 + exp(x))"],
        COMPLEMENT,
    ),
    **dict.fromkeys(
        [
            "(exp(x) - exp(-x))/(exp(x) + exp(-x))",
            "(exp(x) - exp(-x))/(exp(-x) + exp(x))",
            "(exp(x) - 1/exp(x))/(exp(x) + 1/exp(x))",
            "(exp(2*x) - 1)/(exp(2*x) + 1)",
            "(exp(x*2) - 1)/(1 + exp(x*2))",
            "(exp(x + x) - 1)/(exp(x + x) + 1)",
            "(1 - exp(-2*x))/(1 + exp(-2*x))",
            "(1 - exp(-x*2))/(exp(-x*2) + 1)",
            "expm1(2*x)/(exp(2*x) + 1)",
            "2/(1 + exp(-2*x)) - 1",
            "2*sigmoid(2*x) - 1",
            "1 - 2/(exp(2*x) + 1)",
            "1 - 2/(1 + exp(2*x))",
        ],
        TANH,
    ),
    **dict.fromkeys(["sqrt(x*x)", "sqrt(x**2)", "sqrt(square(x))", "(x*x)**0.5"], ABS),
    **dict.fromkeys(
        ["log(cosh(x))", "log((exp(x) + exp(-x))/2)", "abs(x) + log(1 + exp(-2*abs(x))) - log(2)"],
        derived(lambda x: mpmath.log(mpmath.cosh(x))),
    ),
    **dict.fromkeys(["1/cosh(x)", "2/(exp(x) + exp(-x))"], derived(mpmath.sech)),
    "1/cosh(x)**2": derived(lambda x: mpmath.sech(x) ** 2),
    **dict.fromkeys(
        ["log(1 - tanh(x)**2)", "log(1 - tanh(x)*tanh(x))", "log1p(-tanh(x)**2)"],
        derived(lambda x: 2 * mpmath.log(mpmath.sech(x))),
    ),
    **dict.fromkeys(
        ["log(1 + tanh(x)) - log(2)", "log((1 + tanh(x))/2)"],
        derived(lambda x: -softplus(-2 * x)),
    ),
    "square(log(sigmoid(x)) - log(1 - sigmoid(x)))": derived(lambda x: x * x),
    "square(log(sigmoid(x)/(1 - sigmoid(x))))": derived(lambda x: x * x),
    "log(exp(-0.5*x**2)*0.25)": derived(lambda x: -x * x / 2 - mpmath.log(4)),
    "log(exp(x) + 2)": derived(lambda x: mpmath.log(mpmath.exp(x) + 2)),
    "log(2*exp(x) + 1)": derived(lambda x: mpmath.log(2 * mpmath.exp(x) + 1)),
    "log(1 + exp(x) + exp(2*x))": derived(
        lambda x: mpmath.log(1 + mpmath.exp(x) + mpmath.exp(2 * x))
    ),
    "exp(x)/(1 + exp(x))**2": derived(lambda x: sigmoid(x) * sigmoid(-x)),
    "exp(-x)/(1 + exp(-x))**2": derived(lambda x: sigmoid(x) * sigmoid(-x)),
    "1/(1 + exp(-x))**2": derived(lambda x: sigmoid(x) ** 2),
    "1/sqrt(1 + exp(x))": derived(lambda x: mpmath.sqrt(sigmoid(-x))),
    "sqrt(sigmoid(x))": derived(lambda x: mpmath.sqrt(sigmoid(x))),
    "1/(2 + exp(x))": derived(lambda x: 1 / (2 + mpmath.exp(x))),
    "exp(x)/(exp(x) + 3)": derived(lambda x: sigmoid(x - mpmath.log(3))),
    "exp(x)/(exp(x) + exp(-x) + 1)": derived(
        lambda x: 1 / (1 + mpmath.exp(-2 * x) + mpmath.exp(-x))
    ),
    "sigmoid(x)*log(sigmoid(x))": derived(lambda x: -sigmoid(x) * softplus(-x)),
    **dict.fromkeys(
        ["log(2*sigmoid(x))", "log(sigmoid(x)/0.5)"],
        derived(lambda x: mpmath.log(2) - softplus(-x)),
    ),
    **dict.fromkeys(
        ["log(sigmoid(x)**2)", "log(sigmoid(x)*sigmoid(x))"], derived(lambda x: -2 * softplus(-x))
    ),
    "log(sigmoid(x)**0.7)": derived(lambda x: -mpmath.mpf(0.7) * softplus(-x)),
    "log(sigmoid(x)*sigmoid(-x))": derived(lambda x: -softplus(-x) - softplus(x)),
    "square(log(sigmoid(x)/sigmoid(-x)))": derived(lambda x: x * x),
    "exp(x)**0.001": derived(lambda x: mpmath.exp(mpmath.mpf(0.001) * x)),
    "exp(x)**2/(1 + exp(x)**2)": derived(lambda x: sigmoid(2 * x)),
    "log2(1 + exp(x))": derived(lambda x: softplus(x) / mpmath.log(2)),
    "maximum(x, 0) - x/2 + log1p(exp(-abs(x)))": derived(lambda x: softplus(x) - x / 2),
    **dict.fromkeys(["x/(1 + exp(-x))", "x*exp(x)/(1 + exp(x))", "x*(1/(1 + exp(-x)))"], SQUASHED),
}


def compiled(root: Node, x: Node) -> list[tuple[Graph, Graph]]:
    """Value and two derivatives, each as the passes leave it and with composites expanded."""
    found: list[tuple[Graph, Graph]] = []
    while True:
        (root,) = stabilize(Graph((root,)), [x]).outputs
        final = drop_unused(simplify(Graph((root,))))
        expanded = simplify(expand_composites(final))
        found.append((final, expanded))
        if len(found) == 3:
            return found
        seed = full(1, root.dtype, root.shape)
        (gradient,) = differentiate([root], [seed], [x]).gradients
        assert gradient is not None
        (root,) = simplify(Graph((gradient,))).outputs


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("text", FORMULAS)
def test_value_and_derivatives_are_right_everywhere(text: str, dtype: DType) -> None:
    x = leaf("input", "x", TensorType(dtype, (len(PLACES),)))
    at = np.asarray(PLACES, dtype.numpy)
    tolerance = 32 * float(np.finfo(dtype.numpy).eps)
    forms = compiled(formula(text, {"x": x}), x)
    for order, (truth, graphs) in enumerate(zip(FORMULAS[text], forms, strict=True)):
        want = np.array([float(truth(mpmath.mpf(float(v)))) for v in at])
        for graph in graphs:
            (got,) = evaluate(graph.outputs, {x: at})
            assert np.isfinite(got).all(), (order, got)
            np.testing.assert_allclose(
                got, want, rtol=tolerance, atol=tolerance, err_msg=f"{order}"
            )


def total(x: Node, keep: bool = True) -> Node:
    s = apply(Sum((1,)), x)
    return keep_axes(s, (1,)) if keep else s


def top(x: Node) -> Node:
    return keep_axes(apply(Max((1,)), x), (1,))


def by_hand(x: Node) -> Node:
    e = call("exp", x)
    return call("div", e, total(e))


def shifted(x: Node) -> Node:
    return by_hand(call("sub", x, top(x)))


def by_reciprocal(x: Node) -> Node:
    e = call("exp", x)
    return call("mul", e, call("div", 1.0, total(e)))


def log_total(x: Node) -> Node:
    return keep_axes(call("log", total(call("exp", x), False)), (1,))


def log_total_kept(x: Node) -> Node:
    return call("log", total(call("exp", x)))


def log_total_shifted(x: Node) -> Node:
    m = top(x)
    return call("add", m, call("log", total(call("exp", call("sub", x, m)))))


def truth_softmax(row: list[Any]) -> list[Any]:
    m = max(row)
    e = [mpmath.exp(v - m) for v in row]
    return [v / sum(e) for v in e]


def truth_log_softmax(row: list[Any]) -> list[Any]:
    m = max(row)
    total = mpmath.log(sum(mpmath.exp(v - m) for v in row))
    return [v - m - total for v in row]


def truth_logsumexp(row: list[Any]) -> list[Any]:
    m = max(row)
    return [m + mpmath.log(sum(mpmath.exp(v - m) for v in row))]


ROWS: dict[str, tuple[Callable[[Node], Node], Callable[[list[Any]], list[Any]]]] = {
    "exp/sum": (by_hand, truth_softmax),
    "shifted exp/sum": (shifted, truth_softmax),
    "exp * (1/sum)": (by_reciprocal, truth_softmax),
    "exp(log softmax)": (lambda x: call("exp", call("log", by_hand(x))), truth_softmax),
    "exp(x - logsumexp)": (
        lambda x: call("exp", call("sub", x, log_total(x))),
        truth_softmax,
    ),
    "log softmax": (lambda x: call("log", apply(Softmax(1), x)), truth_log_softmax),
    "log(softmax * 3)": (
        lambda x: call("log", call("mul", apply(Softmax(1), x), 3.0)),
        lambda row: [v + mpmath.log(3) for v in truth_log_softmax(row)],
    ),
    "log(softmax**2)": (
        lambda x: call("log", call("square", apply(Softmax(1), x))),
        lambda row: [2 * v for v in truth_log_softmax(row)],
    ),
    "log(softmax**0.5)": (
        lambda x: call("log", call("pow", apply(Softmax(1), x), 0.5)),
        lambda row: [v / 2 for v in truth_log_softmax(row)],
    ),
    "log(sum(softmax * exp))": (
        lambda x: call("log", total(call("mul", apply(Softmax(1), x), call("exp", x)))),
        lambda row: [
            a - b
            for a, b in zip(
                truth_logsumexp([2 * v for v in row]), truth_logsumexp(row), strict=True
            )
        ],
    ),
    "log(exp/sum)": (lambda x: call("log", by_hand(x)), truth_log_softmax),
    "log(shifted exp/sum)": (lambda x: call("log", shifted(x)), truth_log_softmax),
    "log(exp * (1/sum))": (lambda x: call("log", by_reciprocal(x)), truth_log_softmax),
    "x - log(sum(exp))": (lambda x: call("sub", x, log_total(x)), truth_log_softmax),
    "x - log(sum(exp)) kept": (lambda x: call("sub", x, log_total_kept(x)), truth_log_softmax),
    "x - (m + log(sum(exp(x - m))))": (
        lambda x: call("sub", x, log_total_shifted(x)),
        truth_log_softmax,
    ),
    "(x - m) - log(sum(exp(x - m)))": (
        lambda x: call("sub", call("sub", x, top(x)), log_total(call("sub", x, top(x)))),
        truth_log_softmax,
    ),
    "log(sum(exp))": (log_total, truth_logsumexp),
    "log(sum(exp)) kept": (log_total_kept, truth_logsumexp),
    "m + log(sum(exp(x - m)))": (log_total_shifted, truth_logsumexp),
}
POINTS = [
    [0.0, 0.0, 0.0],
    [1.0, 2.0, -3.0],
    [1e4, -1e4, 0.0],
    [-1e4, -1e4, -9.9e3],
    [1e3, 999.0, 30.0],
    [100.0, -100.0, 1e-3],
]


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_rows_are_right_everywhere(name: str, dtype: DType) -> None:
    build_it, truth = ROWS[name]
    at = np.asarray(POINTS, dtype.numpy)
    weights = np.array([0.5, -1.0, 2.0])
    x = leaf("input", "x", TensorType(dtype, at.shape))
    y = build_it(x)
    (y,) = stabilize(Graph((y,)), [x]).outputs
    weights = weights[: known(y.shape)[1]]
    weighted = call("mul", y, build.broadcast(constant(weights, dtype), y.shape))
    loss = apply(Sum((0, 1)), weighted)
    (gradient,) = differentiate([loss], [full(1, dtype, ())], [x]).gradients
    assert gradient is not None
    plain = simplify(Graph((y, gradient)))
    eps = float(np.finfo(dtype.numpy).eps)
    for graph in (plain, simplify(expand_composites(plain))):
        value, slope = evaluate(graph.outputs, {x: at})
        for i, row in enumerate(at.tolist()):
            exact = [mpmath.mpf(v) for v in row]
            want = np.array([float(v) for v in truth(exact)])
            np.testing.assert_allclose(value[i], want, rtol=16 * eps, atol=16 * eps)
            slopes = [
                float(mpmath.diff(_along(truth, exact, j, weights), exact[j], h=H))
                for j in range(3)
            ]
            np.testing.assert_allclose(slope[i], slopes, rtol=64 * eps, atol=64 * eps)


def _along(truth: Any, row: list[Any], j: int, weights: Any) -> Callable[[Any], Any]:
    def along(v: Any) -> Any:
        values = truth([*row[:j], v, *row[j + 1 :]])
        return sum(w * u for w, u in zip(map(float, weights), values, strict=True))

    return along
