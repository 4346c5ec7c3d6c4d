"""Every function, type, constant and method of the array API standard 2024.12, beside the strict
reference implementation of it: one expression, written once, on its arrays and on our Tensors.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr

xp = pytest.importorskip("array_api_strict")

Array = np.ndarray[Any, Any]
Case = tuple[Callable[..., Any], tuple[Array, ...]]
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
WHOLE, FLOATS = SIGNED + UNSIGNED, ("float32", "float64")
NUMBERS, EVERY = WHOLE + FLOATS, ("bool", *WHOLE, *FLOATS)
#: machine code and NumPy differ by a few units in the last place; sums by their order too
RTOL = {"float32": 3e-6, "float64": 2e-14}


@pytest.fixture(autouse=True)
def _version() -> Any:
    xp.set_array_api_strict_flags(api_version="2024.12")
    yield
    xp.reset_array_api_strict_flags()


def values(dtype: str) -> Array:
    """Numbers of a type among which are all those that the standard's special cases speak of."""
    if dtype == "bool":
        return np.array([True, False, True])
    if dtype.startswith("float"):
        special = [0.0, 1.0, 0.5, 1.5, 2.5, 2.0, 3.0, np.inf, 1e-30, 7.25]
        return np.array([*special, *[-v for v in special], np.nan], dtype)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    small = [0, 1, 2, 3, 7] if least == 0 else [0, 1, 2, 3, 7, -1, -2, -3, -7]
    return np.array([*small, least, most], dtype)


def agree(cases: list[Case], backends: tuple[str, ...], zeros: bool = False) -> None:
    """Compile every case of ours together, and hold each to the reference's."""
    ours: list[Any] = []
    want: list[Any] = []
    feeds: dict[str, Array] = {}
    with np.errstate(all="ignore"):
        for function, arrays in cases:
            names = [f"x{len(feeds) + i}" for i in range(len(arrays))]
            feeds |= dict(zip(names, arrays, strict=True))
            inputs = [
                cr.input(n, a.shape, dtype=a.dtype.name) for n, a in zip(names, arrays, strict=True)
            ]
            ours.append(parts(function(cr, *inputs)))
            want.append(parts(function(xp, *map(xp.asarray, arrays))))
    for backend in backends:
        fn = cr.compile(ours, backend=backend)
        got = fn(**{k: v for k, v in feeds.items() if k in fn.inputs})
        for i, (mine, theirs, tensors) in enumerate(zip(got, want, ours, strict=True)):
            shown = (backend, inspect.getsource(cases[i][0]).strip(), cases[i][1])
            assert len(mine) == len(theirs), shown
            for a, b, t in zip(mine, theirs, tensors, strict=True):
                b = np.asarray(b)
                if not cases[i][1] and t.dtype == "float32":
                    b = b.astype("float32")  # the default, which is ours to choose
                same(a, b, zeros, shown)
                assert t.dtype == a.dtype.name == a.dtype and t.dtype == a.dtype.type, shown
                assert str(t)


def parts(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def same(got: Array, want: Array, zeros: bool, shown: object) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype), shown
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want, err_msg=str(shown))
        return
    tiny = float(np.finfo(got.dtype).tiny)
    np.testing.assert_allclose(got, want, RTOL[got.dtype.name], tiny, err_msg=str(shown))
    if zeros:
        at = (want == 0) & (got == 0)
        np.testing.assert_array_equal(np.signbit(got)[at], np.signbit(want)[at], str(shown))


# elementwise: name -> types

UNARY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("abs", "negative", "positive", "sign", "square"), NUMBERS),
    **dict.fromkeys(("floor", "ceil", "trunc", "round"), NUMBERS),
    **dict.fromkeys(("isfinite", "isinf", "isnan"), NUMBERS),
    **dict.fromkeys(
        (
            "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "exp", "expm1", "log",
            "log10", "log1p", "log2", "reciprocal", "signbit", "sin", "sinh", "sqrt", "tan", "tanh",
        ),
        FLOATS,
    ),
    "bitwise_invert": ("bool", *WHOLE),
    "logical_not": ("bool",),
}  # fmt: skip
BINARY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("add", "subtract", "multiply", "maximum", "minimum"), NUMBERS),
    **dict.fromkeys(("floor_divide", "remainder"), NUMBERS),
    **dict.fromkeys(("less", "less_equal", "greater", "greater_equal"), NUMBERS),
    **dict.fromkeys(("equal", "not_equal"), EVERY),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor"), ("bool", *WHOLE)),
    **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), ("bool",)),
    **dict.fromkeys(("bitwise_left_shift", "bitwise_right_shift"), WHOLE),
    **dict.fromkeys(
        ("atan2", "copysign", "divide", "hypot", "logaddexp", "nextafter", "pow"), FLOATS
    ),
}
#: where -0.0 or 0.0 may come out: NumPy's maximum of both is either
FREE_ZEROS = {"maximum", "minimum"}


def called(name: str) -> Callable[..., Any]:
    return lambda m, *xs: getattr(m, name)(*xs)


@pytest.mark.parametrize("name", UNARY)
def test_a_function_of_one(name: str) -> None:
    cases: list[Case] = [(called(name), (values(d),)) for d in UNARY[name]]
    cases.append((called(name), (np.ones((0, 2), UNARY[name][0]),)))
    cases.append((called(name), (np.asarray(values(UNARY[name][-1])[1]),)))
    agree(cases, ("reference", "cpu"), zeros=True)


def pair(name: str, dtype: str) -> tuple[Array, Array]:
    """Every value beside every other, where the standard defines what comes out."""
    x = y = values(dtype)
    if name in ("floor_divide", "remainder") and x.dtype.kind == "f":
        # quotients of more digits than the type has are not exact
        x = y = x[~(np.abs(x) < 1e-20) | (x == 0)]
    elif name in ("floor_divide", "remainder"):
        y = y[(y != 0) & (y != (-1 if dtype in SIGNED else 0))]  # by 0, or the quotient doesn't fit
    if name.endswith("shift"):
        y = np.array([0, 1, 3, 7], dtype)
    return x[:, None], y[None]


@pytest.mark.parametrize("name", BINARY)
def test_a_function_of_two(name: str) -> None:
    function, kinds = called(name), BINARY[name]
    cases: list[Case] = [(function, pair(name, d)) for d in kinds]
    cases += [(lambda m, x: called(name)(m, x, 2), (values(d),)) for d in kinds if d != "bool"]
    if name not in ("floor_divide", "remainder", "bitwise_left_shift", "bitwise_right_shift"):
        number = True if kinds[0] == "bool" else 1.0 if kinds == FLOATS else 1
        cases.append((lambda m, x: called(name)(m, number, x), (values(kinds[0]),)))
    cases.append((function, (np.ones((0, 1), kinds[0]), np.ones((1, 3), kinds[0]))))
    agree(cases, ("reference", "cpu"), zeros=name not in FREE_ZEROS)


def test_powers_of_integers() -> None:
    x, y = np.array([[0], [1], [2], [3], [-1], [-2], [7]]), np.array([[0, 1, 2, 3, 5, 11]])
    cases: list[Case] = [
        (lambda m, x, y: m.pow(x, y), (x.astype(d), y.astype(d))) for d in ("int32", "int64")
    ]
    cases.append((lambda m, x, y: x**y, (np.abs(x).astype("uint8"), (y % 3).astype("uint8"))))
    cases.append((lambda m, x: x**3, (x,)))
    cases.append((lambda m, x: 2**x, (y,)))
    agree(cases, ("reference", "cpu"))
    with pytest.raises(cr.errors.DTypeError, match="power -1"):
        cr.input("x", (3,), dtype="int32") ** -1


OPERATORS = {
    "+": (operator.add, "add"), "-": (operator.sub, "subtract"), "*": (operator.mul, "multiply"),
    "/": (operator.truediv, "divide"), "**": (operator.pow, "pow"), "<": (operator.lt, "less"),
    "<=": (operator.le, "less_equal"), ">": (operator.gt, "greater"), "==": (operator.eq, "equal"),
    ">=": (operator.ge, "greater_equal"), "!=": (operator.ne, "not_equal"),
    "&": (operator.and_, "bitwise_and"), "|": (operator.or_, "bitwise_or"),
    "^": (operator.xor, "bitwise_xor"), "//": (operator.floordiv, "floor_divide"),
    "%": (operator.mod, "remainder"), "<<": (operator.lshift, "bitwise_left_shift"),
    ">>": (operator.rshift, "bitwise_right_shift"),
}  # fmt: skip


@pytest.mark.parametrize("sign", OPERATORS)
def test_operators_are_the_functions(sign: str) -> None:
    by, name = OPERATORS[sign]
    dtype = BINARY[name][-1]
    x = cr.input("x", (3,), dtype=dtype)
    y, number = cr.input("y", (3,), dtype=dtype), 3.0 if dtype.startswith("float") else 3
    number = True if dtype == "bool" else number
    function = getattr(cr, name)
    assert by(x, y).node is function(x, y).node
    assert by(x, number).node is function(x, number).node
    if getattr(cr.Tensor, f"__r{by.__name__.strip('_')}__", None):  # Python turns comparisons round
        assert by(number, x).node is function(number, x).node
    z = x
    z = {"+": operator.iadd, "*": operator.imul}.get(sign, by)(z, y)
    assert z.node is function(x, y).node


def test_unary_operators() -> None:
    x, i = cr.input("x", (3,)), cr.input("i", (3,), dtype="int8")
    assert (-x).node is cr.negative(x).node
    assert (+x).node is cr.positive(x).node
    assert abs(x).node is cr.abs(x).node
    assert (~i).node is cr.bitwise_invert(i).node


# everything else: one expression each

A = np.random.default_rng(31).normal(size=(3, 4))
C = np.random.default_rng(32).normal(size=(2, 3, 4)).astype("float32")
V = np.array([3.0, -1.0, 2.0, 0.0, 5.0])
N = np.array([[3, 0, 0, 7], [-1, 2, 5, 100]], "int8")
U = np.array([[3, 0, 200], [255, 2, 5]], "uint8")
L = np.array([[True, False], [True, True]])
E = np.ones((0, 3))
S = np.array(2.5)
I = np.array([2, 0, -1, 1])
SORTED = np.array([-1.0, 0.0, 0.0, 2.0, 5.0])
CASES: dict[str, list[Case]] = {
    "sum": [
        (lambda m, x: m.sum(x), (A,)),
        (lambda m, x: m.sum(x, axis=-1, keepdims=True), (C,)),
        (lambda m, x: m.sum(x, axis=(0, -1)), (C,)),
        (lambda m, x: m.sum(x, axis=()), (A,)),
        (lambda m, x: m.sum(x), (N,)),
        (lambda m, x: m.sum(x, axis=0), (U,)),
        (lambda m, x: m.sum(x, dtype=m.float64), (N,)),
        (lambda m, x: m.sum(x, dtype=m.int16), (N,)),
        (lambda m, x: m.sum(x, axis=0), (E,)),
        (lambda m, x: m.sum(x), (S,)),
    ],
    "prod": [
        (lambda m, x: m.prod(x, axis=1), (A,)),
        (lambda m, x: m.prod(x, axis=(1, 2), keepdims=True), (C,)),
        (lambda m, x: m.prod(x, axis=0), (U,)),
        (lambda m, x: m.prod(x, dtype=m.float32), (N,)),
        (lambda m, x: m.prod(x), (E,)),
    ],
    "mean": [
        (lambda m, x: m.mean(x), (A,)),
        (lambda m, x: m.mean(x, axis=(0, 2), keepdims=True), (C,)),
        (lambda m, x: m.mean(x, axis=-2), (C,)),
    ],
    "max": [
        (lambda m, x: m.max(x), (N,)),
        (lambda m, x: m.max(x, axis=-1, keepdims=True), (A,)),
        (lambda m, x: m.max(x, axis=(0, 1)), (C,)),
        (lambda m, x: m.max(x), (np.array([1.0, np.nan, 2.0]),)),
    ],
    "min": [
        (lambda m, x: m.min(x, axis=0), (U,)),
        (lambda m, x: m.min(x), (np.array([np.inf, -np.inf]),)),
    ],
    "var": [
        (lambda m, x: m.var(x), (A,)),
        (lambda m, x: m.var(x, axis=0, correction=1), (A,)),
        (lambda m, x: m.var(x, axis=(0, 2), correction=0.5, keepdims=True), (C,)),
    ],
    "std": [
        (lambda m, x: m.std(x, axis=-1, correction=1.0), (A,)),
        (lambda m, x: m.std(x, keepdims=True), (A,)),
    ],
    "cumulative_sum": [
        (lambda m, x: m.cumulative_sum(x), (V,)),
        (lambda m, x: m.cumulative_sum(x, axis=-1, include_initial=True), (A,)),
        (lambda m, x: m.cumulative_sum(x, axis=0), (N,)),
        (lambda m, x: m.cumulative_sum(x, axis=1, dtype=m.float64), (U,)),
    ],
    "cumulative_prod": [
        (lambda m, x: m.cumulative_prod(x), (V,)),
        (lambda m, x: m.cumulative_prod(x, axis=-1, include_initial=True), (A,)),
        (lambda m, x: m.cumulative_prod(x, axis=0), (U,)),
        (lambda m, x: m.cumulative_prod(x, axis=1, dtype=m.float32), (N,)),
    ],
    "all": [
        (lambda m, x: m.all(x), (L,)),
        (lambda m, x: m.all(x, axis=0, keepdims=True), (L,)),
        (lambda m, x: m.all(x, axis=(0, 1)), (N,)),
        (lambda m, x: m.all(x, axis=0), (E,)),
        (lambda m, x: m.all(x), (np.array([np.nan]),)),
    ],
    "any": [
        (lambda m, x: m.any(x, axis=-1), (L,)),
        (lambda m, x: m.any(x), (A,)),
        (lambda m, x: m.any(x, axis=0), (E,)),
    ],
    "diff": [
        (lambda m, x: m.diff(x), (A,)),
        (lambda m, x: m.diff(x, axis=0, n=2), (A,)),
        (lambda m, x: m.diff(x, n=0), (A,)),
        (lambda m, x, y: m.diff(x, axis=1, prepend=y, append=y), (A, A[:, :1])),
        (lambda m, x: m.diff(x), (U,)),
    ],
    "count_nonzero": [
        (lambda m, x: m.count_nonzero(x), (N,)),
        (lambda m, x: m.count_nonzero(x, axis=(0, 2), keepdims=True), (C,)),
        (lambda m, x: m.count_nonzero(x, axis=0), (L,)),
    ],
    "argmax": [
        (lambda m, x: m.argmax(x), (A,)),
        (lambda m, x: m.argmax(x, axis=-1, keepdims=True), (N,)),
        (lambda m, x: m.argmax(x, axis=0), (U,)),
        (lambda m, x: m.argmax(x), (np.array([1.0, np.nan, 3.0, np.nan]),)),
        (lambda m, x: m.argmax(x, keepdims=True), (A,)),
    ],
    "argmin": [
        (lambda m, x: m.argmin(x, axis=1), (N,)),
        (lambda m, x: m.argmin(x), (U,)),
    ],
    "searchsorted": [
        (lambda m, x, v: m.searchsorted(x, v), (SORTED, V)),
        (lambda m, x, v: m.searchsorted(x, v, side="right"), (SORTED, V[:4].reshape(2, 2))),
        (lambda m, x, v, s: m.searchsorted(x, v, sorter=s), (V, V, np.argsort(V))),
        (lambda m, x, v: m.searchsorted(x, v), (np.array([0, 5, 9]), np.array([5, -1, 10]))),
        (lambda m, x, v: m.searchsorted(x, v), (SORTED[:0], V)),
    ],
    "where": [
        (lambda m, c, x, y: m.where(c, x, y), (L, A[:2, :2], A[1:, 1:3])),
        (lambda m, c, x: m.where(c, x, 0.0), (L, A[:2, :2])),
        (lambda m, c, x: m.where(c, 1, x), (L, N[:, :2])),
        (lambda m, c, x, y: m.where(c, x, y), (L, N[:, :2], N[:1, :2].astype("int32"))),
    ],
    "clip": [
        (lambda m, x: m.clip(x, -0.5, 0.5), (A,)),
        (lambda m, x: m.clip(x, max=3), (N,)),
        (lambda m, x: m.clip(x), (A,)),
        (lambda m, x, lo: m.clip(x, lo, 1.0), (A, A[:1])),
        (lambda m, x: m.clip(x, 1, None), (U,)),
    ],
    "sort": [
        (lambda m, x: m.sort(x), (A,)),
        (lambda m, x: m.sort(x, axis=0, descending=True), (N,)),
        (lambda m, x: m.sort(x, stable=False), (U,)),
    ],
    "argsort": [
        (lambda m, x: m.argsort(x), (A,)),
        (lambda m, x: m.argsort(x, axis=0, descending=True), (A,)),
        (lambda m, x: m.argsort(x), (np.array([2, 1, 2, 1, 0]),)),
    ],
    "take": [
        (lambda m, x, i: m.take(x, i), (V, I)),
        (lambda m, x, i: m.take(x, i, axis=1), (A, I.astype("int8"))),
        (lambda m, x, i: m.take(x, i, axis=-2), (A, np.array([0, 2], "uint16"))),
        (lambda m, x, i: m.take(x, i, axis=0), (A, np.zeros(0, "int64"))),
    ],
    "take_along_axis": [
        (lambda m, x, i: m.take_along_axis(x, i, axis=0), (A, I.reshape(1, 4) % 2 - 1)),
        (lambda m, x, i: m.take_along_axis(x, i), (A, np.array([[3, -4], [0, 1], [-1, 2]]))),
    ],
    "matmul": [
        (lambda m, x, y: m.matmul(x, y), (A, A.T.copy())),
        (lambda m, x, y: x @ y, (C, C.swapaxes(1, 2).copy())),
        (lambda m, x, y: m.matmul(x, y), (A, A[0])),
        (lambda m, x, y: m.matmul(x, y), (A[:, 0].copy(), A)),
        (lambda m, x, y: m.matmul(x, y), (V, V)),
        (lambda m, x, y: m.matmul(x, y), (C[:, None], C.swapaxes(1, 2)[None].copy())),
        (lambda m, x, y: m.matmul(x, y), (N.astype("int32"), N.T.astype("int64"))),
        (lambda m, x, y: m.matmul(x, y), (np.ones((2, 0)), np.ones((0, 3)))),
    ],
    "tensordot": [
        (lambda m, x, y: m.tensordot(x, y, axes=1), (A, A.T.copy())),
        (lambda m, x, y: m.tensordot(x, y), (C, A.astype("float32"))),
        (lambda m, x, y: m.tensordot(x, y, axes=((-1,), (1,))), (C, A.astype("float32"))),
        (lambda m, x, y: m.tensordot(x, y, axes=0), (V, V)),
    ],
    "vecdot": [
        (lambda m, x, y: m.vecdot(x, y), (A, A[:1])),
        (lambda m, x, y: m.vecdot(x, y, axis=-2), (C, C[:1])),
        (lambda m, x, y: m.vecdot(x, y), (N.astype("int16"), N.astype("int64"))),
    ],
    "matrix_transpose": [
        (lambda m, x: m.matrix_transpose(x), (C,)),
        (lambda m, x: x.mT, (C,)),
        (lambda m, x: x.T, (A,)),
    ],
    "concat": [
        (lambda m, x, y: m.concat((x, y)), (A, A[:1])),
        (lambda m, x, y: m.concat([x, y], axis=-1), (N, N.astype("int32"))),
        (lambda m, x, y: m.concat([x, y], axis=None), (A, V)),
        (lambda m, x, y: m.concat([x, y]), (A[:0], A)),
    ],
    "stack": [
        (lambda m, x, y: m.stack([x, y]), (A, A)),
        (lambda m, x, y: m.stack((x, y), axis=-1), (N, N.astype("int16"))),
    ],
    "unstack": [
        (lambda m, x: m.unstack(x), (A,)),
        (lambda m, x: m.unstack(x, axis=-1), (C,)),
    ],
    "reshape": [
        (lambda m, x: m.reshape(x, (2, -1)), (A,)),
        (lambda m, x: m.reshape(x, (-1,)), (S,)),
        (lambda m, x: m.reshape(x, (4, 3), copy=True), (A,)),
        (lambda m, x: m.reshape(x, (3, 0)), (E,)),
        (lambda m, x: m.reshape(x, ()), (V[:1],)),
    ],
    "permute_dims": [(lambda m, x: m.permute_dims(x, (2, 0, 1)), (C,))],
    "moveaxis": [
        (lambda m, x: m.moveaxis(x, 0, -1), (C,)),
        (lambda m, x: m.moveaxis(x, (0, 1), (-1, 0)), (C,)),
    ],
    "flip": [
        (lambda m, x: m.flip(x), (A,)),
        (lambda m, x: m.flip(x, axis=-1), (A,)),
        (lambda m, x: m.flip(x, axis=(0, 2)), (C,)),
    ],
    "roll": [
        (lambda m, x: m.roll(x, 2), (A,)),
        (lambda m, x: m.roll(x, -7, axis=1), (A,)),
        (lambda m, x: m.roll(x, (1, 2), axis=(0, -1)), (C,)),
    ],
    "repeat": [
        (lambda m, x: m.repeat(x, 2), (A,)),
        (lambda m, x: m.repeat(x, 3, axis=-1), (A,)),
        (lambda m, x: m.repeat(x, 0, axis=0), (A,)),
    ],
    "tile": [
        (lambda m, x: m.tile(x, (2, 1)), (A,)),
        (lambda m, x: m.tile(x, (2,)), (A,)),
        (lambda m, x: m.tile(x, (2, 1, 3)), (A,)),
        (lambda m, x: m.tile(x, (0, 2)), (A,)),
    ],
    "expand_dims": [
        (lambda m, x: m.expand_dims(x, axis=0), (A,)),
        (lambda m, x: m.expand_dims(x, axis=-1), (S,)),
    ],
    "squeeze": [
        (lambda m, x: m.squeeze(x, axis=0), (A[:1],)),
        (lambda m, x: m.squeeze(x, axis=(0, -1)), (A[:1, None, :1],)),
    ],
    "broadcast_to": [
        (lambda m, x: m.broadcast_to(x, (2, 3, 4)), (A,)),
        (lambda m, x: m.broadcast_to(x, (5,)), (S,)),
    ],
    "broadcast_arrays": [(lambda m, x, y: m.broadcast_arrays(x, y), (A, N[:, :1][:1]))],
    "meshgrid": [
        (lambda m, x, y: m.meshgrid(x, y), (V, V[:2])),
        (lambda m, x, y, z: m.meshgrid(x, y, z, indexing="ij"), (V, V[:2], V[:3])),
    ],
    "tril": [
        (lambda m, x: m.tril(x), (A,)),
        (lambda m, x: m.tril(x, k=-1), (C,)),
    ],
    "triu": [
        (lambda m, x: m.triu(x, k=1), (N,)),
        (lambda m, x: m.triu(x), (L,)),
    ],
    "astype": [
        (lambda m, x: m.astype(x, m.float32), (A,)),
        (lambda m, x: m.astype(x, m.int32, copy=False), (V,)),
        (lambda m, x: m.astype(x, m.bool), (N,)),
        (lambda m, x: m.astype(x, m.float64), (L,)),
        (lambda m, x: m.astype(x, m.uint8), (N,)),
    ],
    "arange": [
        (lambda m: m.arange(5), ()),
        (lambda m: m.arange(2, 9, 3), ()),
        (lambda m: m.arange(5, -4, -2, dtype=m.int16), ()),
        (lambda m: m.arange(0.0, 1.0, 0.25), ()),
        (lambda m: m.arange(3, 1), ()),
        (lambda m: m.arange(4, dtype=m.float64), ()),
    ],
    "linspace": [
        (lambda m: m.linspace(0, 1, 5), ()),
        (lambda m: m.linspace(-1.0, 3.0, num=4, dtype=m.float64, endpoint=False), ()),
        (lambda m: m.linspace(2, 3, 1), ()),
        (lambda m: m.linspace(2, 3, 0), ()),
    ],
    "eye": [
        (lambda m: m.eye(3), ()),
        (lambda m: m.eye(3, 4, k=1, dtype=m.int8), ()),
        (lambda m: m.eye(2, k=-1, dtype=m.bool), ()),
        (lambda m: m.eye(0), ()),
    ],
    "full": [
        (lambda m: m.full((2, 3), 7), ()),
        (lambda m: m.full(3, 0.5), ()),
        (lambda m: m.full((), True), ()),
        (lambda m: m.full((2,), 1, dtype=m.uint16), ()),
        (lambda m, x: m.full_like(x, 3), (N,)),
        (lambda m, x: m.full_like(x, 3, dtype=m.float32), (N,)),
    ],
    "zeros": [
        (lambda m: m.zeros((2, 0)), ()),
        (lambda m: m.zeros(3, dtype=m.int64), ()),
        (lambda m, x: m.zeros_like(x), (L,)),
        (lambda m, x: m.zeros_like(x, dtype=m.float64), (N,)),
    ],
    "ones": [
        (lambda m: m.ones((2, 1)), ()),
        (lambda m: m.ones((), dtype=m.bool), ()),
        (lambda m, x: m.ones_like(x), (U,)),
    ],
    "asarray": [
        (lambda m: m.asarray([[1, 2], [3, 4]]), ()),
        (lambda m: m.asarray(True), ()),
        (lambda m: m.asarray([1, 2], dtype=m.float32), ()),
        (lambda m, x: m.asarray(x), (A,)),
    ],
    "indexing": [
        (lambda m, x: x[1, ...], (A,)),
        (lambda m, x: x[-1, 2:], (A,)),
        (lambda m, x: x[..., -1], (C,)),
        (lambda m, x: x[None, 1:, ..., ::-1], (C,)),
        (lambda m, x: x[:, m.newaxis, ...], (A,)),
        (lambda m, x: x[::2, 3:0:-2], (A,)),
        (lambda m, x: x[1, 1, 1], (C,)),
        (lambda m, x: x[2:1, :], (A,)),
        (lambda m, x: x[()], (S,)),
        (lambda m, x: x[...], (A,)),
        (lambda m, x, i: x[i], (V, I)),
        (lambda m, x, i, j: x[i, j], (A, I % 3, I)),
        (lambda m, x, i, j: x[i, j], (A, (I % 3).reshape(4, 1), I)),
        (lambda m, x, i: x[1, i], (A, I)),
        (lambda m, x, i, j: x[i, 0, j], (C, I % 2, I.astype("int16"))),
        (lambda m, x, i, j: x[i, j, i], (C, I % 2, I % 3)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_is_the_standards(name: str) -> None:
    agree(CASES[name], ("reference", "cpu"))


EVERYWHERE: tuple[Callable[..., Any], ...] = (
    lambda m, x: m.concat([x, x], axis=1),
    lambda m, x: m.stack([x, x]),
    lambda m, x: m.where(x == x, x, x),
    lambda m, x: m.take(x, m.asarray([1, 0, -1]), axis=0),
    lambda m, x: m.take_along_axis(x, m.asarray([[1], [-1]]), axis=1),
    lambda m, x: m.roll(x, 1, axis=1),
    lambda m, x: m.flip(x),
    lambda m, x: m.tril(x, k=1),
    lambda m, x: m.tile(x, (2, 1)),
    lambda m, x: m.repeat(x, 2, axis=0),
    lambda m, x: m.permute_dims(x, (1, 0)),
    lambda m, x: m.reshape(x, (-1,))[::2],
    lambda m, x: x[m.asarray([0, -1]), m.asarray([1, 2])],
    lambda m, x: m.all(x, axis=0),
    lambda m, x: m.any(x, axis=1),
    lambda m, x: m.count_nonzero(x, axis=0),
    lambda m, x: m.zeros_like(x),
    lambda m, x: m.full_like(x, 1),
    lambda m, x: m.meshgrid(x[0, :], x[1, :])[0],
    lambda m, x: m.broadcast_to(x, (2, *x.shape)),
)
OF_NUMBERS: tuple[Callable[..., Any], ...] = (
    lambda m, x: m.sum(x, axis=0),
    lambda m, x: m.prod(x[:, 1:3], axis=1),
    lambda m, x: m.max(x, axis=1),
    lambda m, x: m.min(x),
    lambda m, x: m.argmax(x, axis=1),
    lambda m, x: m.argmin(x, axis=0),
    lambda m, x: m.sort(x, axis=1),
    lambda m, x: m.argsort(x, axis=1),
    lambda m, x: m.sort(x, axis=0, descending=True),
    lambda m, x: m.cumulative_sum(x, axis=1),
    lambda m, x: m.cumulative_prod(x[:, 1:4], axis=0),
    lambda m, x: m.diff(x),
    lambda m, x: m.clip(x, 1, 5),
    lambda m, x: m.matmul(x[:, :3], m.matrix_transpose(x[:, :3])),
    lambda m, x: m.tensordot(x[:, :3], x[:, :3]),
    lambda m, x: m.vecdot(x[:, :3], x[:, :3]),
    lambda m, x: m.searchsorted(m.sort(x[0, :]), x),
)


@pytest.mark.parametrize("dtype", EVERY)
def test_every_type_goes_everywhere(dtype: str) -> None:
    """Extremes among them; sums of those that overflow wrap, as NumPy's do."""
    row = np.array([3, 1, 2, 0, 7]) if dtype in UNSIGNED else np.array([-3, 1, 2, 0, 7])
    x = np.stack([row, row[::-1] // 2]).astype(dtype)
    if dtype in WHOLE:
        x[0, 4], x[1, 3] = np.iinfo(dtype).max, np.iinfo(dtype).min
    cases: list[Case] = [(f, (x,)) for f in EVERYWHERE]
    if dtype != "bool":
        cases += [(f, (x,)) for f in OF_NUMBERS]
    small = np.array([0, 1, 5, 100], "int64").astype(dtype)
    for to in EVERY:
        cases.append((lambda m, x, to=to: m.astype(x, getattr(m, to)), (small,)))
    agree(cases, ("reference", "cpu"))


EMPTY = ("empty", "empty_like", "from_dlpack")
REFUSED = ("nonzero", "unique_all", "unique_counts", "unique_inverse", "unique_values")
DTYPE_FUNCTIONS = ("can_cast", "finfo", "iinfo", "isdtype", "result_type")
ELSEWHERE = {"full_like", "zeros_like", "ones_like", *EMPTY, *REFUSED, *DTYPE_FUNCTIONS, "pow"}
#: of later versions, or not of the standard; numbers here are real
LATER = {"isin", "broadcast_shapes"}
COMPLEX = {"complex64", "complex128", "real", "imag", "conj"}


def test_nothing_of_the_standard_is_missing() -> None:
    public = {n for n in xp.__all__ if not n.startswith("_") and "strict" not in n.lower()}
    functions = {n for n in public if inspect.isfunction(getattr(xp, n))}
    tested = {*UNARY, *BINARY, *CASES, *ELSEWHERE, *LATER, *COMPLEX, "broadcast_to"}
    assert functions <= tested
    assert public - {"Device", "fft", "linalg", "complex64", "complex128"} <= {*dir(cr)}


def kinds(signature: inspect.Signature) -> list[tuple[str, Any]]:
    return [(p.name, p.kind) for p in signature.parameters.values()]


@pytest.mark.parametrize("name", sorted({*UNARY, *BINARY, *CASES, *ELSEWHERE} - {"indexing"}))
def test_arguments_are_the_standards(name: str) -> None:
    """Names, kinds and defaults; where the standard makes no promise ours may take more."""
    ours, theirs = (inspect.signature(getattr(m, name)) for m in (cr, xp))
    own = list(ours.parameters)
    assert [n for n, _ in kinds(theirs)] == [n for n in own if n in theirs.parameters]
    for p in theirs.parameters.values():
        q = ours.parameters[p.name]
        assert q.kind == p.kind, p
        if p.default is not p.empty and "Undef" not in str(p.default):
            assert q.default == p.default, p


METHODS = [
    n
    for n in dir(xp.asarray(0))
    if n not in dir(object) and not n.startswith(("_c", "_n", "_p", "_v", "_d", "_a"))
]
UNSEEN = {"__buffer__"}  # NumPy's own protocol, not the standard's


@pytest.mark.parametrize("name", sorted({*METHODS} - UNSEEN))
def test_a_tensor_has_the_methods(name: str) -> None:
    in_place = name.startswith("__i") and f"__{name[3:]}" in METHODS  # Python's a = a + b is ours
    assert in_place or hasattr(cr.Tensor, name)
