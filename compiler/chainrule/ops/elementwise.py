"""Elementwise operations: one entry of a table each.

`formula` is what the op is, as mathematics; `partials` are its derivatives by each operand in terms
of the operands and of the result, `out`: derived by SymPy from the formula ahead of time (a test
derives each again). "1", "-1" and "0" are taken literally; None is an operand that only chooses.
At a kink the conventions are PyTorch's, and a NaN operand passes its cotangent on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir import notation
from chainrule.ir.formula import Call, Formula, Number, fold, parse
from chainrule.ir.loop import Apply, Value
from chainrule.ir.node import Array, Index, Node, Op, Reader, Sample, apply
from chainrule.ir.notation import (
    ADD,
    ATOM,
    COMPARE,
    MATMUL,
    MULTIPLY,
    NEGATE,
    NONE,
    POWER,
    Notation,
)
from chainrule.ir.types import (
    DType,
    TensorType,
    bool_,
    float64,
    int64,
    uint8,
)
from chainrule.ops import meanings
from chainrule.ops.integers import FLOOR_DIVIDE, POWERS, REMAINDER, shift, whole
from chainrule.ops.recipes import RECIPES
from chainrule.ops.source import Full, full
from chainrule.ops.spelling import COMPARISONS, choice, plus, product, quotient
from chainrule.records import dataclass

#: Choices that a cotangent keeps within one another.
NESTED = 4


@dataclass(frozen=True, eq=False)
class Elementwise(Op):
    """A scalar function applied to each element; operands have one shape and one element type."""

    name: str
    params: tuple[str, ...]
    formula: str
    partials: tuple[str | None, ...]
    ref_of: Callable[..., Any]
    native: str | dict[str, str]
    accepts: str = "numeric"
    result: str = "same"
    math: Notation | Callable[..., Notation] | None = None
    domain: tuple[float, float] = (-2.0, 2.0)
    letter: str = "t"
    role: str = "pointwise"
    rectifies: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        if len(inputs) != len(self.params):
            raise ShapeError(f"{self.name} takes {len(self.params)} operands, not {len(inputs)}")
        first, *values = inputs[1:] if self.name == "where" else inputs
        for other in inputs:
            if other is not first and other.shape != first.shape:
                raise ShapeError(f"{self.name} needs one shape: {_shown(inputs)}")
        for other in values:
            if other is not first and other.dtype != first.dtype:
                raise DTypeError(f"{self.name} needs one element type: {_shown(inputs)}")
        if self.name == "where" and not inputs[0].dtype.is_bool:
            raise DTypeError(f"where chooses by a bool: {_shown(inputs)}", "compare first: x != 0")
        check_accepts(self.name, self.accepts, first.dtype)
        return first.with_dtype(bool_) if self.result == "bool" else first

    def content(self, *inputs: TensorType) -> str | None:
        return self.name if TABLE.get(self.name) is self else None

    def ref(self, *inputs: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(self.ref_of(*inputs))

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        return Apply(self.name, tuple(read(index) for read in inputs), out.dtype)

    def reaches(self, operand: int) -> bool:
        return self.partials[operand] is not None

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        at = dict(zip(self.params, inputs, strict=True)) | {"out": out}
        return tuple(None if p is None else chain(ct, parse(p), at) for p in self.partials)

    def notation(self, *inputs: Node) -> Notation:
        if self.math is None:
            return notation.call(self.name, len(self.params))
        return self.math if isinstance(self.math, Notation) else self.math(*inputs)

    def samples_of(self) -> Iterator[Sample]:
        """One sample for each element type that the tests draw."""
        kinds: list[DType] = [bool_] if self.accepts == "logic" else [float64]
        if self.accepts in ("numeric", "any"):
            kinds.append(int64)
        if self.accepts == "integer":
            kinds = [int64, uint8]
        for dtype in kinds:
            types = [TensorType(dtype, (2, 3)) for _ in self.params]
            if self.name == "where":
                types[0] = TensorType(bool_, (2, 3))
            yield self, types


def _shown(types: Sequence[TensorType]) -> str:
    return ", ".join(map(str, types))


def chain(ct: Node, derivative: Formula, at: Mapping[str, Node]) -> Node:
    """The cotangent `ct` times a partial derivative, whose variables `at` binds.

    A choice is made between products, so that a branch whose derivative is 0 gives 0 whatever the
    cotangent is; and where the cotangent is 0 by choice it stays 0 whatever the derivative is.
    """
    if derivative == Number(0):
        return full(0, ct.type.dtype, ct.type.shape)
    if derivative == Number(1):
        return ct
    if (branch := chosen_branch(ct)) is not None:
        return _choose(ct, branch, chain(ct.inputs[branch], derivative, at))
    if derivative == Number(-1):
        return apply(TABLE["neg"], ct)
    if isinstance(derivative, Call) and derivative.fn == "div" and derivative.args[0] == Number(1):
        return apply(TABLE["div"], ct, spell(derivative.args[1], at, ct))
    if isinstance(derivative, Call) and derivative.fn == "where":
        condition = spell(derivative.args[0], at, ct)
        branches = (chain(ct, branch, at) for branch in derivative.args[1:])
        return apply(TABLE["where"], condition, *branches)
    return apply(TABLE["mul"], ct, spell(derivative, at, ct))


def _choose(ct: Node, branch: int, value: Node) -> Node:
    """`value` where the choice `ct` takes a branch, else 0.

    Choices in choices are readable, `[x > 0] ⊙ [y > 0]`; more than `NESTED` become one.
    """
    condition, *parts = ct.inputs
    inside: list[Node] = []
    core = value
    while (inner := chosen_branch(core)) is not None:
        inside.append(core.inputs[0] if inner == branch else apply(TABLE["not_"], core.inputs[0]))
        core = core.inputs[inner]
    if len(inside) >= NESTED:
        join = TABLE["and_" if branch == 1 else "or_"]
        condition, value = reduce(lambda c, also: apply(join, c, also), inside, condition), core
    parts[branch - 1] = value
    return apply(TABLE["where"], condition, *parts)


def times(ct: Node, factor: Node) -> Node:
    """The cotangent `ct` times a factor; where it is 0 by choice it stays 0 whatever that is."""
    if (branch := chosen_branch(ct)) is not None:
        return _choose(ct, branch, times(ct.inputs[branch], factor))
    return apply(TABLE["mul"], ct, factor)


def factors_of(ct: Node) -> Iterator[tuple[Node, Node]]:
    """Pairs of which a cotangent is `times`."""
    branch = chosen_branch(ct)
    core = ct if branch is None else ct.inputs[branch]
    if core.op is TABLE["mul"]:
        for x, y in (core.inputs, core.inputs[::-1]):
            yield (x if branch is None else _choose(ct, branch, x)), y


def chosen_branch(ct: Node) -> int | None:
    """Of a choice between something and 0, which operand the something is; else None."""
    if ct.op is not TABLE["where"]:
        return None
    zeros = [isinstance(n.op, Full) and n.op.value == 0 for n in ct.inputs[1:]]
    return 1 + zeros.index(False) if any(zeros) and not all(zeros) else None


def spell(formula: Formula, at: Mapping[str, Node], like: Node) -> Node:
    """The nodes of a formula whose variables have one shape; numbers are of the type of `like`."""
    shape, of = like.type.shape, like.type.dtype
    return fold(
        formula,
        lambda value: full(value, of, shape),
        at.__getitem__,
        lambda fn, args: apply(TABLE[fn], *args),
    )


def check_accepts(name: str, accepts: str, dtype: DType) -> None:
    """Refuse an element type that an op does not take."""
    if accepts == "float" and not dtype.is_float:
        raise DTypeError(
            f"{name} is defined for floats, not for {dtype}", 'convert first: x.astype("float32")'
        )
    if accepts == "numeric" and dtype.is_bool:
        raise DTypeError(
            f"{name} is defined for numbers, not for bool", 'convert first: x.astype("float32")'
        )
    if accepts == "integer" and not dtype.is_integer:
        raise DTypeError(f"{name} is defined for integers, not for {dtype}")
    if accepts == "logic" and dtype.is_float:
        raise DTypeError(f"{name} is defined for bools and integers, not for {dtype}")


TABLE: dict[str, Elementwise] = {}


def define(
    name: str,
    formula: str,
    partials: tuple[str | None, ...],
    ref: Callable[..., Any],
    native: str | dict[str, str] | None = None,
    params: tuple[str, ...] | None = None,
    **facts: Any,
) -> Elementwise:
    """Put an op into the table. Without `native` its machine code is the recipe of its name."""
    params = params or (("x",) if len(partials) == 1 else ("x", "y"))
    native = RECIPES[name] if native is None else native
    TABLE[name] = Elementwise(name, params, formula, partials, ref, native, **facts)
    return TABLE[name]


# how the ops below are written
_MINUS = notation.infix("-", "-", ADD, ADD, MATMUL)
_NEGATIVE = Notation("-{0}", "-{0}", MULTIPLY, (MULTIPLY,))
_POWER = Notation("{0}**{1}", "{0}^{{{1}}}", POWER, (ATOM, POWER), latex_operands=(ATOM, NONE))
_SQUARED = Notation("{0}²", "{0}^{{2}}", POWER, (ATOM,))
_BARS = Notation("|{0}|", r"\left|{0}\right|")
_ROOT = Notation("sqrt({0})", r"\sqrt{{{0}}}")
_MAX, _MIN = notation.call("max", 2, r"\max"), notation.call("min", 2, r"\min")
_SIGMA = notation.call("sigmoid", 1, r"\sigma")
_EXP, _LOG = notation.call("exp", 1, r"\exp"), notation.call("log", 1, r"\log")
_TANH = notation.call("tanh", 1, r"\tanh")
_SIN, _COS = notation.call("sin", 1, r"\sin"), notation.call("cos", 1, r"\cos")
_FLOORED = notation.infix("//", r"\operatorname{{div}}", MULTIPLY, MULTIPLY, NEGATE)
_MODULO = notation.infix("%", r"\bmod", MULTIPLY, MULTIPLY, NEGATE)
_LEFT, _RIGHT = notation.call("left_shift", 2), notation.call("right_shift", 2)
_AND, _OR, _NOT = notation.call("and", 2), notation.call("or", 2), notation.call("not", 1)


def _compare(name: str) -> Notation:
    return notation.infix(*COMPARISONS[name], COMPARE, ADD, ADD)


# the derivatives of x**y, and of the larger and the smaller of two: equal ones share it
_POW = (
    "where(y == 0, 0, y*x**(y - 1))",
    "where(x == 0, where(y >= 0, 0, out*log(x)), out*log(x))",
)
_IF_LARGER = ("where(x < y, 0, where(x == y, 0.5, 1))", "where(y < x, 0, where(x == y, 0.5, 1))")
_IF_SMALLER = ("where(x > y, 0, where(x == y, 0.5, 1))", "where(y > x, 0, where(x == y, 0.5, 1))")
# in machine operations; a y that is NaN is taken, and no y is above or below an x that is
_LARGER = {"float": "where(y != y, y, where(y > x, y, x))", "int": "where(x >= y, x, y)"}
_SMALLER = {"float": "where(y != y, y, where(y < x, y, x))", "int": "where(x <= y, x, y)"}
_SIGN = "where(x > 0, 1, where(x < 0, -1, x + 0))"  # of -0.0 it is 0.0
_MAGNITUDE = {"float": "abs(x)", "int": "where(x < 0, -x, x)"}
_2_OVER_ROOT_PI = "1.1283791670955126"
_LN2, _LN10 = "0.6931471805599453", "2.302585092994046"
_XLOGY = ("where(x == 0, where(y <= 0, 0, log(y)), log(y))", "x/y")
_XLOGY_CODE = "where(and_(x == 0.0, y == y), 0.0, x*log(y))"
_CLIP = (
    "where(x < low, 0, where(x > high, 0, 1))",
    "where(x < low, where(low > high, 0, 1), 0)",
    "where(low > high, 1, where(x > high, 1, 0))",
)
_CLIPPED = _SMALLER["float"].replace("x", "b").replace("y", "high")
_ATAN2 = (
    "where(hypot(y, x) == 0, 0, x/hypot(y, x)/hypot(y, x))",
    "where(hypot(y, x) == 0, 0, -y/hypot(y, x)/hypot(y, x))",
)

# one step in the bits, which rise with the magnitude; from 0 to the smallest of y's sign
_NEXT = (
    "one = copysign(float_of_bits(bits(0.0) + 1), y); "
    "step = float_of_bits(bits(x) + where(xor(x < y, x > 0.0), -1, 1)); "
    "where(x == y, y, where(x != x, x, where(y != y, y, where(x == 0.0, one, step))))"
)

_number = define
_float = partial(define, accepts="float")
_step = partial(define, partials=("0",), role="pointwise")
_bitwise = partial(define, partials=(None, None), accepts="integer", params=("x", "y"))
_test = partial(define, partials=(None, None), accepts="any", result="bool", role="light")
_logic = partial(define, accepts="logic", role="light")

# fmt: off
# arithmetic: name, meaning, partial derivatives, meaning in NumPy, machine code
_number("add", "x + y", ("1", "1"), np.add, "x + y", math=plus, letter="z")
_number("sub", "x - y", ("1", "-1"), np.subtract, "x - y", math=_MINUS, letter="z")
_number("mul", "x*y", ("y", "x"), np.multiply, "x*y", math=product)
_float("div", "x/y", ("1/y", "-out/y"), np.divide, "x/y", math=quotient,
       domain=(0.5, 2.0))
_number("neg", "-x", ("-1",), np.negative, "-x", math=_NEGATIVE)
_number("pow", "x**y", _POW, meanings.power, POWERS, math=_POWER, domain=(0.5, 2.0))
_number("abs", "Abs(x)", ("sign(x)",), np.abs, _MAGNITUDE, math=_BARS)
_number("sign", "sign(x)", ("0",), np.sign, {"float": _SIGN} | whole(_SIGN, "where(x > 0, 1, 0)"))
_number("maximum", "Max(x, y)", _IF_LARGER, np.maximum, _LARGER, math=_MAX, letter="h")
_number("minimum", "Min(x, y)", _IF_SMALLER, np.minimum, _SMALLER, math=_MIN, letter="h")
_number("square", "x**2", ("2*x",), np.square, "x*x", math=_SQUARED)
# exponentials and roots
_float("exp", "exp(x)", ("out",), np.exp, math=_EXP)
_float("expm1", "exp(x) - 1", ("exp(x)",), np.expm1)
_float("log", "log(x)", ("1/x",), np.log, math=_LOG, domain=(0.2, 3.0))
_float("log1p", "log(1 + x)", ("1/(1 + x)",), np.log1p, domain=(-0.8, 3.0))
_float("sqrt", "sqrt(x)", ("0.5/out",), np.sqrt, "sqrt(x)", math=_ROOT, domain=(0.2, 3.0))
_float("rsqrt", "1/sqrt(x)", ("-0.5*out/x",), meanings.rsqrt, "1/sqrt(x)", domain=(0.2, 3.0))
# activations and the functions beside them
_float("tanh", "tanh(x)", ("1 - out**2",), np.tanh, math=_TANH, letter="h")
_float("sigmoid", "1/(1 + exp(-x))", ("out*(1 - out)",), meanings.sigmoid, math=_SIGMA,
       letter="h")
_number("relu", "Max(x, 0)", ("where(out <= 0, 0, 1)",), meanings.relu, "where(x <= 0, 0, x)",
        letter="h", rectifies=True)
_float("softplus", "log(1 + exp(x))", ("sigmoid(x)",), meanings.softplus, letter="h")
_float("log_sigmoid", "-log(1 + exp(-x))", ("sigmoid(-x)",), lambda x: -meanings.softplus(-x),
       letter="h")
_float("erf", "erf(x)", (f"{_2_OVER_ROOT_PI}*exp(-x**2)",), meanings.erf)
_float("erfc", "erfc(x)", (f"-{_2_OVER_ROOT_PI}*exp(-x**2)",), meanings.erfc)
_number("relu6", "Min(Max(x, 0), 6)", ("where(out <= 0, 0, where(out >= 6, 0, 1))",),
        meanings.relu6, "where(x <= 0, 0, where(x >= 6, 6, x))", letter="h", rectifies=True)
_float("xlogy", "x*log(y)", _XLOGY, meanings.xlogy, _XLOGY_CODE, domain=(0.2, 3.0))
# other powers and logarithms
_float("exp2", "2**x", (f"out*{_LN2}",), np.exp2)
_float("log2", "log(x)/log(2)", (f"1/({_LN2}*x)",), np.log2, domain=(0.2, 3.0))
_float("log10", "log(x)/log(10)", (f"1/({_LN10}*x)",), np.log10, domain=(0.2, 3.0))
_float("reciprocal", "1/x", ("-square(out)",), np.reciprocal, "1.0/x", domain=(0.5, 2.0))
_float("hypot", "sqrt(x**2 + y**2)", ("where(out == 0, 0, x/out)", "where(out == 0, 0, y/out)"),
       np.hypot)
_float("logaddexp", "log(exp(x) + exp(y))", ("sigmoid(x - y)", "sigmoid(y - x)"),
       np.logaddexp, domain=(0.0, 2.0))
# angles and hyperbolas
_float("tan", "tan(x)", ("1 + square(out)",), np.tan, domain=(-1.2, 1.2))
_float("asin", "asin(x)", ("rsqrt((1 - x)*(1 + x))",), np.arcsin, domain=(-0.9, 0.9))
_float("acos", "acos(x)", ("-rsqrt((1 - x)*(1 + x))",), np.arccos, domain=(-0.9, 0.9))
_float("atan", "atan(x)", ("1/(1 + square(x))",), np.arctan)
_float("atan2", "atan2(y, x)", _ATAN2, np.arctan2, params=("y", "x"))
_float("sinh", "sinh(x)", ("cosh(x)",), np.sinh)
_float("cosh", "cosh(x)", ("sinh(x)",), np.cosh)
_float("asinh", "asinh(x)", ("1/hypot(x, 1)",), np.arcsinh)
_float("acosh", "acosh(x)", ("rsqrt((x - 1)*(x + 1))",), np.arccosh, domain=(1.2, 3.0))
_float("atanh", "atanh(x)", ("1/((1 - x)*(1 + x))",), np.arctanh, domain=(-0.9, 0.9))
# whole numbers: at integers nothing happens; x // 0 is 0, and so is x % 0
_step("floor", "floor(x)", ref=np.floor, native={**RECIPES["floor"], "int": "x"})
_step("ceil", "ceiling(x)", ref=np.ceil, native={**RECIPES["ceil"], "int": "x"})
_step("trunc", "sign(x)*floor(Abs(x))", ref=np.trunc, native={**RECIPES["trunc"], "int": "x"})
_step("round", "round(x)", ref=np.round, native={**RECIPES["round"], "int": "x"})
_number("floor_divide", "floor(x/y)", ("0", "0"), np.floor_divide, FLOOR_DIVIDE,
        math=_FLOORED, domain=(0.5, 9.0))
_number("remainder", "x - y*floor(x/y)", ("1", "-floor_divide(x, y)"), np.remainder, REMAINDER,
        math=_MODULO, domain=(0.5, 9.0))
_float("sin", "sin(x)", ("cos(x)",), np.sin, math=_SIN)
_float("cos", "cos(x)", ("-sin(x)",), np.cos, math=_COS)
# choices
define("where", "where(c, x, y)", (None, "where(c, 1, 0)", "where(c, 0, 1)"),
       np.where, "where(c, x, y)", ("c", "x", "y"), accepts="any", math=choice)
_test("lt", "x < y", ref=np.less, native="x < y", math=_compare("lt"))
_test("le", "x <= y", ref=np.less_equal, native="x <= y", math=_compare("le"))
_test("gt", "x > y", ref=np.greater, native="x > y", math=_compare("gt"))
_test("ge", "x >= y", ref=np.greater_equal, native="x >= y", math=_compare("ge"))
_test("eq", "Eq(x, y)", ref=np.equal, native="x == y", math=_compare("eq"))
_test("ne", "Ne(x, y)", ref=np.not_equal, native="x != y", math=_compare("ne"))
_logic("and_", "And(x, y)", (None, None), np.bitwise_and, "and_(x, y)", math=_AND)
_logic("or_", "Or(x, y)", (None, None), np.bitwise_or, "or_(x, y)", math=_OR)
_logic("xor", "Xor(x, y)", (None, None), np.bitwise_xor, "xor(x, y)")
_logic("not_", "Not(x)", (None,), np.invert, "not_(x)", math=_NOT)
define("clip", "Min(Max(x, low), high)", _CLIP, np.clip,
       {"float": f"b = {_LARGER['float'].replace('y', 'low')}; {_CLIPPED}",
        "int": "b = where(x >= low, x, low); where(b <= high, b, high)"}, ("x", "low", "high"))
_float("copysign", "Abs(x)*sign(y)", ("where(x == 0, 0, out/x)", "0"), np.copysign,
       "copysign(x, y)")
_float("nextafter", "x", ("1", "0"), np.nextafter, _NEXT, params=("x", "y"))
_is = partial(_test, partials=(None,), accepts="numeric")
_is("isnan", "Ne(x, x)", ref=np.isnan, native="x != x")
_is("isinf", "Eq(Abs(x), 1e999)", ref=np.isinf,
    native={"float": "abs(x) == 1e999", "int": "x != x"})
_is("isfinite", "Abs(x) < 1e999", ref=np.isfinite,
    native={"float": "abs(x) < 1e999", "int": "x == x"})
_bitwise("left_shift", "x*2**y", ref=np.left_shift, native=shift("shl", "0"), math=_LEFT,
         domain=(0.0, 5.0))
_bitwise("right_shift", "floor(x/2**y)", ref=np.right_shift,
         native=shift("{s}", "where(x < 0, -1, 0)"), math=_RIGHT, domain=(0.0, 5.0))
define("stop_gradient", "x", (None,), np.asarray, "x", accepts="any")
# fmt: on

#: of a few ops the same, computed wherever it is read
LIGHT = {name: replace(TABLE[name], role="light") for name in ("add", "sub", "mul")}
