"""Stable forms: a naive formula becomes the one that neither overflows nor cancels.

Each right side is equal to its left side in exact arithmetic wherever the left side is defined.
"""

from __future__ import annotations

from chainrule.ir.node import Node, apply
from chainrule.ops import build
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.composite import LogSoftmax, LogSumExp, Softmax
from chainrule.ops.reduce import Max
from chainrule.rewrite.rule import Rules, See, recognize, rule


def _total_along(node: Node, see: See) -> tuple[Node, int] | None:
    """`(x, axis)` where the node is sum(x, axis, keepdims=True), repeated along the axis."""
    view = see(node, "expand")
    if not view or not isinstance(node.op, Expand) or len(node.op.axes) != 1:
        return None
    total, axes = view[0], node.op.axes
    if not see(total, "sum") or not isinstance(total.op, Sum) or total.op.axes != axes:
        return None
    return (total.inputs[0], axes[0]) if total.inputs[0].type == node.type else None


@recognize("div")
def exp_over_its_sum(node: Node, see: See) -> Node | None:
    """Given exp(x) / sum(exp(x)), softmax(x)."""
    e, divisor = node.inputs
    total, x = _total_along(divisor, see), see(e, "exp")
    if not x or total is None or total[0] is not e:
        return None
    return apply(Softmax(total[1]), x[0])


@recognize("log")
def log_of_softmax(node: Node, see: See) -> Node | None:
    """Given log(softmax(x)), log_softmax(x)."""
    (p,) = node.inputs
    x = see(p, "softmax")
    return apply(LogSoftmax(p.op.axis), x[0]) if x and isinstance(p.op, Softmax) else None


@recognize("exp")
def exp_of_log_softmax(node: Node, see: See) -> Node | None:
    """Given exp(log_softmax(x)), softmax(x)."""
    (p,) = node.inputs
    x = see(p, "log_softmax")
    return apply(Softmax(p.op.axis), x[0]) if x and isinstance(p.op, LogSoftmax) else None


@recognize("log")
def log_of_sum_of_exp(node: Node, see: See) -> Node | None:
    """Given log(sum(exp(x))) along one axis, logsumexp(x)."""
    (total,) = node.inputs
    e = see(total, "sum")
    x = see(e[0], "exp") if e else None
    if not x or not isinstance(total.op, Sum) or len(total.op.axes) != 1:
        return None
    return apply(LogSumExp(total.op.axes[0]), x[0])


@recognize("sub")
def less_its_logsumexp(node: Node, see: See) -> Node | None:
    """Given x - logsumexp(x), repeated along the axis, log_softmax(x)."""
    x, view = node.inputs
    inner = see(view, "expand")
    z = see(inner[0], "logsumexp") if inner else None
    if not z or z[0] is not x or not isinstance(view.op, Expand) or not isinstance(inner, tuple):
        return None
    op = inner[0].op
    if not isinstance(op, LogSumExp) or view.op.axes != (op.axis,):
        return None
    return apply(LogSoftmax(op.axis), x)


def _unshifted(node: Node, axis: int, see: See) -> tuple[Node, Node] | None:
    """`(x, top)` where the node is x - top, the maximum of x along the axis repeated along it."""
    difference = see(node, "sub")
    view = see(difference[1], "expand") if difference else None
    if not difference or not view or not isinstance(difference[1].op, Expand):
        return None
    x, top = difference[0], view[0]
    barrier = see(top, "stop_gradient")
    largest = barrier[0] if barrier else top
    if largest.op != Max((axis,)) or largest.inputs[0] is not x or not see(largest, "max"):
        return None
    return (x, top) if difference[1].op.axes == (axis,) else None


@recognize("softmax", "log_softmax")
def softmax_of_shifted(node: Node, see: See) -> Node | None:
    """Given softmax(x - max(x)), softmax(x), which takes the maximum off itself."""
    assert isinstance(node.op, (Softmax, LogSoftmax))
    shifted = _unshifted(node.inputs[0], node.op.axis, see)
    return apply(node.op, shifted[0]) if shifted else None


@recognize("add")
def shifted_logsumexp(node: Node, see: See) -> Node | None:
    """Given max(x) + logsumexp(x - max(x)), logsumexp(x)."""
    for top, z in (node.inputs, node.inputs[::-1]):
        inner = see(z, "logsumexp")
        if inner and isinstance(z.op, LogSumExp):
            shifted = _unshifted(inner[0], z.op.axis, see)
            if shifted and shifted[1] is top:
                return apply(z.op, shifted[0])
    return None


@recognize("log")
def log_through_expand(node: Node, see: See) -> Node | None:
    """Given log(expand(x)), expand(log(x)), so that the rules for log see x."""
    (view,) = node.inputs
    x = see(view, "expand")
    if not x or not isinstance(view.op, Expand):
        return None
    return build.expand(build.call("log", x[0]), view.type.shape, view.op.axes)


STABILITY = Rules(
    [
        # logistic
        rule("sigmoid", "1 / (1 + exp(-x))", "sigmoid(x)"),
        rule("sigmoid_negative", "1 / (1 + exp(x))", "sigmoid(-x)"),
        rule("sigmoid_ratio", "exp(x) / (1 + exp(x))", "sigmoid(x)"),
        rule("sigmoid_scaled_ratio", "(y * exp(x)) / (1 + exp(x))", "y * sigmoid(x)"),
        rule("sigmoid_of_difference", "exp(x) / (exp(x) + exp(y))", "sigmoid(x - y)"),
        rule("tanh_of_half", "expm1(x) / (1 + exp(x))", "tanh(x * 0.5)"),
        rule("over_one_plus_exp", "y / (1 + exp(x))", "y * sigmoid(-x)"),
        rule("exp_times_sigmoid", "exp(x) * sigmoid(-x)", "sigmoid(x)"),
        rule("sigmoid_times_exp", "exp(-x) * sigmoid(x)", "sigmoid(-x)"),
        rule("one_minus_sigmoid_ratio", "1 - sigmoid(-x)", "sigmoid(x)"),
        rule("log_sigmoid", "log(sigmoid(x))", "log_sigmoid(x)"),
        rule("log_one_minus_sigmoid", "log(1 - sigmoid(x))", "log_sigmoid(-x)"),
        rule("log1p_minus_sigmoid", "log1p(-sigmoid(x))", "log_sigmoid(-x)"),
        rule("exp_log_sigmoid", "exp(log_sigmoid(x))", "sigmoid(x)"),
        rule("exp_minus_softplus", "exp(-softplus(x))", "sigmoid(-x)"),
        # softplus
        rule("softplus", "log(1 + exp(x))", "softplus(x)"),
        rule("softplus_log1p", "log1p(exp(x))", "softplus(x)"),
        rule("minus_softplus", "-softplus(-x)", "log_sigmoid(x)"),
        rule("minus_log_sigmoid", "-log_sigmoid(x)", "softplus(-x)"),
        rule("less_softplus", "x - softplus(x)", "log_sigmoid(x)"),
        rule("softplus_less", "softplus(x) - x", "softplus(-x)"),
        rule("log_sum_of_two_exp", "log(exp(x) + exp(y))", "x + softplus(y - x)"),
        # hyperbolic tangent
        rule("tanh", "(exp(x) - exp(-x)) / (exp(x) + exp(-x))", "tanh(x)"),
        # roots and squares
        rule("root_of_square", "sqrt(square(x))", "abs(x)"),
        rule("root_of_product", "sqrt(x * x)", "abs(x)"),
        rule("log_of_square", "log(square(x))", "2 * log(abs(x))"),
        # exp and log
        rule("log_of_exp", "log(exp(x))", "x"),
        rule("log_scaled_exp", "log(exp(x) * y)", "x + log(y)"),
        rule("exp_product", "exp(x) * exp(y)", "exp(x + y)"),
        rule("exp_ratio", "exp(x) / exp(y)", "exp(x - y)"),
        rule("exp_reciprocal", "1 / exp(x)", "exp(-x)"),
        rule("over_exp", "x / exp(y)", "x * exp(-y)"),
        rule("expm1", "exp(x) - 1", "expm1(x)"),
        rule("one_minus_exp", "1 - exp(x)", "-expm1(x)"),
        rule("log_of_reciprocal", "log(1 / x)", "-log(x)"),
        # softmax and its kin
        exp_over_its_sum,
        log_of_softmax,
        exp_of_log_softmax,
        log_of_sum_of_exp,
        less_its_logsumexp,
        softmax_of_shifted,
        shifted_logsumexp,
        log_through_expand,
        rule("log1p", "log(1 + x)", "log1p(x)"),
    ]
)
