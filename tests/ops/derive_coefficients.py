"""Derive every constant of `chainrule.ops.coefficients` anew and print that file.

    python tests/ops/derive_coefficients.py > compiler/chainrule/ops/coefficients.py

A polynomial is the minimax one of a relative error: Remez's exchange (Muller, Elementary Functions,
3rd ed. 2016, ch. 3) on a grid of Chebyshev points, in 60 digits of mpmath. Its coefficients are
then rounded one after another, from the constant term up, each time fitting those that are left
again. A constant that must be exact beyond one float is split into a sum of them (Cody & Waite,
Software Manual for the Elementary Functions, 1980).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath as mp
import numpy as np

mp.mp.dps = 60
DIGITS = {"float32": 24, "float64": 53}
Real = Any


def rounded(value: Real, bits: int) -> Real:
    """The nearest number of so many significant bits."""
    if value == 0:
        return mp.mpf(0)
    exponent = mp.floor(mp.log(abs(value), 2)) + 1 - bits
    return mp.nint(value / mp.mpf(2) ** exponent) * mp.mpf(2) ** exponent


def split(value: Real, *bits: int) -> list[Real]:
    """Numbers of so many bits each whose sum is the value, nearly."""
    parts = []
    for width in bits:
        parts.append(rounded(value, width))
        value = value - parts[-1]
    return parts


def fit(
    g: Callable[[Real], Real],
    weight: Callable[[Real], Real],
    low: Real,
    high: Real,
    n: int,
    bits: int,
) -> tuple[list[Real], Real]:
    """The `n` coefficients, lowest first, and the largest |weight * (polynomial - g)|."""
    low, high = mp.mpf(low), mp.mpf(high)
    m = 40 * n
    grid = [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (i + mp.mpf(1) / 2) / m)
        for i in range(m)
    ]
    weights = [abs(weight(x)) for x in grid]
    values = [g(x) for x in grid]
    coefficients = [rounded(c, bits) for c in _remez(grid, values, weights, n)]
    errors = _errors(coefficients, grid, values, weights)
    return coefficients, max(map(abs, errors))


def _remez(grid: list[Real], values: list[Real], weights: list[Real], n: int) -> list[Real]:
    chosen = [round((len(grid) - 1) * (1 - np.cos(np.pi * i / n)) / 2) for i in range(n + 1)]
    for _ in range(12):
        rows = [
            [grid[i] ** j for j in range(n)] + [(-1) ** s / weights[i]]
            for s, i in enumerate(chosen)
        ]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([values[i] for i in chosen]))
        coefficients = list(solution[:n])
        found = _extremes(_errors(coefficients, grid, values, weights), n + 1)
        if len(found) < n + 1 or found == chosen:
            break
        chosen = found
    return coefficients


def _errors(
    coefficients: list[Real], grid: list[Real], values: list[Real], weights: list[Real]
) -> list[Real]:
    points = zip(grid, values, weights, strict=True)
    return [w * (mp.polyval(coefficients[::-1], x) - v) for x, v, w in points]


def _extremes(errors: list[Real], wanted: int) -> list[int]:
    """The places of the largest error in each stretch of one sign, the outer weak ones dropped."""
    found: list[int] = []
    for i, e in enumerate(errors):
        if found and (errors[found[-1]] > 0) == (e > 0):
            found[-1] = i if abs(e) > abs(errors[found[-1]]) else found[-1]
        else:
            found.append(i)
    while len(found) > wanted:
        found.pop(0 if abs(errors[found[0]]) < abs(errors[found[-1]]) else -1)
    return found


def polynomials(bits: int) -> dict[str, tuple[list[Real], Real]]:
    """Every polynomial for floats of so many bits, lowest coefficient first, and its error."""
    double = bits == 53
    half_ln2 = mp.log(2) / 2 * mp.mpf("1.0001")
    quarter_pi = mp.pi / 4 * mp.mpf("1.0001")

    def odd(f: Callable[[Real], Real], u: Real) -> Real:
        return f(mp.sqrt(u)) / mp.sqrt(u)

    def erfcx(v: Real) -> Real:
        t = 1 / v - 2
        return mp.exp(t * t) * mp.erfc(t)

    def erfc_tail(w: Real) -> Real:
        t = 2 * (1 + w) / (1 - w)
        return mp.exp(t * t) * mp.erfc(t) * (1 + 2 * t)

    def log2(f: Real) -> Real:
        return (mp.log1p(f) - f) / f**2

    def shifted_erfc(at: Real, s: Real) -> Real:
        return mp.erfc(s + at)

    def exp2(r: Real) -> Real:
        return (mp.expm1(r) - r) / r**2

    def over(f: Callable[[Real], Real], power: int) -> Callable[[Real], Real]:
        """The weight that makes the error of `x**power p(x)` relative to f."""
        return lambda x: x**power / f(x)

    def sine(u: Real) -> Real:
        return odd(mp.sin, u)

    def cosine(u: Real) -> Real:
        return mp.cos(mp.sqrt(u))

    def tanh(u: Real) -> Real:
        return odd(mp.tanh, u)

    def erf(u: Real) -> Real:
        return odd(mp.erf, u)

    def atanh(u: Real) -> Real:
        return 2 * odd(mp.atanh, u)

    def atan(u: Real) -> Real:
        return odd(mp.atan, u)

    top = quarter_pi**2
    table: dict[str, tuple[Any, Any, Real, Real, int]] = {
        # exp(r) = 1 + r + r**2 p(r), by the error of exp and by that of expm1
        "EXP": (exp2, over(mp.exp, 2), -half_ln2, half_ln2, 10 if double else 5),
        "EXPM1": (exp2, over(mp.expm1, 2), -half_ln2, half_ln2, 11 if double else 6),
        # log(1 + f) = f + f**2 p(f)
        "LOG": (log2, over(mp.log1p, 2), -0.25, 0.5, 20 if double else 9),
        # log((1 + s) / (1 - s)) = 2 s + 2/3 s**3 + s**5 p(u), u = s**2
        "ATANH": (
            lambda u: (atanh(u) - 2 - 2 * u / 3) / u**2,
            over(atanh, 2), 0, mp.mpf("0.041"), 8 if double else 4,
        ),
        # tanh(x) = x + x u p(u), u = x**2 <= 1
        "TANH": (lambda u: (tanh(u) - 1) / u, over(tanh, 1), 0, 1, 16 if double else 7),
        # sin(r) = r + r u p(u); cos(r) = 1 - u / 2 + u**2 p(u); |r| <= pi / 4
        "SIN": (lambda u: (sine(u) - 1) / u, over(sine, 1), 0, top, 7 if double else 4),
        "COS": (
            lambda u: (cosine(u) - 1 + u / 2) / u**2, over(cosine, 2), 0, top, 6 if double else 3,
        ),
        # erf(x) = x + x p(u), u = x**2 <= 1
        "ERF": (lambda u: erf(u) - 1, over(erf, 0), 0, 1, 14 if double else 8),
        # atan(t) = t + t u p(u), u = t**2, t <= tan(pi / 8)
        "ATAN": (
            lambda u: (atan(u) - 1) / u,
            over(atan, 1), 0, mp.mpf("0.1717"), 12 if double else 5,
        ),
        # erfc(t) = exp(-t**2) p(w) / (1 + 2 t), w = (t - 2) / (t + 2), 0.5 <= t to where it is 0
        "ERFC_TAIL": (
            erfc_tail, lambda w: 1 / erfc_tail(w), mp.mpf("-0.601"),
            mp.mpf("0.8635" if double else "0.6736"), 26 if double else 12,
        ),
    }  # fmt: skip
    if double:  # erfc(t) = exp(-t**2) p(1 / (t + 2)), 1 <= t <= 6
        table["ERFCX"] = (
            erfcx,
            lambda v: mp.exp(-((1 / v - 2) ** 2)),
            mp.mpf(1) / 8,
            mp.mpf(1) / 3,
            20,
        )
    else:  # erfc(1.5625 + s), 0.9375 <= t <= 2.25, and erfc(3.0625 + s), 2.25 <= t <= 3.93
        for name, at, low, high in ("LEFT", 1.5625, 0.9375, 2.25), ("RIGHT", 3.0625, 2.25, 3.93):
            table[f"ERFC_{name}"] = (
                partial(shifted_erfc, at),
                lambda s: mp.mpf(1),
                low - at,
                high - at,
                11,
            )
    return {name: fit(*entry, bits) for name, entry in table.items()}


def constants(bits: int) -> dict[str, Real]:
    """Every other number, by name: sums have parts _1, _2, ... or _HI and _LO."""
    short = 15 if bits == 24 else 41  # times an exponent it is exact
    out = {"TWO_OVER_PI": rounded(2 / mp.pi, bits)}
    out["LN2_HI"], out["LN2_LO"] = split(mp.log(2), short, bits)
    for name, value in ("LN2", mp.log(2)), ("LOG2E", 1 / mp.log(2)), ("LOG10E", 1 / mp.log(10)):
        out[name], out[f"{name}_REST"] = split(value, bits, bits)
    out["LOG10_2_HI"], out["LOG10_2_LO"] = split(mp.log(2) / mp.log(10), short, bits)
    out["QUARTER_PI_HI"], out["QUARTER_PI_LO"] = split(mp.pi / 4, bits - 3, bits)
    out["TWO_THIRDS_HI"], out["TWO_THIRDS_LO"] = split(mp.mpf(2) / 3, bits, bits)
    out["HALF_PI_HI"], out["HALF_PI_LO"] = split(mp.pi / 2, bits, bits)
    widths = (8, 8, 24, 24) if bits == 24 else (27, 23, 53, 53)
    for i, part in enumerate(split(mp.pi / 2, *widths), 1):
        out[f"HALF_PI_{i}"] = part
    return out


def show(value: Real, name: str) -> str:
    """The shortest decimal that reads back as the same float."""
    scalar = np.float32(value) if name == "float32" else np.float64(value)
    assert mp.mpf(float(scalar)) == value, value
    return str(scalar)


def write() -> None:
    """Print the module."""
    print(HEAD)
    for name, bits in DIGITS.items():
        print(f'    "{name}": {{')
        for key, value in constants(bits).items():
            print(f'        "{key}": {show(value, name)},')
        print("    },")
    print("}\n\nPOLYNOMIALS: dict[str, dict[str, tuple[float, ...]]] = {")
    for name, bits in DIGITS.items():
        print(f'    "{name}": {{')
        for key, (coefficients, worst) in polynomials(bits).items():
            print(f"        # relative error 2**{mp.nstr(mp.log(worst, 2), 4)}")
            print(f'        "{key}": (')
            for c in coefficients:
                print(f"            {show(c, name)},")
            print("        ),")
        print("    },")
    print("}")


HEAD = '''"""Constants of the library functions; tests/ops/derive_coefficients.py wrote them."""

from __future__ import annotations

CONSTANTS: dict[str, dict[str, float]] = {'''

if __name__ == "__main__":
    write()
