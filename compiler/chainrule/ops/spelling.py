"""How elementwise ops are written whose form depends on their operands."""

from __future__ import annotations

from chainrule.ir.node import Node
from chainrule.ir.notation import ADD, ATOM, COMPARE, MULTIPLY, NONE, Notation
from chainrule.ops.source import Full

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


def product(x: Node, y: Node) -> Notation:
    """`2 * x` for a number, `a * x` for a scalar, `x ⊙ y` for tensors."""
    both = (MULTIPLY, MULTIPLY)
    if isinstance(y.op, Full) and not isinstance(x.op, Full):
        x, y = y, x
    if _is_scalar(y) and not _is_scalar(x):
        x, y = y, x
    if _is_scalar(x):
        return Notation("{0} * {1}", _SCALED, MULTIPLY, both, shown=(x, y))
    return Notation("{0} ⊙ {1}", _TIMES, MULTIPLY, both)


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
        if isinstance(kept.op, Full) and kept.op.value == 1:
            return Notation(*brackets, ATOM, needs, shown=shown)
        times = ("*", r"\,") if _is_scalar(kept) else ("⊙", r"\odot")
        text, tex = (f"{{0}} {sign} {part}" for sign, part in zip(times, brackets, strict=True))
        return Notation(text, tex, MULTIPLY, needs, shown=shown)
    latex = r"\begin{{cases}}{1} & {0} \\ {2} & \text{{else}}\end{{cases}}"
    return Notation("where({0}, {1}, {2})", latex, ATOM, (COMPARE, NONE, NONE))


def _is_zero(node: Node) -> bool:
    return isinstance(node.op, Full) and node.op.value == 0 and not node.dtype.is_bool
