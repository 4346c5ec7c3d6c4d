"""Machine code of integer arithmetic that no instruction has: it never traps, whatever it is given.

An integer divided by 0 is 0, as in NumPy; the quotient that does not fit, min / -1, wraps.
"""

from __future__ import annotations

from chainrule.ir.types import DTYPES, Kind
from chainrule.ops.recipes import RECIPES


def whole(of_signed: str, of_unsigned: str) -> dict[str, str]:
    """Machine code by integer type."""
    unsigned = {t.name: of_unsigned for t in DTYPES.values() if t.kind is Kind.UINT}
    return {"int": of_signed, **unsigned}


def shift(by: str, beyond: str) -> dict[str, str]:
    """Machine code by element type; by the width or more, or by less than 0, all bits go out."""
    in_range = {t.name: f"and_(y >= 0, y < {t.bits})" for t in DTYPES.values() if t.is_integer}
    return {
        name: f"c = {test}; where(c, {by.format(s='ashr' if name[0] == 'i' else 'lshr')}"
        f"(x, where(c, y, 0)), {beyond if name[0] == 'i' else '0'})"
        for name, test in in_range.items()
    }


# a divisor is never 0, nor -1, by which the quotient may not fit
_BY = "d = where(or_(y == 0, y == -1), 1, y); q = quotient(x, d); r = x - q*d; "
_QUOTIENT = _BY + (
    "f = q - where(and_(r != 0, (r < 0) != (d < 0)), 1, 0); where(y == 0, 0, where(y == -1, -x, f))"
)
_REST = _BY + "where(y == 0, 0, where(and_(r != 0, (r < 0) != (d < 0)), r + d, r))"
_U_BY = "d = where(y == 0, 1, y); q = quotient(x, d); "
FLOOR_DIVIDE = RECIPES["floor_divide"] | whole(_QUOTIENT, _U_BY + "where(y == 0, 0, q)")
REMAINDER = RECIPES["remainder"] | whole(_REST, _U_BY + "where(y == 0, 0, x - q*d)")

# by squaring: bit k of the exponent multiplies by x to the power 2**k
_SQUARES = "p = where(and_(y, 1) != 0, x, 1); b = x*x; " + "".join(
    f"p = where(and_(y, {1 << k}) != 0, p*b, p); b = b*b; " for k in range(1, 6)
)
_BEYOND = "where(x == 1, 1, 0)"
_SIGNED = f"where(x == -1, where(and_(y, 1) != 0, -1, 1), {_BEYOND})"
POWERS = RECIPES["pow"] | whole(
    f"{_SQUARES}where(and_(y >= 0, y < 64), p, {_SIGNED})",
    f"{_SQUARES}where(y < 64, p, {_BEYOND})",
)
