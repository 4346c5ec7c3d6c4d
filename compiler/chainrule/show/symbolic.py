"""Expressions for SymPy: entry by entry where tensors are small, else as matrix expressions.

An elementwise op means to SymPy what its `formula` in the table says, read by our own parser. A
composite means its definition: softmax is exp(x) / sum(exp(x)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from chainrule.errors import CompileError
from chainrule.ir.formula import fold, parse
from chainrule.ir.graph import walk
from chainrule.ir.node import Node
from chainrule.ir.size import Dim, Quotient, Size
from chainrule.ir.types import DType
from chainrule.ops.elementwise import TABLE
from chainrule.ops.source import Leaf, format_number
from chainrule.show.entries import entries, filled, spelled_out
from chainrule.show.matrices import Matrices

Expr = Any  # SymPy ships no types
#: A tensor with more entries than this is a matrix expression.
SMALL = 64


def to_sympy(node: Node) -> Expr:
    """The node as a SymPy expression.

    A scalar is an expression of `Symbol`s. Where every tensor has a known size of at most 64
    entries, a tensor is an array of expressions (rank 2: `ImmutableDenseMatrix`, else
    `ImmutableDenseNDimArray`) in which entry (i, j) of an operand W is `IndexedBase("W")[i, j]`.
    Otherwise tensors of rank 2 are matrix expressions in `MatrixSymbol`s, those of rank 1 columns,
    symbolic sizes positive integer `Symbol`s. Raises CompileError where SymPy has no such form.
    """
    import sympy

    (root,) = spelled_out([node])
    nodes = walk([root])
    if not all(_is_small(n) for n in nodes):
        return Matrices(SymPy()).of(root)
    leaves = {n: _symbols(n) for n in nodes if isinstance(n.op, Leaf)}
    (array,) = entries([root], leaves, SymPy())
    if node.type.rank == 0:
        return array[()]
    if node.type.rank == 2:
        return sympy.ImmutableDenseMatrix(*array.shape, list(array.flat))
    return sympy.ImmutableDenseNDimArray(list(array.flat), array.shape)


def _is_small(node: Node) -> bool:
    known = [d for d in node.shape if isinstance(d, int)]
    return len(known) == node.type.rank and int(np.prod(known)) <= SMALL


def _symbols(node: Node) -> np.ndarray[Any, Any]:
    """The entries of a leaf."""
    import sympy

    assert isinstance(node.op, Leaf)
    base = sympy.IndexedBase(node.op.label)
    symbol = sympy.Symbol(node.op.label)
    return filled(node, lambda index: base[index] if index else symbol)


class SymPy:
    """The algebra of SymPy's expressions."""

    def number(self, value: float | int | bool, dtype: DType) -> Expr:
        """A number as it is written: 0.1 in float32 is 0.1."""
        import sympy

        if isinstance(value, bool):
            return sympy.true if value else sympy.false
        if not np.isfinite(value):
            return sympy.nan if value != value else sympy.oo * int(np.sign(value))
        text = format_number(value, dtype)
        return sympy.Integer(int(value)) if float(value).is_integer() else sympy.Float(text, 17)

    def index(self, dim: Dim, dtype: DType) -> Expr:
        """A size or an index as an expression of integer symbols."""
        return size(dim)

    def call(self, fn: str, args: Sequence[Expr], dtype: DType) -> Expr:
        """An op of the table of scalars; `cast` between number types changes nothing here."""
        if fn == "cast":
            return self.converted(args[0], dtype)
        if fn not in TABLE:
            raise CompileError(f"{fn} has no meaning in SymPy")
        at = dict(zip(TABLE[fn].params, args, strict=True))
        return fold(parse(TABLE[fn].formula), self.literal, at.__getitem__, apply)

    def size(self, dim: Dim) -> Expr:
        """A size as an expression of positive integer symbols."""
        return size(dim)

    def literal(self, value: float | int) -> Expr:
        """A number in a formula."""
        import sympy

        return sympy.Integer(value) if isinstance(value, int) else sympy.Float(value, 17)

    def converted(self, value: Expr, to: DType) -> Expr:
        """A number as another type of number."""
        import sympy

        if isinstance(value, sympy.logic.boolalg.Boolean) and not to.is_bool:
            return sympy.Piecewise((1, value), (0, True))
        if to.is_bool:
            return sympy.Ne(value, 0)
        whole = to.is_integer and value.is_integer is not True
        return sympy.sign(value) * sympy.floor(abs(value)) if whole else value


def size(dim: Dim) -> Expr:
    """A size as an expression of positive integer symbols."""
    import sympy

    if not isinstance(dim, Size):
        return sympy.Integer(dim)
    total = sympy.Integer(0)
    for monomial, factor in dim.terms:
        term = sympy.Integer(factor)
        for atom in monomial:
            if isinstance(atom, str):
                term *= size_symbol(atom)
            else:
                above, below = size(atom.numerator), size(atom.denominator)
                floor = isinstance(atom, Quotient)
                term *= sympy.floor(above / below) if floor else sympy.Mod(above, below)
        total += term
    return total


def size_symbol(name: str) -> Expr:
    """The SymPy symbol of a symbolic size."""
    import sympy

    return sympy.Symbol(name, integer=True, positive=True)


def apply(fn: str, args: Sequence[Expr]) -> Expr:
    """A function of formulas, applied."""
    if fn not in _functions():
        raise CompileError(f"{fn} has no meaning in SymPy")
    return _functions()[fn](*args)


def _round_half_even(x: Expr) -> Expr:
    import sympy

    half = sympy.Rational(1, 2)
    up = sympy.floor(x + half)
    return up - sympy.Piecewise((sympy.Mod(up, 2), sympy.Eq(up, x + half)), (0, True))


@lru_cache(maxsize=1)
def _functions() -> dict[str, Callable[..., Expr]]:
    import sympy

    operators: dict[str, Callable[..., Expr]] = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: x / y,
        "neg": lambda x: -x,
        "pow": lambda x, y: x**y,
        "where": lambda c, x, y: sympy.Piecewise((x, c), (y, True)),
        "lt": sympy.Lt,
        "le": sympy.Le,
        "gt": sympy.Gt,
        "ge": sympy.Ge,
        "eq": sympy.Eq,
        "ne": sympy.Ne,
    }
    operators["round"] = _round_half_even
    named = "Abs Max Min And Or Xor Not Eq Ne sign exp log sqrt tanh erf erfc sin cos tan floor "
    named += "ceiling asin acos atan atan2 sinh cosh asinh acosh atanh"
    return operators | {name: getattr(sympy, name) for name in named.split()}
