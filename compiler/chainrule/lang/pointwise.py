"""The elementwise functions of the language; what each is stands in the table of ops."""

from __future__ import annotations

from chainrule.errors import DTypeError
from chainrule.lang.tensor import Tensor, TensorLike, as_node, elementwise, power

__all__ = [
    "abs",
    "add",
    "cos",
    "divide",
    "equal",
    "erf",
    "exp",
    "expm1",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "log",
    "log1p",
    "log_sigmoid",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "not_equal",
    "pow",
    "relu",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "softplus",
    "sqrt",
    "square",
    "stop_gradient",
    "subtract",
    "tanh",
    "where",
]


def exp(x: TensorLike, /) -> Tensor:
    """e to the power x."""
    return elementwise("exp", x)


def expm1(x: TensorLike, /) -> Tensor:
    """exp(x) - 1, accurate near 0."""
    return elementwise("expm1", x)


def log(x: TensorLike, /) -> Tensor:
    """The natural logarithm: -inf at 0, NaN below."""
    return elementwise("log", x)


def log1p(x: TensorLike, /) -> Tensor:
    """log(1 + x), accurate near 0."""
    return elementwise("log1p", x)


def sqrt(x: TensorLike, /) -> Tensor:
    """The square root; of a negative number NaN."""
    return elementwise("sqrt", x)


def rsqrt(x: TensorLike, /) -> Tensor:
    """1 / sqrt(x)."""
    return elementwise("rsqrt", x)


def square(x: TensorLike, /) -> Tensor:
    """x * x."""
    return elementwise("square", x)


def tanh(x: TensorLike, /) -> Tensor:
    """The hyperbolic tangent."""
    return elementwise("tanh", x)


def sigmoid(x: TensorLike, /) -> Tensor:
    """1 / (1 + exp(-x))."""
    return elementwise("sigmoid", x)


def relu(x: TensorLike, /) -> Tensor:
    """max(x, 0); the derivative at 0 is 0."""
    return elementwise("relu", x)


def softplus(x: TensorLike, /) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return elementwise("softplus", x)


def log_sigmoid(x: TensorLike, /) -> Tensor:
    """log(sigmoid(x)), without underflow."""
    return elementwise("log_sigmoid", x)


def erf(x: TensorLike, /) -> Tensor:
    """The error function."""
    return elementwise("erf", x)


def sin(x: TensorLike, /) -> Tensor:
    """The sine of x in radians."""
    return elementwise("sin", x)


def cos(x: TensorLike, /) -> Tensor:
    """The cosine of x in radians."""
    return elementwise("cos", x)


def abs(x: TensorLike, /) -> Tensor:
    """The absolute value; the derivative at 0 is 0."""
    return elementwise("abs", x)


def sign(x: TensorLike, /) -> Tensor:
    """-1, 0 or 1; the derivative is 0."""
    return elementwise("sign", x)


def negative(x: TensorLike, /) -> Tensor:
    """-x."""
    return elementwise("neg", x)


def add(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 + x2."""
    return elementwise("add", x1, x2)


def subtract(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 - x2."""
    return elementwise("sub", x1, x2)


def multiply(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 * x2, elementwise."""
    return elementwise("mul", x1, x2)


def divide(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 / x2, of floats."""
    return elementwise("div", x1, x2)


def pow(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 to the power x2."""
    return power(x1, x2)


def maximum(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The larger of each two; a NaN gives NaN. Equal operands share the derivative equally."""
    return elementwise("maximum", x1, x2)


def minimum(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The smaller of each two; a NaN gives NaN. Equal operands share the derivative equally."""
    return elementwise("minimum", x1, x2)


def less(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 < x2."""
    return elementwise("lt", x1, x2)


def less_equal(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 <= x2."""
    return elementwise("le", x1, x2)


def greater(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 > x2."""
    return elementwise("gt", x1, x2)


def greater_equal(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 >= x2."""
    return elementwise("ge", x1, x2)


def equal(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 == x2."""
    return elementwise("eq", x1, x2)


def not_equal(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 != x2."""
    return elementwise("ne", x1, x2)


def logical_and(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """Whether both hold; a number holds if it is not 0."""
    return elementwise("and_", _truth(x1), _truth(x2))


def logical_or(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """Whether either holds; a number holds if it is not 0."""
    return elementwise("or_", _truth(x1), _truth(x2))


def logical_xor(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """Whether just one holds; a number holds if it is not 0."""
    return elementwise("xor", _truth(x1), _truth(x2))


def logical_not(x: TensorLike, /) -> Tensor:
    """Whether x does not hold; a number holds if it is not 0."""
    return elementwise("not_", _truth(x))


def _truth(x: TensorLike) -> Tensor:
    t = Tensor(as_node(x))
    return t if t.dtype.is_bool else elementwise("ne", t, 0)


def where(condition: TensorLike, x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 where the condition holds, x2 elsewhere."""
    chosen = Tensor(as_node(condition))
    if not chosen.dtype.is_bool:
        raise DTypeError(f"where needs a bool condition, not {chosen.type}", "compare it: x != 0")
    return elementwise("where", chosen, x1, x2)


def stop_gradient(x: TensorLike, /) -> Tensor:
    """x, through which no derivative passes."""
    return elementwise("stop_gradient", x)
