"""Each machine operation's NumPy meaning, against exact arithmetic."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest

from chainrule.ir.machine import MACHINE

EDGES = [0.0, -0.0, 1.0, -1.0, 1.5, 3.0, np.inf, -np.inf, np.nan]


def _round(exact: Fraction, dtype: type) -> float:
    """The float nearest a rational, ties to even; inf where it is too large."""
    digits, lowest, largest = (24, -149, 128) if dtype is np.float32 else (53, -1074, 1024)
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - digits + 1, lowest)
    value = round(exact / unit) * unit  # Python rounds ties of a Fraction to even
    if abs(value) >= 2**largest:
        return float("inf") if exact > 0 else float("-inf")
    return float(value)


def _hard(rng: np.random.Generator, dtype: type, n: int) -> list[np.ndarray]:
    """Operands of an fma that cancel, tie and differ wildly in size."""
    span, info = (30, np.float32) if dtype is np.float32 else (200, np.float64)
    scale = [np.exp2(rng.integers(-span, span, n)) for _ in range(3)]
    x, y, z = (np.asarray(rng.standard_normal(n) * s, info) for s in scale)
    near = rng.integers(0, 4, n)
    product = (x.astype(np.float64) * y).astype(info)
    z = np.where(near == 1, -product, np.where(near == 2, product * info(2.0**-24), z))
    few = rng.integers(0, 2, n) == 0
    x = np.where(few, np.asarray(rng.integers(-64, 64, n), info), x)
    y = np.where(few, np.asarray(1 + rng.integers(0, 4, n) * np.finfo(info).eps, info), y)
    z = np.where(few & (near == 3), info(2.0) ** rng.integers(-span, span, n).astype(info), z)
    return [x, y, np.asarray(z, info)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_rounds_once(dtype: type) -> None:
    x, y, z = _hard(np.random.default_rng(1), dtype, 6000)
    found = MACHINE["fma"].ref(x, y, z)
    assert found.dtype == dtype
    for a, b, c, r in zip(x.tolist(), y.tolist(), z.tolist(), found.tolist(), strict=True):
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        assert r == _round(exact, dtype), (a, b, c)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_of_subnormal_results(dtype: type) -> None:
    rng = np.random.default_rng(2)
    low = -149 if dtype is np.float32 else -1074
    size = np.exp2(rng.integers(low // 2 - 6, low // 2 + 32, (2, 4000)).astype(np.float64))
    x, y = (rng.standard_normal((2, 4000)) * size).astype(dtype)
    z = np.ldexp(rng.integers(-64, 64, 4000).astype(dtype), rng.integers(low, low + 24, 4000))
    z = np.where(rng.integers(0, 2, 4000) == 0, z, -x * y).astype(dtype)
    for a, b, c, r in zip(x, y, z, MACHINE["fma"].ref(x, y, z), strict=True):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        assert float(r) == _round(exact, dtype), (a, b, c)
        assert exact == 0 or np.signbit(r) == (exact < 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_at_the_edges(dtype: type) -> None:
    info = np.finfo(dtype)
    values = [*EDGES, info.tiny, info.max, -info.max, info.smallest_subnormal, info.eps]
    grid = np.array(np.meshgrid(values, values, values)).reshape(3, -1).astype(dtype)
    found = MACHINE["fma"].ref(*grid)
    for a, b, c, r in zip(*grid.tolist(), found.tolist(), strict=True):
        if not (np.isfinite(a) and np.isfinite(b)):
            np.testing.assert_equal(r, a * b + c)
        elif not np.isfinite(c):
            np.testing.assert_equal(r, c)
        else:
            assert r == _round(Fraction(a) * Fraction(b) + Fraction(c), dtype), (a, b, c)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_quotient_truncates(dtype: type) -> None:
    x = np.array([7, -7, 7, -7, 0, 6, -6, 1], dtype)
    y = np.array([2, 2, -2, -2, 5, 3, 3, -9], dtype)
    assert MACHINE["quotient"].ref(x, y).tolist() == [3, -3, -3, 3, 0, 2, -2, 0]


def test_shifts_and_products_of_integers() -> None:
    x = np.array([-1, -8, 2**31 - 1], np.int32)
    assert MACHINE["lshr"].ref(x, np.int32(1)).tolist() == [2**31 - 1, 2**31 - 4, 2**30 - 1]
    assert MACHINE["ashr"].ref(x, np.int32(1)).tolist() == [-1, -4, 2**30 - 1]
    assert MACHINE["add"].ref(x, x).tolist() == [-2, -16, -2]
    u = np.array([2**32 - 1, 3, 2**31], np.uint32)
    assert MACHINE["mulhi"].ref(u, u).tolist() == [int(v) ** 2 >> 32 for v in u]
    assert MACHINE["ashr"].ref(u, np.uint32(31)).tolist() == [2**32 - 1, 0, 2**32 - 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_there_and_back(dtype: type) -> None:
    x = np.array([*EDGES, np.finfo(dtype).smallest_subnormal], dtype)
    word = MACHINE["bits"].ref(x)
    assert word.dtype == np.dtype(f"int{x.itemsize * 8}")
    assert MACHINE["float_of_bits"].ref(word).tobytes() == x.tobytes()
    assert MACHINE["to_float"].ref(MACHINE["to_int"].ref(x[:6] * 10)).dtype == dtype
    assert MACHINE["to_int"].ref(np.array([2.9, -2.9], dtype)).tolist() == [2, -2]
    assert np.signbit(MACHINE["neg"].ref(dtype(0.0)))


def test_nothing_warns_and_scalars_are_arrays() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (np.float32, np.float64):
            edge = np.array(EDGES, dtype)
            for op in MACHINE.values():
                if op.kind in ("same", "compare") and op.name not in (
                    "quotient", "shl", "lshr", "ashr", "mulhi",
                ):  # fmt: skip
                    found = op.ref(*[edge] * op.arity)
                    assert found.dtype == (np.bool_ if op.kind == "compare" else dtype)
                    assert isinstance(op.ref(*[edge[0]] * op.arity), np.ndarray)
        assert MACHINE["add"].ref(np.int32(2**31 - 1), np.int32(1)) == -(2**31)
        assert MACHINE["cast"].ref(np.array([1.5, 300.0]), np.int64).tolist() == [1, 300]
