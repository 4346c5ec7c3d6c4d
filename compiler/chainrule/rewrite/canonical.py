"""Canonical forms: one spelling for what can be spelled in several ways.

Numbers stand right, signs move outward, powers become products and roots, views merge and move
outward through elementwise ops, products read through transposes.
"""

from __future__ import annotations

from fractions import Fraction

from chainrule.ir.evaluate import meaning
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Shape, product
from chainrule.ops import build
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.contract import Contract, contract
from chainrule.ops.elementwise import TABLE
from chainrule.ops.layout import Permute, Reshape
from chainrule.ops.source import Full, SizeOf, constant, full, size_of
from chainrule.rewrite.rule import COMMUTATIVE, Bindings, Rules, See, recognize, rule


def is_moderate(value: float) -> bool:
    """Whether scaling by a number later instead of sooner is safe from overflow and underflow."""
    return 2.0**-32 <= abs(value) <= 2.0**32


def _of_floats(at: Bindings) -> bool:
    """Whether x is made of floats: an integer's power has no other form."""
    return bool(at["x"].dtype.is_float)


def _mergeable(b: Bindings) -> bool:
    c, d = b["c"].op, b["d"].op
    if not (isinstance(c, Full) and isinstance(d, Full)):
        return False
    return c.dtype.is_integer or is_moderate(c.value * d.value)


def _divides(b: Bindings) -> bool:
    """Whether c / d is a number without rounding, and c and d are numbers."""
    c, d = b["c"].op, b["d"].op
    if not (isinstance(c, Full) and isinstance(d, Full) and c.dtype.is_float and d.value):
        return False
    quotient = float(meaning(TABLE["div"], c.scalar, d.scalar))
    return is_moderate(quotient) and Fraction(quotient) * Fraction(d.value) == c.value


def _below_zero(b: Bindings) -> bool:
    """Whether c is a number below 0."""
    return isinstance(b["c"].op, Full) and b["c"].op.value < 0


@recognize("cast", *(name for name in TABLE if name != "stop_gradient"), only=["full"])
def fold_numbers(node: Node, see: See) -> Node | None:
    """Given an elementwise op of numbers, the number it is; also of a number's other type."""
    numbers = [i.op.scalar for i in node.inputs if isinstance(i.op, Full)]
    if len(numbers) < len(node.inputs):
        return None
    value = meaning(node.op, *numbers).astype(node.type.dtype.numpy)
    return apply(Full(value.tobytes(), node.type.dtype, node.type.shape))


@recognize(*sorted(COMMUTATIVE), some=["full"])
def number_to_the_right(node: Node, see: See) -> Node | None:
    """Given `2 * x`, `x * 2`."""
    x, y = node.inputs
    if isinstance(x.op, Full) and not isinstance(y.op, Full):
        return apply(node.op, y, x)
    return None


@recognize("mul", some=["mul"])
def number_outward(node: Node, see: See) -> Node | None:
    """Given `(x * 2) * y`, `(x * y) * 2`; given `(x * 2) * 3`, `x * 6`."""
    for scaled, y in (node.inputs, node.inputs[::-1]):
        factors = see(scaled, "mul")
        if not factors or not isinstance(factors[1].op, Full):
            continue
        (x, c), number = factors, factors[1].op
        if isinstance(y.op, Full):
            merged = build.call("mul", c, y)
            return build.call("mul", x, merged) if _mergeable({"c": c, "d": y}) else None
        stuck = x.op.name == "mul" and isinstance(x.inputs[1].op, Full)  # it did not merge there
        if not stuck and (c.dtype.is_integer or is_moderate(number.value)):
            return build.call("mul", build.call("mul", x, y), c)
    return None


@recognize("permute")
def merge_permutes(node: Node, see: See) -> Node | None:
    """Given a permutation of a permutation, one; given one that moves nothing, its operand."""
    (x,) = node.inputs
    assert isinstance(node.op, Permute)
    if node.op.perm == tuple(range(len(node.op.perm))):
        return x
    if see(x, "permute") and isinstance(x.op, Permute):
        return apply(Permute(tuple(x.op.perm[p] for p in node.op.perm)), x.inputs[0])
    return None


@recognize("reshape")
def merge_reshapes(node: Node, see: See) -> Node | None:
    """Given a reshape of a reshape, the last; given one to the same shape, its operand."""
    (x,) = node.inputs
    if x.type.shape == node.type.shape:
        return x
    if see(x, "reshape"):
        return apply(node.op, x.inputs[0])
    if isinstance(x.op, Full):
        return apply(Full(x.op.data, x.op.dtype, node.type.shape))
    return None


@recognize("reshape")
def reshape_of_expand(node: Node, see: See) -> Node | None:
    """Given a reshape that only drops or adds axes of size 1 of an expand, the expand so shaped.

    Also any reshape of a scalar repeated.
    """
    (x,) = node.inputs
    if not see(x, "expand") or not isinstance(x.op, Expand):
        return None
    if not x.inputs[0].type.rank:
        return build.expand(x.inputs[0], node.type.shape, tuple(range(node.type.rank)))
    long = [i for i, d in enumerate(x.type.shape) if d != 1]
    if [x.type.shape[i] for i in long] != [d for d in node.type.shape if d != 1]:
        return None
    places = [i for i, d in enumerate(node.type.shape) if d != 1]
    inner = [d for d in x.inputs[0].type.shape if d != 1]
    kept = [p for i, p in zip(long, places, strict=True) if i not in x.op.axes]
    axes = tuple(i for i in range(node.type.rank) if i not in kept)
    base = x.inputs[0]
    if tuple(inner) != base.type.shape:
        base = apply(Reshape(tuple(inner)), base)
    return build.expand(base, node.type.shape, axes)


@recognize("expand", some=["expand", "full"])
def merge_expands(node: Node, see: See) -> Node | None:
    """Given an expand of an expand or of a number, one."""
    (x,) = node.inputs
    assert isinstance(node.op, Expand)
    if isinstance(x.op, Full):
        return apply(Full(x.op.data, x.op.dtype, node.type.shape))
    if see(x, "expand") and isinstance(x.op, Expand):
        kept = [i for i in range(node.type.rank) if i not in node.op.axes]
        inner = tuple(kept[a] for a in x.op.axes)
        return build.expand(x.inputs[0], node.type.shape, tuple(sorted(node.op.axes + inner)))
    return None


@recognize("expand", some=["neg"])
def negative_out_of_expand(node: Node, see: See) -> Node | None:
    """Given expand(-x), -expand(x)."""
    inner = see(node.inputs[0], "neg")
    return build.call("neg", apply(node.op, *inner)) if inner else None


@recognize(*(name for name in TABLE if name != "neg"), some=["expand"], only=["expand", "full"])
def elementwise_inside_expand(node: Node, see: See) -> Node | None:
    """Given f(expand(x), expand(y)) with axes in common, f of the narrower two expanded: once."""
    views = [i for i in node.inputs if not isinstance(i.op, Full)]
    if not views or not all(see(v, "expand") for v in views):
        return None
    each = [set(v.op.axes) for v in views if isinstance(v.op, Expand)]
    axes = tuple(sorted(set.intersection(*each)))
    if not axes:
        return None
    shape = tuple(d for i, d in enumerate(node.type.shape) if i not in axes)
    return build.expand(
        apply(node.op, *(_narrow(i, axes, shape) for i in node.inputs)), node.type.shape, axes
    )


def _narrow(node: Node, axes: tuple[int, ...], shape: Shape) -> Node:
    """A number, or a view that repeats along axes, without those axes."""
    if isinstance(node.op, Full):
        return apply(Full(node.op.data, node.op.dtype, shape))
    assert isinstance(node.op, Expand)
    kept = [i for i in range(node.type.rank) if i not in axes]
    rest = tuple(kept.index(a) for a in node.op.axes if a not in axes)
    return build.expand(node.inputs[0], shape, rest)


def _is_one(node: Node) -> bool:
    return isinstance(node.op, Full) and node.op.value == 1


@recognize("contract", some=["permute"])
def product_through_permute(node: Node, see: See) -> Node | None:
    """Given a product of a permuted operand, the product that names its axes so instead."""
    assert isinstance(node.op, Contract)
    letters, operands = [node.op.a, node.op.b], list(node.inputs)
    for i, operand in enumerate(operands):
        if see(operand, "permute") and isinstance(operand.op, Permute):
            back = {p: c for p, c in zip(operand.op.perm, letters[i], strict=True)}
            letters[i] = "".join(back[p] for p in range(len(back)))
            operands[i] = operand.inputs[0]
            (a, b), (x, y) = letters, operands
            return contract(a, b, node.op.out, x, y, parts=node.op.parts)
    return None


@recognize("sum")
def sum_of_expand(node: Node, see: See) -> Node | None:
    """Given a sum over axes along which the operand repeats, a product with their size."""
    (x,) = node.inputs
    assert isinstance(node.op, Sum)
    if not node.op.axes:
        return x
    if not see(x, "expand") or not isinstance(x.op, Expand):
        return None
    repeated = [a for a in node.op.axes if a in x.op.axes]
    if not repeated or any(x.type.shape[a] == 0 for a in repeated):  # NaN * 0 would be NaN
        return None
    wide = x.type.dtype.wide
    count = size_of(product(tuple(x.type.shape[a] for a in repeated)), wide)
    kept = [i for i in range(x.type.rank) if i not in repeated]
    shape = tuple(x.type.shape[i] for i in kept)
    smaller = build.expand(x.inputs[0], shape, tuple(kept.index(a) for a in x.op.axes if a in kept))
    total = build.cast(build.call("mul", build.cast(smaller, wide), count), x.type.dtype)
    rest = tuple(kept.index(a) for a in node.op.axes if a in kept)
    return apply(Sum(rest), total) if rest else total


@recognize("sum", some=["full"])
def sum_of_number(node: Node, see: See) -> Node | None:
    """Given the sum of one number over axes, the number times their size."""
    (x,) = node.inputs
    assert isinstance(node.op, Sum)
    if not isinstance(x.op, Full):
        return None
    wide = x.type.dtype.wide
    n = product(tuple(x.type.shape[a] for a in node.op.axes))
    if n == 0:
        return full(0, x.type.dtype, node.type.shape)
    count = size_of(n, wide)
    total = count if x.op.value == 1 else build.call("mul", count, x.op.value)
    return build.broadcast(build.cast(total, x.type.dtype), node.type.shape)


def is_size(node: Node) -> bool:
    """Whether a node is a size or a moderate number at every index: safe to divide by, or later."""
    if isinstance(node.op, Expand):
        node = node.inputs[0]
    if isinstance(node.op, Full):
        return is_moderate(node.op.value)
    return isinstance(node.op, SizeOf)


@recognize("mul", some=["div", "expand"])
def product_with_reciprocal(node: Node, see: See) -> Node | None:
    """Given x * (1/n), also where 1/n repeats, x / n."""
    for x, y in (node.inputs, node.inputs[::-1]):
        inverse = see(y, "expand")
        parts = see(inverse[0], "div") if inverse else see(y, "div")
        if not parts or not _is_one(parts[0]):
            continue
        divisor = apply(y.op, parts[1]) if inverse else parts[1]
        return build.call("div", x, divisor)
    return None


@recognize("constant")
def uniform_constant(node: Node, see: See) -> Node | None:
    """Given an array that holds one number, the number."""
    new = constant(node.op.ref())
    return new if isinstance(new.op, Full) and new.type == node.type else None


CANONICAL = Rules(
    [
        fold_numbers,
        uniform_constant,
        number_to_the_right,
        # signs
        rule("negative_twice", "-(-x)", "x"),
        rule("negative_twice_in_number", "-(x * c)", "x * -c", when=_below_zero),
        rule("times_minus_one", "x * -1", "-x"),
        rule("negative_factor", "-x * y", "-(x * y)"),
        rule("negative_numerator", "-x / y", "-(x / y)"),
        rule("negative_denominator", "x / -y", "-(x / y)"),
        rule("plus_negative", "x + -y", "x - y"),
        rule("minus_negative", "x - -y", "x + y"),
        rule("negative_minus", "-x - y", "-(x + y)"),
        rule("negative_difference", "-(x - y)", "y - x"),
        rule("zero_minus", "0 - x", "-x"),
        rule("tanh_is_odd", "tanh(-x)", "-tanh(x)"),
        rule("sin_is_odd", "sin(-x)", "-sin(x)"),
        rule("erf_is_odd", "erf(-x)", "-erf(x)"),
        rule("cos_is_even", "cos(-x)", "cos(x)"),
        rule("abs_is_even", "abs(-x)", "abs(x)"),
        rule("square_is_even", "square(-x)", "square(x)"),
        # neutral elements
        rule("plus_zero", "x + 0", "x"),
        rule("minus_zero", "x - 0", "x"),
        rule("times_one", "x * 1", "x"),
        rule("over_one", "x / 1", "x"),
        # numbers together
        number_outward,
        rule("number_over_number", "(x * c) / d", "x * (c / d)", when=_divides),
        rule("divide_twice", "(x / c) / d", "x / (c * d)", when=_mergeable),
        # powers
        rule("power_one", "x ** 1", "x"),
        rule("power_two", "x ** 2", "square(x)"),
        rule("power_three", "x ** 3", "x * square(x)"),
        rule("power_four", "x ** 4", "square(square(x))"),
        rule("power_of_two", "2 ** x", "exp2(x)", when=_of_floats),
        rule("power_half", "x ** 0.5", "sqrt(x)"),
        rule("power_minus_one", "x ** -1", "1 / x", when=_of_floats),
        rule("power_minus_half", "x ** -0.5", "1 / sqrt(x)"),
        rule("times_itself", "x * x", "square(x)"),
        rule("plus_itself", "x + x", "x * 2"),
        # choices
        rule("same_either_way", "where(c, x, x)", "x"),
        # views
        merge_permutes,
        merge_reshapes,
        reshape_of_expand,
        merge_expands,
        negative_out_of_expand,
        product_with_reciprocal,
        elementwise_inside_expand,
        product_through_permute,
        sum_of_expand,
        sum_of_number,
    ]
)
