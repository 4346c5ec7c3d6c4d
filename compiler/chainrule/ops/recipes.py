"""The library functions in machine operations: what SIMD code, exports and every target share.

Each recipe is straight-line code in the operations of `ir.machine`: no float64 in float32 code, no
64-bit integer product, no branch (`where` chooses), the same bits wherever there is a fused
multiply-add. Arguments are reduced as in Cody & Waite, Software Manual for the Elementary Functions
(1980); polynomials are minimax, derived by `tests/ops/derive_coefficients.py` (Remez; Muller,
Elementary Functions, 3rd ed. 2016); sums that must not lose bits carry their rounding error along
(Dekker, Numer. Math. 18, 1971). The errors, measured, stand in docs/numerics.md.

Subnormal numbers are kept, overflow gives inf, NaN gives NaN. One template serves both precisions;
`{NAME}` is a constant of the format and `{NAME:r}` a polynomial in r. `n = fma(x, c, {ROUND})`
rounds x * c to an integer that stands in the low bits of n, offset by what the name says: near
1.5 * 2**MANTISSA a float has no fraction.
"""

from __future__ import annotations

from chainrule.ops import more_recipes as more
from chainrule.ops.coefficients import CONSTANTS, POLYNOMIALS

_MANTISSA = {"float32": 23, "float64": 52}
_BIAS = {"float32": 127, "float64": 1023}
#: Beyond these exp is inf, exp is 0, expm1 is -1, tanh is 1, |erf| is 1, sin and cos give up.
_LIMITS = {
    "float32": {
        "TOP": 89.0,
        "LOW": -104.0,
        "MINUS_ONE": -18.0,
        "ONE": 10.0,
        "HUGE": 2.0**40,
        "ERF_ONE": 3.93,
        "ERFC_ZERO": 10.25,
    },
    "float64": {
        "TOP": 710.0,
        "LOW": -746.0,
        "MINUS_ONE": -38.0,
        "ONE": 20.0,
        "HUGE": 2.0**70,
        "ERF_ONE": 6.0,
        "ERFC_ZERO": 27.25,
    },
}


class _Polynomial(tuple[float, ...]):
    """Coefficients, lowest first; formatted with a name they are Horner's scheme in it."""

    def __format__(self, name: str) -> str:
        text = repr(self[-1])
        for c in self[-2::-1]:
            text = f"fma({name}, {text}, {c!r})"
        return text


class _Choice(tuple[tuple[float, float], ...]):
    """Two polynomials; formatted as "x,c" they are Horner's scheme in x of the one c chooses."""

    def __format__(self, names: str) -> str:
        x, c = names.split(",")
        text = f"where({c}, {self[-1][0]!r}, {self[-1][1]!r})"
        for a, b in self[-2::-1]:
            text = f"fma({x}, {text}, where({c}, {a!r}, {b!r}))"
        return text


def _values(dtype: str) -> dict[str, object]:
    """What the names in a template stand for."""
    mantissa, bias, polynomials = _MANTISSA[dtype], _BIAS[dtype], POLYNOMIALS[dtype]
    erfc = zip(polynomials.get("ERFC_LEFT", ()), polynomials.get("ERFC_RIGHT", ()), strict=True)
    round_ = 1.5 * 2.0**mantissa
    return {
        **CONSTANTS[dtype],
        **_LIMITS[dtype],
        **{name: _Polynomial(c) for name, c in polynomials.items()},
        "ERFC": _Choice(erfc),
        "MANTISSA": mantissa,
        "HALF": mantissa - 1,
        "EXPONENT_BITS": (2 * bias + 1) << mantissa,
        "ROUND": round_,
        "ROUND_BIAS": round_ + bias,  # the integer + bias: shifted left, the bits of a power of 2
        "ROUND_BIAS_LESS_1": round_ + bias - 1,
        "ROUND_BIAS_2": round_ + 2 * bias,
        "ROUND_BIAS_64": round_ + bias + 64,
        "INTEGER": 2.0**mantissa,
        "TWICE_INTEGER": 2.0 ** (mantissa + 1),
        "INTEGER_BITS": (mantissa + bias) << mantissa,
        "INTEGER_BIAS": 2.0**mantissa + bias,
        "INTEGER_BIAS_SMALL": 2.0**mantissa + bias + mantissa,
        "ONE_BITS": bias << mantissa,
        "TWO_BIAS_2": 2 * bias + 2,
        "HALF_UNIT": 1 << (mantissa - 1),  # bits(1.0) - bits(0.75)
        "SCALE": 2.0**mantissa,
        "TINY": 2.0 ** (1 - bias),
        "EPS": 2.0 ** -(mantissa + 3),
        "SMALL_ANGLE": 2.0 ** -(mantissa // 2 + 2),
        "SIGN": bias.bit_length() + mantissa,
        "NAN_BITS": ((4 * bias + 3) << mantissa) // 2 & -(1 << (mantissa - 1)),
        "LARGE_ANGLE": 2.0 ** (mantissa - 1),
        "TOP_2": bias + 2.0,
        "LOW_2": -bias - mantissa - 1.0,
        "LARGE": 2.0 ** (bias - 1),
        "ROOT_BIG": 2.0 ** (mantissa // 2 + 2),
        "SQUARE_HIGH": 2.0 ** (bias // 2 - 4),
        "SQUARE_DOWN": 2.0 ** -(bias // 2 + 8),
        "DOWN_BACK": 2.0 ** (bias // 2 + 8),
        "SQUARE_LOW": 2.0 ** -(bias // 2 - 8),
        "SQUARE_UP": 2.0 ** (bias // 2 + mantissa + 4),
        "UP_BACK": 2.0 ** -(bias // 2 + mantissa + 4),
    }


# The whole number k nearest x / ln 2 and what is left, r; n holds k plus an offset.
_REDUCE = """
n = fma(c, {LOG2E}, OFFSET)
k = n - OFFSET
r = fma(k, -{LN2_LO}, fma(k, -{LN2_HI}, c))
"""
_EXP_REDUCE = _REDUCE.replace("OFFSET", "{ROUND_BIAS_2}")

# 2**k may be out of range where the result is not: it is made of two factors, each about its root.
_EXP = f"""
b = where(x > {{TOP}}, {{TOP}}, x)
c = where(b < {{LOW}}, {{LOW}}, b)
{_EXP_REDUCE}
p = fma(r, fma(r, {{EXP:r}}, 1.0), 1.0)
half = and_(shl(bits(n), {{HALF}}), {{EXPONENT_BITS}})
rest = shl(bits(n), {{MANTISSA}}) - half
p * float_of_bits(half) * float_of_bits(rest)
"""

# 2**k (1 + r + w) - 1 with the large parts added exactly; halved, so that k = 128 stays in range.
_EXPM1 = f"""
b = where(x > {{TOP}}, {{TOP}}, x)
c = where(b < {{MINUS_ONE}}, {{MINUS_ONE}}, b)
{_REDUCE.replace("OFFSET", "{ROUND_BIAS_LESS_1}")}
s = float_of_bits(shl(bits(n), {{MANTISSA}}))
w = r * r * ({{EXPM1:r}})
one = where(k > {{MANTISSA}}, 0.0, 0.5)
a = s - one
t = s * r
h = a + t
low = (t - (h - a)) - (0.5 - one)
where(abs(x) < {{EPS}}, x, 2.0 * (h + fma(s, w, low)))
"""

# With e the exponent that brings m into [0.75, 1.5): log = k ln 2 + f + f**2 p(f), f = m - 1.
_LOG_SUM = """
w = f * f * ({LOG:f})
y = fma(k, {LN2_HI}, f + fma(k, {LN2_LO}, w))
"""
_SPLIT = """
small = ARGUMENT < {TINY}
z = where(small, ARGUMENT * {SCALE}, ARGUMENT)
e = lshr(bits(z) + {HALF_UNIT}, {MANTISSA})
m = float_of_bits(bits(z) - shl(e, {MANTISSA}) + {ONE_BITS})
k = float_of_bits(e + {INTEGER_BITS}) - where(small, {INTEGER_BIAS_SMALL}, {INTEGER_BIAS})
f = m - 1.0
"""
_POLE = """
v = where(x < 1e999, y, x)
where(POLE > 0.0, v, where(POLE == 0.0, -1e999, float_of_bits({NAN_BITS})))
"""
_LOG = f"{_SPLIT.replace('ARGUMENT', 'x')}{_LOG_SUM}{_POLE.replace('POLE', 'x')}"

# f = 2**-k (1 + x) - 1 without rounding 1 + x; 2**(2 - k) is in range where 2**-k is not.
_LOG1P = f"""
u = 1.0 + x
e = lshr(bits(u) + {{HALF_UNIT}}, {{MANTISSA}})
s = float_of_bits(shl({{TWO_BIAS_2}} - e, {{MANTISSA}}))
f = fma(s, 0.25 * x, fma(s, 0.25, -1.0))
k = float_of_bits(e + {{INTEGER_BITS}}) - {{INTEGER_BIAS}}
{_LOG_SUM}
t = where(abs(x) < {{EPS}}, x, y)
{_POLE.replace("x < 1e999, y", "x < 1e999, t").replace("POLE", "u")}
"""

_TANH = f"""
a = abs(x)
g = where(a > {{ONE}}, {{ONE}}, a)
c = g + g
{_REDUCE.replace("OFFSET", "{ROUND_BIAS}")}
p = fma(r, fma(r, {{EXP:r}}, 1.0), 1.0)
d = fma(float_of_bits(shl(bits(n), {{MANTISSA}})), p, 1.0)
u = a * a
copysign(where(a < 1.0, fma(a * u, {{TANH:u}}, a), 1.0 - 2.0 / d), x)
"""

# z / (1 + z) or 1 / (1 + z), z = exp(-|x|); float32 corrects the quotient by its own remainder.
_SIGMOID_HEAD = f"""
a = -abs(x)
c = where(a < {{LOW}}, {{LOW}}, a)
{_REDUCE.replace("OFFSET", "{ROUND_BIAS_64}")}
g = fma(r, {{EXP:r}}, 1.0)
p = fma(r, g, 1.0)
s = float_of_bits(shl(bits(n), {{MANTISSA}}))
z = p * s * 5.421010862427522e-20
d = 1.0 + z
"""
_SIGMOID = {
    "float32": f"""{_SIGMOID_HEAD}
low = fma(r, g, 1.0 - p) * s * 5.421010862427522e-20
dlow = (z - (d - 1.0)) + low
top = where(x < 0.0, z, 1.0)
i = 1.0 / d
q = top * i
fma(fma(-q, d, top) + fma(-q, dlow, where(x < 0.0, low, 0.0)), i, q)
""",
    "float64": f"""{_SIGMOID_HEAD}
where(x < 0.0, z, 1.0) / d
""",
}

# x less k quarter turns, as r + rl; then sine or cosine of it, by the quadrant.
_ANGLE = """
c = where(abs(x) < {LARGE_ANGLE}, x, x * 0.0)
n = fma(c, {TWO_OVER_PI}, {ROUND})
k = n - {ROUND}
r0 = fma(k, -{HALF_PI_2}, fma(k, -{HALF_PI_1}, c))
p = k * {HALF_PI_3}
r = r0 - p
rl = fma(k, -{HALF_PI_4}, ((r0 - r) - p) - fma(k, {HALF_PI_3}, -p))
"""
# Sine and cosine of r + rl, at most an eighth of a turn; quadrants choose between them.
_SINE_COSINE = """
u = r * r
sine = r + fma(r * u, {SIN:u}, rl)
h = 0.5 * u
w = 1.0 - h
cosine = w + (((1.0 - w) - h) + fma(u * u, {COS:u}, -r * rl))
"""
_COSINE = f"""{_SINE_COSINE}
q = bits(n) + 1
y = where(and_(q, 1) == 0, sine, cosine)
float_of_bits(xor(bits(y), shl(and_(q, 2), {{SIGN}})))
"""
_COS = f"{_ANGLE}{_COSINE}"
_SIN = f"""{_ANGLE}{_SINE_COSINE}
q = bits(n)
y = where(and_(q, 1) == 0, sine, cosine)
y1 = float_of_bits(xor(bits(y), shl(and_(q, 2), {{SIGN}})))
where(abs(x) < {{SMALL_ANGLE}}, x, y1)
"""

# cos(2 pi x), 0 <= x < 1: reduced exactly, so that no bit of x is lost.
_COS_TURNS = f"""
t0 = 4.0 * x
n = t0 + {{ROUND}}
t = t0 - (n - {{ROUND}})
r = t * {{HALF_PI_HI}}
rl = fma(t, {{HALF_PI_LO}}, fma(t, {{HALF_PI_HI}}, -r))
{_COSINE}"""

_ERF_HEAD = """
a = abs(x)
t = where(a > {ERF_ONE}, {ERF_ONE}, a)
u = a * a
near = fma(a, {ERF:u}, a)
"""
_ERF = {
    "float32": f"""{_ERF_HEAD}
first = t < 2.25
s = t - where(first, 1.5625, 3.0625)
copysign(where(a < 0.9375, near, 1.0 - {{ERFC:s,first}}), x)
""",
    "float64": f"""{_ERF_HEAD}
c = -t * t
v = 1.0 / (t + 2.0)
{_REDUCE.replace("OFFSET", "{ROUND_BIAS}")}
p = fma(r, fma(r, {{EXP:r}}, 1.0), 1.0) * float_of_bits(shl(bits(n), {{MANTISSA}}))
copysign(where(a < 1.0, near, 1.0 - p * ({{ERFCX:v}})), x)
""",
}

# exp(y log|x|), the logarithm and its product with y as unevaluated sums of two floats: with
# s = f / (2 + f), log(1 + f) = 2 s + 2/3 s**3 + s**5 p(s**2). Then the cases of C's Annex F.
_POW = f"""
ax = abs(x)
{_SPLIT.replace("ARGUMENT", "ax")}
d = 2.0 + f
i = 1.0 / d
s = f * i
sl = fma(-s, f - (d - 2.0), fma(-s, d, f)) * i
u = s * s
ul = fma(s, s, -u) + 2.0 * s * sl
q = s * u
ql = fma(s, u, -q) + (s * ul + sl * u)
t = u * ({{ATANH:u}})
g = {{TWO_THIRDS_HI}} + t
gl = (t - (g - {{TWO_THIRDS_HI}})) + {{TWO_THIRDS_LO}}
v = q * g
vl = fma(q, g, -v) + (q * gl + ql * g)
h0 = k * {{LN2_HI}}
h1 = h0 + 2.0 * s
h2 = h1 + v
low = ((2.0 * s - (h1 - h0)) + (v - (h2 - h1))) + fma(k, {{LN2_LO}}, 2.0 * sl + vl)
l = h2 + low
ll = low - (l - h2)
b0 = where(y > {{HUGE}}, {{HUGE}}, y)
b = where(b0 < -{{HUGE}}, -{{HUGE}}, b0)
w = b * l
wl = fma(b, l, -w) + b * ll
c0 = where(w > {{TOP}}, {{TOP}}, w)
c = where(c0 < {{LOW}}, {{LOW}}, c0)
{_EXP_REDUCE}
r1 = r + where(c == w, wl, 0.0)
p = fma(r1, fma(r1, {{EXP:r1}}, 1.0), 1.0)
half = and_(shl(bits(n), {{HALF}}), {{EXPONENT_BITS}})
size = p * float_of_bits(half) * float_of_bits(shl(bits(n), {{MANTISSA}}) - half)
ay = abs(y)
integer = ay >= {{INTEGER}}
ones = where(integer, ay, ay + {{INTEGER}})
whole = or_(integer, ones - {{INTEGER}} == ay)
odd = and_(and_(whole, ay < {{TWICE_INTEGER}}), and_(bits(ones), 1) == 1)
sized = where(or_(ax == 0.0, ax == 1e999), where((y < 0.0) == (ax == 0.0), 1e999, 0.0), size)
turned = where(odd, copysign(sized, x), sized)
defined = where(and_(and_(x < 0.0, ax < 1e999), not_(whole)), float_of_bits({{NAN_BITS}}), turned)
number = where(or_(x != x, y != y), x + y, defined)
where(or_(x == 1.0, y == 0.0), 1.0, number)
"""

_TEMPLATES: dict[str, str | dict[str, str]] = {
    "exp": _EXP,
    "expm1": _EXPM1,
    "log": _LOG,
    "log1p": _LOG1P,
    "tanh": _TANH,
    "sigmoid": _SIGMOID,
    "sin": _SIN,
    "cos": _COS,
    "cos_turns": _COS_TURNS,
    "erf": _ERF,
    "pow": _POW,
    "softplus": "where(x > 0.0, x, 0.0) + log1p(exp(-abs(x)))",
    "log_sigmoid": "-(where(x < 0.0, -x, 0.0) + log1p(exp(-abs(x))))",
    "rsqrt": "1.0 / sqrt(x)",
    "exp_half": _EXP.replace("{TOP}", "({TOP} + 1.0)").replace("p * float", "0.5 * p * float"),
    "log2": _LOG.replace(_LOG_SUM, more.LOG2),
    "log10": _LOG.replace(_LOG_SUM, more.LOG10),
    "erfc": more.ERFC.replace("REDUCE", _EXP_REDUCE),
    "tan": f"{_ANGLE}{_SINE_COSINE}{more.TANGENT}",
    **more.TEMPLATES,
}


def _write(template: str | dict[str, str], dtype: str) -> str:
    text = template if isinstance(template, str) else template[dtype]
    return text.format(**_values(dtype))


#: name -> element type -> recipe; parameters are x, or x and y
RECIPES: dict[str, dict[str, str]] = {
    name: {dtype: _write(template, dtype) for dtype in _MANTISSA}
    for name, template in _TEMPLATES.items()
}
