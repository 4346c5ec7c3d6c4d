"""How many floating-point operations a program does, element by element.

Additions, subtractions, products, quotients and square roots are one each, a fused multiply-add is
two. What else there is (comparisons, selections, signs, conversions, integers) is none. A function
is what its polynomial has, a fold over LANES lanes one less than there are lanes. Lanes of a vector
that hold no element do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from chainrule.ir.loop import LANES, Apply, Blocks, Combine, Let, Loop, Program, Stmt, Value
from chainrule.ir.machine import MACHINE
from chainrule.ir.size import Dim, Remainder, Size, substitute, symbols_of
from chainrule.ir.types import DType
from chainrule.loops.library import listing_of
from chainrule.loops.walk import postorder, statements, values_of

_ONE = ("add", "sub", "mul", "div", "sqrt")


def arithmetic_of(program: Program, sizes: Mapping[str, Dim]) -> Dim | None:
    """The floating-point operations of a program at given sizes, where no check fails.

    Sizes may be symbols; None where the result is no polynomial of them then: where the length of a
    loop depends on the turn of another one, whose length is not known.
    """
    try:
        return _count(program.body, sizes)
    except _NotClosed:
        return None


class _NotClosed(Exception):
    """A sum over so many turns as nobody knows."""


def _count(body: Iterable[Stmt], at: Mapping[str, Dim]) -> Dim:
    at = dict(at)
    total: Dim = 0
    for s in body:
        if isinstance(s, Let):
            at[s.var] = _plain(substitute(s.value, at))
        elif isinstance(s, Loop):
            total = total + _loop(s, at)
        elif isinstance(s, Blocks):
            # a step is two chains of LANES multiply-adds for each sum of blocks of LANES x LANES
            sums = s.rows * s.columns * LANES**2
            total = total + _plain(substitute(s.steps, at)) * (s.parts**2 * sums * 4 * LANES)
        else:
            total = total + sum(_operations(v) for v in postorder(*values_of(s)))
    return total


def _loop(loop: Loop, at: Mapping[str, Dim]) -> Dim:
    turns = _plain(substitute(loop.extent, at))
    if isinstance(turns, int) and turns <= 0:
        return 0
    if not _matters(loop):
        return turns * _count(loop.body, {**at, loop.var: 0})
    if not isinstance(turns, int):
        raise _NotClosed
    total: Dim = 0
    for i in range(turns):
        total = total + _count(loop.body, {**at, loop.var: i})
    return total


def _matters(loop: Loop) -> bool:
    """Whether the length of a loop inside depends on which turn it is."""
    known = {loop.var}
    for s in statements(loop.body):
        if isinstance(s, Let) and known & symbols_of(s.value):
            known.add(s.var)
        length = s.extent if isinstance(s, Loop) else s.steps if isinstance(s, Blocks) else 0
        if known & symbols_of(length):
            return True
    return False


def _plain(dim: Dim) -> Dim:
    """A size without remainders, of which tiles of different heights would not add up."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, c in dim.terms:
        term: Dim = c
        for atom in monomial:
            if isinstance(atom, str):
                term = term * Size.symbol(atom)
                continue
            over, under = _plain(atom.numerator), _plain(atom.denominator)
            whole = over // under
            term = term * (over - under * whole if isinstance(atom, Remainder) else whole)
        total = total + term
    return total


def _operations(v: Value) -> int:
    if isinstance(v, Apply):
        return _function(v.fn, tuple(a.dtype for a in v.args), v.dtype)
    if isinstance(v, Combine):
        return (LANES - 1) * _function(v.fn, (v.dtype, v.dtype), v.dtype)
    return 0


@lru_cache(maxsize=4096)
def _function(fn: str, of: tuple[DType, ...], result: DType) -> int:
    if fn in MACHINE:
        one = 2 if fn == "fma" else int(fn in _ONE)
        return one if result.is_float else 0
    return sum(_function(step.fn, (), step.dtype) for step in listing_of(fn, of)[1].steps)
