"""What a rule can say of axes: folds along them, what repeats along them, functions along them.

In one rule all of these are along the same axes, whichever they are: `sum(x)`, `max(x)`, `mean(x)`
take the axes away, `repeat(t)` puts them back, repeating, and `softmax(x)`, `layer_norm(x, c)`, ...
are functions of what lies along them. So softmax is `exp(x) / repeat(sum(exp(x)))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chainrule.ir.formula import Call, Formula, Name, Number
from chainrule.ir.node import Node, Op, apply
from chainrule.ir.size import Dim, Shape, product
from chainrule.ops import build
from chainrule.ops.activations import ACTIVATIONS
from chainrule.ops.axes import Sum
from chainrule.ops.composite import LogSoftmax, LogSumExp, Pick, Softmax
from chainrule.ops.contract import transpose
from chainrule.ops.elementwise import TABLE
from chainrule.ops.layout import Reshape
from chainrule.ops.normalization import LayerNorm, Mean, Norm, RmsNorm, Var
from chainrule.ops.reduce import Max
from chainrule.ops.source import Full, SizeOf

Axes = tuple[int, ...]
#: The name under which a match keeps a node along whose axes the rule is.
AXES = "axes"


def number_of(node: Node | float) -> float:
    """A number that stands in a graph, or in a rule."""
    if not isinstance(node, Node):
        return float(node)
    assert isinstance(node.op, Full)
    return float(str(node.op.scalar))  # as it was written: 1e-5, not the float32 next to it


def _flat(kind: Callable[[int], Op]) -> Callable[..., Node]:
    """An op along one axis, made one along several: they are put last and taken as one."""

    def make(axes: Axes, wide: Shape, x: Node) -> Node:
        if len(axes) == 1:
            return apply(kind(*axes), x)
        kept = [i for i in range(len(wide)) if i not in axes]
        order, size = [*kept, *axes], product(tuple(wide[a] for a in axes))
        moved = transpose(x, order)
        flat = apply(Reshape((*(wide[i] for i in kept), size)), moved)
        out = apply(kind(len(kept)), flat)
        if out.type.rank < flat.type.rank:
            return out
        back = apply(Reshape(moved.type.shape), out)
        return transpose(back, [order.index(i) for i in range(len(wide))])

    return make


def _each(name: str) -> Callable[..., Node]:
    return lambda axes, wide, x: apply(ACTIVATIONS[name], x)


#: What a rule may write beside elementwise ops: `make(axes, shape of what has them, *operands)`.
MAKE: Mapping[str, Callable[..., Node]] = {
    "sum": lambda axes, wide, x: apply(Sum(axes), x),
    "max": lambda axes, wide, x: apply(Max(axes), x),
    "mean": lambda axes, wide, x: Mean(axes).expand(x),
    "repeat": lambda axes, wide, x: build.expand(x, wide, axes),
    "var": lambda axes, wide, x: apply(Var(axes), x),
    "norm": lambda axes, wide, x: apply(Norm(axes), x),
    "softmax": _flat(Softmax),
    "log_softmax": _flat(LogSoftmax),
    "logsumexp": _flat(LogSumExp),
    "layer_norm": lambda axes, wide, x, eps: apply(LayerNorm(axes, number_of(eps)), x),
    "rms_norm": lambda axes, wide, x, eps: apply(RmsNorm(axes, number_of(eps)), x),
    "pick": lambda axes, wide, x, y: apply(Pick(), x, y),
    **{name: _each(name) for name in ACTIVATIONS},
}
#: The op behind a function of rules, where it is not called like it.
_OPS = {"repeat": "expand", "mean": "div", **{n: str(op.name) for n, op in ACTIVATIONS.items()}}
_ALONG = MAKE.keys() - ACTIVATIONS.keys() - {"pick"}


def op_behind(fn: str) -> str:
    """The name of the op that a function of a rule matches."""
    return _OPS.get(fn, fn)


def is_along(fn: str) -> bool:
    """Whether a function of a rule has axes."""
    return fn in _ALONG


def axes_of(op: Op) -> Axes:
    """The axes that an op is along."""
    axis = getattr(op, "axis", None)
    return (axis,) if axis is not None else tuple(getattr(op, "axes", ()))


def speaks_of_axes(formula: Formula) -> bool:
    """Whether a formula has a function in it that is no elementwise op."""
    if not isinstance(formula, Call):
        return False
    return formula.fn not in TABLE or any(map(speaks_of_axes, formula.args))


def is_count(node: Node, of: Node, axes: Axes) -> bool:
    """Whether a node is how many elements of another lie along axes."""
    count: Dim = product(tuple(of.type.shape[a] for a in axes))
    if isinstance(node.op, Full):
        return isinstance(count, int) and node.op.value == count
    base = node.inputs[0] if node.op.name == "expand" else node
    return isinstance(base.op, SizeOf) and base.op.size == count


def spell_along(formula: Formula, bound: Mapping[str, Node], like: Node) -> Node:
    """The nodes of a formula that speaks of axes; where it matched says which those are."""
    axes: Axes = ()
    wide = like.type.shape
    if AXES in bound:
        at = bound[AXES]
        axes = axes_of(at.op)
        folds = not at.inputs or at.type.rank < at.inputs[0].type.rank
        wide = at.inputs[0].type.shape if folds else at.type.shape
    built = _spell(formula, bound, like, axes, wide)
    return built if isinstance(built, Node) else build.formula(Number(built), {}, like=like)


def _spell(
    formula: Formula, bound: Mapping[str, Node], like: Node, axes: Axes, wide: Shape
) -> Node | int | float:
    if isinstance(formula, Number):
        return formula.value
    if isinstance(formula, Name):
        return bound[formula.name]
    args = [_spell(a, bound, like, axes, wide) for a in formula.args]
    if formula.fn in MAKE:
        return MAKE[formula.fn](axes, wide, *args)
    numbers = not any(isinstance(a, Node) for a in args)
    return build.call(formula.fn, *args, like=like if numbers else None)
