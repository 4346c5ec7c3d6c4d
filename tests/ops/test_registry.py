"""Every op of the registry held to its own facets: infer, ref, vjp, expand, native, formula."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import sympy

from chainrule.autodiff.reverse import differentiate
from chainrule.errors import ChainruleError, GradientError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.formula import Formula, fold, parse, parse_recipe
from chainrule.ir.node import Node, Op, apply
from chainrule.ir.recipe import evaluate as run_recipe
from chainrule.ir.types import TensorType, bool_, float32, float64
from chainrule.ops import build
from chainrule.ops.axes import Sum
from chainrule.ops.elementwise import TABLE, Elementwise
from chainrule.ops.recipes import RECIPES
from chainrule.ops.registry import ops
from chainrule.ops.source import constant, leaf

Array = np.ndarray[Any, Any]
#: a template, the operand's memory, a body
STRUCTURAL = {"contract", "attend", "attend_back", "reshape", "scan"}
SAMPLES = [
    pytest.param(op, types, id=f"{entry.name}-{i}")
    for entry in ops()
    for i, (op, types) in enumerate(entry.samples)
]
DIFFERENTIABLE = [
    p
    for p in SAMPLES
    if any(
        t.dtype.is_float and p.values[0].reaches(i)
        for i, t in enumerate(p.values[1])
        if p.values[0].infer(*p.values[1]).dtype.is_float
    )
]


def draw(op: Op, types: Sequence[TensorType], seed: str) -> list[Array]:
    """Operands within the op's domain, the same for the same seed."""
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    low, high = op.domain
    return [
        rng.uniform(low, high, t.shape).astype(t.dtype.numpy)
        if not t.dtype.is_bool
        else rng.random(t.shape) < 0.5
        for t in types
    ]


def applied(op: Op, types: Sequence[TensorType]) -> tuple[list[Node], Node]:
    leaves = [leaf("input", f"x{i}", t) for i, t in enumerate(types)]
    return leaves, apply(op, *leaves)


def test_every_op_has_a_sample_and_a_name_of_its_own() -> None:
    assert all(entry.samples for entry in ops())
    names = [entry.name for entry in ops()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("op", "types"), SAMPLES)
def test_inferred_type_is_that_of_ref(op: Op, types: list[TensorType]) -> None:
    out = op.infer(*types)
    value = op.ref(*draw(op, types, str(op.name)))
    assert (value.shape, value.dtype) == (out.shape, out.dtype.numpy)


@pytest.mark.parametrize(("op", "types"), SAMPLES)
def test_every_facet_is_there(op: Op, types: list[TensorType]) -> None:
    leaves, out = applied(op, types)
    assert op.notation(*leaves).text
    assert op.notation(*leaves).latex
    has = {f: getattr(type(op), f) is not getattr(Op, f) for f in ("body", "nest", "expand")}
    data = op.name == "constant" or op.role in ("reduce", "contract", "leaf")
    assert any(has.values()) or op.name in STRUCTURAL or data
    assert has["expand"] == op.composite
    assert repr(out)


@pytest.mark.parametrize(("op", "types"), [p for p in SAMPLES if p.values[1]])
def test_operands_of_another_rank_are_refused(op: Op, types: list[TensorType]) -> None:
    wrong = [t.with_shape((*t.shape, 2)) if i else t for i, t in enumerate(types)]
    if len(wrong) == 1:
        return
    try:
        out = op.infer(*wrong)
    except ChainruleError:
        return
    assert op.name in ("take", "scatter_add"), out  # these take indices of any rank


def value(root: Node, leaves: Sequence[Node], at: Sequence[Array]) -> Array:
    (array,) = evaluate([root], dict(zip(leaves, at, strict=True)))
    return array


def total(node: Node) -> Node:
    return apply(Sum(tuple(range(node.type.rank))), node) if node.type.rank else node


def directional(root: Node, leaves: Sequence[Node], at: list[Array], along: list[Array]) -> float:
    """The central difference of a scalar along a direction, by Richardson's extrapolation."""

    def slope(h: float) -> float:
        up = [a + h * d if d.any() else a for a, d in zip(at, along, strict=True)]
        down = [a - h * d if d.any() else a for a, d in zip(at, along, strict=True)]
        return float(value(root, leaves, up) - value(root, leaves, down)) / (2 * h)

    return (4 * slope(5e-5) - slope(1e-4)) / 3


def directions(leaves: Sequence[Node], at: list[Array], seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [
        rng.uniform(0.1, 1, a.shape) if n.dtype.is_float else np.zeros(a.shape)
        for n, a in zip(leaves, at, strict=True)
    ]


def check_derivative(root: Node, leaves: Sequence[Node], at: list[Array], tolerance: float) -> Node:
    """Hold the gradient of a scalar to central differences; the gradient along the direction."""
    wanted = [n for n in leaves if n.dtype.is_float]
    one = build.formula("1", {}, like=root)
    found = differentiate([root], [one], wanted).gradients
    along = directions(leaves, at, 7)
    parts = []
    for node, gradient in zip(wanted, found, strict=True):
        if gradient is not None:
            d = along[list(leaves).index(node)]
            assert gradient.type == node.type
            parts.append(total(build.call("mul", gradient, constant(d))))
    slope = parts[0]
    for part in parts[1:]:
        slope = build.call("add", slope, part)
    expected = directional(root, leaves, at, along)
    got = float(value(slope, leaves, at))
    assert got == pytest.approx(expected, rel=tolerance, abs=tolerance), (got, expected)
    return slope


@pytest.mark.parametrize(("op", "types"), DIFFERENTIABLE)
def test_vjp_is_the_derivative_and_so_is_its_own(op: Op, types: list[TensorType]) -> None:
    leaves, out = applied(op, types)
    at = draw(op, types, str(op.name))
    weights = np.random.default_rng(3).uniform(0.5, 1.5, out.shape)
    root = total(build.call("mul", out, constant(weights)))
    slope = check_derivative(root, leaves, at, 1e-7 if out.dtype == float64 else 1e-3)
    again = [n for n in leaves if n.dtype.is_float]
    second = differentiate([slope], [build.formula("1", {}, like=slope)], again)
    if any(g is not None for g in second.gradients):
        check_derivative(slope, leaves, at, 1e-6)


@pytest.mark.parametrize(("op", "types"), DIFFERENTIABLE)
def test_it_differentiates_or_says_why_not(op: Op, types: list[TensorType]) -> None:
    """By every float operand that it does not call a mere choice; else with a reason."""
    leaves, out = applied(op, types)
    wanted = [n for i, n in enumerate(leaves) if n.dtype.is_float and op.reaches(i)]
    seed = leaf("input", "ct", out.type)
    if op.undifferentiable:
        with pytest.raises(GradientError, match=re.escape(op.undifferentiable)):
            differentiate([out], [seed], wanted)
        return
    found = differentiate([out], [seed], wanted).gradients
    assert [g and g.type for g in found] == [n.type for n in wanted]


@pytest.mark.parametrize(("op", "types"), [p for p in SAMPLES if p.values[0].composite])
def test_a_composite_is_its_expansion(op: Op, types: list[TensorType]) -> None:
    leaves, out = applied(op, types)
    expanded = op.expand(*leaves)
    assert expanded.type == out.type
    at = draw(op, types, str(op.name))
    np.testing.assert_allclose(value(expanded, leaves, at), value(out, leaves, at), rtol=1e-14)


ELEMENTWISE = [pytest.param(op, id=name) for name, op in TABLE.items()]
#: of those whose machine code and NumPy reference are independent; the rest agree exactly
ULPS = {"float32": 3, "float64": 4}


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("op", ELEMENTWISE)
def test_machine_code_is_ref(op: Elementwise, dtype: Any) -> None:
    if op.accepts in ("logic", "integer"):
        return
    rng = np.random.default_rng(11)
    low, high = op.domain
    arrays = [rng.uniform(low, high, 500).astype(dtype.numpy) for _ in op.params]
    if op.name == "where":
        arrays[0] = arrays[0] > 0
    text = op.native if isinstance(op.native, str) else op.native.get(dtype.name)
    recipe = parse_recipe(text or op.native["float"])  # type: ignore[index]
    got = run_recipe(recipe, dtype, dict(zip(op.params, arrays, strict=True)), RECIPES)
    exact = op.ref(*[a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays])
    want = exact.astype(got.dtype)
    if got.dtype == np.bool_:
        np.testing.assert_array_equal(got, want)
        return
    ulp = np.abs(got - want) / np.spacing(np.maximum(np.abs(want), np.finfo(want.dtype).tiny))
    assert ulp.max() <= ULPS[dtype.name]


@pytest.mark.parametrize("op", [p for p in ELEMENTWISE if p.values[0].accepts == "logic"])
def test_logic_is_ref(op: Elementwise) -> None:
    arrays = [np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)][: len(op.params)]
    got = run_recipe(parse_recipe(str(op.native)), bool_, dict(zip(op.params, arrays, strict=True)))
    np.testing.assert_array_equal(got, op.ref(*arrays))


def as_sympy(formula: Formula, at: dict[str, Any]) -> Any:
    """A formula in SymPy; functions of the table by their own formulas."""
    from sympy import Abs, Max, Min, Piecewise, cos, erf, exp, log, sign, sin, sqrt, tan, tanh
    from sympy import acos, acosh, asin, asinh, atan, atan2, atanh, cosh, erfc, sinh  # isort: skip

    class Steps(sympy.Function):  # type: ignore[misc]
        """A function that is constant but for its jumps."""

        def fdiff(self, argindex: int = 1) -> Any:
            return sympy.Integer(0)

        def _eval_evalf(self, prec: int) -> Any:
            return sympy.floor(self.args[0].evalf(30))

    known: dict[str, Any] = {f.__name__: f for f in (Abs, Max, Min, cos, erf, exp, log, sign, sin)}
    known |= {f.__name__: f for f in (tan, asin, acos, atan, atan2, erfc)}
    known |= {f.__name__: f for f in (sinh, cosh, asinh, acosh, atanh)}
    known |= dict.fromkeys(("floor", "ceiling", "round"), Steps)
    known["floor_divide"] = lambda x, y: Steps(x / y)
    known |= {"sqrt": sqrt, "tanh": tanh, "abs": Abs}
    known |= {"add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y}
    known |= {"div": lambda x, y: x / y, "pow": lambda x, y: x**y, "neg": lambda x: -x}
    known |= {"lt": sympy.Lt, "le": sympy.Le, "gt": sympy.Gt, "ge": sympy.Ge, "eq": sympy.Eq}
    known["where"] = lambda c, x, y: Piecewise((x, c), (y, True))

    def call(fn: str, args: Sequence[Any]) -> Any:
        if fn in known:
            return known[fn](*args)
        op = TABLE[fn]
        return as_sympy(parse(op.formula), dict(zip(op.params, args, strict=True)))

    return fold(formula, sympy.nsimplify, at.__getitem__, call)


@pytest.mark.parametrize("op", [p for p in ELEMENTWISE if any(p.values[0].partials)])
def test_partials_are_derived_by_sympy(op: Elementwise) -> None:
    symbols = {p: sympy.Symbol(p, real=True) for p in op.params}
    if op.name == "where":
        symbols["c"] = sympy.Symbol("t", real=True) > 0
    meaning = as_sympy(parse(op.formula), symbols)
    for param, partial in zip(op.params, op.partials, strict=True):
        if partial is None:
            continue
        derived = sympy.diff(meaning, symbols[param])
        stated = as_sympy(parse(partial), {**symbols, "out": meaning})
        difference = derived - stated
        if difference == 0 or sympy.simplify(difference) == 0:
            continue
        free = sorted(difference.free_symbols, key=str)
        rng = np.random.default_rng(5)
        for _ in range(50):
            point = dict(zip(free, map(float, rng.uniform(*op.domain, len(free))), strict=True))
            error = difference.subs(point).doit().evalf(30)
            assert abs(error) < 1e-12, (op.name, param, point, error)
