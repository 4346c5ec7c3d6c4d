"""Sizes and numbers move outward: what a mean divides by is divided by once, and last.

The cotangent of a mean is 1/n, and the chain rule multiplies it into whatever stands below.
"""

from __future__ import annotations

from chainrule.ir.node import Node, apply
from chainrule.ops import build
from chainrule.ops.axes import Expand
from chainrule.ops.source import Full, SizeOf, full
from chainrule.rewrite.canonical import is_moderate, is_size
from chainrule.rewrite.rule import Rules, See, recognize, rule


def _over_size(node: Node, see: See) -> tuple[Node, Node] | None:
    """x and n where a node is x / n, or repeats one, for a size n."""
    view = see(node, "expand")
    parts = see(view[0] if view else node, "div")
    if not parts or not is_size(parts[1]):
        return None
    return (_like(node, parts[0]), _like(node, parts[1])) if view else (parts[0], parts[1])


def _like(view: Node, x: Node) -> Node:
    """`x` repeated as a view repeats."""
    if isinstance(x.op, Full):
        return apply(Full(x.op.data, x.op.dtype, view.type.shape))
    return apply(view.op, x)


def _same_size(x: Node, y: Node) -> bool:
    """Whether two divisors are one number, at whatever shapes."""
    x, y = (n.inputs[0] if isinstance(n.op, Expand) else n for n in (x, y))
    if isinstance(x.op, Full) and isinstance(y.op, Full):
        return x.op.data == y.op.data
    return x is y


def _is_zero(node: Node) -> bool:
    return isinstance(node.op, Full) and node.op.value == 0


@recognize("where")
def size_out_of_choice(node: Node, see: See) -> Node | None:
    """Given where(c, x / n, 0), where(c, x, 0) / n; also of two quotients by one size."""
    c, x, y = node.inputs
    above, below = _over_size(x, see), _over_size(y, see)
    if above and below and _same_size(above[1], below[1]):
        chosen = build.call("where", c, above[0], below[0])
        return build.call("div", chosen, above[1])
    if above and _is_zero(y):
        return build.call("div", build.call("where", c, above[0], y), above[1])
    if below and _is_zero(x):
        return build.call("div", build.call("where", c, x, below[0]), below[1])
    return None


@recognize("where")
def sign_out_of_choice(node: Node, see: See) -> Node | None:
    """Given where(c, -x, 0), -where(c, x, 0)."""
    c, x, y = node.inputs
    above, below = see(x, "neg"), see(y, "neg")
    if above and _is_zero(y):
        return build.call("neg", build.call("where", c, *above, y))
    if below and _is_zero(x):
        return build.call("neg", build.call("where", c, x, *below))
    return None


@recognize("div")
def size_out_of_numerator(node: Node, see: See) -> Node | None:
    """Given (x / n) / y, (x / y) / n."""
    x, y = node.inputs
    parts = _over_size(x, see)
    if not parts or is_size(y):
        return None
    return build.call("div", build.call("div", parts[0], y), parts[1])


@recognize("mul", some=["expand"])
def size_out_of_expand(node: Node, see: See) -> Node | None:
    """Given x * expand(y / n), (x * expand(y)) / n."""
    for x, y in (node.inputs, node.inputs[::-1]):
        parts = _over_size(y, see) if see(y, "expand") else None
        if parts and not isinstance(x.op, Full) and not see(x, "expand"):
            return build.call("div", build.call("mul", x, parts[0]), parts[1])
    return None


@recognize("sub", "add", some=["div", "expand"])
def common_divisor_through_sum(node: Node, see: See) -> Node | None:
    """Given x / n - p * sum(y / n), with the sum repeated, (x - p * sum(y)) / n; so of a mean."""
    for flip in (False, True):
        a, b = node.inputs[::-1] if flip else node.inputs
        parts = _over_size(a, see)
        other = _without_size(b, parts[1], see) if parts else None
        if parts and other:
            pair = (other, parts[0]) if flip else (parts[0], other)
            return build.call("div", build.call(str(node.op.name), *pair), parts[1])
    return None


def _without_size(node: Node, size: Node, see: See) -> Node | None:
    """`n * node` where a node is a sum or mean of what is divided by a size n, or is a product with
    one.
    """
    factors = see(node, "mul")
    for p, total in (factors, factors[::-1]) if factors else ():
        found = _without_size(total, size, see) if see(total, "expand") else None
        if found:
            return build.call("mul", p, found)
    view = see(node, "expand")
    if not view:
        return None
    inside = see(view[0], "sum") or see(view[0], "mean")
    parts = _over_size(inside[0], see) if inside else None
    if not parts or not _same_size(parts[1], size):
        return None
    return apply(node.op, apply(view[0].op, parts[0]))


@recognize("expand")
def sign_out_of_sum(node: Node, see: See) -> Node | None:
    """Given expand(sum(-x)), -expand(sum(x)); so of a mean."""
    (total,) = node.inputs
    for fold in ("sum", "mean"):
        inside = see(total, fold)
        negative = see(inside[0], "neg") if inside else None
        if negative:
            return build.call("neg", apply(node.op, apply(total.op, *negative)))
    return None


@recognize("div")
def size_over_itself(node: Node, see: See) -> Node | None:
    """Given n / n or (n * c) / n for a size n, 1 or c."""
    x, n = node.inputs
    if not isinstance(n.op, SizeOf):
        return None
    if x is n:
        return full(1, node.dtype, node.shape)
    factors = see(x, "mul") or ()
    rest = [f for f in factors if f is not n]
    return rest[0] if len(factors) == 2 and len(rest) == 1 else None


@recognize("mul", some=["div"])
def number_out_of_numerator(node: Node, see: See) -> Node | None:
    """Given x * (c / y) for a moderate number c, (x / y) * c."""
    for x, y in (node.inputs, node.inputs[::-1]):
        parts = see(y, "div")
        c = parts[0].op if parts else None
        if parts and isinstance(c, Full) and is_moderate(c.value) and not isinstance(x.op, Full):
            return build.call("mul", build.call("div", x, parts[1]), parts[0])
    return None


@recognize("div")
def sign_out_of_numerator(node: Node, see: See) -> Node | None:
    """Given -c / y for a number c above 0, -(c / y)."""
    x, y = node.inputs
    if not isinstance(x.op, Full) or not x.op.value < 0 or isinstance(y.op, Full):
        return None
    return build.call("neg", build.call("div", full(-x.op.value, node.dtype, node.shape), y))


OUTWARD = Rules(
    [
        sign_out_of_numerator,
        sign_out_of_sum,
        size_over_itself,
        number_out_of_numerator,
        sign_out_of_choice,
        size_out_of_choice,
        size_out_of_numerator,
        size_out_of_expand,
        common_divisor_through_sum,
        rule("choices_meet", "where(c, x, 0) + where(c, 0, y)", "where(c, x, y)"),
    ]
)
