"""How elementwise ops are written whose form depends on their operands."""

from __future__ import annotations

from dataclasses import replace

from chainrule.ir import provenance, size
from chainrule.ir.node import Node
from chainrule.ir.notation import (
    ADD,
    ATOM,
    COMPARE,
    MULTIPLY,
    NEGATE,
    NONE,
    Notation,
    infix,
)
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.source import Full, SizeOf, escape

_TIMES, _SCALED = r"{0} \odot {1}", r"{0} \, {1}"
#: A comparison that holds where the other does not: symbol, LaTeX.
_OPPOSITE = {
    "lt": (">=", r"\geq"),
    "le": (">", ">"),
    "gt": ("<=", r"\leq"),
    "ge": ("<", "<"),
    "eq": ("!=", r"\ne"),
    "ne": ("==", "="),
}
COMPARISONS = {
    "lt": ("<", "<"),
    "le": ("<=", r"\leq"),
    "gt": (">", ">"),
    "ge": (">=", r"\geq"),
    "eq": ("==", "="),
    "ne": ("!=", r"\ne"),
}


_PLUS = infix("+", "+", ADD)
_OVER = Notation(
    "{0} / {1}", r"\frac{{{0}}}{{{1}}}", MULTIPLY, (MULTIPLY, NEGATE), latex_operands=()
)


def plus(x: Node, y: Node) -> Notation:
    """`x + y`; of a number below 0, `x - 0.5`."""
    if not isinstance(y.op, Full) or isinstance(x.op, Full):
        return _PLUS
    number = y.op.notation()
    if not number.text.startswith("-"):
        return _PLUS
    text, tex = (escape(t.format()[1:]) for t in (number.text, number.latex))
    return Notation(f"{{0}} - {text}", f"{{0}} - {tex}", ADD, (ADD,), shown=(x,))


def quotient(x: Node, y: Node) -> Notation:
    """`x / y`; a sum over axes by their size is their mean."""
    count, kept = _bare(y), "{0}"
    total = x
    if isinstance(x.op, Expand) and isinstance(x.inputs[0].op, Sum):
        total, kept = x.inputs[0], x.op.explicit().text
    if not isinstance(total.op, Sum) or provenance.user_name_of(total) is not None:
        return _OVER
    (of,) = total.inputs
    folded = size.product(tuple(of.shape[a] for a in total.op.axes))
    sized = isinstance(count.op, SizeOf) and count.op.size == folded
    if not sized and not (isinstance(count.op, Full) and count.op.value == folded):
        return _OVER
    form = total.op.notation(of)
    text = kept.replace("{0}", form.text.replace(Sum.symbol[0], "mean", 1))
    tex = rf"\frac{{{{1}}}}{{{{{{1}}}}}} {form.latex}"
    return replace(form, text=text, latex=tex, shown=(of, count))


def _bare(x: Node) -> Node:
    """What a view is of that prints as its operand does."""
    while isinstance(x.op, Expand) and x.op.notation(*x.inputs).text == "{0}":
        (x,) = x.inputs
    return x


def product(x: Node, y: Node) -> Notation:
    """`2 * x` for a number, `a * x` for a scalar, `x ⊙ y` for tensors."""
    both = (MULTIPLY, MULTIPLY)
    if _is_indicator(x) and not _is_indicator(y):
        x, y = y, x
    if isinstance(y.op, Full) and not isinstance(x.op, Full):
        x, y = y, x
    if _is_scalar(y) and not _is_scalar(x):
        x, y = y, x
    if _is_scalar(x):
        return Notation("{0} * {1}", _SCALED, MULTIPLY, both, shown=(x, y))
    return Notation("{0} ⊙ {1}", _TIMES, MULTIPLY, both, shown=(x, y))


def _is_indicator(x: Node) -> bool:
    """Whether a node is written as a condition in brackets."""
    if str(x.op.name) != "where":
        return False
    return any(isinstance(i.op, Full) and i.op.value == 1 for i in x.inputs[1:]) and any(
        map(_is_zero, x.inputs[1:])
    )


def _is_scalar(x: Node) -> bool:
    while x.op.role == "view" and x.op.notation(*x.inputs).text == "{0}":
        (x,) = x.inputs
    return x.type.rank == 0 or isinstance(x.op, Full)


def choice(c: Node, x: Node, y: Node) -> Notation:
    """`x ⊙ [c]` where the other branch is 0, else `where(c, x, y)`."""
    if _is_zero(y) or _is_zero(x):
        kept, table = (x, COMPARISONS) if _is_zero(y) else (y, _OPPOSITE)
        if str(c.op.name) in table:
            text, tex = table[str(c.op.name)]
            condition, shown = (f"{{1}} {text} {{2}}", f"{{1}} {tex} {{2}}"), (kept, *c.inputs)
        elif table is COMPARISONS:
            condition, shown = ("{1}", "{1}"), (kept, c)
        else:
            condition, shown = ("not {1}", r"\neg {1}"), (kept, c)
        needs = (MULTIPLY, ADD, ADD) if len(shown) == 3 else (MULTIPLY, ATOM)
        brackets = f"[{condition[0]}]", rf"\left[{condition[1]}\right]"
        sign = str(c.op.name) in ("le", "gt") and _is_zero(c.inputs[1])
        signs = (1,) if sign else ()
        if isinstance(kept.op, Full) and kept.op.value == 1:
            return Notation(*brackets, ATOM, needs, shown=shown, signs=signs)
        times = ("*", r"\,") if _is_scalar(kept) else ("⊙", r"\odot")
        text, tex = (f"{{0}} {by} {part}" for by, part in zip(times, brackets, strict=True))
        return Notation(text, tex, MULTIPLY, needs, shown=shown, signs=signs)
    latex = r"\begin{{cases}}{1} & {0} \\ {2} & \text{{else}}\end{{cases}}"
    return Notation("where({0}, {1}, {2})", latex, ATOM, (COMPARE, NONE, NONE))


def _is_zero(node: Node) -> bool:
    return isinstance(node.op, Full) and node.op.value == 0 and not node.dtype.is_bool
