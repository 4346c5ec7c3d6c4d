"""SymPy's expressions evaluate to the reference's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import CompileError
from chainrule.ir.evaluate import bind_sizes, evaluate
from chainrule.ir.graph import walk
from chainrule.ir.node import Node, apply
from chainrule.ir.types import TensorType, float64
from chainrule.ops.elementwise import TABLE
from chainrule.ops.source import Leaf, leaf
from chainrule.show.symbolic import size_symbol, to_sympy

sympy = pytest.importorskip("sympy")
MatrixElement = pytest.importorskip("sympy.matrices.expressions.matexpr").MatrixElement
ElementwiseApplyFunction = pytest.importorskip(
    "sympy.matrices.expressions.applyfunc"
).ElementwiseApplyFunction
to_floats = np.vectorize(lambda v: float(bool(v)) if v in (True, False) else float(v))
Arrays = Mapping[Node, np.ndarray[Any, Any]]


def value(expr: Any, feeds: Arrays) -> np.ndarray[Any, Any]:
    """The numbers of an expression, worked out here: SymPy's own evaluation takes minutes."""
    known: dict[Any, Any] = {size_symbol(s): v for s, v in bind_sizes(feeds).items()}
    for node, array in feeds.items():
        if not array.ndim:
            known[sympy.Symbol(label(node))] = array.item()
            continue
        base = sympy.IndexedBase(label(node))
        known |= {base[i]: array[i].item() for i in np.ndindex(array.shape)}
    if _is_array(expr):
        return to_floats(np.array(expr.applyfunc(lambda e: e.subs(known)).tolist()))
    numbers = Numbers(known, {label(n): a.reshape((*a.shape, 1, 1)[:2]) for n, a in feeds.items()})
    return numbers.matrix(expr) if _is_matrix(expr) else to_floats(numbers.scalar(expr))


def label(node: Node) -> str:
    return node.op.label  # type: ignore[attr-defined, no-any-return]


@dataclass
class Numbers:
    """Evaluates matrix expressions part by part, given their scalars and their matrices."""

    known: dict[Any, Any]
    arrays: dict[str, np.ndarray[Any, Any]]

    def scalar(self, expr: Any) -> Any:
        expr = expr.subs(self.known)
        for e in expr.atoms(MatrixElement):
            if not (e.i.is_Integer and e.j.is_Integer):
                continue  # it stands in a function of i and j
            entry = self.matrix(e.parent)[int(e.i), int(e.j)]
            whole = float(entry).is_integer()
            expr = expr.xreplace({e: sympy.Integer(int(entry)) if whole else sympy.Float(entry)})
        return expr

    def matrix(self, expr: Any) -> np.ndarray[Any, Any]:
        rows, columns = (int(d.subs(self.known)) for d in expr.shape)
        if isinstance(expr, sympy.MatrixSymbol):
            return self.arrays[expr.name]
        if isinstance(expr, (sympy.OneMatrix, sympy.ZeroMatrix)):
            return np.full((rows, columns), float(isinstance(expr, sympy.OneMatrix)))
        if isinstance(expr, sympy.FunctionMatrix):
            at = [[self.scalar(expr.lamda(i, j)) for j in range(columns)] for i in range(rows)]
            return to_floats(np.array(at, object))
        if isinstance(expr, ElementwiseApplyFunction):
            return np.vectorize(lambda v: float(expr.function(v)))(self.matrix(expr.expr))
        if isinstance(expr, sympy.Transpose):
            return self.matrix(expr.arg).T
        if isinstance(expr, sympy.HadamardPower):
            return self.matrix(expr.base) ** float(self.scalar(expr.exp))
        parts = [self.matrix(a) if _is_matrix(a) else float(self.scalar(a)) for a in expr.args]
        if isinstance(expr, sympy.MatMul):
            return reduce(lambda a, b: a @ b if np.ndim(a) and np.ndim(b) else a * b, parts)
        return reduce(np.add if isinstance(expr, sympy.MatAdd) else np.multiply, parts)


def _is_matrix(expr: Any) -> bool:
    return isinstance(expr, sympy.MatrixExpr)


def _is_array(expr: Any) -> bool:
    return isinstance(expr, (sympy.MatrixBase, sympy.NDimArray))


def check(node: Node, feeds: Arrays) -> Any:
    expr = to_sympy(node)
    (want,) = evaluate([node], feeds)
    np.testing.assert_allclose(value(expr, feeds).reshape(want.shape), want, rtol=1e-9, atol=1e-12)
    return expr


@pytest.mark.parametrize(
    "name", [n for n, op in TABLE.items() if op.accepts not in ("logic", "integer")]
)
def test_every_elementwise_op_means_to_sympy_what_its_formula_says(name: str) -> None:
    op, rng = TABLE[name], np.random.default_rng(5)
    types = [TensorType(float64, (3,))] * len(op.params)
    inputs = [leaf("input", f"a{i}", t) for i, t in enumerate(types)]
    feeds = {i: rng.uniform(*op.domain, (3,)) for i in inputs}
    if name == "where":
        inputs[0] = apply(TABLE["lt"], inputs[0], inputs[1])
    check(apply(op, *inputs), feeds)


def small() -> tuple[dict[str, cr.Tensor], cr.Tensor]:
    p = {
        "x": cr.input("x", (2, 3), dtype="float64"),
        "W": cr.parameter("W", (3, 2), dtype="float64"),
        "b": cr.parameter("b", (2,), dtype="float64"),
        "y": cr.input("y", (2,), dtype="int32"),
    }
    return p, cr.losses.cross_entropy(cr.tanh(p["x"] @ p["W"] + p["b"]), p["y"])


def feeds_of(tensors: Mapping[str, cr.Tensor], batch: int = 2) -> dict[Node, np.ndarray[Any, Any]]:
    rng, feeds = np.random.default_rng(7), {}
    for t in tensors.values():
        shape = tuple(d if isinstance(d, int) else batch for d in t.shape)
        feeds[t.node] = rng.normal(size=shape) if t.dtype.is_float else np.arange(batch) % 2
    return feeds


def test_small_tensors_are_spelled_entry_by_entry() -> None:
    p, loss = small()
    feeds = feeds_of(p)
    check(loss.node, feeds)
    expr = check(cr.grad(loss, p["W"]).node, feeds)
    assert isinstance(expr, sympy.ImmutableDenseMatrix) and expr.shape == (3, 2)
    check(cr.grad(loss, p["b"]).node, feeds)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_symbolic_sizes_are_matrix_expressions(activation: str) -> None:
    p = {
        "x": cr.input("x", ("n", 3), dtype="float64"),
        "W": cr.parameter("W", (3, 4), dtype="float64"),
        "b": cr.parameter("b", (4,), dtype="float64"),
        "V": cr.parameter("V", (4, 2), dtype="float64"),
        "y": cr.input("y", ("n",), dtype="int32"),
    }
    h = getattr(cr, activation)(p["x"] @ p["W"] + p["b"])
    loss = cr.losses.cross_entropy(h @ p["V"], p["y"])
    feeds = feeds_of(p)
    check(loss.node, feeds)
    for name in ("W", "b", "V"):
        assert _is_matrix(check(cr.grad(loss, p[name]).node, feeds))


def test_matrix_expressions_of_products_sums_and_choices() -> None:
    n = {k: cr.input(k, ("n", 3), dtype="float64") for k in "ab"}
    v = {"v": cr.input("v", (3,), dtype="float64"), "s": cr.input("s", (), dtype="float64")}
    a, b, w, s = n["a"], n["b"], v["v"], v["s"]
    for t in [
        a @ b.T,
        a.T @ b,
        a @ w,
        a * b - a / (b * b + 1.0),
        s * a + w,
        cr.sum(a, axis=0),
        cr.sum(a, axis=1),
        cr.sum(a * b),
        cr.where(a > b, a, b * 2.0),
        cr.where(a > 0, a, 0.0),
        cr.sum(w * w),
        cr.maximum(a, b),
        1.0 - cr.tanh(a) ** 2,
    ]:
        leaves = {n for n in walk([t.node]) if n.op.role == "leaf"}
        check(t.node, {k: f for k, f in feeds_of(n | v).items() if k in leaves})


def test_what_has_no_form_is_refused_by_name() -> None:
    x = cr.input("x", ("n", 3, 4))
    with pytest.raises(CompileError, match="SymPy"):
        (x + x).sympy()


def test_a_neuron_in_scalars_is_the_lectures() -> None:
    x, y = cr.input("x", (2,)), cr.input("y", ())
    w, b = cr.parameter("w", (2,)), cr.parameter("b", ())
    guess = cr.sigmoid((x @ w + b).named("z")).named("ŷ")
    assert (
        cr.scalars(((guess - y) ** 2).named("L"))
        == """\
z = x1 * w1 + x2 * w2 + b
ŷ = sigmoid(z)
L = (ŷ - y)²
∂L/∂ŷ = 2 * (ŷ - y)
∂L/∂z = ∂L/∂ŷ * ŷ * (1 - ŷ)
∂L/∂w1 = ∂L/∂z * x1
∂L/∂w2 = ∂L/∂z * x2
∂L/∂b = ∂L/∂z"""
    )


def test_a_matrix_in_scalars_has_two_places() -> None:
    x, w = cr.input("x", (2,)), cr.parameter("W", (2, 2))
    shown = cr.scalars(cr.sum(cr.tanh(x @ w)).named("L"))
    assert "∂L/∂W21" in shown and "x1 * W12 + x2 * W22" in shown


def test_a_net_too_large_for_scalars_is_refused() -> None:
    with pytest.raises(CompileError, match="100"):
        cr.scalars(cr.sum(cr.input("x", (200,))))
    with pytest.raises(CompileError, match="known"):
        cr.scalars(cr.sum(cr.input("x", ("n",))))


def test_half_the_squared_error_in_scalars():
    """The value and its derivative share ŷ - t: the value is written first, and in full."""
    x, w, t = cr.input("x", (2,)), cr.parameter("w", (2,)), cr.input("t", ())
    guess = cr.sigmoid(cr.sum(w * x)).named("ŷ")
    lines = cr.scalars(((guess - t) ** 2 / 2).named("J")).splitlines()
    assert lines[1:3] == ["J = (ŷ - t)² / 2", "∂J/∂ŷ = ŷ - t"]


def test_a_short_loop_is_spelled_out_step_by_step() -> None:
    x, h0 = cr.input("x", (3, 1)), cr.input("h0", (1,))
    w, u = cr.parameter("w", (1, 1)), cr.parameter("u", (1, 1))

    def step(h: cr.Tensor, v: cr.Tensor) -> tuple[cr.Tensor, cr.Tensor]:
        h = cr.tanh(v @ w + h @ u)
        return h, h

    last, hs = cr.scan(step, h0, x)
    backwards, _ = cr.scan(step, h0, x, reverse=True)
    numbers = {"x": [[0.3], [-0.2], [0.7]], "h0": [0.1], "w": [[0.5]], "u": [[-0.4]]}
    for tensor in (last, hs, backwards, cr.grad(cr.sum(hs), w)):
        found = tensor.sympy()
        at = {
            s: np.asarray(numbers[s.base.label.name])[s.indices] for s in found.atoms(sympy.Indexed)
        }
        inputs = [s.op.label for s in walk([tensor.node]) if isinstance(s.op, Leaf)]
        wanted = cr.compile(tensor, backend="reference")(**{k: numbers[k] for k in inputs})
        np.testing.assert_allclose(
            np.asarray(found.subs(at).tolist(), float).reshape(wanted.shape), wanted, rtol=1e-6
        )
    lines = cr.scalars(cr.sum(last**2).named("J")).splitlines()
    assert lines[0] == "h1 = tanh(x11 * w11 + h0_1 * u11)"
    assert "h3 = tanh(x31 * w11 + h2 * u11)" in lines
    assert [line for line in lines if line.startswith("∂J/∂w11 = ")]


def test_a_small_convolution_is_spelled_out() -> None:
    s, k = cr.input("s", (1, 1, 3)), cr.parameter("k", (1, 1, 2))
    lines = cr.scalars(cr.sum(cr.conv(s, k) ** 2).named("J")).splitlines()
    assert any("k111 * s111 + k112 * s112" in line for line in lines)
    assert {line.split(" = ")[0] for line in lines} >= {"∂J/∂k111", "∂J/∂k112"}


def test_three_axes_of_unknown_size_are_refused() -> None:
    with pytest.raises(cr.errors.CompileError, match="matrices have at most two axes"):
        cr.tanh(cr.input("a", ("b", "t", 3))).sympy()
