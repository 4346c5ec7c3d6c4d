"""An op from a formula: its derivatives are derived by SymPy, in forms that stay finite.

A text is read by our own parser and turned into SymPy part by part; no text is evaluated.
SymPy differentiates what it knows. The other functions of the table (sigmoid, relu, maximum, ...)
are functions to it whose derivatives are those of the table, so that kinks follow one convention.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from chainrule.errors import FormulaError
from chainrule.ir.formula import Call, Formula, Name, Number, fold, names, parse
from chainrule.ops.composite import Defined
from chainrule.ops.elementwise import TABLE
from chainrule.ops.formulas import not_real, read, tree_of

Expr = Any  # SymPy ships no types
#: Names that formulas of users may use beside those of the table, as SymPy spells them.
ALIASES = {
    "Abs": "abs", "Max": "maximum", "Min": "minimum", "ln": "log", "ceiling": "ceil",
    "And": "and_", "Or": "or_", "Not": "not_", "Mod": "remainder", "Pow": "pow", "Eq": "eq",
    "Ne": "ne",
}  # fmt: skip
CONSTANTS = {"pi": math.pi, "E": math.e, "oo": math.inf, "nan": math.nan}
#: What SymPy has a function for and the table spells in others, by the number of operands.
SPELLED = {
    ("Heaviside", 1): "(1 + sign(x))/2",
    ("Heaviside", 2): "where(x == 0, y, (1 + sign(x))/2)",
    ("log", 2): "log(x)/log(y)",
    ("root", 2): "x**(1/y)",
    ("sec", 1): "1/cos(x)",
    ("csc", 1): "1/sin(x)",
    ("cot", 1): "1/tan(x)",
    ("sech", 1): "1/cosh(x)",
    ("csch", 1): "1/sinh(x)",
    ("coth", 1): "1/tanh(x)",
}
#: Parts of SymPy's numbers that no tensor here holds.
_COMPLEX = ("I", "zoo", "re", "im", "conjugate", "arg")
#: Operations in a derivative beyond which SymPy's search for a shorter form is not tried.
_LARGE = 80
#: The power of a sum beyond which it is not: the search multiplies sums out.
_STEEP = 12
#: Where candidates for a derivative are tried: the form that is finite at more places is taken.
_PLACES = (0.0, 1e-3, -1e-3, 1.0, -1.0, 30.0, -30.0, 100.0, -100.0, 1e4, -1e4)


@lru_cache(maxsize=1024)
def define_elementwise(
    name: str,
    formula: str | Expr,
    params: tuple[str, ...] | None = None,
    numbers: tuple[tuple[str, float], ...] = (),
    shown: tuple[tuple[str, float], ...] = (),
) -> Defined:
    """The op `name` that a formula spells, for example "x*tanh(log(1 + exp(x)))".

    Its operands are the formula's variables in order of appearance (of a SymPy expression, in
    alphabetical order), unless `params` gives them. `numbers` are variables that stand for numbers,
    `shown` those that print. The name only prints, and may be that of a built-in. Equal calls give
    one and the same op. Raises FormulaError at a function that does not exist or takes other
    operands, and where conditions and numbers are mixed up.
    """
    tree, text = (parse(formula), formula) if isinstance(formula, str) else read(formula)
    meaning = _known(tree, text)
    if _is_condition(meaning):
        raise FormulaError("a condition is no number", text, "choose: where(x > 0, 1, 0)")
    free = tuple(n for n in names(meaning) if n not in CONSTANTS)
    free = free if isinstance(formula, str) else tuple(sorted(free))
    fixed = dict(numbers)
    _check_numbers(text, free, fixed)
    free = tuple(n for n in free if n not in fixed)
    params = free if params is None else params
    _check_params(text, free, params)
    fixed |= {n: v for n, v in CONSTANTS.items() if n not in params}
    meaning = fold(
        meaning,
        Number,
        lambda n: Number(fixed[n]) if n in fixed else Name(n),
        lambda fn, args: Call(fn, tuple(args)),
    )
    _check_constants(text, meaning)
    symbolic = _Symbolic()
    expr = symbolic.of(meaning)
    stable = _stable(expr, symbolic)
    steady = tree_of(stable)
    if steady and stable != expr and _failures(steady, params) <= _failures(meaning, params):
        expr, meaning = stable, steady
    partials = tuple(_partial(expr, p, params, meaning, symbolic) for p in params)
    return Defined(name, params, meaning, partials, shown)


def _check_params(text: str, free: Sequence[str], params: Sequence[str]) -> None:
    if not params:
        raise FormulaError(f"the formula {text!r} has no variable")
    if len(set(params)) < len(params) or "out" in params:
        raise FormulaError(f"parameters need names of their own, none of them 'out': {params}")
    if strange := [n for n in free if n not in params]:
        raise FormulaError(f"in the formula {text!r}: {strange[0]!r} is not among {params}")


def _check_numbers(text: str, free: Sequence[str], fixed: dict[str, float]) -> None:
    for name, value in fixed.items():
        if name not in free:
            there = f"there are {', '.join(free)}"
            raise FormulaError(f"in the formula {text!r}: no variable is called {name!r}", there)
        if not math.isfinite(value):
            raise FormulaError(f"a parameter is a finite number: {name}={value!r}")


def _check_constants(text: str, meaning: Formula) -> None:
    """FormulaError at a part without variables, such as 10**10**10, that float64 can't hold.

    SymPy would compute it exactly, with as many digits as it has.
    """

    def call(fn: str, args: Sequence[Any]) -> Any:
        if any(a is None for a in args):
            return None
        with np.errstate(all="ignore"):
            value = TABLE[fn].ref(*(np.asarray(a, np.float64) for a in args))
        if np.all(np.isfinite(args)) and not np.isfinite(value):
            numbers = ", ".join(f"{a:g}" for a in args)
            raise FormulaError(f"a part of the formula is no finite number: {fn}({numbers})", text)
        return value

    fold(meaning, lambda value: value, lambda name: None, call)


def _known(tree: Formula, text: str) -> Formula:
    """The tree with names of the table for its functions; FormulaError at any other."""
    if not isinstance(tree, Call):
        if isinstance(tree, Name) and tree.name in _COMPLEX:
            raise not_real(tree.name, text)
        if isinstance(tree, Name) and (tree.name in TABLE or tree.name in ALIASES):
            raise FormulaError(f"{tree.name} is a function, no variable", text)
        return tree
    fn = ALIASES.get(tree.fn, tree.fn)
    args = tuple(_known(a, text) for a in tree.args)
    if (tree.fn, len(args)) in SPELLED:
        operands: dict[str, Formula] = dict(zip("xy", args, strict=False))
        return fold(
            parse(SPELLED[tree.fn, len(args)]),
            Number,
            operands.__getitem__,
            lambda f, parts: Call(f, tuple(parts)),
        )
    if fn in _COMPLEX:
        raise not_real(fn, text)
    if fn not in TABLE:
        place = re.search(rf"\b{tree.fn}\s*\(", text)
        at = place.start() if place else 0
        there = f"there are {', '.join((*TABLE, *ALIASES))}"
        raise FormulaError(f"no function is called {tree.fn!r}", text, " " * at + "^", there)
    if fn in ("maximum", "minimum", "and_", "or_") and len(args) > 2:
        return reduce(lambda a, b: _typed(Call(fn, (a, b)), text), args)
    if len(args) != len(TABLE[fn].params):
        wanted = len(TABLE[fn].params)
        raise FormulaError(f"{tree.fn} takes {wanted} operands, not {len(args)}", text)
    return _typed(Call(fn, args), text)


def _typed(call: Call, text: str) -> Call:
    """The call; FormulaError where a condition stands for a number or the other way round."""
    for i, part in enumerate(call.args):
        wanted = TABLE[call.fn].accepts == "logic" or (call.fn == "where" and i == 0)
        if wanted != _is_condition(part):
            what = "a condition" if wanted else "numbers, not a condition"
            raise FormulaError(
                f"{call.fn} takes {what}", text, "to choose by one: where(x > 0, x, 0)"
            )
    return call


def _is_condition(tree: Formula) -> bool:
    if not isinstance(tree, Call):
        return False
    return TABLE[tree.fn].result == "bool" or TABLE[tree.fn].accepts == "logic"


class _Symbolic:
    """Formula trees as SymPy expressions in real variables."""

    def __init__(self) -> None:
        import sympy

        self.sympy = sympy
        one, two = sympy.Integer(1), sympy.Integer(2)
        self.native: dict[str, Callable[..., Expr]] = {
            "add": lambda x, y: x + y,
            "sub": lambda x, y: x - y,
            "mul": lambda x, y: x * y,
            "div": lambda x, y: x / y,
            "neg": lambda x: -x,
            "pow": lambda x, y: x**y if y.is_number else self.own("pow")(x, y),
            "square": lambda x: x**two,
            "rsqrt": lambda x: one / sympy.sqrt(x),
            "expm1": lambda x: sympy.exp(x) - one,
            "log1p": lambda x: sympy.log(one + x),
        }
        self.native |= {n: getattr(sympy, n) for n in ("exp", "log", "sqrt", "tanh", "sin", "cos")}
        self.native["erf"] = sympy.erf
        self.ours: dict[str, Any] = {}

    def of(self, tree: Formula) -> Expr:
        """A tree in SymPy."""
        return fold(tree, self.number, self.variable, lambda fn, args: self.function(fn)(*args))

    def number(self, value: float | int) -> Expr:
        return self.sympy.Integer(value) if isinstance(value, int) else self.sympy.Float(value, 17)

    def variable(self, name: str) -> Expr:
        return self.sympy.Symbol(name, real=True)

    def function(self, fn: str) -> Callable[..., Expr]:
        """What stands for a function of the table: SymPy's own, or one with our derivatives."""
        return self.native.get(fn) or self.own(fn)

    def own(self, fn: str) -> Callable[..., Expr]:
        """A function to SymPy, with the derivatives of the table."""
        if fn not in self.ours:
            rule = {"fdiff": self.fdiff(fn)}
            if fn == "where":  # branches are derived apart: 0 * inf is no derivative
                rule = {"_eval_derivative": lambda e, s: e.func(e.args[0], *_each(e.args[1:], s))}
            self.ours[fn] = type(fn, (self.sympy.Function,), rule)
        function: Callable[..., Expr] = self.ours[fn]
        return function

    def fdiff(self, fn: str) -> Callable[[Expr, int], Expr]:
        op = TABLE[fn]

        def derivative(applied: Expr, place: int = 1) -> Expr:
            text = op.partials[place - 1]
            at = dict(zip(op.params, applied.args, strict=True)) | {"out": applied}
            if text is None:
                return self.sympy.Integer(0)
            return fold(
                parse(text), self.number, at.__getitem__, lambda f, args: self.function(f)(*args)
            )

        return derivative


def _each(branches: Sequence[Expr], symbol: Expr) -> list[Expr]:
    return [branch.diff(symbol) for branch in branches]


def _stable(expr: Expr, symbolic: _Symbolic) -> Expr:
    """The expression with softplus, powers of sigmoid and tanh where it spells them by exp, and
    with tanh where 1/cosh² would overflow on the way.
    """
    sympy = symbolic.sympy

    def is_steep(e: Expr) -> bool:
        return bool(e.is_Pow and e.base.func == sympy.cosh and e.exp == -2)

    expr = expr.replace(is_steep, lambda e: 1 - sympy.tanh(e.base.args[0]) ** 2)
    if not expr.has(sympy.exp):
        return expr
    w = sympy.Wild("w")
    sigmoid, softplus = symbolic.function("sigmoid"), symbolic.function("softplus")

    def is_logistic(e: Expr) -> bool:
        return bool(e.is_Pow and e.exp.is_negative and e.base.match(1 + sympy.exp(w)))

    def logistic(e: Expr) -> Expr:
        return sigmoid(-e.base.match(1 + sympy.exp(w))[w]) ** -e.exp

    def absorb(product: Expr) -> Expr:
        for factor in product.args:
            s = factor.base if factor.is_Pow else factor
            if s.func == sigmoid and sympy.exp(-s.args[0]) in product.args:
                # exp(-u) sigmoid(u) is sigmoid(-u)
                return product / sympy.exp(-s.args[0]) / s * sigmoid(-s.args[0])
        return product

    e, tanh = sympy.exp, sympy.tanh
    expr = expr.replace((e(w) - e(-w)) / (e(w) + e(-w)), lambda w: tanh(w))
    expr = expr.replace((e(w) - 1) / (e(w) + 1), lambda w: tanh(w / 2))
    expr = expr.replace((1 - e(w)) / (e(w) + 1), lambda w: -tanh(w / 2))
    expr = expr.replace(sympy.log(1 + e(w)), lambda w: softplus(w))
    expr = expr.replace(is_logistic, logistic)
    return expr.replace(lambda e: e.is_Mul, absorb)


def _partial(
    expr: Expr, param: str, params: Sequence[str], meaning: Formula, symbolic: _Symbolic
) -> Formula:
    """The derivative by one parameter: of its forms the shortest among those finite most often."""
    sympy = symbolic.sympy
    raw = expr.diff(symbolic.variable(param))
    out = symbolic.variable("out")
    stable = _stable(raw, symbolic)
    forms = [raw, stable, sympy.factor_terms(stable)]
    if raw.count_ops() <= _LARGE and _steepness(raw) <= _STEEP:
        forms.append(_stable(sympy.simplify(raw), symbolic))
    forms += [form.subs(expr, out) for form in forms]
    trees = [tree for form in forms if (tree := tree_of(form)) is not None]
    if not trees:
        raise FormulaError(f"the derivative by {param} is in functions that do not exist: {raw}")
    return min(trees, key=lambda tree: (_failures(tree, params, meaning), _length(tree)))


def _steepness(expr: Expr) -> int:
    """The largest power of a sum in an expression, those of powers in powers multiplied."""
    inside = [_steepness(a) for a in expr.args] or [1]
    if expr.is_Mul:
        return max(1, sum(n for n in inside if n > 1))
    if expr.is_Pow and expr.exp.is_Integer and not expr.base.is_Atom:
        return inside[0] * min(abs(int(expr.exp)), _STEEP + 1)
    return max(inside)


def _failures(tree: Formula, params: Sequence[str], out: Formula | None = None) -> int:
    """At how many places a formula is not finite; `out` is what that name stands for."""
    at: dict[str, Any] = {p: np.roll(_PLACES, 3 * i) for i, p in enumerate(params)}
    if out is not None:
        at["out"] = _value(out, at)
    return int(np.sum(~np.isfinite(_value(tree, at))))


def _value(tree: Formula, at: dict[str, Any]) -> Any:
    return fold(tree, np.float64, at.__getitem__, lambda fn, args: TABLE[fn].ref(*args))


def _length(tree: Formula) -> int:
    return 1 + sum(map(_length, tree.args)) if isinstance(tree, Call) else 1
