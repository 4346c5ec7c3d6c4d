"""Further elementwise functions and activations against NumPy, on both backends."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.lang import activations, elementary

Array = np.ndarray[Any, Any]
SEED = 41
erfc = np.vectorize(math.erfc, otypes=[np.float64])


def values(tensors: dict[str, Any], feeds: dict[str, Array]) -> list[dict[str, Array]]:
    out = []
    for backend in ("cpu", "reference"):
        fn = cr.compile(tensors, backend=backend)
        out.append(fn(**{k: v for k, v in feeds.items() if k in fn.inputs}))
    return out


def drawn(kind: str, shape: tuple[int, ...], dtype: str, seed: int = SEED) -> Array:
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    low, high = {"real": (-5, 5), "unit": (-0.99, 0.99), "positive": (0.1, 5), "above": (1, 5)}[
        kind
    ]
    if not dtype.startswith("float"):
        return rng.integers(0 if dtype[0] == "u" else low, high + 1, shape).astype(dtype)
    return rng.uniform(low, high, shape).astype(dtype)


UNARY: dict[str, tuple[str, Callable[[Array], Any]]] = {
    "floor": ("real", np.floor),
    "ceil": ("real", np.ceil),
    "trunc": ("real", np.trunc),
    "round": ("real", np.round),
    "exp2": ("real", np.exp2),
    "log2": ("positive", np.log2),
    "log10": ("positive", np.log10),
    "reciprocal": ("positive", np.reciprocal),
    "tan": ("unit", np.tan),
    "asin": ("unit", np.arcsin),
    "acos": ("unit", np.arccos),
    "atan": ("real", np.arctan),
    "sinh": ("real", np.sinh),
    "cosh": ("real", np.cosh),
    "asinh": ("real", np.arcsinh),
    "acosh": ("above", np.arccosh),
    "atanh": ("unit", np.arctanh),
    "erfc": ("real", erfc),
    "isnan": ("real", np.isnan),
    "isinf": ("real", np.isinf),
    "isfinite": ("real", np.isfinite),
    "positive": ("real", np.positive),
    "real": ("real", np.real),
    "imag": ("real", np.imag),
    "conj": ("real", np.conj),
    "signbit": ("real", np.signbit),
    "relu6": ("real", lambda x: np.clip(x, 0, 6)),
    "leaky_relu": ("real", lambda x: np.where(x > 0, x, 0.01 * x)),
    "elu": ("real", lambda x: np.where(x > 0, x, np.expm1(x))),
    "celu": ("real", lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))),
    "hard_tanh": ("real", lambda x: np.clip(x, -1, 1)),
    "selu": (
        "real",
        lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    ),
    "gelu": ("real", lambda x: x * (1 - 0.5 * erfc(x / math.sqrt(2)))),
    "silu": ("real", lambda x: x / (1 + np.exp(-x))),
    "mish": ("real", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "softsign": ("real", lambda x: x / (1 + np.abs(x))),
    "tanhshrink": ("real", lambda x: x - np.tanh(x)),
    "hard_sigmoid": ("real", lambda x: np.clip(x + 3, 0, 6) / 6),
    "hard_swish": ("real", lambda x: x * np.clip(x + 3, 0, 6) / 6),
}
BINARY: dict[str, tuple[str, str, Callable[[Array, Array], Any]]] = {
    "floor_divide": ("real", "real", np.floor_divide),
    "remainder": ("real", "real", np.remainder),
    "atan2": ("real", "real", np.arctan2),
    "hypot": ("real", "real", np.hypot),
    "logaddexp": ("real", "real", np.logaddexp),
    "nextafter": ("real", "real", np.nextafter),
    "copysign": ("real", "real", np.copysign),
    "xlogy": ("real", "positive", lambda x, y: np.where(x == 0, 0, x * np.log(y))),
}
WHOLE: dict[str, Callable[[Array, Array], Any]] = {
    "floor_divide": np.floor_divide,
    "remainder": np.remainder,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "bitwise_left_shift": np.left_shift,
    "bitwise_right_shift": np.right_shift,
}


def test_the_table_names_every_function() -> None:
    made = {
        name
        for module in (activations, elementary)
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and name[0] != "_"
    }
    assert made == {*UNARY, *BINARY, *WHOLE, "clip", "bitwise_invert"}
    assert all(getattr(cr, name) for name in made)


def agree(tensors: dict[str, Any], want: dict[str, Any], feeds: dict[str, Array]) -> None:
    for got in values(tensors, feeds):
        for name, wanted in want.items():
            assert got[name].dtype == tensors[name].dtype.numpy
            digits = 2e-6 if got[name].dtype == np.float32 else 1e-13
            np.testing.assert_allclose(got[name], wanted, digits, digits, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_of_floats(dtype: str) -> None:
    feeds, tensors, want = {}, {}, {}
    for kind in ("real", "unit", "positive", "above"):
        feeds[kind] = drawn(kind, (3, 19), dtype)
        feeds["other_" + kind] = drawn(kind, (19,), dtype, SEED + 1)
    at = {k: cr.input(k, v.shape, dtype=dtype) for k, v in feeds.items()}
    with np.errstate(all="ignore"):
        for name, (kind, meaning) in UNARY.items():
            tensors[name] = getattr(cr, name)(at[kind])
            want[name] = meaning(feeds[kind].astype(np.float64))
        for name, (first, second, both) in BINARY.items():
            tensors[name] = getattr(cr, name)(at[first], at["other_" + second])
            want[name] = both(*(feeds[k].astype(float) for k in (first, "other_" + second)))
    agree(tensors, want, feeds)


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
def test_functions_of_integers(dtype: str) -> None:
    info = np.iinfo(dtype)
    ends = np.array([info.min, info.max, 0, 1, 7, -1 if info.min else 2, 13, 64], dtype)
    x, y = (a.ravel() for a in np.meshgrid(ends, ends))
    feeds = {"x": x, "y": y}
    a, b = (cr.input(k, v.shape, dtype=dtype) for k, v in feeds.items())
    with np.errstate(all="ignore"):
        want = {name: meaning(x, y) for name, meaning in WHOLE.items()}
        want |= {n: UNARY[n][1](x) for n in ("floor", "ceil", "trunc", "round", "isnan", "isinf")}
    want |= {"sign": np.sign(x), "abs": np.abs(x), "relu6": np.clip(x, 0, 6)}
    want |= {"isfinite": np.isfinite(x), "bitwise_invert": np.invert(x)}
    tensors = {n: getattr(cr, n)(*((a, b) if n in WHOLE else (a,))) for n in want}
    tensors["clip"], want["clip"] = cr.clip(a, 1, 50), np.clip(x, 1, 50)
    for got in values(tensors, feeds):
        for name, wanted in want.items():
            np.testing.assert_array_equal(got[name], wanted, err_msg=name)
            assert got[name].dtype == wanted.dtype


def test_bools_have_bits() -> None:
    x, y = np.array([False, False, True, True]), np.array([False, True, False, True])
    a, b = (cr.input(k, (4,), dtype="bool") for k in "xy")
    tensors = {"and": a & b, "or": a | b, "xor": a ^ b, "not": ~a}
    want = {"and": x & y, "or": x | y, "xor": x ^ y, "not": ~x}
    for got in values(tensors, {"x": x, "y": y}):
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


def test_operators() -> None:
    x = np.array([7, -7, 5])
    a = cr.input("x", (3,), dtype="int64")
    tensors = {"div": a // 2, "mod": a % 3, "left": a << 2, "right": a >> 1, "r": 9 % a}
    want = {"div": x // 2, "mod": x % 3, "left": x << 2, "right": x >> 1, "r": 9 % x}
    for got in values(tensors, {"x": x}):
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_division_of_floats_is_pythons(dtype: str) -> None:
    ends = [0.0, -0.0, 1.0, -1.0, 0.1, 0.3, -5.5, 7.25, 1e9, -3e20, 1e-7, np.inf, -np.inf, np.nan]
    x, y = (a.ravel() for a in np.meshgrid(np.array(ends, dtype), np.array(ends, dtype)))
    a, b = cr.input("x", x.shape, dtype=dtype), cr.input("y", y.shape, dtype=dtype)
    with np.errstate(all="ignore"):
        keep = ~(np.abs(x / y) > 2.0**60) | np.isinf(x / y)
        want = {"d": np.floor_divide(x, y), "m": np.remainder(x, y)}
    for got in values({"d": a // b, "m": a % b}, {"x": x, "y": y}):
        np.testing.assert_array_equal(got["m"][keep], want["m"][keep])
        np.testing.assert_allclose(got["d"][keep], want["d"][keep], rtol=np.finfo(dtype).eps)


def test_clip() -> None:
    x = np.array([-2.0, -1.0, 0.5, 1.0, 3.0, np.nan], np.float32)
    a = cr.input("x", (6,))
    low = np.array([[0.0], [-9.0]], np.float32)
    tensors = {
        "both": cr.clip(a, -1, 1), "low": cr.clip(a, 0.0), "high": cr.clip(a, max=1.0),
        "none": cr.clip(a), "array": cr.clip(a, min=low, max=2), "crossed": cr.clip(a, 2, 1),
    }  # fmt: skip
    want = {
        "both": np.clip(x, -1, 1), "low": np.maximum(x, 0), "high": np.minimum(x, 1),
        "none": x, "array": np.clip(x, low, 2), "crossed": np.clip(x, 2, 1),
    }  # fmt: skip
    for got in values(tensors, {"x": x}):
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    slope = cr.grad(cr.sum(cr.clip(a, -1, 1)), a)
    for got in values({"slope": slope}, {"x": x}):
        np.testing.assert_array_equal(got["slope"], [0, 1, 1, 1, 0, 1])
    with pytest.raises(cr.errors.DTypeError, match="clip"):
        cr.clip(cr.input("i", (2,), dtype="int32"), 0.5)


# the derivative where PyTorch 2.13 was asked: (point, slope)
KINKS: dict[str, list[tuple[float, float]]] = {
    "relu6": [(0, 0), (6, 0), (3, 1)],
    "leaky_relu": [(0, 0.01), (-1, 0.01), (1, 1)],
    "elu": [(0, 1), (1e4, 1), (-1e4, 0)],
    "selu": [(0, 1.7580993), (1e4, 1.050701), (-1e4, 0)],
    "hard_sigmoid": [(-3, 0), (3, 0), (0, 1 / 6)],
    "hard_swish": [(-4, 0), (4, 1), (0, 0.5)],
    "gelu": [(0, 0.5), (1e4, 1), (-1e4, 0)],
    "silu": [(0, 0.5), (1e4, 1), (-1e4, 0)],
    "mish": [(0, 0.6), (1e4, 1), (-1e4, 0)],
    "softsign": [(0, 1), (1e4, 1e-8)],
    "tanhshrink": [(0, 0), (1e4, 1)],
    "floor": [(0.5, 0)],
    "round": [(0.5, 0)],
}


@pytest.mark.parametrize("name", KINKS)
def test_derivatives_at_kinks_and_far_out(name: str) -> None:
    x, want = np.array(KINKS[name], np.float32).T
    a = cr.input("x", x.shape)
    slope = cr.grad(cr.sum(getattr(cr, name)(a)), a)
    for got in values({"slope": slope}, {"x": x}):
        np.testing.assert_allclose(got["slope"], want, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", [n for n, (_, f) in UNARY.items() if n in KINKS] + ["gelu_tanh"])
def test_derivatives_are_central_differences(name: str) -> None:
    x = drawn("real", (40,), "float64")
    a = cr.input("x", x.shape, dtype="float64")
    if name == "gelu_tanh":
        y = cr.gelu(a, approximate="tanh")
        u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        (got, _) = values({"y": y}, {"x": x})
        np.testing.assert_allclose(got["y"], 0.5 * x * (1 + np.tanh(u)), rtol=1e-13, atol=1e-13)
    else:
        y = getattr(cr, name)(a)
    fn = cr.compile(y)
    found = cr.compile(cr.grad(cr.sum(y), a))(x=x) if name not in ("floor", "round") else 0
    want = (fn(x=x + 1e-6) - fn(x=x - 1e-6)) / 2e-6
    np.testing.assert_allclose(found, want, rtol=1e-7, atol=1e-7)


def test_other_slopes_and_alphas() -> None:
    x = drawn("real", (9,), "float64")
    a = cr.input("x", x.shape, dtype="float64")
    tensors = {"leaky": cr.leaky_relu(a, 0.2), "elu": cr.elu(a, alpha=0.5)}
    want = {"leaky": np.where(x > 0, x, 0.2 * x), "elu": np.where(x > 0, x, 0.5 * np.expm1(x))}
    agree(tensors, want, {"x": x})
    with pytest.raises(cr.errors.DTypeError, match="approximated"):
        cr.gelu(a, approximate="erf")


def test_derivatives_at_the_origin() -> None:
    x = np.zeros(1)
    a, b = (cr.input(k, (1,), dtype="float64") for k in "xy")
    for y in (cr.hypot(a, b), cr.atan2(a, b), cr.xlogy(a, b)):
        for slope in cr.grad(cr.sum(y), [a, b])[:1]:
            for got in values({"slope": slope}, {"x": x, "y": x}):
                assert got["slope"] == 0


def test_bad_types_are_refused() -> None:
    i, f = cr.input("i", (2,), dtype="int32"), cr.input("f", (2,))
    for bad in (
        lambda: cr.bitwise_left_shift(f, f),
        lambda: cr.bitwise_and(f, f),
        lambda: cr.exp2(i),
        lambda: cr.floor(i > 0),
        lambda: cr.hypot(f, i),
        lambda: cr.gelu(i),
    ):
        with pytest.raises(cr.errors.DTypeError):
            bad()
