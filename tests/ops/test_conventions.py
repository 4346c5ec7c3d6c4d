"""Derivatives where there is no one derivative: kinks, ties, poles. PyTorch's choice, as numbers.

The numbers are what PyTorch 2 gives (its formulas: tools/autograd/derivatives.yaml of its sources,
and the "Autograd mechanics" note on functions that are not differentiable); where it is installed
they are asked for again. `OURS` holds what is decided otherwise, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr

INF, NAN = float("inf"), float("nan")
T = Any
ORDER = np.arange(1.0, 5.0)

#: function, what PyTorch calls it, point, gradient
SCALARS: list[tuple[Callable[..., T], str, tuple[float, ...], tuple[float, ...]]] = [
    (cr.relu, "torch.relu", (0,), (0,)),
    (cr.relu, "torch.relu", (NAN,), (1,)),
    (cr.relu6, "F.relu6", (0,), (0,)),
    (cr.relu6, "F.relu6", (6,), (0,)),
    (cr.leaky_relu, "F.leaky_relu", (0,), (0.01,)),
    (cr.elu, "F.elu", (0,), (1,)),
    (lambda x: cr.elu(x, 2.0), "lambda x: F.elu(x, 2.0)", (0,), (2,)),
    (cr.selu, "F.selu", (0,), (1.7580993408473766,)),
    (cr.hard_sigmoid, "F.hardsigmoid", (-3,), (0,)),
    (cr.hard_sigmoid, "F.hardsigmoid", (3,), (0,)),
    (cr.hard_swish, "F.hardswish", (-3,), (0,)),
    (cr.hard_swish, "F.hardswish", (3,), (1,)),
    (cr.softsign, "F.softsign", (0,), (1,)),
    (cr.sigmoid, "torch.sigmoid", (1000,), (0,)),
    (cr.softplus, "F.softplus", (100,), (1,)),
    (cr.abs, "torch.abs", (0,), (0,)),
    (cr.abs, "torch.abs", (-0.0,), (0,)),
    (cr.square, "torch.square", (0,), (0,)),
    (cr.sign, "torch.sign", (0,), (0,)),
    (cr.floor, "torch.floor", (1,), (0,)),
    (cr.ceil, "torch.ceil", (1.5,), (0,)),
    (cr.trunc, "torch.trunc", (-1,), (0,)),
    (cr.round, "torch.round", (0.5,), (0,)),
    (cr.maximum, "torch.maximum", (1, 1), (0.5, 0.5)),
    (cr.maximum, "torch.maximum", (NAN, 1), (1, 1)),
    (cr.minimum, "torch.minimum", (1, 1), (0.5, 0.5)),
    (lambda x: cr.clip(x, -1, 1), "lambda x: torch.clamp(x, -1, 1)", (-1,), (1,)),
    (lambda x: cr.clip(x, -1, 1), "lambda x: torch.clamp(x, -1, 1)", (1,), (1,)),
    (lambda x: cr.clip(x, -1, 1), "lambda x: torch.clamp(x, -1, 1)", (2,), (0,)),
    (cr.clip, "torch.clamp", (1, 1, 2), (1, 0, 0)),
    (cr.clip, "torch.clamp", (2, 1, 2), (1, 0, 0)),
    (cr.clip, "torch.clamp", (1, 1, 1), (1, 0, 0)),
    (cr.clip, "torch.clamp", (0, 1, 2), (0, 1, 0)),
    (cr.clip, "torch.clamp", (0, 2, 1), (0, 0, 1)),
    (cr.clip, "torch.clamp", (1.5, 2, 1), (0, 0, 1)),
    (cr.clip, "torch.clamp", (3, 2, 1), (0, 0, 1)),
    (cr.pow, "torch.pow", (0, 0), (0, 0)),
    (cr.pow, "torch.pow", (0, 1), (1, 0)),
    (cr.pow, "torch.pow", (0, 2), (0, 0)),
    (cr.pow, "torch.pow", (0, 0.5), (INF, 0)),
    (cr.pow, "torch.pow", (0, -1), (-INF, -INF)),
    (cr.pow, "torch.pow", (-1, 2), (-2, NAN)),
    (cr.pow, "torch.pow", (2, 0), (0, 0.6931471805599453)),
    (lambda x: x**0, "lambda x: x**0", (0,), (0,)),
    (lambda x: x**2, "lambda x: x**2", (0,), (0,)),
    (lambda x: x**3, "lambda x: x**3", (0,), (0,)),
    (lambda x: x**0.5, "lambda x: x**0.5", (0,), (INF,)),
    (lambda x: x**-1, "lambda x: x**-1", (0,), (-INF,)),
    (lambda x: 0.0**x, "lambda x: 0.0**x", (2,), (0,)),
    (cr.xlogy, "torch.xlogy", (0, 2), (0.6931471805599453, 0)),
    (cr.xlogy, "torch.xlogy", (0, -1), (0, 0)),
    (cr.xlogy, "torch.xlogy", (1, 0), (-INF, INF)),
    (cr.sqrt, "torch.sqrt", (0,), (INF,)),
    (cr.sqrt, "torch.sqrt", (-1,), (NAN,)),
    (cr.rsqrt, "torch.rsqrt", (0,), (-INF,)),
    (cr.rsqrt, "torch.rsqrt", (-1,), (NAN,)),
    (cr.log, "torch.log", (0,), (INF,)),
    (cr.log, "torch.log", (-1,), (-1,)),
    (cr.log1p, "torch.log1p", (-1,), (INF,)),
    (cr.log1p, "torch.log1p", (-2,), (-1,)),
    (cr.reciprocal, "torch.reciprocal", (0,), (-INF,)),
    (cr.asin, "torch.asin", (1,), (INF,)),
    (cr.asin, "torch.asin", (2,), (NAN,)),
    (cr.acos, "torch.acos", (-1,), (-INF,)),
    (cr.acosh, "torch.acosh", (1,), (INF,)),
    (cr.acosh, "torch.acosh", (0,), (NAN,)),
    (cr.atanh, "torch.atanh", (1,), (INF,)),
    (cr.atan2, "torch.atan2", (0, 0), (0, 0)),
    (cr.atan2, "torch.atan2", (0, -1), (-1, 0)),
    (cr.copysign, "torch.copysign", (0, 1), (0, 0)),
    (cr.copysign, "torch.copysign", (0, -1), (0, 0)),
    (cr.copysign, "torch.copysign", (2, 0), (1, 0)),
    (cr.remainder, "torch.remainder", (3, 2), (1, -1)),
    (cr.divide, "torch.div", (1, 0), (INF, -INF)),
    (cr.logaddexp, "torch.logaddexp", (INF, 1), (1, 0)),
    (
        lambda x: cr.where(x > 0, x, x * 0.0 + 1),
        "lambda x: torch.where(x > 0, x, x * 0.0 + 1)",
        (0,),
        (0,),
    ),
]

#: function, what PyTorch calls it, vector, gradient of the sum
VECTORS: list[tuple[Callable[[T], T], str, list[float], list[float]]] = [
    (cr.max, "torch.amax", [1, 3, 3, 2], [0, 0.5, 0.5, 0]),
    (cr.max, "torch.max", [1, 3, 3, 2], [0, 0.5, 0.5, 0]),
    (cr.min, "torch.amin", [1, 1, 2, 1], [1 / 3, 1 / 3, 0, 1 / 3]),
    (
        lambda x: cr.take_along_axis(x, cr.argmax(x, axis=0, keepdims=True), axis=0),
        "lambda x: x.max(0)[0]",
        [1, 3, 3],
        [0, 1, 0],
    ),
    (
        lambda x: cr.sort(x) * ORDER,
        "lambda x: x.sort(stable=True)[0] * ORDER",
        [3, 1, 3, 1],
        [3, 1, 4, 2],
    ),
    (
        lambda x: cr.sort(x, descending=True) * ORDER,
        "lambda x: x.sort(stable=True, descending=True)[0] * ORDER",
        [3, 1, 3, 1],
        [1, 3, 2, 4],
    ),
    (cr.prod, "torch.prod", [0, 2, 3], [6, 0, 0]),
    (cr.prod, "torch.prod", [0, 0, 3], [0, 0, 0]),
    (cr.std, "lambda x: x.std(correction=0)", [2, 2, 2], [0, 0, 0]),
    (cr.var, "lambda x: x.var(correction=0)", [2, 2, 2], [0, 0, 0]),
    (lambda x: cr.std(x, correction=1), "torch.std", [2, 2, 2], [0, 0, 0]),
    (lambda x: cr.std(x, correction=1), "torch.std", [2], [NAN]),
    (lambda x: cr.sum(cr.abs(x)), "lambda x: torch.linalg.vector_norm(x, 1)", [0, 1], [0, 1]),
    (
        lambda x: cr.max(cr.abs(x)),
        "lambda x: torch.linalg.vector_norm(x, INF)",
        [1, -1],
        [0.5, -0.5],
    ),
    (
        lambda x: cr.max_pool(cr.reshape(x, (1, 1, 3)), 3),
        "lambda x: F.max_pool1d(x.reshape(1, 1, 3), 3)",
        [1, 1, 1],
        [1, 0, 0],
    ),
    (cr.softmax, "lambda x: x.softmax(0)", [-INF, 1], [0, 0]),
    (
        lambda x: cr.where(x > 0, cr.sqrt(cr.where(x > 0, x, 1.0)), 0.0),
        "lambda x: torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)",
        [-1, 4],
        [0, 0.25],
    ),
]

#: function, what PyTorch calls it, point, our gradient, PyTorch's, and why they differ
OURS: list[
    tuple[Callable[..., T], str, tuple[float, ...], tuple[float, ...], tuple[float, ...]]
] = [
    # the norm of two numbers as of many, whose subgradient of least length is 0
    (cr.hypot, "torch.hypot", (0, 0), (0, 0), (NAN, NAN)),
    # the array API standard: the sign of NaN is NaN
    (cr.abs, "torch.abs", (NAN,), (NAN,), (0,)),
    # no NaN that algebra can avoid
    (
        lambda x: cr.where(x > 0, cr.sqrt(x), 0.0),
        "lambda x: torch.where(x > 0, x.sqrt(), 0.0)",
        (-1,),
        (0,),
        (NAN,),
    ),
    (cr.softsign, "F.softsign", (INF,), (0,), (NAN,)),
]


def compiled(f: Callable[..., T], point: Any, backend: str) -> list[Any]:
    points = (
        [np.float64(p) for p in point] if isinstance(point, tuple) else [np.asarray(point, float)]
    )
    inputs = [cr.input(f"x{i}", p.shape, dtype="float64") for i, p in enumerate(points)]
    outputs = cr.grad(cr.sum(f(*inputs)), inputs, unused="zeros")
    fn = cr.compile(outputs, backend=backend)
    feeds = {f"x{i}": p for i, p in enumerate(points)}
    return [g.tolist() for g in fn(**{k: feeds[k] for k in fn.inputs})]


def label(row: Any) -> str:
    return f"{row[1]} at {row[2]}"


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("row", [*SCALARS, *(r[:4] for r in OURS)], ids=label)
def test_of_numbers(row: Any, backend: str) -> None:
    f, _, point, gradient = row
    np.testing.assert_allclose(compiled(f, point, backend), gradient, rtol=1e-14)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("row", VECTORS, ids=label)
def test_of_vectors(row: Any, backend: str) -> None:
    f, _, point, gradient = row
    np.testing.assert_allclose(compiled(f, point, backend)[0], gradient, rtol=1e-14)


@pytest.mark.parametrize("row", [*SCALARS, *VECTORS, *((*r[:3], r[4]) for r in OURS)], ids=label)
def test_the_numbers_are_pytorchs(row: Any) -> None:
    torch = pytest.importorskip("torch")
    names = {"torch": torch, "F": torch.nn.functional, "INF": INF, "ORDER": torch.tensor(ORDER)}
    _, spelled, point, gradient = row
    points = point if isinstance(point, tuple) else [point]
    xs = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in points]
    found = torch.autograd.grad(eval(spelled, names)(*xs).sum(), xs, allow_unused=True)
    got = [0.0 if g is None else g.tolist() for g in found]
    want = gradient if isinstance(point, tuple) else [gradient]
    np.testing.assert_allclose(got, want, rtol=1e-7)  # its hardsigmoid and selu have float32's 1/6


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("shape", [(0,), (5, 0), (0, 3), (3, 0, 2)], ids=str)
def test_softmax_and_its_kin_of_nothing(shape: tuple[int, ...], backend: str) -> None:
    x = cr.input("x", shape)
    for axis in range(len(shape)):
        outputs = [f(x, axis=axis) for f in (cr.softmax, cr.log_softmax, cr.logsumexp)]
        slopes = [cr.grad(cr.sum(y), x) for y in outputs]
        p, logs, total, *found = cr.compile([*outputs, *slopes], backend=backend)(x=np.zeros(shape))
        assert p.shape == logs.shape == shape and all(g.shape == shape for g in found)
        rest = shape[:axis] + shape[axis + 1 :]
        want = np.log(
            np.full(rest, shape[axis], float), where=shape[axis] > 0, out=np.full(rest, -INF)
        )
        np.testing.assert_allclose(total, want, rtol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("m", [0, 1, 3])
@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("n", [0, 1, 4])
def test_products_of_nothing(m: int, k: int, n: int, backend: str) -> None:
    x, y = cr.input("x", (m, k)), cr.input("y", (k, n))
    z = x @ y
    outputs = [z, cr.tanh(z), *cr.grad(cr.sum(z * z), [x, y])]
    got = cr.compile(outputs, backend=backend)(x=np.ones((m, k)), y=np.ones((k, n)))
    np.testing.assert_array_equal(got[0], np.full((m, n), k, "f4"))
    np.testing.assert_array_equal(got[2], np.full((m, k), 2 * k * n, "f4"))
    np.testing.assert_array_equal(got[3], np.full((k, n), 2 * k * m, "f4"))


def test_what_is_no_float_has_no_derivative() -> None:
    x, i = cr.input("x", (3,)), cr.input("i", (3,), dtype="int64")
    loss, count = cr.sum(x * i.astype("float32")), cr.sum(i)
    one, ones = cr.constant(np.float32(1)), cr.constant(np.ones(3, "int64"))
    for refused in (
        lambda: cr.grad(loss, i),
        lambda: cr.grad(loss, [x, i]),
        lambda: cr.grad(count, x),
        lambda: cr.vjp([loss], [i], [one]),
        lambda: cr.vjp([i], [x], [ones]),
        lambda: cr.jvp([loss], [i], [ones]),
        lambda: cr.hvp(loss, [i], [ones]),
    ):
        with pytest.raises(cr.errors.GradientError, match="only floats have derivatives"):
            refused()
