"""What a graph of known shapes can do with positions and sizes, and what it refuses, saying why."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr

C = np.random.default_rng(32).normal(size=(2, 3, 4)).astype("float32")


def test_symbolic_sizes() -> None:
    x = cr.input("x", ("batch", 3), dtype="float64")
    n = x.shape[0]
    i = cr.input("i", ("batch",), dtype="int32")
    tensors = {
        "arange": cr.arange(n),
        "arange by 2": cr.arange(1, 2 * n + 1, 2),
        "arange down": cr.arange(n - 1, -1, -1),
        "take": x[i],
        "pairs": x[i, cr.arange(n) % 3],
        "negative": x[np.array([-1])],
        "last": x[n - 1],
        "trace": cr.einsum("ii", cr.matmul(x, x.mT)),
        "diagonal": cr.einsum("...ii->...i", x[:, :, None] * cr.eye(3, dtype="float64")),
        "searchsorted": cr.searchsorted(
            cr.cumulative_sum(x[:, 0] ** 2), cr.asarray([0.5], dtype="float64")
        ),
        "cumulative_prod": cr.cumulative_prod(x, axis=0),
        "size": cr.sum(cr.ones_like(x)) - x.size / 1 if isinstance(x.size, int) else cr.sum(x),
    }
    for batch in (1, 5):
        value = np.random.default_rng(batch).normal(size=(batch, 3))
        at = -np.arange(batch, dtype="int32") - 1
        want = {
            "arange": np.arange(batch),
            "arange by 2": np.arange(1, 2 * batch + 1, 2),
            "arange down": np.arange(batch)[::-1],
            "take": value[at],
            "pairs": value[at, np.arange(batch) % 3],
            "negative": value[[-1]],
            "last": value[-1],
            "trace": np.trace(value @ value.T),
            "diagonal": value,
            "searchsorted": np.searchsorted(np.cumsum(value[:, 0] ** 2), [0.5]),
            "cumulative_prod": np.cumprod(value, 0),
            "size": value.sum(),
        }
        for backend in ("cpu", "reference"):
            got = cr.compile(tensors, backend=backend)(x=value, i=at)
            for name, wanted in want.items():
                np.testing.assert_allclose(got[name], wanted, 1e-13, 1e-13, err_msg=name)


INDICES: dict[str, Callable[..., Any]] = {
    "rows": lambda x, i, j: x[i, :, j],
    "apart": lambda x, i, j: x[0, :, j],
    "between": lambda x, i, j: x[:, i % 3, j % 3],
    "range": lambda x, i, j: x[i % 2, 1:],
    "new": lambda x, i, j: x[i % 2, None, j % 3],
    "behind": lambda x, i, j: x[..., i, 0],
    "lists": lambda x, i, j: x[:, [2, -1], 1],
    "wide": lambda x, i, j: x[i % 2][:, :, j],
}


@pytest.mark.parametrize("name", INDICES)
def test_integer_arrays_beside_ranges_are_numpys(name: str) -> None:
    """As NumPy places their axes; and the derivative adds up what was read."""
    value, i, j = C.astype("float64"), np.array([[0, 1], [-1, 0]]), np.array([2, -3])
    feeds = {"x": value, "i": i, "j": j}
    x, ti, tj = (cr.input(k, a.shape, dtype=a.dtype.name) for k, a in feeds.items())
    out = INDICES[name](x, ti, tj)
    want = INDICES[name](value, i, j)
    weights = np.random.default_rng(5).normal(size=want.shape)
    slope = np.zeros_like(value)
    np.add.at(slope.reshape(-1), INDICES[name](np.arange(24).reshape(2, 3, 4), i, j), weights)
    for backend in ("cpu", "reference"):
        fn = cr.compile([out, cr.grad(cr.sum(out * weights), x)], backend=backend)
        got = fn(**{k: v for k, v in feeds.items() if k in fn.inputs})
        np.testing.assert_array_equal(got[0], want)
        np.testing.assert_allclose(got[1], slope, 1e-14)
    assert str(out)
    assert out.latex()


X, M, T = cr.input("X", ("batch", 4)), cr.input("M", ("batch", 4), dtype="bool"), cr.input("t", ())
K = cr.input("k", (3,), dtype="int64")
#: what a static graph can't do: the error, and a word of what to use instead
CANNOT: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "nonzero": (lambda: cr.nonzero(X), cr.errors.ShapeError, "cr.where"),
    "unique_values": (lambda: cr.unique_values(X), cr.errors.ShapeError, "cr.sort"),
    "unique_all": (lambda: cr.unique_all(X), cr.errors.ShapeError, "cr.sort"),
    "unique_counts": (lambda: cr.unique_counts(X), cr.errors.ShapeError, "cr.sort"),
    "unique_inverse": (lambda: cr.unique_inverse(X), cr.errors.ShapeError, "cr.argsort"),
    "mask": (lambda: X[M], cr.errors.DTypeError, "cr.where"),
    "mask of rows": (lambda: X[M[:, 0], 0], cr.errors.DTypeError, "cr.where"),
    "bool index": (lambda: X[True], cr.errors.ShapeError, "not True"),
    "float index": (lambda: X[cr.astype(K, "float32")], cr.errors.DTypeError, "astype"),
    "far index": (lambda: X[:, 4], cr.errors.ShapeError, "outside an axis of size 4"),
    "far constant": (lambda: X[:, [0, -5]], cr.errors.ShapeError, "outside an axis of size 4"),
    "repeat": (lambda: cr.repeat(X, K), cr.errors.ShapeError, "depend on its values"),
    "arange": (lambda: cr.arange(T), cr.errors.DTypeError, "number"),
    "full": (lambda: cr.full((2,), T), cr.errors.DTypeError, "broadcast_to"),
    "bool": (lambda: bool(T), cr.errors.DTypeError, "cr.where"),
    "float": (lambda: float(T), cr.errors.DTypeError, "compile"),
    "int": (lambda: int(T), cr.errors.DTypeError, "compile"),
    "complex": (lambda: complex(T), cr.errors.DTypeError, "compile"),
    "range": (lambda: range(K[0]), cr.errors.DTypeError, "compile"),
    "numpy": (lambda: np.asarray(T), cr.errors.DTypeError, "compile"),
    "dlpack": (lambda: np.from_dlpack(T), cr.errors.DTypeError, "compile"),
    "set": (lambda: operator.setitem(X, 0, 1.0), cr.errors.DTypeError, "cr.scatter_add"),
    "complex type": (lambda: cr.zeros(2, dtype="complex64"), cr.errors.DTypeError, "real"),
    "complex array": (lambda: X + np.ones(4, "complex64"), cr.errors.DTypeError, "real"),
    "size": (lambda: cr.unstack(X), cr.errors.ShapeError, "known size"),
}  # fmt: skip


@pytest.mark.parametrize("name", CANNOT)
def test_what_a_static_graph_cannot_do(name: str) -> None:
    function, error, instead = CANNOT[name]
    with pytest.raises(error, match=instead) as caught:
        function()
    assert isinstance(caught.value, cr.errors.ChainruleError)
    assert "test_static.py" in str(caught.value)


def test_positions_outside_an_axis_are_refused_at_the_call() -> None:
    x, i = cr.input("x", (3, 4)), cr.input("i", (2,), dtype="int8")
    tensors = [cr.take(x, i, axis=0), x[i], x[i, i], cr.take_along_axis(x, i[:, None], axis=0)]
    value = np.arange(12, dtype="float32").reshape(3, 4)
    for backend in ("cpu", "reference"):
        for tensor in tensors:
            fn = cr.compile(tensor, backend=backend)
            fn(x=value, i=np.array([-3, 2], "int8"))
            for bad in (-4, 3):
                with pytest.raises(cr.errors.FeedError, match=rf"^i holds ({bad}, |a position)"):
                    fn(x=value, i=np.array([0, bad], "int8"))


def test_positions_of_few_bits_reach_far() -> None:
    """127 is the last that int8 holds; an axis may be longer than that."""
    x, i = cr.input("x", (1000,)), cr.input("i", (3,), dtype="int8")
    value = np.arange(1000, dtype="float32")
    for backend in ("cpu", "reference"):
        got = cr.compile(x[i], backend=backend)(x=value, i=np.array([127, -1, -128], "int8"))
        np.testing.assert_array_equal(got, [127, 999, 872])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_unsigned_positions_never_count_from_the_end(backend: str) -> None:
    """The largest uint64 has the bits of -1."""
    x, i = cr.input("x", (3, 4)), cr.input("i", (1,), dtype="uint64")
    value = np.zeros((3, 4), "float32")
    tensors = [
        x[i],
        x[i, i],
        cr.take_along_axis(x, i[:, None], axis=0),
        cr.scatter_add(x, i, x[:1]),
    ]
    for tensor in tensors:
        fn = cr.compile(tensor, backend=backend)
        fn(x=value, i=np.array([2], "uint64"))
        for bad in (3, 2**63, 2**64 - 1):
            with pytest.raises(cr.errors.FeedError, match="i holds"):
                fn(x=value, i=np.array([bad], "uint64"))
