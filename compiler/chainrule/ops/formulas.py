"""SymPy's expressions as formulas: those it derives, and those that users give."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from chainrule.errors import FormulaError
from chainrule.ir.formula import MAX_HEIGHT, Call, Formula, Name, Number, piecewise
from chainrule.ops.elementwise import TABLE

Expr = Any  # SymPy ships no types


def read(expr: Expr) -> tuple[Formula, str]:
    """A SymPy expression as a formula, with SymPy's names of functions, and as a text."""
    import sympy

    if not isinstance(expr, sympy.Basic):
        raise FormulaError(f"a formula is a text or an expression of SymPy's, not {expr!r}")
    height, level = 0, [expr]
    while level:
        level = [a for e in level for a in e.args]
        height += 1
    if height > MAX_HEIGHT:
        raise FormulaError(f"a formula is at most {MAX_HEIGHT} operations high; name its parts")
    text = str(expr)
    relations = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}

    def convert(e: Expr) -> Formula:
        if isinstance(e, sympy.Piecewise):
            return piecewise([(convert(p.expr), convert(p.cond)) for p in e.args])
        if e == sympy.true:
            return Name("True")
        if e.is_Symbol:
            return Name(str(e.name))
        if e.is_number and e.is_real is False:
            raise not_real(str(e), text)
        if e.is_number and not e.atoms(sympy.Function):
            return Number(int(e)) if e.is_Integer else Number(float(e))
        if isinstance(e, sympy.core.relational.Relational):
            return Call(relations[e.rel_op], (convert(e.lhs), convert(e.rhs)))
        args = tuple(convert(a) for a in e.args)
        if e.is_Add:
            return reduce(lambda a, b: Call("add", (a, b)), args)
        if e.is_Mul:
            return reduce(lambda a, b: Call("mul", (a, b)), args)
        if e.is_Pow:
            return _power(*args)
        return Call(e.func.__name__, args)

    return convert(expr), text


def not_real(name: str, text: str) -> FormulaError:
    """The error of what is no function of real numbers."""
    return FormulaError(f"{name} is of complex numbers, and tensors here are real", text)


def tree_of(expr: Expr) -> Formula | None:
    """A SymPy expression as a formula; None where it holds what the table does not."""
    if expr.is_Symbol:
        return Name(str(expr.name))
    if expr.is_Integer:
        return Number(int(expr))
    if expr.is_Rational:
        return Number(float(expr))
    if expr.is_number and (expr.is_extended_real or str(expr) == "nan"):
        return Number(float(expr))
    args = [tree_of(a) for a in expr.args]
    known = [a for a in args if a is not None]
    if not args or len(known) < len(args):
        return None
    if expr.is_Add:
        return _sum(expr, known)
    if expr.is_Mul:
        return _product(expr)
    if expr.is_Pow:
        return _power(known[0], known[1])
    name = {"Abs": "abs"}.get(expr.func.__name__, expr.func.__name__)
    if name not in TABLE or len(TABLE[name].params) != len(known):
        return None
    return Call(name, tuple(known))


def _sum(expr: Expr, parts: Sequence[Formula]) -> Formula:
    """Positive terms first, then the negative ones subtracted."""
    terms = sorted(expr.args, key=lambda a: a.could_extract_minus_sign())
    total: Formula | None = None
    for term in terms:
        negative = term.could_extract_minus_sign()
        part = tree_of(-term if negative else term)
        assert part is not None
        if total is None:
            total = Call("neg", (part,)) if negative else part
        else:
            total = Call("sub" if negative else "add", (total, part))
    assert total is not None
    return total


def _product(expr: Expr) -> Formula | None:
    if expr.could_extract_minus_sign():
        inner = tree_of(-expr)
        return None if inner is None else Call("neg", (inner,))
    above, below = expr.as_numer_denom()
    for factor in below.args if below.is_Mul else (below,):
        if factor.func.__name__ == "exp":  # exp(-u) underflows where 1/exp(u) overflows
            above, below = above * factor.func(-factor.args[0]), below / factor
    if below != 1 and not below.is_number:
        parts = tree_of(above), tree_of(below)
        if parts[0] is None or parts[1] is None:
            return None
        return Call("div", (parts[0], parts[1]))
    factors = [f for f in map(tree_of, expr.args) if f is not None]
    numbers_last = sorted(factors, key=lambda f: isinstance(f, Number))
    return reduce(lambda a, b: Call("mul", (a, b)), numbers_last)


def _power(base: Formula, exponent: Formula) -> Formula:
    value = exponent.value if isinstance(exponent, Number) else None
    if value == 2:
        return Call("square", (base,))
    if value == 0.5:
        return Call("sqrt", (base,))
    if value is not None and value < 0:
        return Call("div", (Number(1), _power(base, Number(-value)) if value != -1 else base))
    return Call("pow", (base, exponent))
