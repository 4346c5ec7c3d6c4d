"""Stable forms: a naive formula becomes the one that neither overflows nor cancels.

Each right side is equal to its left side in exact arithmetic wherever the left side is defined.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from chainrule.ir.node import Node
from chainrule.ops.source import Full
from chainrule.rewrite.exponentials import EXPONENTIALS
from chainrule.rewrite.guards import above, behind, finite, is_above
from chainrule.rewrite.rule import Rule, Rules, rule

_LN2 = "0.6931471805599453"


def _is_one(node: Node) -> bool:
    return isinstance(node.op, Full) and node.op.value == 1


_TOP, _FIXED = "max(x)", "stop_gradient(max(x))"
_LOG_RATIO = "log_softmax(x) - log_softmax(y)"
_SCALED, _DIVIDED = "logaddexp(x, y) + log(c)", "logaddexp(x, y) - log(c)"
_SLOPE = "sigmoid(x) * sigmoid(-x)"
_LOG_COMPLEMENT = f"({_LN2} - logaddexp(x, -x)) * 2"


def _other_bases(*operands: str) -> Iterator[Rule]:
    """Logarithms to base 2 and 10 of what the natural logarithm has a stable form for."""
    for name, scale in (("log2", math.log(2)), ("log10", math.log(10))):
        for i, of in enumerate(operands):
            yield rule(f"{name}_{i + 1}", f"{name}({of})", f"log({of}) * {1 / scale!r}")


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
        rule("over_square_of_one_plus_exp", "y / square(1 + exp(x))", "y * square(sigmoid(-x))"),
        rule("exp_times_square_sigmoid", "exp(x) * square(sigmoid(-x))", _SLOPE),
        rule("square_sigmoid_times_exp", "exp(-x) * square(sigmoid(x))", _SLOPE),
        rule(
            "power_of_one_plus_exp", "(1 + exp(x)) ** c", "exp(softplus(x) * c)", when=finite("c")
        ),
        rule(
            "sigmoid_with_number", "exp(x) / (exp(x) + c)", "sigmoid(x - log(c))", when=above("c")
        ),
        rule(
            "over_exp_plus_number",
            "y / (exp(x) + c)",
            "y * (sigmoid(log(c) - x) / c)",
            when=lambda b: above("c")(b) and not _is_one(b["c"]),
        ),
        rule(
            "over_scaled_exp_plus_one",
            "y / (exp(x) * c + 1)",
            "y * sigmoid(-(x + log(c)))",
            when=above("c"),
        ),
        rule("exp_times_sigmoid", "exp(x) * sigmoid(-x)", "sigmoid(x)"),
        rule("sigmoid_times_exp", "exp(-x) * sigmoid(x)", "sigmoid(-x)"),
        rule("one_minus_sigmoid_ratio", "1 - sigmoid(-x)", "sigmoid(x)"),
        rule("log_sigmoid", "log(sigmoid(x))", "log_sigmoid(x)"),
        rule("log_one_minus_sigmoid", "log(1 - sigmoid(x))", "log_sigmoid(-x)"),
        rule("log1p_minus_sigmoid", "log1p(-sigmoid(x))", "log_sigmoid(-x)"),
        rule(
            "log_power_of_sigmoid", "log(sigmoid(x) ** c)", "log_sigmoid(x) * c", when=finite("c")
        ),
        rule("odds", "sigmoid(x) / (1 - sigmoid(x))", "exp(x)"),
        rule("over_sigmoid", "1 / sigmoid(x)", "1 + exp(-x)"),
        rule("over_one_minus_sigmoid", "y / (1 - sigmoid(x))", "y * (1 + exp(x))"),
        rule("exp_log_sigmoid", "exp(log_sigmoid(x))", "sigmoid(x)"),
        rule("exp_minus_softplus", "exp(-softplus(x))", "sigmoid(-x)"),
        rule("sigmoid_base_2", "exp2(x) / (1 + exp2(x))", f"sigmoid(x * {_LN2})"),
        rule("over_one_plus_exp2", "y / (1 + exp2(x))", f"y * sigmoid(x * -{_LN2})"),
        # softplus
        rule("softplus_base_2", "log(1 + exp2(x))", f"softplus(x * {_LN2})"),
        rule("log2_of_softplus_base_2", "log2(1 + exp2(x))", f"softplus(x * {_LN2}) / {_LN2}"),
        rule("softplus", "log(1 + exp(x))", "softplus(x)"),
        rule("softplus_log1p", "log1p(exp(x))", "softplus(x)"),
        rule("minus_softplus", "-softplus(-x)", "log_sigmoid(x)"),
        rule("minus_log_sigmoid", "-log_sigmoid(x)", "softplus(-x)"),
        rule("less_softplus", "x - softplus(x)", "log_sigmoid(x)"),
        rule("softplus_less", "softplus(x) - x", "softplus(-x)"),
        rule("log_sum_of_two_exp", "log(exp(x) + exp(y))", "logaddexp(x, y)"),
        rule(
            "log_sum_of_three_exp",
            "log(exp(x) + exp(y) + exp(z))",
            "logaddexp(logaddexp(x, y), z)",
        ),
        rule("log_sum_with_number", "log(exp(x) + c)", "logaddexp(x, log(c))", when=above("c")),
        rule("log_sum_of_scaled", "log(exp(x) * c + 1)", "softplus(x + log(c))", when=above("c")),
        rule(
            "log_sum_of_two_scaled",
            "log(exp(x) * c + exp(y) * d)",
            "logaddexp(x + log(c), y + log(d))",
            when=above("c", "d"),
        ),
        rule(
            "log_sum_of_two_and_number",
            "log(exp(x) + exp(y) + c)",
            "logaddexp(logaddexp(x, y), log(c))",
            when=above("c"),
        ),
        rule(
            "log_sum_of_two_around_number",
            "log(exp(x) + c + exp(y))",
            "logaddexp(logaddexp(x, log(c)), y)",
            when=above("c"),
        ),
        rule("log_scaled_sum", "log((exp(x) + exp(y)) * c)", _SCALED, when=above("c")),
        rule("log_divided_sum", "log((exp(x) + exp(y)) / c)", _DIVIDED, when=above("c")),
        rule("softplus_of_parts", "maximum(x, 0) + softplus(-abs(x))", "softplus(x)"),
        rule("softplus_of_relu", "relu(x) + softplus(-abs(x))", "softplus(x)"),
        rule("softplus_of_parts_less", "maximum(x, 0) - y + softplus(-abs(x))", "softplus(x) - y"),
        rule("softplus_of_relu_less", "relu(x) - y + softplus(-abs(x))", "softplus(x) - y"),
        rule("log_cosh_of_parts", "abs(x) + softplus(abs(x) * -2)", "logaddexp(x, -x)"),
        rule("log_odds", "log(sigmoid(x) / (1 - sigmoid(x)))", "x"),
        rule("log_odds_apart", "log_sigmoid(x) - log_sigmoid(-x)", "x"),
        rule("log_scaled_sigmoid", "log(sigmoid(x) * y)", "log_sigmoid(x) + log(y)"),
        rule("log_of_sigmoid_over", "log(sigmoid(x) / y)", "log_sigmoid(x) - log(y)"),
        # hyperbolic tangent
        rule("tanh", "(exp(x) - exp(-x)) / (exp(x) + exp(-x))", "tanh(x)"),
        rule("tanh_of_difference", "(exp(x) - exp(y)) / (exp(x) + exp(y))", "tanh((x - y) * 0.5)"),
        rule("log_one_plus_tanh", "log(1 + tanh(x))", f"log_sigmoid(x * 2) + {_LN2}"),
        rule("log_one_minus_tanh", "log(1 - tanh(x))", f"log_sigmoid(x * -2) + {_LN2}"),
        rule(
            "log_scaled_one_plus_tanh",
            "log((1 + tanh(x)) * c)",
            "log_sigmoid(x * 2) + log(c * 2)",
            when=above("c"),
        ),
        rule(
            "log_divided_one_plus_tanh",
            "log((1 + tanh(x)) / c)",
            "log_sigmoid(x * 2) + log(2 / c)",
            when=above("c"),
        ),
        rule("log1p_tanh", "log1p(tanh(x))", f"log_sigmoid(x * 2) + {_LN2}"),
        rule("log1p_minus_tanh", "log1p(-tanh(x))", f"log_sigmoid(x * -2) + {_LN2}"),
        rule("log_half_tanh", "log(tanh(x) * c + c)", "log((1 + tanh(x)) * c)", when=above("c")),
        rule("log_half_less", "log(c - tanh(x) * c)", "log((1 - tanh(x)) * c)", when=above("c")),
        rule(
            "log_scaled_one_minus_tanh",
            "log((1 - tanh(x)) * c)",
            "log_sigmoid(x * -2) + log(c * 2)",
            when=above("c"),
        ),
        rule(
            "log_divided_one_minus_tanh",
            "log((1 - tanh(x)) / c)",
            "log_sigmoid(x * -2) + log(2 / c)",
            when=above("c"),
        ),
        rule("atanh_of_tanh", "atanh(tanh(x))", "x"),
        rule("asinh", "log(x + sqrt(square(x) + 1))", "asinh(x)"),
        rule("acosh", "log(x + sqrt(square(x) - 1))", "acosh(x)"),
        rule("tanh_of_sinh", "sinh(x) / cosh(x)", "tanh(x)"),
        rule("log_of_cosh", "log(cosh(x))", f"logaddexp(x, -x) - {_LN2}"),
        rule("over_cosh", "y / cosh(x)", "y * (exp(-logaddexp(x, -x)) * 2)"),
        rule("log_one_minus_square_tanh", "log(1 - square(tanh(x)))", _LOG_COMPLEMENT),
        rule("log1p_minus_square_tanh", "log1p(-square(tanh(x)))", _LOG_COMPLEMENT),
        rule("over_square_cosh", "y / square(cosh(x))", "y * square(exp(-logaddexp(x, -x)) * 2)"),
        # roots and squares
        rule("one_minus_cos", "1 - cos(x)", "square(sin(x * 0.5)) * 2"),
        rule("abs_of_square", "abs(square(x))", "square(x)"),
        rule("abs_of_exp", "abs(exp(x))", "exp(x)"),
        rule("abs_of_sigmoid", "abs(sigmoid(x))", "sigmoid(x)"),
        rule("abs_of_softmax", "abs(softmax(x))", "softmax(x)"),
        rule("root_of_sigmoid", "sqrt(sigmoid(x))", "exp(log_sigmoid(x) * 0.5)"),
        rule("root_of_softmax", "sqrt(softmax(x))", "exp(log_softmax(x) * 0.5)"),
        rule("root_of_one_plus_exp", "sqrt(1 + exp(x))", "exp(softplus(x) * 0.5)"),
        rule("root_of_exp", "sqrt(exp(x))", "exp(x * 0.5)"),
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
        rule("power_of_exp", "exp(x) ** c", "exp(x * c)", when=finite("c")),
        rule("square_of_exp", "square(exp(x))", "exp(x * 2)"),
        rule("expm1", "exp(x) - 1", "expm1(x)"),
        rule("one_minus_exp", "1 - exp(x)", "-expm1(x)"),
        rule("log_of_reciprocal", "log(1 / x)", "-log(x)"),
        rule("log_of_exp_over", "log(exp(x) / y)", "x - log(y)"),
        rule("log_of_exp_less_one", "log(expm1(x))", "x + log(-expm1(-x))"),
        rule("x_log_x", "x * log(x)", "xlogy(x, x)"),
        # softmax and its kin
        rule("exp_over_its_sum", "exp(x) / repeat(sum(exp(x)))", "softmax(x)"),
        rule("log_of_softmax", "log(softmax(x))", "log_softmax(x)"),
        rule("exp_of_log_softmax", "exp(log_softmax(x))", "softmax(x)"),
        rule("log_of_sum_of_exp", "log(sum(exp(x)))", "logsumexp(x)"),
        rule(
            "log_of_sum_and_number",
            "log(sum(exp(x)) + c)",
            "logaddexp(logsumexp(x), log(c))",
            when=above("c"),
        ),
        rule("log_of_sum_and_exp", "log(sum(exp(x)) + exp(y))", "logaddexp(logsumexp(x), y)"),
        rule(
            "softmax_with_number",
            "exp(x) / repeat(sum(exp(x)) + c)",
            "exp(x - repeat(logaddexp(logsumexp(x), log(c))))",
            when=above("c"),
        ),
        rule("log_of_mean_of_exp", "log(sum(exp(x)) / n)", "logsumexp(x) - log(n)"),
        rule("less_its_logsumexp", "x - repeat(logsumexp(x))", "log_softmax(x)"),
        rule("softmax_of_shifted", f"softmax(x - repeat({_TOP}))", "softmax(x)"),
        rule("softmax_of_shifted_fixed", f"softmax(x - repeat({_FIXED}))", "softmax(x)"),
        rule("log_softmax_of_shifted", f"log_softmax(x - repeat({_TOP}))", "log_softmax(x)"),
        rule(
            "log_softmax_of_shifted_fixed", f"log_softmax(x - repeat({_FIXED}))", "log_softmax(x)"
        ),
        rule("shifted_logsumexp", f"{_TOP} + logsumexp(x - repeat({_TOP}))", "logsumexp(x)"),
        rule(
            "shifted_logsumexp_fixed",
            f"{_FIXED} + logsumexp(x - repeat({_FIXED}))",
            "logsumexp(x)",
        ),
        rule("log_of_picked", "log(pick(softmax(x), y))", "pick(log_softmax(x), y)"),
        rule("pick_of_exp", "pick(exp(x), y)", "exp(pick(x, y))"),
        rule("log_ratio_of_softmax", "log(softmax(x) / softmax(y))", _LOG_RATIO),
        rule("log_of_softmax_over", "log(softmax(x) / y)", "log_softmax(x) - log(y)"),
        rule("log_scaled_softmax", "log(softmax(x) * y)", "log_softmax(x) + log(y)"),
        rule(
            "log_power_of_softmax", "log(softmax(x) ** c)", "log_softmax(x) * c", when=finite("c")
        ),
        rule("log_of_mixture", "log(sum(softmax(x) * exp(y)))", "logsumexp(log_softmax(x) + y)"),
        # variance and length
        rule("variance_of_moments", "mean(square(x)) - square(mean(x))", "var(x)"),
        rule("length", "sqrt(sum(square(x)))", "norm(x)"),
        rule("hypotenuse", "sqrt(square(x) + square(y))", "hypot(x, y)"),
        rule(
            "root_of_mean_square",
            "sqrt(sum(square(x)) / c)",
            "norm(x) / sqrt(c)",
            when=lambda b: is_above(b["c"]) or behind(b["c"]).op.name == "size",
        ),
        rule(
            "root_of_variance",
            "sqrt(var(x))",
            "where(var(x) == 0, 0, sqrt(where(var(x) == 0, 1, var(x))))",
        ),
        rule(
            "hypotenuse_of_three",
            "sqrt(square(x) + square(y) + square(z))",
            "hypot(hypot(x, y), z)",
        ),
        rule("over_sum_of_two_exp", "z / (exp(x) + exp(y))", "z * exp(-logaddexp(x, y))"),
        rule(
            "over_sum_of_three_exp",
            "z / (exp(x) + exp(y) + exp(w))",
            "z * exp(-logaddexp(logaddexp(x, y), w))",
        ),
        rule(
            "over_sum_of_two_and_number",
            "z / (exp(x) + exp(y) + c)",
            "z * exp(-logaddexp(logaddexp(x, y), log(c)))",
            when=above("c"),
        ),
        rule(
            "over_sum_of_two_around_number",
            "z / (exp(x) + c + exp(y))",
            "z * exp(-logaddexp(logaddexp(x, log(c)), y))",
            when=above("c"),
        ),
        *EXPONENTIALS.all,
        *_other_bases("1 + exp(x)", "exp(x)", "sigmoid(x)", "1 - sigmoid(x)", "softmax(x)"),
        rule("log1p", "log(1 + x)", "log1p(x)"),
    ]
)
