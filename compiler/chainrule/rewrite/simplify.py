"""Simpler forms: what algebra makes of a derivative once the chain rule has written it down."""

from __future__ import annotations

from chainrule.ir.node import Node, apply
from chainrule.ops import build
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.contract import Contract, transpose
from chainrule.ops.max_pooling import MaxPool, Unpool
from chainrule.ops.source import Full, full
from chainrule.rewrite.canonical import is_size
from chainrule.rewrite.rule import Guard, Rules, See, recognize, rule


@recognize("sum", some=["one_hot"])
def sum_of_one_hot(node: Node, see: See) -> Node | None:
    """Given the sum of a one-hot code over its classes, 1."""
    (x,) = node.inputs
    if see(x, "one_hot") and isinstance(node.op, Sum) and node.op.axes == (x.type.rank - 1,):
        return full(1, node.type.dtype, node.type.shape)
    return None


@recognize("sum", some=["div", "mul"])
def sum_of_scaled(node: Node, see: See) -> Node | None:
    """Given the sum of x * c or x / c with c the same along the axes summed, sum(x) * c or / c."""
    (x,) = node.inputs
    assert isinstance(node.op, Sum)
    for name in ("mul", "div"):
        operands = see(x, name)
        if not operands:
            continue
        for a, c in (operands, operands[::-1]) if name == "mul" else (operands,):
            outer = _without_axes(c, node.op.axes, see)
            if outer is not None and see(a, "one_hot"):
                return build.call(name, apply(node.op, a), outer)
    return None


def _without_axes(c: Node, axes: tuple[int, ...], see: See) -> Node | None:
    """`c` with axes dropped along which it only repeats, or None."""
    if not see(c, "expand") or not isinstance(c.op, Expand) or not set(axes) <= set(c.op.axes):
        return None
    kept = [i for i in range(c.type.rank) if i not in axes]
    shape = tuple(c.type.shape[i] for i in kept)
    return build.expand(c.inputs[0], shape, tuple(kept.index(a) for a in c.op.axes if a in kept))


@recognize("mul", some=["div"])
def common_factor(node: Node, see: See) -> Node | None:
    """Given x / (y * c) * c for a number c, also where the divisor repeats, x / y."""
    quotient, number = see(node.inputs[0], "div"), node.inputs[1]
    if not quotient or not is_size(number):
        return None
    x, divisor = quotient
    view = see(divisor, "expand")
    factors = see(view[0] if view else divisor, "mul")
    if not factors or not isinstance(number.op, Full) or not isinstance(factors[1].op, Full):
        return None
    if factors[1].op.data != number.op.data:
        return None
    return build.call("div", x, apply(divisor.op, factors[0]) if view else factors[0])


@recognize("where", some=["full"])
def known_choice(node: Node, see: See) -> Node | None:
    """Given a choice by a condition that is known, the branch it takes."""
    condition, x, y = node.inputs
    if not isinstance(condition.op, Full):
        return None
    return x if condition.op.value else y


@recognize("where", some=["unpool"])
def choice_before_unpool(node: Node, see: See) -> Node | None:
    """Given where(x <= 0, 0, unpool(y, x)), unpool(where(max_pool(x) <= 0, 0, y), x).

    What is largest in a window stands where something is put; elsewhere there is 0 anyway.
    """
    condition, zero, unpooled = node.inputs
    below, pair, op = see(condition, "le"), see(unpooled, "unpool"), unpooled.op
    if not below or not pair or not isinstance(op, Unpool) or below[0] is not pair[1]:
        return None
    if not _is_zero(zero) or not _is_zero(below[1]):
        return None
    y, x = pair
    largest = apply(MaxPool(op.sizes, op.strides, op.padding), x)
    none = full(0, y.type.dtype, y.type.shape)
    outside = build.call("le", largest, full(0, x.type.dtype, y.type.shape))
    return apply(op, build.call("where", outside, none, y), x)


def _is_zero(node: Node) -> bool:
    return isinstance(node.op, Full) and node.op.value == 0


@recognize("contract", some=["full"])
def product_with_number(node: Node, see: See) -> Node | None:
    """Given a product of sums with one number everywhere, the number times the sum of the other."""
    assert isinstance(node.op, Contract)
    x, y = node.inputs
    letters = node.op.b
    if isinstance(y.op, Full):
        x, y, letters = y, x, node.op.a
    if not isinstance(x.op, Full) or isinstance(y.op, Full) or not is_size(x):
        return None
    out = node.op.out
    total = apply(Sum(tuple(i for i, c in enumerate(letters) if c not in out)), y)
    kept = [c for c in letters if c in out]
    total = transpose(total, [kept.index(c) for c in out if c in kept])
    if x.op.value != 1:
        total = build.call("mul", total, apply(Full(x.op.data, x.op.dtype, ())))
    away = tuple(i for i, c in enumerate(out) if c not in kept)
    return build.expand(total, node.type.shape, away)


def _are_numbers(*names: str) -> Guard:
    return lambda bound: all(isinstance(bound[name].op, Full) for name in names)


SIMPLIFY = Rules(
    [
        # these two lose a dependence, and so must not come before a derivative
        rule("power_zero", "x ** 0", "1"),
        known_choice,
        choice_before_unpool,
        sum_of_one_hot,
        sum_of_scaled,
        common_factor,
        product_with_number,
        rule("negative_sum", "-x + y", "y - x"),
        rule("like_terms", "x * c + x", "x * (c + 1)", when=_are_numbers("c")),
        rule("like_scaled_terms", "x * c + x * d", "x * (c + d)", when=_are_numbers("c", "d")),
        rule("common_divisor", "x / c - y / c", "(x - y) / c", when=lambda b: is_size(b["c"])),
        rule("common_divisor_sum", "x / c + y / c", "(x + y) / c", when=lambda b: is_size(b["c"])),
        # what is lost is no input's NaN or infinity, only what inf - inf makes of two of them
        rule("factor_of_difference", "x * z - y * z", "(x - y) * z"),
        rule("factor_over_size", "(x / c) * y", "(x * y) / c", when=lambda b: is_size(b["c"])),
    ]
)
