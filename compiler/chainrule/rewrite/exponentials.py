"""Stable forms of sums of exponentials, of what is divided by them, and of logarithms of both.

exp(x) overflows from 89 on, its sum with it, and below -104 both are 0: what is left is inf / inf,
0 / 0 or log(0). The sum as a whole, taken out as exp(logsumexp(x)), leaves numbers up to 1. Of a
weighted sum it is the largest x that counts, a number without a derivative, as any gives the same.
What a weight of 0 shuts out may be larger: up to e^60 times it keeps its exponential, by which the
weight has its gradient (an infinite or NaN x stays NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from chainrule.ir.node import Node, Op, apply
from chainrule.ops import build
from chainrule.ops.axes import Sum
from chainrule.ops.composite import LogSoftmax, LogSumExp, Softmax
from chainrule.ops.contract import Contract
from chainrule.ops.source import Constant, Full
from chainrule.records import dataclass
from chainrule.rewrite.guards import above, behind, finite, is_above
from chainrule.rewrite.rule import Bindings, Rules, See, recognize, rule


def _may_shut_out(bound: Bindings) -> bool:
    """Whether weights of a softmax may be 0, and are not left out already, as the rule does it."""
    x, y = behind(bound["x"]), behind(bound["y"])
    parts = [x, *map(behind, x.inputs if x.op.name == "add" else ())]
    if any(p.op.name == "log_softmax" for p in parts):
        return False
    known = y.op.array if isinstance(y.op, Constant) else getattr(y.op, "value", 0)
    return not np.all(known)


def _top(x: str) -> str:
    """The largest x that counts; 0 where that is infinite, as where nothing counts."""
    top = f"max({x} + where(y == 0, y - 1e999, 0))"  # in y's type
    return f"where(abs({top}) == 1e999, 0, {top})"


def _parts(x: str, whole: str) -> str:
    """exp(x - whole) * y."""
    return f"exp(where(y == 0, minimum({x}, repeat({whole}) + 60), {x}) - repeat({whole})) * y"


def _is_whole(bound: Bindings) -> bool:
    """Whether nothing was taken out of the exponentials yet."""
    taken = behind(bound["x"].inputs[-1]) if bound["x"].op.name == "sub" else bound["x"]
    return [taken.op.name, *(i.op.name for i in taken.inputs)] != ["stop_gradient", "where"]


_TOP, _LOG_TOP = (f"stop_gradient({_top(x)})" for x in ("x", "log_softmax(x)"))
_TOP_OR_C = f"stop_gradient(maximum({_top('x')}, log(c)))"
_PARTS, _WITH_C = _parts("x", _TOP), _parts("x", _TOP_OR_C)
_LOG_PARTS = _parts("log_softmax(x)", _LOG_TOP)
_LARGE = "softmax(x) > 0.5"
_REST = f"logsumexp(where({_LARGE}, -1e999, log_softmax(x)))"


#: What has a logarithm that does not overflow, and which.
_EXP: Mapping[str, Callable[[Node], Node]] = {"exp": lambda p: p.inputs[0]}
_PROBABLE: Mapping[str, Callable[[Node], Node]] = {
    "softmax": lambda p: apply(LogSoftmax(p.op.axis), *p.inputs),  # type: ignore[attr-defined]
    "sigmoid": lambda p: build.call("log_sigmoid", *p.inputs),
}


#: Terms that are looked at: a running sum, of whose every part there is a log, stays linear.
MOST_TERMS = 64


@recognize("log")
def log_of_terms(node: Node, see: See) -> Node | None:
    """Given log of terms, `exp(x)`, `exp(x) * 2` or numbers, four or more, logaddexp of all.

    Also of two or three of which one is scaled, of two or more of softmax and sigmoid, and where
    their sum is scaled by a number.
    """
    (total,) = node.inputs
    scale: Node | None = None
    for name, inverse in (("mul", False), ("div", True)):
        parts = see(total, name)
        if parts and is_above(parts[1]):
            log = build.call("log", parts[1])
            total, scale = parts[0], build.call("neg", log) if inverse else log
            break
    terms = _terms(total, see)
    if not _is_new(total, terms, see):
        terms = _terms(total, see, _PROBABLE)
    if len(terms) < 2:
        return None
    return build.call("add", _log_sum(terms), scale) if scale else _log_sum(terms)


@recognize("div", some=["add"])
def over_terms(node: Node, see: See) -> Node | None:
    """Given a quotient by such a sum, a product with exp(-logaddexp(...))."""
    above, below = node.inputs
    terms = _terms(below, see)
    if not _is_new(below, terms, see):
        return None
    return build.call("mul", above, build.call("exp", build.call("neg", _log_sum(terms))))


def _is_new(node: Node, terms: list[Node], see: See) -> bool:
    """Whether a sum of exponentials is none that a rule has been written out for: those have two
    or three terms, none of them scaled.
    """
    return len(terms) >= 4 or (len(terms) >= 2 and _is_scaled(node, see))


def _is_scaled(node: Node, see: See) -> bool:
    """Whether an exponential times a number is among the terms of a sum."""
    parts = see(node, "add")
    return any(_is_scaled(p, see) for p in parts) if parts else bool(see(node, "mul"))


def _terms(node: Node, see: See, kinds: Mapping[str, Callable[[Node], Node]] = _EXP) -> list[Node]:
    """The logarithms of the terms of a sum, of which each has one; none if any has not.

    Numbers are terms of a sum of exponentials; to a probability one is added lest it is 0.
    """
    found: list[Node] = []
    stack = [node]
    exponentials = 0
    while stack:
        if len(found) > MOST_TERMS:
            return []
        term = stack.pop()
        parts = see(term, "add")
        if parts:
            stack.extend(reversed(parts))
            continue
        if is_above(term) and kinds is _EXP:
            found.append(build.call("log", term))
            continue
        log = _log_of(term, see, kinds)
        if log is None:
            return []
        exponentials += 1
        found.append(log)
    return found if exponentials else []


def _log_of(term: Node, see: See, kinds: Mapping[str, Callable[[Node], Node]]) -> Node | None:
    """x of exp(x), x + log(c) of exp(x) * c for a number c above 0, and of other kinds so."""
    scaled = see(term, "mul")
    if scaled and is_above(scaled[1]):
        log = _log_of(scaled[0], see, kinds)
        return build.call("add", log, build.call("log", scaled[1])) if log else None
    return next((of(term) for name, of in kinds.items() if see(term, name)), None)


def _log_sum(logs: list[Node]) -> Node:
    total = logs[0]
    for log in logs[1:]:
        total = build.call("logaddexp", total, log)
    return total


@recognize("mul", some=["exp"])
def exp_into_terms(node: Node, see: See) -> Node | None:
    """Given exp(-x) times a sum or product with exponentials in it, these times it first."""
    for factor, other in (node.inputs, node.inputs[::-1]):
        inner = see(factor, "exp")
        if not inner or not see(inner[0], "neg"):
            continue
        for name in ("add", "sub", "mul"):
            parts = see(other, name)
            if not parts:
                continue
            inside = [_has_exp(p, see) for p in parts]
            if name == "mul" and any(inside):
                first, second = parts if inside[0] else parts[::-1]
                return build.call("mul", build.call("mul", first, factor), second)
            if name != "mul" and all(inside):
                return build.call(name, *[build.call("mul", p, factor) for p in parts])
    return None


def _has_exp(node: Node, see: See) -> bool:
    """Whether a term has an exponential among its factors."""
    while True:
        if see(node, "exp"):
            return True
        parts = see(node, "mul")
        if not parts:
            return False
        if see(parts[1], "exp"):
            return True
        node = parts[0]


@recognize("div", some=["contract"])
def product_over_sum_of_exp(node: Node, see: See) -> Node | None:
    """Given exp(x) @ y over the sums of the rows of exp(x), softmax(x) @ y."""
    product, below = node.inputs
    repeated = see(below, "expand")
    inner = see(repeated[0] if repeated else below, "sum")
    for found in _with_exp(product, see):
        total = apply(Sum((found.axis,)), found.exp)
        if inner and inner[0] is found.exp and found.spread(total) is below:
            return found.of(Softmax)
    return None


@recognize("log", some=["contract"])
def log_of_product_with_exp(node: Node, see: See) -> Node | None:
    """Given log(exp(x) @ y), logsumexp(x) + log(softmax(x) @ y)."""
    for found in _with_exp(node.inputs[0], see):
        total = found.spread(apply(LogSumExp(found.axis), found.exp.inputs[0]))
        if total is not None:
            return build.call("add", total, build.call("log", found.of(Softmax)))
    return None


@dataclass(frozen=True)
class _Product:
    """A product in which exp(x) is operand `place`, summed along one axis of its own."""

    node: Node
    place: int
    axis: int
    exp: Node

    def of(self, kind: Callable[[int], Op]) -> Node:
        """The product with kind(x) in the place of exp(x)."""
        factors = [*self.node.inputs]
        factors[self.place] = apply(kind(self.axis), *self.exp.inputs)
        return apply(self.node.op, *factors)

    def spread(self, rows: Node) -> Node | None:
        """What there is for each row of exp(x), repeated to the product's shape, if it can be."""
        op = self.node.op
        assert isinstance(op, Contract)
        letters = (op.a, op.b)[self.place]
        kept = [c for c in letters if c != letters[self.axis]]
        if [c for c in op.out if c in kept] != kept:
            return None
        new = tuple(i for i, c in enumerate(op.out) if c not in kept)
        return build.expand(rows, self.node.type.shape, new) if new else rows


def _with_exp(node: Node, see: See) -> Iterator[_Product]:
    """The ways to see an exponential in a product, whose rows the product sums."""
    factors, op = see(node, "contract"), node.op
    if not factors or not isinstance(op, Contract) or len(op.summed) != 1:
        return
    for i, letters in enumerate((op.a, op.b)):
        if see(factors[i], "exp") and op.summed in letters:
            found = _Product(node, i, letters.index(op.summed), factors[i])
            if found.spread(apply(Sum((found.axis,)), factors[i])) is not None:
                yield found


#: Ops that move elements, or leave some out, and compute nothing.
_VIEWS = ("slice", "reshape", "permute", "take", "take_along_axis", "expand")
_PROBABILITIES = ("softmax", "sigmoid", "exp")


@recognize("log")
def log_of_viewed(node: Node, see: See) -> Node | None:
    """Given log(p[i]) or log(1 - p[i]) of a softmax or the like, log(p)[i] or log(1 - p)[i]."""
    p, views = _unviewed(node.inputs[0], see)
    rest = see(p, "sub")
    if rest and isinstance(rest[0].op, Full) and rest[0].op.value == 1:
        p, inner = _unviewed(rest[1], see)
        views += inner
    else:
        rest = None
    if not views or not any(see(p, name) for name in _PROBABILITIES):
        return None
    out = build.call("log", build.call("sub", 1.0, p) if rest else p)
    for view in reversed(views):
        out = apply(view.op, out, *view.inputs[1:])
    return out


def _unviewed(node: Node, see: See) -> tuple[Node, list[Node]]:
    """What a node is a view of, and the views, from the outermost."""
    views = []
    while any(see(node, name) for name in _VIEWS):
        views.append(node)
        node = node.inputs[0]
    return node, views


EXPONENTIALS = Rules(
    [
        # over a sum of them along axes
        rule("scaled_exp_over_its_sum", "(exp(x) * y) / repeat(sum(exp(x)))", "softmax(x) * y"),
        rule(
            "exp_over_its_scaled_sum",
            "exp(x) / repeat(sum(exp(x)) * y)",
            "softmax(x) / repeat(y)",
        ),
        rule(
            "scaled_exp_over_its_scaled_sum",
            "(exp(x) * z) / repeat(sum(exp(x)) * y)",
            "(softmax(x) * z) / repeat(y)",
        ),
        rule("exp_over_its_mean", "exp(x) / repeat(sum(exp(x)) / y)", "softmax(x) * repeat(y)"),
        rule("sum_over_sum_of_exp", "sum(exp(x) * y) / sum(exp(x))", "sum(softmax(x) * y)"),
        rule(
            "weighted_exp_over_its_sum",
            "(exp(x) * y) / repeat(sum(exp(x) * y))",
            f"({_PARTS}) / repeat(sum({_PARTS}))",
            when=_is_whole,
        ),
        rule(
            "weighted_exp_over_its_sum_and_number",
            "(exp(x) * y) / repeat(sum(exp(x) * y) + c)",
            f"({_WITH_C}) / repeat(sum({_WITH_C}) + exp(log(c) - {_TOP_OR_C}))",
            when=above("c"),
        ),
        product_over_sum_of_exp,
        rule("over_sum_of_exp", "y / sum(exp(x))", "y * exp(-logsumexp(x))"),
        rule(
            "over_repeated_sum_of_exp",
            "y / repeat(sum(exp(x)))",
            "y * exp(-repeat(logsumexp(x)))",
        ),
        rule("exp_times_repeated", "exp(x) * repeat(exp(y))", "exp(x + repeat(y))"),
        # their logarithm
        rule("log_of_scaled_sum_of_exp", "log(sum(exp(x)) * y)", "logsumexp(x) + log(y)"),
        rule("log1p_of_sum_of_exp", "log1p(sum(exp(x)))", "softplus(logsumexp(x))"),
        rule(
            "log_power_of_sum_of_exp",
            "log(sum(exp(x)) ** c)",
            "logsumexp(x) * c",
            when=finite("c"),
        ),
        rule("log_of_root", "log(sqrt(x))", "log(x) * 0.5"),
        rule("abs_of_sum_of_exp", "abs(sum(exp(x)))", "sum(exp(x))"),
        rule(
            "log_of_weighted_sum",
            "log(sum(exp(x) * y))",
            f"{_TOP} + log(sum({_PARTS}))",
            when=_is_whole,
        ),
        rule(
            "log_of_weighted_softmax",
            "log(sum(softmax(x) * y))",
            f"{_LOG_TOP} + log(sum({_LOG_PARTS}))",
            when=_may_shut_out,
        ),
        log_of_product_with_exp,
        log_of_viewed,
        log_of_terms,
        over_terms,
        exp_into_terms,
        # of what a softmax leaves, and entropy
        rule(
            "log_one_minus_softmax",
            "log(1 - softmax(x))",
            f"where({_LARGE}, repeat({_REST}), log1p(where({_LARGE}, 0, -softmax(x))))",
        ),
        rule("log1p_minus_softmax", "log1p(-softmax(x))", "log(1 - softmax(x))"),
        rule(
            "entropy_of_softmax",
            "xlogy(softmax(x), softmax(x))",
            "where(softmax(x) == 0, 0, softmax(x) * log_softmax(x))",
        ),
    ]
)
