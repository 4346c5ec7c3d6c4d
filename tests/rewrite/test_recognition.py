"""Naive spellings become the good form: the same node, and so the same derivative and print."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Array, Node
from chainrule.rewrite.passes import stabilize

Spelled = Callable[..., cr.Tensor]
ROOT = math.sqrt(2 / math.pi)


def stable(t: cr.Tensor) -> Node:
    return stabilize(Graph((t.node,))).outputs[0]


def moments(x: cr.Tensor, axis: int = -1) -> tuple[cr.Tensor, cr.Tensor]:
    mu = cr.mean(x, axis=axis, keepdims=True)
    return mu, cr.mean((x - mu) ** 2, axis=axis, keepdims=True)


def centred(x: cr.Tensor) -> cr.Tensor:
    return x - moments(x)[0]


def ratio(x: cr.Tensor, axis: int = -1) -> cr.Tensor:
    e = cr.exp(x)
    return e / cr.sum(e, axis=axis, keepdims=True)


def shifted(x: cr.Tensor, axis: int = -1) -> cr.Tensor:
    return ratio(x - cr.max(x, axis=axis, keepdims=True), axis)


def total_below_top(x: cr.Tensor) -> cr.Tensor:
    m = cr.max(x, axis=-1, keepdims=True)
    return m + cr.log(cr.sum(cr.exp(x - m), axis=-1, keepdims=True))


def mean_square(x: cr.Tensor) -> cr.Tensor:
    return cr.mean(x * x, axis=-1, keepdims=True)


# the good form, then spellings of it
OF_X: dict[str, tuple[Spelled, list[Spelled]]] = {
    "softmax": (
        cr.softmax,
        [
            ratio,
            shifted,
            lambda x: cr.exp(x) * (1 / cr.sum(cr.exp(x), axis=-1, keepdims=True)),
            lambda x: cr.exp(x - cr.expand_dims(cr.logsumexp(x, axis=-1), axis=-1)),
            lambda x: cr.exp(cr.log(ratio(x))),
            lambda x: ratio(x - cr.stop_gradient(cr.max(x, axis=-1, keepdims=True))),
        ],
    ),
    "softmax of columns": (
        lambda x: cr.softmax(x, axis=0),
        [lambda x: ratio(x, 0), lambda x: shifted(x, 0)],
    ),
    "log_softmax": (
        cr.log_softmax,
        [
            lambda x: cr.log(cr.softmax(x)),
            lambda x: cr.log(shifted(x)),
            lambda x: x - cr.log(cr.sum(cr.exp(x), axis=-1, keepdims=True)),
            lambda x: x - total_below_top(x),
        ],
    ),
    "logsumexp": (
        lambda x: cr.logsumexp(x, axis=-1),
        [
            lambda x: cr.log(cr.sum(cr.exp(x), axis=-1)),
            lambda x: cr.squeeze(total_below_top(x), axis=-1),
        ],
    ),
    "sigmoid": (
        cr.sigmoid,
        [
            lambda x: 1 / (1 + cr.exp(-x)),
            lambda x: cr.exp(x) / (1 + cr.exp(x)),
            lambda x: 1 - 1 / (1 + cr.exp(x)),
            lambda x: (1 + cr.exp(-x)) ** -1,
        ],
    ),
    "log_sigmoid": (
        cr.log_sigmoid,
        [lambda x: cr.log(cr.sigmoid(x)), lambda x: -cr.log(1 + cr.exp(-x))],
    ),
    "softplus": (
        cr.softplus,
        [
            lambda x: cr.log(1 + cr.exp(x)),
            lambda x: cr.log1p(cr.exp(x)),
            lambda x: -cr.log(1 - cr.sigmoid(x)),
            lambda x: cr.maximum(x, 0.0) + cr.log1p(cr.exp(-cr.abs(x))),
        ],
    ),
    "tanh": (
        cr.tanh,
        [
            lambda x: (cr.exp(x) - cr.exp(-x)) / (cr.exp(x) + cr.exp(-x)),
            lambda x: cr.sinh(x) / cr.cosh(x),
        ],
    ),
    "logaddexp": (
        lambda x: cr.logaddexp(x, 1 - x),
        [lambda x: cr.log(cr.exp(x) + cr.exp(1 - x))],
    ),
    "hypot": (
        lambda x: cr.hypot(x, 1 - x),
        [lambda x: cr.sqrt(x**2 + (1 - x) ** 2)],
    ),
    "abs": (cr.abs, [lambda x: cr.sqrt(x**2), lambda x: (x * x) ** 0.5]),
    "silu": (cr.silu, [lambda x: x * cr.sigmoid(x), lambda x: x / (1 + cr.exp(-x))]),
    "mish": (cr.mish, [lambda x: x * cr.tanh(cr.log(1 + cr.exp(x)))]),
    "softsign": (cr.softsign, [lambda x: x / (1 + cr.abs(x))]),
    "elu": (cr.elu, [lambda x: cr.where(x > 0, x, cr.exp(x) - 1)]),
    "gelu": (
        cr.gelu,
        [
            lambda x: 0.5 * x * (1 + cr.erf(x / math.sqrt(2))),
            lambda x: x * 0.5 * (cr.erf(x * 0.70710678) + 1),
            lambda x: x * (1 + cr.erf(x / 2**0.5)) / 2,
            lambda x: x / 2 * (1 + cr.erf(x / 2**0.5)),
            lambda x: x * (0.5 * (1 + cr.erf(x / math.sqrt(2)))),
            lambda x: 0.5 * x * cr.erfc(-x / math.sqrt(2)),
        ],
    ),
    "gelu_tanh": (
        lambda x: cr.gelu(x, approximate="tanh"),
        [
            lambda x: 0.5 * x * (1 + cr.tanh(ROOT * (x + 0.044715 * x**3))),
            lambda x: 0.5 * x * (1 + cr.tanh(ROOT * (x + 0.044715 * x * x * x))),
            lambda x: x * 0.5 * (1 + cr.tanh(x * 0.79788456 * (1 + 0.044715 * x * x))),
            lambda x: x / 2 * (1 + cr.tanh(ROOT * x * (1 + 0.044715 * x**2))),
        ],
    ),
    "layer_norm": (
        cr.layer_norm,
        [
            lambda x: centred(x) / cr.sqrt(moments(x)[1] + 1e-5),
            lambda x: centred(x) / cr.sqrt(cr.var(x, axis=-1, keepdims=True) + 1e-5),
            lambda x: centred(x) / (moments(x)[1] + 1e-5) ** 0.5,
            lambda x: centred(x) * (moments(x)[1] + 1e-5) ** -0.5,
            lambda x: centred(x) * cr.rsqrt(moments(x)[1] + 1e-5),
            lambda x: centred(x) * (1 / cr.sqrt(moments(x)[1] + 1e-5)),
            lambda x: centred(x) / cr.sqrt(mean_square(x) - moments(x)[0] ** 2 + 1e-5),
        ],
    ),
    "rms_norm": (
        cr.rms_norm,
        [
            lambda x: x / cr.sqrt(mean_square(x) + 1e-5),
            lambda x: x * cr.rsqrt(mean_square(x) + 1e-5),
            lambda x: x * (cr.mean(x**2, axis=-1, keepdims=True) + 1e-5) ** -0.5,
        ],
    ),
    "variance": (
        lambda x: cr.var(x, axis=-1),
        [
            lambda x: cr.mean(x**2, axis=-1) - cr.mean(x, axis=-1) ** 2,
            lambda x: cr.squeeze(moments(x)[1], axis=-1),
        ],
    ),
}
SPELLED = [
    pytest.param(good, spelled, id=f"{name} {i}")
    for name, (good, left) in OF_X.items()
    for i, spelled in enumerate(left)
]


@pytest.mark.parametrize(("good", "spelled"), SPELLED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_spellings_are_the_function(good: Spelled, spelled: Spelled, dtype: str) -> None:
    x = cr.input("x", ("batch", 8), dtype=dtype)
    assert stable(spelled(x)) is stable(good(x))


@pytest.mark.parametrize(("good", "spelled"), SPELLED)
def test_so_are_their_gradients(good: Spelled, spelled: Spelled) -> None:
    x, w = cr.input("x", ("batch", 8)), cr.input("w", ("batch", 1))
    given, wanted = (cr.grad(cr.sum(f(x) * cr.sum(w)), x) for f in (spelled, good))
    assert str(given) == str(wanted)


@pytest.mark.parametrize(("good", "spelled"), SPELLED)
def test_and_it_is_what_was_spelled(good: Spelled, spelled: Spelled) -> None:
    x = cr.input("x", (3, 8), dtype="float64")
    at = {x.node: np.random.default_rng(5).normal(size=(3, 8))}
    a, b = evaluate([spelled(x).node, stable(spelled(x))], at)
    np.testing.assert_allclose(b, a, rtol=1e-6)  # constants are known to eight digits


def test_norms_keep_their_scale_their_shift_and_their_axes() -> None:
    x, g, b = cr.input("x", ("n", 8)), cr.parameter("g", (8,)), cr.parameter("b", (8,))
    mu, square = moments(x)
    want = stable(cr.layer_norm(x, g, b, eps=1e-3))
    assert stable((x - mu) / cr.sqrt(square + 1e-3) * g + b) is want
    assert stable((x - mu) * cr.rsqrt(square + 1e-3) * g + b) is want
    left = stable(g * cr.layer_norm(x, eps=1e-3) + b)
    assert stable(g * (x - mu) / cr.sqrt(square + 1e-3) + b) is left
    assert stable(g * (x - mu) * cr.rsqrt(square + 1e-3) + b) is left
    mu, square = moments(x, 0)
    columns = stable((x - mu) / cr.sqrt(square + 1e-5))
    assert (columns.op.name, columns.op.axes) == ("layer_norm", (0,))


LABELS = [
    lambda z, y: -cr.mean(cr.sum(cr.one_hot(y, 5) * cr.log(cr.softmax(z)), axis=-1)),
    lambda z, y: -cr.mean(cr.log(cr.sum(cr.one_hot(y, 5) * cr.softmax(z), axis=-1))),
    lambda z, y: -cr.mean(cr.pick(cr.log_softmax(z), y)),
    lambda z, y: -cr.mean(cr.log(cr.pick(shifted(z), y))),
    lambda z, y: -cr.mean(cr.take_along_axis(cr.log(ratio(z)), y[:, None], axis=-1)),
    lambda z, y: (
        -cr.mean(cr.squeeze(cr.take_along_axis(cr.log_softmax(z), y[:, None], axis=-1), axis=-1))
    ),
    lambda z, y: -cr.mean(cr.log(cr.take_along_axis(cr.softmax(z), y[:, None], axis=-1))),
    lambda z, y: -cr.mean(cr.sum(cr.one_hot(y, 5) * (z - total_below_top(z)), axis=1)),
]


@pytest.mark.parametrize("spelled", LABELS)
def test_cross_entropies(spelled: Spelled) -> None:
    z, y = cr.input("z", ("batch", 5)), cr.input("y", ("batch",), dtype="int32")
    assert stable(spelled(z, y)) is stable(cr.losses.cross_entropy(z, y))
    assert str(cr.grad(spelled(z, y), z)) == "dz = (softmax(z) - onehot(y)) / batch"


BINARY = [
    lambda p, t: -cr.mean(t * cr.log(p) + (1 - t) * cr.log(1 - p)),
    lambda p, t: cr.mean(-t * cr.log(p) - (1 - t) * cr.log(1 - p)),
    lambda p, t: cr.mean(-(t * cr.log(p) + (1 - t) * cr.log1p(-p))),
]


@pytest.mark.parametrize("spelled", BINARY)
@pytest.mark.parametrize(
    "p", [cr.sigmoid, lambda z: 1 / (1 + cr.exp(-z))], ids=["named", "spelled"]
)
def test_binary_cross_entropies(spelled: Spelled, p: Spelled) -> None:
    z, t = cr.input("z", ("batch", 3)), cr.input("t", ("batch", 3))
    assert stable(spelled(p(z), t)) is stable(cr.losses.binary_cross_entropy(z, t))
    assert str(cr.grad(spelled(p(z), t), z)) == "dz = (sigmoid(z) - t) / (3*batch)"


TRIL = np.tri(5, 5) > 0
CAUSAL: dict[str, Spelled] = {
    "where -inf": lambda s: cr.where(cr.constant(TRIL), s, -math.inf),
    "where -1e9": lambda s: cr.where(cr.constant(TRIL), s, -1e9),
    "where not": lambda s: cr.where(cr.constant(~TRIL), -1e30, s),
    "added": lambda s: s + cr.constant(np.where(TRIL, 0, -1e9).astype("float32")),
    "added -inf": lambda s: cr.constant(np.where(TRIL, 0, -np.inf).astype("float32")) + s,
    "of indices": lambda s: s + cr.where(cr.arange(5)[:, None] >= cr.arange(5)[None, :], 0.0, -1e9),
    "above": lambda s: cr.where(cr.arange(5)[None, :] > cr.arange(5)[:, None], -math.inf, s),
}


def operands(*lead: int | str) -> list[cr.Tensor]:
    return [cr.input(n, (*lead, 5, 4)) for n in "qkv"]


@pytest.mark.parametrize("lead", [(), ("batch",), ("batch", 2)], ids=str)
@pytest.mark.parametrize("mask", CAUSAL)
def test_causal_attention(mask: str, lead: tuple[int | str, ...]) -> None:
    q, k, v = operands(*lead)
    s = CAUSAL[mask](q @ k.mT / math.sqrt(4))
    want = stable(cr.attention(q, k, v, causal=True))
    assert stable(cr.softmax(s, axis=-1) @ v) is want
    assert stable(shifted(s) @ v) is want


def test_attention_and_its_scale() -> None:
    q, k, v = operands("batch")
    want = stable(cr.attention(q, k, v))
    for scores in (q @ k.mT / 2, (q / 2) @ k.mT, q @ (k * 0.5).mT, 0.5 * (q @ k.mT)):
        assert stable(cr.softmax(scores) @ v) is want
    named = cr.einsum("bhqk,bkhd->bqhd", cr.softmax(stacked() / 2), cr.input("u", ("b", 5, 3, 4)))
    assert any(n.op.name == "attention" for n in walk([stable(named)]))
    assert stable(cr.softmax(0.3 * (q @ k.mT)) @ v) is stable(cr.attention(q, k, v, scale=0.3))


def stacked() -> cr.Tensor:
    q, k = (cr.input(n, ("b", 5, 3, 4)) for n in "qk")
    return cr.einsum("bqhd,bkhd->bhqk", q, k)


def test_other_masks_are_kept() -> None:
    q, k, v = operands()
    m = cr.input("m", (5, 5), dtype="bool")
    scores = cr.where(m, q @ k.mT / 2, -math.inf)
    assert stable(cr.softmax(scores) @ v) is stable(cr.attention(q, k, v, mask=m))
    n = cr.input("q", ("T", 4))
    i = cr.arange(n.shape[0])
    s = cr.where(i[:, None] >= i[None, :], n @ n.T / 2, -1e9)
    assert stable(cr.softmax(s) @ n) is stable(cr.attention(n, n, n, causal=True))


def test_a_row_that_may_see_nothing_keeps_its_meaning() -> None:
    """-1e9 everywhere in a row is the row's softmax; only -inf says that it is nothing."""
    q, k, v = operands()
    m = cr.input("m", (5, 5), dtype="bool")
    for low in (cr.where(m, q @ k.mT, -1e9), q @ k.mT + cr.where(m, 0.0, -1e9)):
        assert not [n for n in walk([stable(cr.softmax(low) @ v)]) if n.op.name == "attention"]


FAR = np.array([[1e4, -1e4, 3.0, 0.0], [-1e4, -1e4, -1e4, -1e4], [1e4, 1e4, 1e4, 9.9e3]])
NAN_WHERE: list[Spelled] = [
    ratio,
    lambda x: cr.log(ratio(x)),
    lambda x: cr.log(cr.mean(cr.exp(x), axis=-1)),
    lambda x: cr.log(1 + cr.sum(cr.exp(x), axis=-1)),
    lambda x: cr.exp(x) / (1 + cr.sum(cr.exp(x), axis=-1, keepdims=True)),
    lambda x: cr.exp(x) / cr.sum(cr.exp(x)),
    lambda x: cr.sum(cr.softmax(x) * cr.log(cr.softmax(x)), axis=-1),
    lambda x: cr.sum(cr.softmax(x) * cr.log(cr.softmax(x) / cr.softmax(-x)), axis=-1),
    lambda x: cr.sum(cr.softmax(x) * cr.log2(cr.softmax(x)), axis=-1),
    lambda x: cr.sum(cr.sqrt(cr.softmax(x)), axis=-1),
    lambda x: cr.sqrt(cr.sum((x - x) ** 2, axis=-1)),
]


@pytest.mark.parametrize("form", NAN_WHERE)
def test_rows_far_out_have_finite_values_and_gradients(form: Spelled) -> None:
    x = cr.input("x", (3, 4))
    y = form(x)
    slope = cr.grad(cr.sum(y), x)
    for found in cr.compile([y, slope, cr.grad(cr.sum(slope * slope), x)])(x=FAR.astype("f4")):
        assert np.isfinite(found).all()


def test_a_variance_does_not_cancel() -> None:
    x = cr.input("x", (1000,))
    values: Array = (1e4 + np.random.default_rng(1).normal(size=1000)).astype("f4")
    square = cr.mean(x**2) - cr.mean(x) ** 2
    got = float(cr.compile(square)(x=values))
    assert got == pytest.approx(values.astype("f8").var(), rel=1e-5)
