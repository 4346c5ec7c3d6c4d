"""The language against NumPy: values, axes, broadcasting, promotion, indexing, and refusals."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.lang import pointwise

Array = np.ndarray[Any, Any]
BACKENDS = ("cpu", "reference")
RNG = np.random.default_rng(7)
#: what is drawn for each kind of operand, values where every function has one
DRAWN: dict[str, Callable[[tuple[int, ...]], Array]] = {
    "real": lambda shape: RNG.uniform(-2, 2, shape),
    "positive": lambda shape: RNG.uniform(0.1, 3, shape),
    "integer": lambda shape: RNG.integers(-3, 4, shape),
    "bool": lambda shape: RNG.integers(0, 2, shape).astype(bool),
}


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def erf(x: Array) -> Array:
    from math import erf as one

    return np.vectorize(one, otypes=[np.float64])(x)


def value(tensor: Any, feeds: dict[str, Array], backend: str = "cpu") -> Array:
    fn = cr.compile(tensor, backend=backend)
    result = fn(**{k: v for k, v in feeds.items() if k in fn.inputs})
    assert isinstance(result, np.ndarray)
    assert result.dtype == tensor.dtype.numpy
    return result


def fed(**arrays: Any) -> dict[str, Any]:
    return {k: cr.input(k, np.shape(a), dtype=np.asarray(a).dtype.name) for k, a in arrays.items()}


def same(tensor: Any, want: Any, feeds: dict[str, Array], exact: bool = False) -> None:
    """Both backends give what NumPy gives, up to some roundings of numbers below 100."""
    for backend in BACKENDS:
        got = value(tensor, feeds, backend)
        assert got.shape == np.shape(want)
        if exact:
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)


UNARY: dict[str, tuple[str, Callable[[Array], Any]]] = {
    "abs": ("real", np.abs),
    "cos": ("real", np.cos),
    "erf": ("real", erf),
    "exp": ("real", np.exp),
    "expm1": ("real", np.expm1),
    "log": ("positive", np.log),
    "log1p": ("positive", np.log1p),
    "log_sigmoid": ("real", lambda x: np.log(sigmoid(x))),
    "logical_not": ("bool", np.logical_not),
    "negative": ("real", np.negative),
    "relu": ("real", lambda x: np.maximum(x, 0)),
    "rsqrt": ("positive", lambda x: 1 / np.sqrt(x)),
    "sigmoid": ("real", sigmoid),
    "sign": ("real", np.sign),
    "sin": ("real", np.sin),
    "softplus": ("real", lambda x: np.log1p(np.exp(x))),
    "sqrt": ("positive", np.sqrt),
    "square": ("real", np.square),
    "stop_gradient": ("real", np.array),
    "tanh": ("real", np.tanh),
}
BINARY: dict[str, tuple[str, Callable[[Array, Array], Any]]] = {
    "add": ("real", np.add),
    "divide": ("positive", np.divide),
    "equal": ("integer", np.equal),
    "greater": ("integer", np.greater),
    "greater_equal": ("integer", np.greater_equal),
    "less": ("integer", np.less),
    "less_equal": ("integer", np.less_equal),
    "logical_and": ("bool", np.logical_and),
    "logical_or": ("bool", np.logical_or),
    "logical_xor": ("bool", np.logical_xor),
    "maximum": ("real", np.maximum),
    "minimum": ("real", np.minimum),
    "multiply": ("integer", np.multiply),
    "not_equal": ("integer", np.not_equal),
    "pow": ("positive", np.power),
    "subtract": ("integer", np.subtract),
}


def test_every_elementwise_function_is_in_a_table() -> None:
    assert set(pointwise.__all__) == {*UNARY, *BINARY, "where"}


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("shape", [(), (1,), (3, 19)])
def test_unary(name: str, shape: tuple[int, ...]) -> None:
    kind, reference = UNARY[name]
    x = DRAWN[kind](shape)
    same(getattr(cr, name)(fed(x=x)["x"]), reference(x), {"x": x})


PAIRS = [((), ()), ((3,), (3,)), ((2, 3), (3,)), ((2, 1), (1, 4)), ((), (5,)), ((4, 1, 3), (2, 1))]


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("shapes", PAIRS)
def test_binary_broadcasts(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    kind, reference = BINARY[name]
    a, b = DRAWN[kind](shapes[0]), DRAWN[kind](shapes[1])
    t = fed(a=a, b=b)
    same(getattr(cr, name)(t["a"], t["b"]), reference(a, b), {"a": a, "b": b})


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
    "/": lambda a, b: a / b, "**": lambda a, b: a**b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("number", [2, 0.5, np.float64(1.5)])
def test_operators_with_numbers_on_either_side(operator: str, number: float) -> None:
    x = DRAWN["positive"]((2, 3))
    t, f = fed(x=x)["x"], OPERATORS[operator]
    same(f(t, number), f(x, number), {"x": x})
    same(f(number, t), f(number, x), {"x": x})


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_with_arrays_on_either_side(operator: str) -> None:
    x, y = DRAWN["positive"]((2, 3)), DRAWN["positive"]((3,))
    t, f = fed(x=x)["x"], OPERATORS[operator]
    same(f(t, y), f(x, y), {"x": x})
    same(f(y, t), f(y, x), {"x": x})


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_with_sizes_on_either_side(operator: str, dtype: str) -> None:
    """A size is a number of the Tensor's type beside it: `cr.sum(x) / x.shape[0]`."""
    values, f = np.array([1, 2, 3], dtype), OPERATORS[operator]
    if operator == "/" and dtype == "int32":
        return  # refused, as of two Tensors of integers
    t = cr.input("x", ("n",), dtype=dtype)
    three, n = np.asarray(3, dtype), t.shape[0]
    found = cr.compile([f(t, n), f(n, t), f(t, 2 * n - 3)])(x=values)
    for got, wanted in zip(
        found, [f(values, three), f(three, values), f(values, three)], strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)  # a quotient, a power of float32
        assert got.dtype == wanted.dtype


def test_logic_operators() -> None:
    a, b = DRAWN["bool"]((7,)), DRAWN["bool"]((7,))
    t = fed(a=a, b=b)
    feeds = {"a": a, "b": b}
    for got, want in ((t["a"] & t["b"], a & b), (t["a"] | t["b"], a | b), (~t["a"], ~a)):
        same(got, want, feeds, exact=True)
    same(t["a"] ^ t["b"], a ^ b, feeds, exact=True)
    x = DRAWN["integer"]((7,))
    same(cr.logical_or(fed(x=x)["x"], False), x != 0, {"x": x}, exact=True)


@pytest.mark.parametrize("shapes", [((3,), (3,), ()), ((2, 1), (3,), (2, 3))])
def test_where(shapes: tuple[tuple[int, ...], ...]) -> None:
    c, x, y = DRAWN["bool"](shapes[0]), DRAWN["real"](shapes[1]), DRAWN["real"](shapes[2])
    t = fed(c=c, x=x, y=y)
    feeds = {"c": c, "x": x, "y": y}
    same(cr.where(t["c"], t["x"], t["y"]), np.where(c, x, y), feeds, exact=True)
    same(cr.where(t["c"], t["x"], 0.0), np.where(c, x, 0.0), feeds, exact=True)


FOLDS = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}
AXES = [None, 0, 1, 2, -1, -3, (0, 2), (-1, 0), (0, 1, 2), ()]


@pytest.mark.parametrize("name", FOLDS)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions(name: str, axis: Any, keepdims: bool) -> None:
    x = DRAWN["real"]((3, 4, 5))
    got = getattr(cr, name)(fed(x=x)["x"], axis=axis, keepdims=keepdims)
    same(got, FOLDS[name](x, axis=axis, keepdims=keepdims), {"x": x})


def test_sums_of_integers_and_bools() -> None:
    x, b = DRAWN["integer"]((4, 5)), DRAWN["bool"]((4, 5))
    same(cr.sum(fed(x=x)["x"], axis=0), x.sum(0), {"x": x}, exact=True)
    same(cr.sum(fed(b=b)["b"], axis=1), b.sum(1), {"b": b}, exact=True)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_softmax(axis: int) -> None:
    x = DRAWN["real"]((3, 5)) * 30
    e = np.exp(x - x.max(axis, keepdims=True))
    p = e / e.sum(axis, keepdims=True)
    total = np.log(e.sum(axis, keepdims=True)) + x.max(axis, keepdims=True)
    t, feeds = fed(x=x)["x"], {"x": x}
    same(cr.softmax(t, axis=axis), p, feeds)
    same(cr.log_softmax(t, axis=axis), x - total, feeds)
    same(cr.logsumexp(t, axis=axis, keepdims=True), total, feeds)
    same(cr.logsumexp(t, axis=axis), total.squeeze(axis), feeds)


@pytest.mark.parametrize("axis", [None, (0, 1), (0, 2), (1, 2)])
def test_logsumexp_over_several_axes(axis: Any) -> None:
    x = DRAWN["real"]((2, 3, 4))
    same(cr.logsumexp(fed(x=x)["x"], axis=axis), np.log(np.exp(x).sum(axis)), {"x": x})


MATMULS = [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)),
           ((2, 3), (5, 3, 4)), ((5, 2, 3), (5, 3, 4)), ((1, 2, 3), (5, 3, 4)),
           ((6, 1, 2, 3), (5, 3, 4)), ((2, 1), (1, 4)), ((2, 19), (19, 33))]  # fmt: skip


@pytest.mark.parametrize("shapes", MATMULS)
def test_matmul(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = DRAWN["real"](shapes[0]), DRAWN["real"](shapes[1])
    t = fed(a=a, b=b)
    same(t["a"] @ t["b"], a @ b, {"a": a, "b": b})
    same(cr.matmul(t["a"], b), a @ b, {"a": a})
    same(a @ t["b"], a @ b, {"b": b})


EINSUMS = ["ij,jk->ik", "ij,jk->ki", "ij,jk->", "ij,ij->ij", "ij,ji->i", "ij,kl->lkji", "ij,jk->j"]


@pytest.mark.parametrize("spec", EINSUMS)
def test_einsum(spec: str) -> None:
    a, b = DRAWN["real"]((3, 3)), DRAWN["real"]((3, 3))
    t = fed(a=a, b=b)
    same(cr.einsum(spec, t["a"], t["b"]), np.einsum(spec, a, b), {"a": a, "b": b})


def test_outer() -> None:
    a, b = DRAWN["real"]((3,)), DRAWN["real"]((4,))
    t = fed(a=a, b=b)
    same(cr.outer(t["a"], t["b"]), np.outer(a, b), {"a": a, "b": b})


PARTS: list[Any] = [0, -1, 2, slice(None), slice(1, 3), slice(None, None, 2), slice(None, None, -1),
                    slice(-2, None), slice(3, 0, -2), slice(9, 1), None, Ellipsis]  # fmt: skip


def subscripts() -> list[tuple[Any, ...]]:
    found = [(p,) for p in PARTS]
    found += [
        pair
        for pair in itertools.product(PARTS, PARTS)
        if sum(p is Ellipsis for p in pair) < 2 and sum(p is None for p in pair) < 2
    ]
    return [*found, (0, ..., -1), (None, 1, None), (slice(1, None), slice(None), slice(-3, -1))]


@pytest.mark.parametrize("index", subscripts(), ids=str)
def test_indexing(index: tuple[Any, ...]) -> None:
    x = np.arange(60.0).reshape(4, 5, 3)
    t = fed(x=x)["x"][index]
    assert t.shape == x[index].shape
    np.testing.assert_array_equal(value(t, {"x": x}, "reference"), x[index])


@pytest.mark.parametrize("index", [1, -1, slice(1, -1), slice(None, None, -2), slice(-3, None)])
def test_indexing_native_and_symbolic(index: Any) -> None:
    x = np.arange(30.0).reshape(10, 3)
    t = cr.input("x", ("n", 3), dtype="float64")
    same(t[index], x[index], {"x": x}, exact=True)
    same(t[:, index], x[:, index], {"x": x}, exact=True)


def test_indexing_by_sizes_and_arrays() -> None:
    x = np.arange(30.0).reshape(10, 3)
    t = cr.input("x", ("n", 3), dtype="float64")
    n = t.shape[0]
    assert isinstance(n, cr.Size)
    same(t[n // 2 :], x[5:], {"x": x}, exact=True)
    same(t[: n - 2], x[:8], {"x": x}, exact=True)
    same(t[[2, 0, 2]], x[[2, 0, 2]], {"x": x}, exact=True)
    same(t[:, np.array([2, 0])], x[:, [2, 0]], {"x": x}, exact=True)


FORMS: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Any]]] = {
    "reshape": (lambda t: cr.reshape(t, (5, 12)), lambda x: x.reshape(5, 12)),
    "reshape -1": (lambda t: cr.reshape(t, (3, -1)), lambda x: x.reshape(3, -1)),
    "reshape flat": (lambda t: cr.reshape(t, -1), lambda x: x.reshape(-1)),
    "permute": (lambda t: cr.permute_dims(t, (2, 0, -2)), lambda x: x.transpose(2, 0, 1)),
    "mT": (lambda t: t.mT, lambda x: x.swapaxes(1, 2)),
    "matrix_transpose": (cr.matrix_transpose, lambda x: x.swapaxes(1, 2)),
    "expand_dims": (lambda t: cr.expand_dims(t, axis=-1), lambda x: x[..., None]),
    "expand two": (lambda t: cr.expand_dims(t, axis=(0, 2)), lambda x: x[None, :, None]),
    "squeeze": (lambda t: cr.squeeze(t[:, :1], 1), lambda x: x[:, 0]),
    "broadcast_to": (lambda t: cr.broadcast_to(t[:1], (2, 5, 3)), lambda x: np.repeat(x[:1], 2, 0)),
    "flip": (cr.flip, lambda x: x[::-1, ::-1, ::-1]),
    "flip one": (lambda t: cr.flip(t, axis=-2), lambda x: x[:, ::-1]),
    "astype": (lambda t: cr.astype(t, "int32"), lambda x: x.astype("int32")),
    "take": (lambda t: cr.take(t, [1, 1, 0], axis=-1), lambda x: x[..., [1, 1, 0]]),
    "take many": (lambda t: cr.take(t, [[1, 0]], axis=0), lambda x: x[[[1, 0]]]),
    "zeros_like": (cr.zeros_like, np.zeros_like),
    "ones_like": (lambda t: cr.ones_like(t, dtype="int64"), lambda x: np.ones_like(x, "int64")),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    ours, numpys = FORMS[name]
    x = np.arange(60.0).reshape(4, 5, 3)
    same(ours(fed(x=x)["x"]), numpys(x), {"x": x}, exact=True)


def test_reshape_with_symbolic_sizes() -> None:
    x = np.arange(24.0).reshape(4, 6)
    t = cr.input("x", ("n", 6), dtype="float64")
    n = t.shape[0]
    for shape, want in (
        ((-1,), (24,)),
        ((n, 2, 3), (4, 2, 3)),
        ((2, -1), (2, 12)),
        ((-1, n), (6, 4)),
    ):
        same(cr.reshape(t, shape), x.reshape(want), {"x": x}, exact=True)


def test_choosing() -> None:
    z, y = DRAWN["real"]((4, 3)), np.array([0, 2, 1, 1])
    t = fed(z=z, y=y)
    feeds = {"z": z, "y": y}
    same(cr.pick(t["z"], t["y"]), z[np.arange(4), y], feeds, exact=True)
    same(cr.one_hot(t["y"], 3), np.eye(3)[y].astype("f4"), feeds, exact=True)


def test_creation() -> None:
    x = cr.input("x", ("n",), dtype="float64")
    feeds = {"x": np.zeros(4)}
    n = x.shape[0]
    same(x + cr.arange(n, dtype="float64"), np.arange(4.0), feeds, exact=True)
    same(x + cr.zeros((n,), dtype="float64"), np.zeros(4), feeds, exact=True)
    same(cr.full((2, 2), 7), np.full((2, 2), 7), {}, exact=True)
    same(cr.full((2,), True), np.full(2, True), {}, exact=True)
    same(cr.ones(3), np.ones(3, "f4"), {}, exact=True)
    same(cr.arange(5), np.arange(5), {}, exact=True)
    assert cr.full((), 1.5).dtype == cr.zeros(()).dtype


def test_promotion() -> None:
    a, b = cr.input("a", (2,), dtype="float32"), cr.input("b", (2,), dtype="float64")
    i, j = cr.input("i", (2,), dtype="int32"), cr.input("j", (2,), dtype="int64")
    assert (a + b).dtype.name == "float64"
    assert (i * j).dtype.name == "int64"
    assert (a + 1).dtype.name == (a * 2.5).dtype.name == "float32"
    assert (i + 1).dtype.name == "int32"


x23, x34 = cr.input("p", (2, 3)), cr.input("q", (3, 4))
i2, b2 = cr.input("r", (2,), dtype="int32"), cr.input("s", (2,), dtype="bool")
REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "float with integer": (cr.errors.DTypeError, lambda: x23[:, 0] + i2),
    "integer with float number": (cr.errors.DTypeError, lambda: i2 + 0.5),
    "bool arithmetic": (cr.errors.DTypeError, lambda: b2 + b2),
    "mean of integers": (cr.errors.DTypeError, lambda: cr.mean(i2)),
    "exp of integers": (cr.errors.DTypeError, lambda: cr.exp(i2)),
    "where by a float": (cr.errors.DTypeError, lambda: cr.where(x23, x23, x23)),
    "index by a float": (cr.errors.DTypeError, lambda: cr.take(x23, x23, axis=0)),
    "truth": (cr.errors.DTypeError, lambda: bool(x23)),
    "number": (cr.errors.DTypeError, lambda: float(x23)),
    "a string": (cr.errors.DTypeError, lambda: x23 + "1"),
    "shapes": (cr.errors.ShapeError, lambda: x23 + x34),
    "inner sizes": (cr.errors.ShapeError, lambda: x23 @ x23),
    "matmul of a scalar": (cr.errors.ShapeError, lambda: x23 @ cr.sum(x23)),
    "axis": (cr.errors.ShapeError, lambda: cr.sum(x23, axis=2)),
    "axis twice": (cr.errors.ShapeError, lambda: cr.sum(x23, axis=(0, -2))),
    "axis as a float": (cr.errors.ShapeError, lambda: cr.sum(x23, axis=1.0)),
    "too many indices": (cr.errors.ShapeError, lambda: x23[0, 0, 0]),
    "index": (cr.errors.ShapeError, lambda: x23[5]),
    "step 0": (cr.errors.ShapeError, lambda: x23[::0]),
    "slice of floats": (cr.errors.ShapeError, lambda: x23[1.0:]),
    "two dots": (cr.errors.ShapeError, lambda: x23[..., ...]),
    "reshape": (cr.errors.ShapeError, lambda: cr.reshape(x23, (4,))),
    "reshape -1 twice": (cr.errors.ShapeError, lambda: cr.reshape(x23, (-1, -1))),
    "reshape -1 inexact": (cr.errors.ShapeError, lambda: cr.reshape(x23, (4, -1))),
    "permutation": (cr.errors.ShapeError, lambda: cr.permute_dims(x23, (0,))),
    "squeeze": (cr.errors.ShapeError, lambda: cr.squeeze(x23, 0)),
    "broadcast": (cr.errors.ShapeError, lambda: cr.broadcast_to(x23, (3, 3))),
    "T of a stack": (cr.errors.ShapeError, lambda: cr.zeros((2, 2, 2)).T),
    "einsum": (cr.errors.ShapeError, lambda: cr.einsum("ij,jk->il", x23, x34)),
    "max of none": (cr.errors.ShapeError, lambda: cr.max(cr.zeros((0, 2)), axis=0)),
    "iterating": (cr.errors.ShapeError, lambda: iter(cr.sum(x23))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_where_it_is_written(name: str) -> None:
    kind, write = REFUSED[name]
    with pytest.raises(kind) as error:
        write()
    lines, first = inspect.getsourcelines(write)
    where = error.value.where  # type: ignore[attr-defined]
    assert where.filename == __file__
    assert first <= where.line < first + len(lines)
