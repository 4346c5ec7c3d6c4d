"""Further elementwise functions of the array API; what each is stands in the table of ops."""

from __future__ import annotations

import numpy as np

from chainrule.errors import DTypeError
from chainrule.ir.node import Node, apply
from chainrule.ir.types import bfloat16, promote
from chainrule.lang.tensor import Tensor, TensorLike, as_node, elementwise, operand
from chainrule.ops import build
from chainrule.ops.elementwise import TABLE, check_accepts
from chainrule.ops.source import full


def floor(x: TensorLike, /) -> Tensor:
    """The largest whole number not above x."""
    return elementwise("floor", x)


def ceil(x: TensorLike, /) -> Tensor:
    """The smallest whole number not below x."""
    return elementwise("ceil", x)


def trunc(x: TensorLike, /) -> Tensor:
    """x without its fraction."""
    return elementwise("trunc", x)


def round(x: TensorLike, /) -> Tensor:
    """The nearest whole number; of two as near, the even one."""
    return elementwise("round", x)


def exp2(x: TensorLike, /) -> Tensor:
    """2 to the power x."""
    return elementwise("exp2", x)


def log2(x: TensorLike, /) -> Tensor:
    """The logarithm to base 2: -inf at 0, NaN below."""
    return elementwise("log2", x)


def log10(x: TensorLike, /) -> Tensor:
    """The logarithm to base 10: -inf at 0, NaN below."""
    return elementwise("log10", x)


def reciprocal(x: TensorLike, /) -> Tensor:
    """1 / x."""
    return elementwise("reciprocal", x)


def tan(x: TensorLike, /) -> Tensor:
    """The tangent of x in radians."""
    return elementwise("tan", x)


def asin(x: TensorLike, /) -> Tensor:
    """The angle in [-pi/2, pi/2] whose sine is x; NaN outside [-1, 1]."""
    return elementwise("asin", x)


def acos(x: TensorLike, /) -> Tensor:
    """The angle in [0, pi] whose cosine is x; NaN outside [-1, 1]."""
    return elementwise("acos", x)


def atan(x: TensorLike, /) -> Tensor:
    """The angle in (-pi/2, pi/2) whose tangent is x."""
    return elementwise("atan", x)


def sinh(x: TensorLike, /) -> Tensor:
    """The hyperbolic sine."""
    return elementwise("sinh", x)


def cosh(x: TensorLike, /) -> Tensor:
    """The hyperbolic cosine."""
    return elementwise("cosh", x)


def asinh(x: TensorLike, /) -> Tensor:
    """The number whose hyperbolic sine is x."""
    return elementwise("asinh", x)


def acosh(x: TensorLike, /) -> Tensor:
    """The number, 0 or above, whose hyperbolic cosine is x; NaN below 1."""
    return elementwise("acosh", x)


def atanh(x: TensorLike, /) -> Tensor:
    """The number whose hyperbolic tangent is x; NaN outside [-1, 1]."""
    return elementwise("atanh", x)


def erfc(x: TensorLike, /) -> Tensor:
    """1 - erf(x), accurate where that is small."""
    return elementwise("erfc", x)


def isnan(x: TensorLike, /) -> Tensor:
    """Whether x is not a number."""
    return elementwise("isnan", x)


def isinf(x: TensorLike, /) -> Tensor:
    """Whether x is inf or -inf."""
    return elementwise("isinf", x)


def isfinite(x: TensorLike, /) -> Tensor:
    """Whether x is neither infinite nor NaN."""
    return elementwise("isfinite", x)


def bitwise_invert(x: TensorLike, /) -> Tensor:
    """Every bit flipped, of integers or bools."""
    return elementwise("not_", x)


def floor_divide(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """floor(x1 / x2); an integer by 0 is 0. Its derivative is 0."""
    return elementwise("floor_divide", x1, x2)


def remainder(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 - x2 floor(x1 / x2), of x2's sign; an integer by 0 leaves 0."""
    return elementwise("remainder", x1, x2)


def atan2(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The angle of the point (x2, x1), in [-pi, pi]; the derivative at (0, 0) is 0."""
    return elementwise("atan2", x1, x2)


def hypot(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """sqrt(x1**2 + x2**2), without overflow; the derivative at (0, 0) is 0."""
    return elementwise("hypot", x1, x2)


def logaddexp(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """log(exp(x1) + exp(x2)), without overflow."""
    return elementwise("logaddexp", x1, x2)


def copysign(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """|x1| with the sign of x2."""
    return elementwise("copysign", x1, x2)


def xlogy(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """x1 log(x2), and 0 where x1 is 0."""
    return elementwise("xlogy", x1, x2)


def bitwise_and(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The bits that both have, of integers or bools."""
    return elementwise("and_", x1, x2)


def bitwise_or(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The bits that either has, of integers or bools."""
    return elementwise("or_", x1, x2)


def bitwise_xor(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The bits that one alone has, of integers or bools."""
    return elementwise("xor", x1, x2)


def bitwise_left_shift(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The bits of integer x1 moved x2 places up; by its width or more, 0."""
    return elementwise("left_shift", x1, x2)


def bitwise_right_shift(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The bits of integer x1 moved x2 places down, its sign coming in."""
    return elementwise("right_shift", x1, x2)


def nextafter(x1: TensorLike, x2: TensorLike, /) -> Tensor:
    """The number of x1's type that is next to it on the way to x2; x2 where they are equal."""
    out = elementwise("nextafter", x1, x2)
    if out.dtype == bfloat16:
        hint = (
            'its arithmetic is float32\'s, whose next number is a nearer one: x.astype("float32")'
        )
        raise DTypeError(f"nextafter is not there for {out.dtype}", hint)
    return out


def real(x: TensorLike, /) -> Tensor:
    """x: numbers here are real."""
    return positive(x)


def conj(x: TensorLike, /) -> Tensor:
    """x: numbers here are real."""
    return positive(x)


def imag(x: TensorLike, /) -> Tensor:
    """0 for each number of x: numbers here are real."""
    node = positive(x).node
    return Tensor(full(0, node.type.dtype, node.type.shape))


def positive(x: TensorLike, /) -> Tensor:
    """x, of numbers."""
    node = as_node(x)
    check_accepts("positive", "numeric", node.type.dtype)
    return Tensor(node)


def signbit(x: TensorLike, /) -> Tensor:
    """Whether the sign bit is set: of -0.0 too."""
    return elementwise("lt", elementwise("copysign", 1.0, x), 0.0)


def clip(x: TensorLike, /, min: TensorLike | None = None, max: TensorLike | None = None) -> Tensor:
    """x kept between two bounds, either of which may be None; of x's type.

    Where they cross it is `max`. The derivative at a bound is 1, as in PyTorch.
    """
    node = as_node(x)
    check_accepts("clip", "numeric", node.type.dtype)
    low, high = (_bound(b, node, i) for i, b in enumerate((min, max)))
    shape = build.broadcast_shapes(
        [b.type.shape for b in (node, low, high) if isinstance(b, Node)], "clip"
    )
    ends = [b if isinstance(b, Node) else full(b, node.type.dtype, shape) for b in (low, high)]
    return Tensor(apply(TABLE["clip"], *[build.broadcast(n, shape) for n in (node, *ends)]))


def _bound(bound: TensorLike | None, x: Node, end: int) -> Node | int | float:
    of = x.type.dtype
    if bound is None:
        return (-np.inf, np.inf)[end] if of.is_float else of.bounds[end]
    value = operand(bound, Tensor(x))
    if not isinstance(value, Node):
        if isinstance(value, bool) or (isinstance(value, float) and not of.is_float):
            raise DTypeError(f"clip of {x.type} to {value!r}: they do not promote to one type")
        return value if of.is_float else sorted((*of.bounds, value))[1]
    if promote(value.type.dtype, of) != of:
        raise DTypeError(
            f"clip keeps the type of x: {x.type} to {value.type}", "convert the bound with astype"
        )
    return build.cast(value, of)
