"""The library functions against float64 (for float32) and mpmath (for float64), in ULP.

`python tests/ops/test_recipes.py 1021` prints the worst error over every 1021st float32.
"""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
import pytest

from chainrule.ir.formula import parse_recipe
from chainrule.ir.machine import MACHINE, MachineOp
from chainrule.ir.recipe import Listing, parameters, run, typed
from chainrule.ir.types import DTYPES
from chainrule.ops import coefficients
from chainrule.ops.recipes import RECIPES

Array = np.ndarray[Any, Any]
SEED = 20240607
INF, NAN = math.inf, math.nan
ANGLES = ("sin", "cos", "tan")  # accurate to 1e5
BOUNDED = ("asin", "acos", "acosh", "atanh")  # not defined outside


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


def _softplus(x: Array) -> Array:
    return np.where(x > 0, x, 0.0) + np.log1p(np.exp(-np.abs(x)))


# name -> (meaning in float64, meaning in mpmath, interval where it is neither constant nor inf,
#          largest ULP allowed in float32, in float64)
FUNCTIONS: dict[str, tuple[Callable[[Array], Array], Any, tuple[float, float], float, float]] = {
    "exp": (np.exp, mp.exp, (-745.0, 709.7), 0.95, 1.0),
    "expm1": (np.expm1, mp.expm1, (-40.0, 709.7), 1.0, 1.5),
    "log": (np.log, mp.log, (0.0, 1e6), 0.95, 1.0),
    "log1p": (np.log1p, mp.log1p, (-0.999, 1e6), 1.0, 1.0),
    "tanh": (np.tanh, mp.tanh, (-20.0, 20.0), 1.0, 1.2),
    "sigmoid": (_sigmoid, lambda x: 1 / (1 + mp.exp(-x)), (-745.0, 40.0), 1.0, 2.0),
    "sin": (np.sin, mp.sin, (-1e5, 1e5), 0.95, 1.0),
    "cos": (np.cos, mp.cos, (-1e5, 1e5), 0.95, 1.0),
    "erf": (np.vectorize(math.erf), mp.erf, (-6.0, 6.0), 1.0, 1.5),
    "softplus": (_softplus, lambda x: mp.log1p(mp.exp(x)), (-745.0, 100.0), 2.0, 2.0),
    "log_sigmoid": (lambda x: -_softplus(-x), lambda x: -mp.log1p(mp.exp(-x)),
                    (-100.0, 745.0), 2.0, 2.0),
    "rsqrt": (lambda x: 1 / np.sqrt(x), lambda x: 1 / mp.sqrt(x), (0.0, 1e6), 1.5, 1.5),
    "exp2": (np.exp2, lambda x: mp.power(2, x), (-1074.0, 1023.9), 1.0, 1.0),
    "log2": (np.log2, lambda x: mp.log(x) / mp.log(2), (0.0, 1e6), 1.5, 1.5),
    "log10": (np.log10, lambda x: mp.log(x) / mp.log(10), (0.0, 1e6), 1.0, 1.0),
    "tan": (np.tan, mp.tan, (-1e5, 1e5), 2.5, 2.5),
    "asin": (np.arcsin, mp.asin, (-1.0, 1.0), 3.0, 3.0),
    "acos": (np.arccos, mp.acos, (-1.0, 1.0), 2.5, 2.5),
    "atan": (np.arctan, mp.atan, (-1e6, 1e6), 2.0, 2.0),
    "sinh": (np.sinh, mp.sinh, (-710.4, 710.4), 2.0, 2.5),
    "cosh": (np.cosh, mp.cosh, (-710.4, 710.4), 2.0, 2.0),
    "asinh": (np.arcsinh, mp.asinh, (-1e6, 1e6), 2.0, 2.5),
    "acosh": (np.arccosh, mp.acosh, (1.0, 1e6), 2.5, 2.5),
    "atanh": (np.arctanh, mp.atanh, (-1.0, 1.0), 2.0, 2.5),
    "erfc": (np.vectorize(math.erfc), mp.erfc, (-6.0, 26.5), 3.5, 3.5),
    "floor": (np.floor, mp.floor, (-1e6, 1e6), 0, 0),
    "ceil": (np.ceil, mp.ceil, (-1e6, 1e6), 0, 0),
    "trunc": (np.trunc, lambda x: mp.sign(x) * mp.floor(abs(x)), (-1e6, 1e6), 0, 0),
    "round": (np.rint, mp.nint, (-1e6, 1e6), 0, 0),
}  # fmt: skip


def listing(name: str, dtype: str) -> Listing:
    kind, recipe = DTYPES[dtype], parse_recipe(RECIPES[name][dtype])
    return typed(recipe, dict.fromkeys(parameters(recipe), kind), kind, RECIPES)


def call(name: str, dtype: str, *args: object) -> Array:
    arrays = [np.asarray(a, dtype) for a in args]
    recipe = parse_recipe(RECIPES[name][dtype])
    return run(listing(name, dtype), dict(zip(parameters(recipe), arrays, strict=True)))


def errors(name: str, x: Array) -> Array:
    """ULP between the float32 recipe and the float64 meaning; asserts what has no distance."""
    with np.errstate(all="ignore"):
        want = FUNCTIONS[name][0](x.astype(np.float64))
        near = want.astype(np.float32)
    found = call(name, "float32", x)
    assert np.array_equal(np.isnan(found), np.isnan(near)), name
    finite = np.isfinite(near) & np.isfinite(found)
    ends = np.isinf(near) | np.isinf(found)  # the largest float may stand for inf, one step away
    assert (np.abs(np.where(ends, found, INF)) >= np.float32(3.4028234e38)).all(), name
    assert (np.signbit(found) == np.signbit(near))[finite | ends].all(), name
    want = want[finite]
    out = np.zeros(x.shape)
    out[finite] = np.abs(found[finite].astype(np.float64) - want) / _unit(want, 24, -149)
    return out


def _unit(want: Array, digits: int, lowest: int) -> Array:
    return np.exp2(np.maximum(np.frexp(want)[1] - digits, lowest).astype(np.float64))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32(name: str) -> None:
    rng = np.random.default_rng(SEED)
    low, high = FUNCTIONS[name][2]
    n = 1 << 16
    patterns = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    if name in ANGLES:
        patterns = patterns[~(np.abs(patterns) > 1e5)]
    x = np.concatenate([rng.uniform(max(low, -110), min(high, 110), n), rng.uniform(low, high, n),
                        rng.uniform(max(low, -2), 2, n)]).astype(np.float32)  # fmt: skip
    worst = errors(name, np.concatenate([x, patterns])).max()
    assert worst <= FUNCTIONS[name][3], f"{name}: {worst} ULP, seed {SEED}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64(name: str) -> None:
    _, exact, (low, high), _, allowed = FUNCTIONS[name]
    rng = np.random.default_rng(SEED)
    n = 300
    size = np.exp(rng.uniform(-700, math.log(high), n))
    near = [rng.uniform(max(low, -2), 2, n), 1 + rng.normal(0, 1e-4, n), [5e-324, 1e-310]]
    x = np.concatenate([rng.uniform(low, high, n), size, -size[size < -low], *near])
    x = x[(low <= x) & (x <= high)] if name in BOUNDED else x
    found = call(name, "float64", x)
    worst = 0.0
    with mp.workprec(160 + 1100 * (name in ("log1p", "expm1", "softplus", "log_sigmoid"))):
        for a, r in zip(x.tolist(), found.tolist(), strict=True):
            want = exact(mp.mpf(a))
            unit = mp.mpf(2) ** max(mp.frexp(want)[1] - 53, -1074)
            worst = max(worst, float(abs(mp.mpf(r) - want) / unit))
    assert worst <= allowed, f"{name}: {worst} ULP, seed {SEED}"


EDGES: dict[str, list[tuple[float, float]]] = {
    "exp": [(0, 1), (-0.0, 1), (INF, INF), (-INF, 0), (1000, INF), (-1000, 0)],
    "expm1": [(0, 0), (-0.0, -0.0), (INF, INF), (-INF, -1), (-1000, -1), (1e-30, 1e-30)],
    "log": [(0, -INF), (-0.0, -INF), (1, 0), (INF, INF), (-1, NAN), (-INF, NAN), (-1e-40, NAN)],
    "log1p": [(0, 0), (-0.0, -0.0), (-1, -INF), (-2, NAN), (INF, INF), (-INF, NAN), (1e-30, 1e-30)],
    "tanh": [(0, 0), (-0.0, -0.0), (INF, 1), (-INF, -1), (50, 1), (-1e30, -1), (1e-30, 1e-30)],
    "sigmoid": [(0, 0.5), (INF, 1), (-INF, 0), (1e4, 1), (-1e4, 0)],
    "sin": [(0, 0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (1e-30, 1e-30)],
    "cos": [(0, 1), (-0.0, 1), (INF, NAN), (-INF, NAN)],
    "erf": [(0, 0), (-0.0, -0.0), (INF, 1), (-INF, -1), (7, 1)],
    "softplus": [(INF, INF), (-INF, 0), (1e4, 1e4), (-1e4, 0)],
    "log_sigmoid": [(INF, 0), (-INF, -INF), (1e4, 0), (-1e4, -1e4)],
    "rsqrt": [(0, INF), (1, 1), (4, 0.5), (INF, 0), (-1, NAN)],
    "exp2": [(0, 1), (10, 1024), (-3, 0.125), (INF, INF), (-INF, 0), (5000, INF), (-5000, 0)],
    "log2": [(0, -INF), (1, 0), (8, 3), (0.25, -2), (INF, INF), (-1, NAN)],
    "log10": [(0, -INF), (1, 0), (1000, 3), (INF, INF), (-1, NAN)],
    "tan": [(0, 0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (1e-30, 1e-30)],
    "asin": [(0, 0), (-0.0, -0.0), (1.5, NAN), (INF, NAN), (1e-30, 1e-30)],
    "acos": [(1, 0), (-1.5, NAN), (INF, NAN)],
    "atan": [(0, 0), (-0.0, -0.0), (1e-30, 1e-30)],
    "sinh": [(0, 0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (1e4, INF), (1e-30, 1e-30)],
    "cosh": [(0, 1), (-0.0, 1), (INF, INF), (-INF, INF), (-1e4, INF)],
    "asinh": [(0, 0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (1e-30, 1e-30)],
    "acosh": [(1, 0), (0.5, NAN), (-5, NAN), (INF, INF), (-INF, NAN)],
    "atanh": [(0, 0), (-0.0, -0.0), (1, INF), (-1, -INF), (2, NAN), (INF, NAN), (1e-30, 1e-30)],
    "erfc": [(0, 1), (-0.0, 1), (INF, 0), (-INF, 2), (50, 0), (-50, 2)],
    "floor": [(0, 0), (-0.0, -0.0), (-0.5, -1), (0.5, 0), (INF, INF), (-INF, -INF), (1e30, 1e30)],
    "ceil": [(0, 0), (-0.0, -0.0), (-0.5, -0.0), (0.5, 1), (INF, INF), (-INF, -INF)],
    "trunc": [(0, 0), (-0.0, -0.0), (-1.5, -1), (-0.5, -0.0), (INF, INF), (-INF, -INF)],
    "round": [(0, 0), (-0.0, -0.0), (0.5, 0), (1.5, 2), (2.5, 2), (-0.5, -0.0), (INF, INF)],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_edges(name: str, dtype: str) -> None:
    x, want = np.array([*EDGES[name], (NAN, NAN), (-NAN, NAN)], dtype).T
    found = call(name, dtype, x)
    np.testing.assert_array_equal(found, want, err_msg=name)
    both = ~np.isnan(want) & (want != 0 if name in ("softplus", "log_sigmoid") else True)
    assert np.array_equal(np.signbit(found)[both], np.signbit(want)[both])


def test_angles_too_large_stay_in_range() -> None:
    for dtype in ("float32", "float64"):
        x = np.exp2(np.arange(16.0, 127.0)).astype(dtype)
        for name in ("sin", "cos"):
            assert (np.abs(call(name, dtype, x)) <= 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pow_special_cases(dtype: str) -> None:
    info = np.finfo(dtype)
    digits = 2.0**info.nmant
    values = [0, 1, 2, 3, 0.5, 1.5, INF, 1 + info.eps, 1 - info.eps / 2, digits, digits + 1]
    values += [2 * digits, digits - 0.5, digits / 2 + 0.5]
    values += [info.tiny, info.smallest_subnormal, info.max]
    both = np.array([*values, *(-v for v in values), NAN], dtype)
    x, y = (a.ravel() for a in np.meshgrid(both, both))
    found = call("pow", dtype, x, y)
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64)).astype(dtype)
    exact = ~np.isfinite(want) | (want == 0) | (np.abs(x) == 1) | (y == 0)
    np.testing.assert_array_equal(found[exact], want[exact])
    assert np.array_equal(np.signbit(found)[~np.isnan(want)], np.signbit(want)[~np.isnan(want)])
    np.testing.assert_allclose(
        found[~exact], want[~exact], rtol=4 * info.eps, atol=info.smallest_subnormal
    )


def _powers(rng: np.random.Generator, n: int, dtype: str) -> tuple[Array, Array]:
    low, high, span = (-103.0, 88.7, 126) if dtype == "float32" else (-745.0, 709.7, 1022)
    x = np.concatenate([np.exp2(rng.uniform(-span, span, n)), np.exp(rng.normal(0, 1, n)),
                        1 + rng.normal(0, 1e-3, n)]).astype(dtype)  # fmt: skip
    x = np.where(x == 1, np.asarray(1.5, dtype), x)
    y = rng.uniform(low, high, 3 * n) / np.log(x.astype(np.float64))
    return x, y.astype(dtype)


def test_pow_float32() -> None:
    x, y = _powers(np.random.default_rng(SEED), 60000, "float32")
    want = np.power(x.astype(np.float64), y.astype(np.float64))
    keep = (want < 3.4e38) & np.isfinite(y)
    found = call("pow", "float32", x, y).astype(np.float64)
    assert (np.abs(found - want) / _unit(want, 24, -149))[keep].max() <= 1.1


def test_pow_float64() -> None:
    x, y = _powers(np.random.default_rng(SEED), 500, "float64")
    worst = 0.0
    with mp.workprec(200):
        for a, b, r in zip(
            x.tolist(), y.tolist(), call("pow", "float64", x, y).tolist(), strict=True
        ):
            want = mp.power(mp.mpf(a), mp.mpf(b))
            if want < mp.mpf(1.7e308):
                unit = mp.mpf(2) ** max(mp.frexp(want)[1] - 53, -1074)
                worst = max(worst, float(abs(mp.mpf(r) - want) / unit))
    assert worst <= 1.2, worst


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RECIPES)
def test_only_machine_operations_of_one_width(name: str, dtype: str) -> None:
    width = DTYPES[dtype].bits
    for step in listing(name, dtype).steps:
        assert step.fn in MACHINE
        assert step.fn not in ("cast", "quotient", "to_int")
        assert step.dtype.bits in (1, width)
        assert step.dtype.is_float or step.fn != "mul"


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in ("rsqrt", "tan")])
def test_without_a_fused_multiply_add(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `fma` multiplies, then adds, nothing breaks: 2 ULP or little more."""
    rng = np.random.default_rng(SEED)
    x = np.concatenate([rng.uniform(-90, 88, 20000), rng.uniform(-2, 2, 20000)]).astype(np.float32)
    monkeypatch.setitem(MACHINE, "fma", MachineOp("fma", 3, "same", "", lambda a, b, c: a * b + c))
    found = call(name, "float32", x).astype(np.float64)
    with np.errstate(all="ignore"):
        want = FUNCTIONS[name][0](x.astype(np.float64))
        keep = np.isfinite(want.astype(np.float32)) & (want != 0)
    error = np.abs(found - want)[keep]
    if name in ("sin", "cos"):
        error = np.where(error < 2.0**-28, 0, error)
    limit = {"erfc": 64, "asin": 3, "acos": 3, "atan": 3, "sinh": 3, "cosh": 3}.get(name, 2)
    assert (error / _unit(want[keep], 24, -149)).max() <= limit


@pytest.mark.long
def test_the_constants_are_those_derived(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(__file__).with_name("derive_coefficients.py")))["write"]()
    assert capsys.readouterr().out == Path(str(coefficients.__file__)).read_text()


def every(name: str, stride: int) -> tuple[float, float]:
    """The worst error over every stride-th float32, and its argument."""
    worst, where = 0.0, NAN
    for start in range(0, 2**32, stride << 18):
        x = (
            np.arange(start, min(start + (stride << 18), 2**32), stride)
            .astype(np.uint32)
            .view(np.float32)
        )
        with np.errstate(all="ignore"):
            near = np.isfinite(FUNCTIONS[name][0](x.astype(np.float64)).astype(np.float32))
        x = x[near & (np.abs(x) <= 1e5 if name in ANGLES else True)]
        error = errors(name, x) if x.size else np.zeros(0)
        if error.size and error.max() > worst and error.size == x.size:
            worst, where = float(error.max()), float(x[error.argmax()])
    return worst, where


@pytest.mark.long
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_float32(name: str) -> None:
    worst, where = every(name, 1)
    assert worst <= FUNCTIONS[name][3], f"{name}({where!r}): {worst} ULP"


if __name__ == "__main__":
    import sys

    for function in FUNCTIONS:
        print(function, *every(function, int(sys.argv[1])), flush=True)
