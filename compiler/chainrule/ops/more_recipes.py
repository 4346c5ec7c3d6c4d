"""Recipes before their constants are put in: roundings, angles, hyperbolas, other logarithms.

Written as those of `ops.recipes`, which says what the names in braces stand for, and from them: a
function here is one there, with its argument or its value carried in two parts where that costs
accuracy. The errors, measured, are held by tests/ops/test_recipes.py.
"""

from __future__ import annotations

#: The nearest whole number, the even one of two, of a number below 2**MANTISSA; its sign is lost.
_NEAR = """
a = abs(x)
near = (a + {INTEGER}) - {INTEGER}
"""
_ROUND = f"{_NEAR}where(a < {{INTEGER}}, copysign(near, x), x)"
_TRUNC = f"{_NEAR}where(a < {{INTEGER}}, copysign(near - where(near > a, 1.0, 0.0), x), x)"
_FLOOR = f"""{_NEAR}
y = copysign(near, x)
where(a < {{INTEGER}}, copysign(y - where(y > x, 1.0, 0.0), x), x)
"""
_CEIL = f"""{_NEAR}
y = copysign(near, x)
where(a < {{INTEGER}}, copysign(y + where(y < x, 1.0, 0.0), x), x)
"""

# What is left of |x| less a rounded multiple of |y| is a float (Muller, Handbook of Floating-Point
# Arithmetic, 2nd ed. 2018, 4.5): three such steps are exact to |x / y| = 2**(3 MANTISSA - 3).
_STEP = "R1 = fma(-trunc(R0 / b), b, R0)\n"
_FMOD = f"""
a = abs(x)
b = abs(y)
{"".join(_STEP.replace("R1", f"r{i + 1}").replace("R0", f"r{i}" if i else "a") for i in range(3))}
r = where(r3 < 0.0, r3 + b, r3)
copysign(where(a < b, a, r), x)
"""
_REMAINDER = """
m = fmod(x, y)
turned = where((m < 0.0) == (y < 0.0), m, m + y)
where(m == 0.0, copysign(m, y), turned)
"""
_FLOOR_DIVIDE = """
q = x / y
m = fmod(x, y)
d = (x - m) / y - where(or_(m == 0.0, (m < 0.0) == (y < 0.0)), 0.0, 1.0)
n = round(d)
where(y == 0.0, q, where(n == 0.0, copysign(0.0, q), n))
"""

# 2**x = 2**k exp(t ln 2), t = x - k exactly.
_EXP2 = """
b = where(x > {TOP_2}, {TOP_2}, x)
c = where(b < {LOW_2}, {LOW_2}, b)
n = c + {ROUND_BIAS_2}
t = c - (n - {ROUND_BIAS_2})
r = t * {LN2}
low = fma(t, {LN2}, -r) + t * {LN2_REST}
p = 1.0 + (r + fma(r * r, {EXP:r}, low))
half = and_(shl(bits(n), {HALF}), {EXPONENT_BITS})
rest = shl(bits(n), {MANTISSA}) - half
p * float_of_bits(half) * float_of_bits(rest)
"""

# k + log2(1 + f) and k log10(2) + log10(1 + f), the large parts added exactly; see `log`.
_LOG_BASE = """
w = f * f * ({LOG:f})
h = f * SCALED
low = fma(f, SCALED, -h) + fma(w, SCALED, f * REST)
whole = k * UNIT
s = whole + h
y = s + (((whole - s) + h) + fma(k, UNIT_REST, low))
"""


def _log_base(scaled: str, rest: str, unit: str, unit_rest: str) -> str:
    text = _LOG_BASE.replace("SCALED", scaled).replace("UNIT_REST", unit_rest)
    return text.replace("REST", rest).replace("UNIT", unit)


LOG2 = _log_base("{LOG2E}", "{LOG2E_REST}", "1.0", "0.0")
LOG10 = _log_base("{LOG10E}", "{LOG10E_REST}", "{LOG10_2_HI}", "{LOG10_2_LO}")

# The smaller over the larger is turned by an eighth of a turn where it is above tan(pi / 8); what
# that and the quadrant add is a multiple of pi / 4, `turns`.
_ATAN2 = """
ay = abs(y)
ax = abs(x)
swap = ay > ax
more = where(swap, ay, ax)
less = where(swap, ax, ay)
same = and_(more == less, more > 0.0)
mid = or_(less > 0.41421356237309503 * more, same)
scale = where(more > {LARGE}, 0.25, 1.0)
big = more * scale
small = less * scale
above = where(same, 0.0, where(mid, small - big, small))
below = where(or_(same, more == 0.0), 1.0, where(mid, small + big, big))
t = above / below
u = t * t
p = fma(t * u, {ATAN:u}, t)
left = copysign(1.0, x) < 0.0
q1 = where(mid, 1.0, 0.0)
q2 = where(swap, 2.0 - q1, q1)
turns = where(left, 4.0 - q2, q2)
signed = where(swap != left, -p, p)
angle = turns * {QUARTER_PI_HI} + fma(turns, {QUARTER_PI_LO}, signed)
where(or_(x != x, y != y), x + y, copysign(angle, y))
"""

# Of |x|, whose sign comes back at the end. Beyond TURN the smaller exponential is folded in whole.
_SINH = """
a = abs(x)
t = expm1(where(a < 1.0, a, 1.0))
h = exp_half(a)
copysign(where(a < 1.0, 0.5 * (t + t / (t + 1.0)), h - 0.25 / h), x)
"""
_COSH = "h = exp_half(abs(x)); h + 0.25 / h"
_ASINH = """
a = abs(x)
c = where(a > {ROOT_BIG}, 1.0, a)
u = c * c
near = log1p(c + u / (1.0 + sqrt(1.0 + u)))
copysign(where(a > {ROOT_BIG}, log(a) + {LN2}, near), x)
"""
_ACOSH = """
t = where(x > {ROOT_BIG}, 1.0, x - 1.0)
near = log1p(t + sqrt(t * (t + 2.0)))
where(x > {ROOT_BIG}, log(x) + {LN2}, where(x < 1.0, float_of_bits({NAN_BITS}), near))
"""
_ATANH = "a = abs(x); copysign(0.5 * log1p((a + a) / (1.0 - a)), x)"

# Scaled by a power of two, so that the squares are in range.
_HYPOT = """
ax = abs(x)
ay = abs(y)
more = where(ax > ay, ax, ay)
less = where(ax > ay, ay, ax)
high = more > {SQUARE_HIGH}
deep = more < {SQUARE_LOW}
scale = where(high, {SQUARE_DOWN}, where(deep, {SQUARE_UP}, 1.0))
back = where(high, {DOWN_BACK}, where(deep, {UP_BACK}, 1.0))
a = more * scale
b = less * scale
h = sqrt(fma(a, a, b * b)) * back
where(or_(ax == 1e999, ay == 1e999), 1e999, where(or_(x != x, y != y), x + y, h))
"""
# erfc(a) = exp(-a**2) p(w) / (1 + 2 a), w = (a - 2) / (a + 2); the square is in two parts.
ERFC = """
a = abs(x)
e = where(a < {ERFC_ZERO}, a, {ERFC_ZERO})
u = e * e
c = -u
REDUCE
r1 = r - fma(e, e, -u)
p = fma(r1, fma(r1, {EXP:r1}, 1.0), 1.0)
half = and_(shl(bits(n), {HALF}), {EXPONENT_BITS})
rest = shl(bits(n), {MANTISSA}) - half
w = (e - 2.0) / (e + 2.0)
tail = p * (({ERFC_TAIL:w}) / fma(e, 2.0, 1.0)) * float_of_bits(half) * float_of_bits(rest)
near = fma(-x, {ERF:u}, 1.0 - x)
far = where(x < 0.0, 2.0 - tail, tail)
where(a >= 0.5, far, near)
"""
TANGENT = """
odd = and_(bits(n), 1) == 1
y = where(odd, -cosine, sine) / where(odd, sine, cosine)
where(abs(x) < {SMALL_ANGLE}, x, y)
"""
_LOGADDEXP = """
more = where(x > y, x, y)
less = where(x > y, y, x)
d = where(x == y, 0.0, less - more)
where(or_(x != x, y != y), x + y, more + log1p(exp(d)))
"""

#: name -> template; `ops.recipes` puts LOG2, LOG10, ERFC and TANGENT together with parts of its own
TEMPLATES: dict[str, str] = {
    "round": _ROUND,
    "trunc": _TRUNC,
    "floor": _FLOOR,
    "ceil": _CEIL,
    "fmod": _FMOD,
    "remainder": _REMAINDER,
    "floor_divide": _FLOOR_DIVIDE,
    "exp2": _EXP2,
    "atan2": _ATAN2,
    "atan": "atan2(x, 1.0)",
    "asin": "atan2(x, sqrt((1.0 - x) * (1.0 + x)))",
    "acos": "atan2(sqrt((1.0 - x) * (1.0 + x)), x)",
    "sinh": _SINH,
    "cosh": _COSH,
    "asinh": _ASINH,
    "acosh": _ACOSH,
    "atanh": _ATANH,
    "hypot": _HYPOT,
    "logaddexp": _LOGADDEXP,
}
