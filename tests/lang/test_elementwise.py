"""`cr.elementwise`: several arguments, parameters, pieces, SymPy's expressions, and bad input."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ChainruleError, FormulaError, ShapeError

sympy = pytest.importorskip("sympy")
X = np.array([-2.0, -0.5, 0.0, 0.5, 3.0])


def values(function: Any, *more: str, **given: float) -> list[np.ndarray[Any, Any]]:
    """Value, first and second derivative by x, of native code, held to the reference's."""
    x, *others = (cr.input(k, (5,), dtype="float64") for k in ("x", *more))
    out = function(x, *others, **given)
    slope = cr.grad(cr.sum(out), x)
    outputs = [out, slope, cr.grad(cr.sum(slope), x, unused="zeros")]
    found: list[np.ndarray[Any, Any]] = []
    for backend in ("cpu", "reference"):
        fn = cr.compile(outputs, backend=backend)
        before, found = found, fn(**{k: X if k == "x" else X[::-1].copy() for k in fn.inputs})
        for a, b in zip(before, found, strict=False):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    return found


def check(function: Any, value: Any, slope: Any, second: Any) -> None:
    for got, want in zip(values(function), (value, slope, second), strict=True):
        np.testing.assert_allclose(got, np.broadcast_to(want, X.shape), rtol=1e-12, atol=1e-12)


def test_parameters_are_numbers_that_a_call_may_change() -> None:
    """CELU (Barron, arXiv:1704.07483)."""
    celu = cr.elementwise("celu", "Max(0, x) + Min(0, a*(exp(x/a) - 1))", params={"a": 1.0})

    def truth(a: float) -> tuple[Any, Any]:
        low = np.minimum(X, 0)
        return np.where(X > 0, X, a * np.expm1(low / a)), np.where(X > 0, 1, np.exp(low / a))

    for given in ({}, {"a": 0.5}):
        value, slope = truth(given.get("a", 1.0))
        got = values(celu, **given)
        np.testing.assert_allclose(got[0], value, rtol=1e-12)
        np.testing.assert_allclose(got[1], slope, rtol=1e-12)
    x = cr.input("x", (5,))
    assert str(celu(x)) == "celu(x)" and str(celu(x, a=2.0)) == "celu(x, a=2.0)"
    assert celu(x, a=1).node is celu(x).node
    assert "a=2.0" in celu(x, a=2.0).latex()


def test_several_arguments_in_the_order_asked_for() -> None:
    f = cr.elementwise("f", "a*x**2 - b", args=("x", "a", "b"))
    assert f.__doc__ == "f(x, a, b) = a*x**2 - b"
    value, slope, _ = values(f, "a", "b")
    np.testing.assert_allclose(value, X[::-1] * X**2 - X[::-1])
    np.testing.assert_allclose(slope, 2 * X[::-1] * X)
    names = cr.elementwise("f", "a*x**2 - b", ("x", "a", "b"))  # the same, by place
    assert names.__doc__ == f.__doc__


def test_pieces_choose_and_what_is_not_chosen_passes_nothing_on() -> None:
    """No NaN from log or a root or 1/x on the other side, in the first derivative or the second."""
    up = X > 0
    safe = np.where(up, X, 1.0)
    log = cr.elementwise("log0", "Piecewise((log(x), x > 0), (0, True))")
    check(log, np.where(up, np.log(safe), 0), np.where(up, 1 / safe, 0), -np.where(up, safe**-2, 0))
    xlogx = cr.elementwise("xlogx", "where(x > 0, x*log(x), 0)")
    check(
        xlogx, np.where(up, X * np.log(safe), 0), np.where(up, np.log(safe) + 1, 0),
        np.where(up, 1 / safe, 0),
    )  # fmt: skip
    root = cr.elementwise("root", "Piecewise((sqrt(x), x > 0), (0, True))")
    check(
        root, np.sqrt(np.maximum(X, 0)), np.where(up, 0.5 * safe**-0.5, 0),
        np.where(up, -0.25 * safe**-1.5, 0),
    )  # fmt: skip
    soft = cr.elementwise(
        "soft", "Piecewise((x - t, x > t), (x + t, x < -t), (0, True))", params={"t": 0.75}
    )
    far = np.abs(X) > 0.75
    check(soft, np.where(far, X - 0.75 * np.sign(X), 0), far * 1.0, 0)


def test_a_choice_in_the_graph_is_as_safe_as_one_in_a_formula() -> None:
    x = cr.input("x", (5,), dtype="float64")
    out = cr.where(x > 0, cr.log(x) / x, 0.0)
    slope = cr.grad(cr.sum(out), x)
    second = cr.grad(cr.sum(slope), x)
    for got in cr.compile([slope, second])(x=X):
        assert np.isfinite(got).all() and (got[X <= 0] == 0).all()


def test_conditions_heaviside_sign_and_friends() -> None:
    between = cr.elementwise(
        "between", "Piecewise((1, And(x > -1, x < 1)), (x**2, Or(x > 2, x < -5)), (0, True))"
    )
    check(between, [0, 1, 1, 1, 9], [0, 0, 0, 0, 6], [0, 0, 0, 0, 2])
    step = cr.elementwise("step", "Heaviside(x)*x**2 + sign(x)*Abs(x)")
    check(step, np.where(X > 0, X**2, 0) + X, np.where(X > 0, 2 * X, 0) + np.sign(X) ** 2,
          [0, 0, 1, 2, 2])  # fmt: skip
    nowhere = values(cr.elementwise("open", "Piecewise((x, x > 0))"))[0]
    assert np.isnan(nowhere[0])  # as SymPy has it


def test_expressions_of_sympy_are_taken_as_they_are() -> None:
    x, a, y = sympy.symbols("x a y")
    leaky = sympy.Piecewise((x, x > 0), (a * x, True))
    check(cr.elementwise("leaky", leaky, params={"a": 0.1}),
          np.where(X > 0, X, 0.1 * X), np.where(X > 0, 1, 0.1), 0)  # fmt: skip
    other = sympy.log(sympy.exp(x) + sympy.exp(y))  # arguments by the alphabet
    f = cr.elementwise("f", other)
    value, slope, _ = values(f, "y")
    np.testing.assert_allclose(value, np.logaddexp(X, X[::-1]))
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(X[::-1] - X)))
    mixed = sympy.Max(0, x) ** 2 + sympy.Rational(1, 3) * sympy.exp(-(x**2)) / sympy.sqrt(sympy.pi)
    check(
        cr.elementwise("mixed", mixed),
        np.maximum(X, 0) ** 2 + np.exp(-(X**2)) / 3 / np.sqrt(np.pi),
        2 * np.maximum(X, 0) - 2 * X * np.exp(-(X**2)) / 3 / np.sqrt(np.pi),
        np.where(X > 0, 2, np.where(X == 0, 0.5, 0))  # at the kink each half counts half
        + (4 * X**2 - 2) * np.exp(-(X**2)) / 3 / np.sqrt(np.pi),
    )


def test_a_large_formula_is_derived_in_seconds() -> None:
    terms = (f"sin({i}*x)*exp(-x**2/{i})*tanh(x + {i})" for i in range(1, 25))
    began = time.monotonic()
    cr.elementwise("large", " + ".join(terms))
    assert time.monotonic() - began < 20


WRONG = {
    "x > 0": "a condition is no number",
    "x + (x > 0)": "add takes numbers",
    "where(x, 1, 2)": "where takes a condition",
    "And(x, x > 0)": "takes a condition",
    "Eq(x, 1)": "a condition is no number",
    "0 < x < 1": "left over",
    "x + I": "complex",
    "re(x)": "complex",
    "zoo*x": "complex",
    "exp": "exp is a function",
    "gamma(x)": "no function is called 'gamma'",
    "x.real": "has no meaning",
    "__import__('os').system('x')": "has no meaning",
    "__import__(x)": "no function is called '__import__'",
    "lambda x: x": "has no meaning",
    "x if x else 1": "left over",
    "Piecewise()": "expected",
    "Piecewise(x)": "expected",
    "Piecewise((x, 1))": "takes a condition",
    "Piecewise((x, x > 0), (1, 2, 3))": "expected",
    "Max(x)": "2 operands",
    "(" * 300 + "x" + ")" * 300: "nests at most",
    "x" + " + x" * 500: "operations high",
    "3": "no variable",
    "": "ends too early",
}


@pytest.mark.parametrize("formula", WRONG, ids=lambda f: f[:20])
def test_what_is_no_formula_is_refused(formula: str) -> None:
    with pytest.raises(FormulaError, match=WRONG[formula]):
        cr.elementwise("bad", formula)


def test_parameters_and_calls_that_do_not_fit_are_refused() -> None:
    for params in ({"a": "1"}, {"b": 1.0}, {"a": float("nan")}, {"a": True}, {"x": 1.0, "a": 2.0}):
        with pytest.raises(FormulaError):
            cr.elementwise("f", "a*x", params=params)  # type: ignore[arg-type]
    with pytest.raises(FormulaError):
        cr.elementwise("f", "a*x", ("x", "a"), args=("x", "a"))
    f, x = cr.elementwise("f", "a*x", params={"a": 1.0}), cr.input("x", (3,))
    with pytest.raises(FormulaError, match="no parameter 'b'"):
        f(x, b=1.0)
    with pytest.raises(ShapeError):
        f(x, x)
    for formula in (None, 3, ["x"], sympy.gamma(sympy.Symbol("x")), sympy.I * sympy.Symbol("x")):
        with pytest.raises(FormulaError):
            cr.elementwise("f", formula)
    deep = sympy.Symbol("x")
    for _ in range(120):
        deep = sympy.sin(deep)
    with pytest.raises(ChainruleError):
        cr.elementwise("f", sum(deep.subs("x", k * deep) for k in (1, 2)))


@pytest.mark.parametrize(
    "formula",
    [
        "x**10**10**10",
        "exp(exp(exp(9))) + x",
        "x*2**2000",
        "x + 1/0",
        "x + log(0)",
        "x*1" + "0" * 5000,
    ],
)
def test_a_part_that_is_a_number_is_refused_if_float64_cannot_hold_it(formula: str) -> None:
    """SymPy would compute it exactly, and not come back."""
    with pytest.raises(FormulaError, match=r"finite|float64"):
        cr.elementwise("vast", formula)


@pytest.mark.parametrize(
    "formula", ["(x + 1)**100000", "((x + 1)**40 + x)**30", "(x + 1/3)**500*x"]
)
def test_high_powers_of_sums_are_not_multiplied_out(formula: str) -> None:
    begin = time.process_time()
    power = cr.elementwise("steep", formula)
    assert time.process_time() - begin < 5  # 0.3 s alone; multiplied out it takes minutes
    x = cr.input("x", (2,), dtype="float64")
    cr.check_gradients(cr.sum(power(x)), [x], {"x": np.array([-1e-3, -2e-3])})
