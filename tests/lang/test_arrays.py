"""Manipulation, statistics, searching, creation and products against NumPy, on both backends."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)
A = RNG.normal(size=(3, 4))
B = RNG.normal(size=(2, 4))
V = RNG.normal(size=5)
Z = np.array([[2.0, 0.0, 3.0], [0.0, 0.0, 5.0], [1.5, 2.0, -1.0]])
T = np.array([[1.0, 3.0, 1.0, 3.0, np.nan, -2.0], [0.0, -0.0, np.inf, -np.inf, np.nan, 0.0]])
N = np.array([[3, 0, 0], [-1, 2, 5]])
L = np.array([[True, False], [True, True]])
AT = np.array([[0, 3, 1], [2, 2, 2], [1, 0, 0]])
ROWS = np.array([1, 0, 1])

# name: (functions of the module and of Tensors or arrays that give the same, operands)
Case = tuple[Callable[..., Any], Callable[..., Any], tuple[Array, ...]]
CASES: dict[str, Case] = {
    "concat": (lambda a, b: cr.concat([a, b]), lambda a, b: np.concatenate([a, b]), (A, B)),
    "concat axis": (
        lambda a: cr.concat([a, a, a], axis=-1),
        lambda a: np.concatenate([a, a, a], -1),
        (A,),
    ),
    "concat none": (
        lambda a, v: cr.concat([a, v], axis=None),
        lambda a, v: np.concatenate([a, v], None),
        (A, V),
    ),
    "stack": (lambda a: cr.stack([a, a], axis=1), lambda a: np.stack([a, a], 1), (A,)),
    "stack last": (lambda a: cr.stack([a, a], axis=-1), lambda a: np.stack([a, a], -1), (A,)),
    "unstack": (lambda a: cr.unstack(a, axis=1)[2], lambda a: a[:, 2], (A,)),
    "tile": (lambda a: cr.tile(a, (2, 3)), lambda a: np.tile(a, (2, 3)), (A,)),
    "tile more": (lambda a: cr.tile(a, (2, 1, 3)), lambda a: np.tile(a, (2, 1, 3)), (A,)),
    "tile fewer": (lambda a: cr.tile(a, (2,)), lambda a: np.tile(a, (2,)), (A,)),
    "repeat": (lambda a: cr.repeat(a, 3, axis=0), lambda a: np.repeat(a, 3, 0), (A,)),
    "repeat flat": (lambda a: cr.repeat(a, 2), lambda a: np.repeat(a, 2), (A,)),
    "repeat each": (
        lambda a: cr.repeat(a, [0, 2, 1], axis=0),
        lambda a: np.repeat(a, [0, 2, 1], 0),
        (A,),
    ),
    "roll": (lambda a: cr.roll(a, 3, axis=1), lambda a: np.roll(a, 3, 1), (A,)),
    "roll flat": (lambda a: cr.roll(a, -5), lambda a: np.roll(a, -5), (A,)),
    "roll two": (
        lambda a: cr.roll(a, (1, -1), axis=(0, 1)),
        lambda a: np.roll(a, (1, -1), (0, 1)),
        (A,),
    ),
    "moveaxis": (
        lambda a: cr.moveaxis(cr.stack([a, a]), 0, -1),
        lambda a: np.moveaxis(np.stack([a, a]), 0, -1),
        (A,),
    ),
    "broadcast_arrays": (
        lambda a, b: cr.broadcast_arrays(a, b)[0],
        lambda a, b: np.broadcast_arrays(a, b)[0],
        (A[:1], A),
    ),
    "meshgrid": (lambda v, w: cr.meshgrid(v, w)[1], lambda v, w: np.meshgrid(v, w)[1], (V, V[:2])),
    "meshgrid ij": (
        lambda v, w: cr.meshgrid(v, w, indexing="ij")[0],
        lambda v, w: np.meshgrid(v, w, indexing="ij")[0],
        (V, V[:2]),
    ),
    "diff": (lambda a: cr.diff(a), np.diff, (A,)),
    "diff twice": (
        lambda a, b: cr.diff(a, n=2, axis=0, prepend=b),
        lambda a, b: np.diff(a, 2, 0, b),
        (A, B),
    ),
    "prod": (lambda a: cr.prod(a), np.prod, (A,)),
    "prod axis": (
        lambda a: cr.prod(a, axis=0, keepdims=True),
        lambda a: np.prod(a, 0, keepdims=True),
        (Z,),
    ),
    "prod integer": (lambda n: cr.prod(n, axis=1), lambda n: np.prod(n, 1), (N,)),
    "all": (lambda x: cr.all(x, axis=0), lambda x: np.all(x, 0), (L,)),
    "any": (lambda x: cr.any(x), np.any, (L,)),
    "all of numbers": (lambda n: cr.all(n, axis=1), lambda n: np.all(n, 1), (N,)),
    "any of numbers": (lambda n: cr.any(n, axis=(0, 1)), np.any, (Z,)),
    "var": (lambda a: cr.var(a), np.var, (A,)),
    "var 1": (
        lambda a: cr.var(a, axis=1, correction=1, keepdims=True),
        lambda a: np.var(a, axis=1, ddof=1, keepdims=True),
        (A,),
    ),
    "std": (
        lambda a: cr.std(a, axis=0, correction=0.5),
        lambda a: np.std(a, axis=0, ddof=0.5),
        (A,),
    ),
    "count_nonzero": (
        lambda n: cr.count_nonzero(n, axis=0),
        lambda n: np.count_nonzero(n, 0),
        (N,),
    ),
    "cumulative_sum": (lambda v: cr.cumulative_sum(v), np.cumsum, (V,)),
    "cumulative_sum 0": (
        lambda a: cr.cumulative_sum(a, axis=1, include_initial=True),
        lambda a: np.cumsum(np.pad(a, ((0, 0), (1, 0))), 1),
        (A,),
    ),
    "cumulative_sum integer": (
        lambda n: cr.cumulative_sum(n, axis=0),
        lambda n: np.cumsum(n, 0),
        (N,),
    ),
    "argmax": (lambda t: cr.argmax(t, axis=1), lambda t: np.argmax(t, 1), (T,)),
    "argmax ties": (lambda n: cr.argmax(n, axis=0), lambda n: np.argmax(n, 0), (N,)),
    "argmin": (lambda n: cr.argmin(n), np.argmin, (N,)),
    "argmin kept": (
        lambda a: cr.argmin(a, axis=1, keepdims=True),
        lambda a: np.argmin(a, 1, keepdims=True),
        (A,),
    ),
    "sort": (lambda t: cr.sort(t), np.sort, (T,)),
    "sort axis": (lambda n: cr.sort(n, axis=0), lambda n: np.sort(n, 0), (N,)),
    "sort down": (lambda a: cr.sort(a, descending=True), lambda a: -np.sort(-a), (A,)),
    "argsort": (lambda t: cr.argsort(t), lambda t: np.argsort(t, kind="stable"), (T,)),
    "argsort down": (
        lambda n: cr.argsort(n, descending=True),
        lambda n: np.argsort(-n, kind="stable"),
        (N,),
    ),
    "top_k": (lambda a: cr.top_k(a, 2)[0], lambda a: -np.sort(-a)[:, :2], (A,)),
    "top_k places": (
        lambda a: cr.top_k(a, 2, axis=0, largest=False)[1],
        lambda a: np.argsort(a, 0, kind="stable")[:2],
        (A,),
    ),
    "take_along_axis": (
        lambda a, i: cr.take_along_axis(a, i),
        lambda a, i: np.take_along_axis(a, i, -1),
        (A, AT),
    ),
    "take_along_axis one": (
        lambda a, i: cr.take_along_axis(a, i, axis=0),
        lambda a, i: np.take_along_axis(a, i, 0),
        (A, AT[:1, :1]),
    ),
    "scatter_add": (
        lambda b, i, a: cr.scatter_add(b, i, a),
        lambda b, i, a: b + np.stack([a[1], a[0] + a[2]]),
        (B, ROWS, A),
    ),
    "tril": (lambda a: cr.tril(a, k=1), lambda a: np.tril(a, 1), (A,)),
    "triu": (lambda a: cr.triu(a), np.triu, (A,)),
    "eye": (lambda a: a + cr.eye(3, 4, k=1, dtype="float64"), lambda a: a + np.eye(3, 4, 1), (A,)),
    "linspace": (
        lambda v: v + cr.linspace(0, 1, 5, dtype="float64", endpoint=False),
        lambda v: v + np.linspace(0, 1, 5, endpoint=False),
        (V,),
    ),
    "full_like": (lambda v: v + cr.full_like(v, 2.0), lambda v: v + 2, (V,)),
    "tensordot": (
        lambda a, b: cr.tensordot(a, b, axes=((1,), (1,))),
        lambda a, b: np.tensordot(a, b, ((1,), (1,))),
        (A, B),
    ),
    "tensordot 1": (lambda a, b: cr.tensordot(a, b.T, axes=1), lambda a, b: a @ b.T, (A, B)),
    "tensordot 0": (
        lambda a, b: cr.tensordot(a, b, axes=0),
        lambda a, b: np.tensordot(a, b, 0),
        (A, B),
    ),
    "vecdot": (lambda a, b: cr.vecdot(a, b), lambda a, b: (a * b).sum(-1), (A, B[1:])),
    "vecdot axis": (lambda a: cr.vecdot(a, a, axis=-2), lambda a: (a * a).sum(-2), (A,)),
    "einsum 1": (lambda a: cr.einsum("ij->j", a), lambda a: a.sum(0), (A,)),
    "einsum transposed": (lambda a: cr.einsum("ij->ji", a), lambda a: a.T, (A,)),
    "einsum 2": (lambda a, b: cr.einsum("ij,kj", a, b), lambda a, b: a @ b.T, (A, B)),
    "einsum 3": (
        lambda a, b, v: cr.einsum("ij,kj,l->lk", a, b, v),
        lambda a, b, v: np.einsum("ij,kj,l->lk", a, b, v),
        (A, B, V),
    ),
}
#: of those, the ones with a derivative that central differences can't have: ties, NaN
ROUGH = {"sort", "argmax", "argsort"}


def feeds(operands: tuple[Array, ...], batch: bool = False) -> tuple[list[Any], dict[str, Array]]:
    named = {f"x{i}": a for i, a in enumerate(operands)}
    return [cr.input(k, a.shape, dtype=a.dtype.name) for k, a in named.items()], named


@pytest.mark.parametrize("name", CASES)
def test_is_numpys(name: str) -> None:
    ours, theirs, operands = CASES[name]
    tensors, named = feeds(operands)
    tensor, want = ours(*tensors), theirs(*operands)
    for backend in ("cpu", "reference"):
        fn = cr.compile(tensor, backend=backend)
        got = fn(**{k: v for k, v in named.items() if k in fn.inputs})
        assert got.dtype == tensor.dtype.numpy
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)
    assert str(tensor)
    assert tensor.latex()


SMOOTH = [n for n, (f, g, o) in CASES.items() if g(*o).dtype.kind == "f" and n not in ROUGH
          and all(a.dtype.kind != "b" for a in o) and o[0].dtype.kind == "f"]  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_derivative_is_the_difference(name: str) -> None:
    ours, theirs, operands = CASES[name]
    tensors, named = feeds(operands)
    weights = np.random.default_rng(2).uniform(0.5, 1.5, theirs(*operands).shape)
    slope = cr.grad(cr.sum(ours(*tensors) * weights), tensors[0], unused="zeros")
    fn = cr.compile(slope)
    got = fn(**{k: v for k, v in named.items() if k in fn.inputs})
    along = np.random.default_rng(3).normal(size=operands[0].shape)
    up, down = (
        np.sum(theirs(operands[0] + h * along, *operands[1:]) * weights) for h in (1e-5, -1e-5)
    )
    np.testing.assert_allclose(np.sum(got * along), (up - down) / 2e-5, rtol=1e-6, atol=1e-8)


def test_the_product_is_differentiable_among_zeros_to_second_order() -> None:
    z = cr.input("z", (3, 3), dtype="float64")
    slope = cr.grad(cr.sum(cr.prod(z, axis=1)), z)
    want = [[0, 6, 0], [0, 0, 0], [-2, -1.5, 3]]
    np.testing.assert_allclose(cr.compile(slope)(z=Z), want, atol=1e-14)
    second = cr.grad(cr.sum(slope[:, 0]), z)
    np.testing.assert_allclose(
        cr.compile(second)(z=Z), [[0, 3, 0], [0, 5, 0], [0, -1, 2]], atol=1e-14
    )
    many = np.ones((1, 300))
    many[0, 7], many[0, 9] = 0, 2
    x = cr.input("x", (1, 300), dtype="float64")
    got = cr.compile(cr.grad(cr.sum(cr.prod(x)), x))(x=many)
    want = np.zeros((1, 300))
    want[0, 7] = 2
    np.testing.assert_array_equal(got, want)


def test_a_sort_passes_cotangents_to_their_places() -> None:
    x = np.array([3.0, 1.0, 2.0])
    t = cr.input("x", (3,), dtype="float64")
    got = cr.compile(cr.grad(cr.sum(cr.sort(t) * np.array([1.0, 10.0, 100.0])), t))(x=x)
    np.testing.assert_array_equal(got, [100, 1, 10])


def test_std_of_equal_numbers_has_derivative_0() -> None:
    t = cr.input("x", (3,), dtype="float64")
    np.testing.assert_array_equal(cr.compile(cr.grad(cr.std(t), t))(x=np.ones(3)), np.zeros(3))


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_symbolic_sizes(batch: int) -> None:
    x = cr.input("x", ("batch", 3), dtype="float64")
    value = np.random.default_rng(batch).normal(size=(batch, 3))
    tensors = {
        "concat": cr.concat([x, x * 2.0]),
        "stack": cr.stack([x, x], axis=1),
        "prod": cr.prod(x, axis=0),
        "roll": cr.roll(x, 1, axis=1),
        "tile": cr.tile(x, (2, 1)),
        "repeat": cr.repeat(x, 2, axis=0),
        "sort": cr.sort(x, axis=0),
        "all": cr.all(x > 0, axis=0),
        "cumulative_sum": cr.cumulative_sum(x, axis=1),
        "eye": cr.eye(x.shape[0]),
        "tril": cr.tril(x),
    }
    want = {
        "concat": np.concatenate([value, value * 2]),
        "stack": np.stack([value, value], 1),
        "prod": value.prod(0),
        "roll": np.roll(value, 1, 1),
        "tile": np.tile(value, (2, 1)),
        "repeat": np.repeat(value, 2, 0),
        "sort": np.sort(value, 0),
        "all": (value > 0).all(0),
        "cumulative_sum": value.cumsum(1),
        "eye": np.eye(batch),
        "tril": np.tril(value),
    }
    got = cr.compile(tensors)(x=value)
    for name, wanted in want.items():
        np.testing.assert_allclose(got[name], wanted, rtol=1e-14, err_msg=name)


def test_running_sums_over_a_symbolic_axis() -> None:
    x = cr.input("x", ("batch", 3), dtype="float64")
    value = np.arange(15.0).reshape(5, 3)
    fn = cr.compile([cr.cumulative_sum(x, axis=0), cr.argmax(x, axis=0), cr.roll(x, 2, axis=0)])
    running, place, rolled = fn(x=value)
    np.testing.assert_array_equal(running, value.cumsum(0))
    np.testing.assert_array_equal(place, [4, 4, 4])
    np.testing.assert_array_equal(rolled, np.roll(value, 2, 0))


def test_what_is_refused() -> None:
    x, i = cr.input("x", (3, 4)), cr.input("i", (3, 4), dtype="int32")
    refused = {
        "twice": lambda: cr.einsum("i->ii", cr.input("s", (3,))),
        "one size": lambda: cr.einsum("ii->i", x),
        "letters": lambda: cr.einsum("1j->j", x),
        "operands": lambda: cr.einsum("ij,jk->ik", x),
        "depends on data": lambda: cr.nonzero(x),
        "depend on its values": lambda: cr.repeat(x, i),
        "k from 0 to 4": lambda: cr.top_k(x, 5),
        "promote": lambda: cr.concat([x, i]),
        "fit": lambda: cr.concat([x, cr.input("y", (3, 5))]),
        "one shape": lambda: cr.stack([x, x[0]]),
        "axis": lambda: cr.cumulative_sum(x),
        "no elements": lambda: cr.argmax(cr.input("e", (0, 2)), axis=0),
        "integer positions": lambda: cr.take_along_axis(x, x),
        "in pairs": lambda: cr.tensordot(x, x, axes=((0,), (0, 1))),
    }
    for what, bad in refused.items():
        with pytest.raises(cr.errors.ChainruleError, match=what):
            bad()


def test_signatures_are_the_standards() -> None:
    """Names, kinds and defaults of arguments, from the array API standard 2024.12."""
    standard = {
        "concat": "(arrays, /, *, axis=0)",
        "stack": "(arrays, /, *, axis=0)",
        "unstack": "(x, /, *, axis=0)",
        "tile": "(x, repetitions, /)",
        "repeat": "(x, repeats, /, *, axis=None)",
        "roll": "(x, /, shift, *, axis=None)",
        "moveaxis": "(x, source, destination, /)",
        "broadcast_arrays": "(*arrays)",
        "meshgrid": "(*arrays, indexing='xy')",
        "diff": "(x, /, *, axis=-1, n=1, prepend=None, append=None)",
        "prod": "(x, /, *, axis=None, dtype=None, keepdims=False)",
        "all": "(x, /, *, axis=None, keepdims=False)",
        "any": "(x, /, *, axis=None, keepdims=False)",
        "var": "(x, /, *, axis=None, correction=0.0, keepdims=False)",
        "std": "(x, /, *, axis=None, correction=0.0, keepdims=False)",
        "count_nonzero": "(x, /, *, axis=None, keepdims=False)",
        "cumulative_sum": "(x, /, *, axis=None, dtype=None, include_initial=False)",
        "argmax": "(x, /, *, axis=None, keepdims=False)",
        "argmin": "(x, /, *, axis=None, keepdims=False)",
        "sort": "(x, /, *, axis=-1, descending=False, stable=True)",
        "argsort": "(x, /, *, axis=-1, descending=False, stable=True)",
        "take_along_axis": "(x, indices, /, *, axis=-1)",
        "tril": "(x, /, *, k=0)",
        "triu": "(x, /, *, k=0)",
        "tensordot": "(x1, x2, /, *, axes=2)",
        "vecdot": "(x1, x2, /, *, axis=-1)",
        "clip": "(x, /, min=None, max=None)",
        "floor_divide": "(x1, x2, /)",
        "bitwise_left_shift": "(x1, x2, /)",
        "isnan": "(x, /)",
    }
    for name, wanted in standard.items():
        signature = inspect.signature(getattr(cr, name))
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        assert str(inspect.Signature(bare)) == wanted, name
