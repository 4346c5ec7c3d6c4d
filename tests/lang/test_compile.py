"""`cr.compile` as its users meet it: structures, names, feeds of every kind, results, threads."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import pytest

import chainrule as cr

X = np.arange(6.0, dtype="f4").reshape(2, 3)

BACKENDS = ("cpu", "reference")  # tests/gpu has the one for which a GPU is needed


def doubled() -> tuple[cr.Tensor, cr.Tensor]:
    x = cr.input("x", ("n", 3))
    return x, x * 2.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_structure_comes_back(backend: str) -> None:
    x, y = doubled()
    nested = {"a": y, "b": [x + 1.0, (cr.sum(x), {"c": x})]}
    got = cr.compile(nested, backend=backend)(x=X)
    assert list(got) == ["a", "b"] and isinstance(got["b"], list) and isinstance(got["b"][1], tuple)
    np.testing.assert_array_equal(got["a"], X * 2)
    np.testing.assert_array_equal(got["b"][0], X + 1)
    assert got["b"][1][0] == X.sum() and got["b"][1][0].shape == ()
    np.testing.assert_array_equal(got["b"][1][1]["c"], X)
    assert isinstance(cr.compile(y, backend=backend)(x=X), np.ndarray)


class Pair(NamedTuple):
    left: Any
    right: Any


def test_a_named_tuple_comes_back() -> None:
    x, y = doubled()
    got = cr.compile(Pair(x, [y]))(x=X)
    assert isinstance(got, Pair)
    np.testing.assert_array_equal(got.right[0], X * 2)


def test_inputs_in_order_of_creation() -> None:
    b, a, unused = cr.input("b", ()), cr.parameter("a", ()), cr.input("unused", ())
    fn = cr.compile([a * b, b])
    assert fn.inputs == ["b", "a"]
    assert unused.name not in fn.inputs
    assert float(fn(a=2, b=3)[0]) == 6.0


class Foreign:
    """Another library's array: all it has is __array__."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(X, dtype)


def read_only() -> Any:
    a = X.copy()
    a.flags.writeable = False
    return a


FEEDS: dict[str, Any] = {
    "plain": X,
    "list": X.tolist(),
    "tuple": tuple(map(tuple, X.tolist())),
    "float64": X.astype("f8"),
    "float16": X.astype("f2"),
    "integers": X.astype("i4"),
    "big endian": X.astype(">f4"),
    "fortran": np.asfortranarray(X),
    "reversed twice": X[::-1].copy()[::-1],
    "strided": np.repeat(X, 2, axis=1)[:, ::2],
    "read-only": read_only(),
    "unaligned": np.frombuffer(b"\0" + X.tobytes(), "u1")[1:].view("f4").reshape(2, 3),
    "foreign": Foreign(),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", FEEDS)
def test_feeds_convert(kind: str, backend: str) -> None:
    x, y = doubled()
    given = FEEDS[kind]
    before = np.array(given)
    got = cr.compile(y, backend=backend)(x=given)
    np.testing.assert_array_equal(got, X * 2)
    np.testing.assert_array_equal(np.array(given), before)
    assert x.name == "x"


BAD: dict[str, Any] = {
    "complex": X * 1j,
    "text": "abc",
    "object": np.array([[None] * 3]),
    "ragged": [[1.0, 2.0, 3.0], [1.0]],
    "rank": X[0],
    "size": X[:, :2],
    "nothing": None,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", BAD)
def test_bad_feeds_are_refused(kind: str, backend: str) -> None:
    fn = cr.compile(doubled()[1], backend=backend)
    with pytest.raises(cr.errors.FeedError) as error:
        fn(x=BAD[kind])
    assert "x" in error.value.what
    np.testing.assert_array_equal(fn(x=X), X * 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_and_unknown_names(backend: str) -> None:
    fn = cr.compile(doubled()[1], backend=backend)
    with pytest.raises(cr.errors.FeedError, match="x"):
        fn()
    with pytest.raises(cr.errors.FeedError, match="z"):
        fn(x=X, z=X)


@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_are_checked_for_range(backend: str) -> None:
    i = cr.input("i", ("n",), dtype="int32")
    fn = cr.compile(i + 1, backend=backend)
    np.testing.assert_array_equal(fn(i=np.array([1, 2], "i8")), [2, 3])
    with pytest.raises(cr.errors.FeedError):
        fn(i=np.array([2**40], "i8"))
    with pytest.raises(cr.errors.FeedError):
        fn(i=np.array([1.5]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_aliases(backend: str) -> None:
    x, y = doubled()
    small, large = X.copy(), np.ones((2000, 3), "f4")
    for given in (small, large):
        fn = cr.compile([x, y, y, cr.reshape(y, (-1,)), x + 0.0], backend=backend)
        first, second = fn(x=given), fn(x=given)
        arrays = [given, *first, *second]
        for i, a in enumerate(arrays):
            for b in arrays[:i]:
                assert not np.shares_memory(a, b)
        for a in first:
            a[...] = -1.0
        np.testing.assert_array_equal(second[1], given * 2)
        np.testing.assert_array_equal(fn(x=given)[0], given)
        assert given.min() >= 0


def test_one_compilation_serves_every_size() -> None:
    w = cr.parameter("w", (3, 2))
    fn = cr.compile(cr.tanh(cr.input("x", ("n", 3)) @ w))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 2))
    for n in (1, 2, 3, 7, 16, 33, 257, 4096, 1, 0):
        x = rng.standard_normal((n, 3))
        np.testing.assert_allclose(fn(x=x, w=weights), np.tanh(x @ weights), rtol=2e-5, atol=2e-6)


def test_nan_and_infinity_are_numbers() -> None:
    x = cr.input("x", ("n",))
    fn = cr.compile([x * 0.0, x - x, cr.max(x)])
    zero, none, most = fn(x=[np.nan, np.inf, 1.0])
    assert np.isnan(zero[:2]).all() and np.isnan(none[:2]).all() and np.isnan(most)


def test_two_threads_call_one_function() -> None:
    x = cr.input("x", ("n", 64))
    w = cr.parameter("w", (64, 64))
    fn = cr.compile([cr.tanh(x @ w), cr.sum(x, axis=0)])
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((64, 64)).astype("f4")
    batches = [rng.standard_normal((n, 64)).astype("f4") for n in (5, 33, 128, 1)]
    expected = [fn(x=b, w=weights) for b in batches]
    wrong: list[Any] = []

    def work(offset: int) -> None:
        for turn in range(100):
            i = (turn + offset) % len(batches)
            got = fn(x=batches[i], w=weights)
            if any((a != b).any() for a, b in zip(got, expected[i], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_two_threads_compile() -> None:
    results: list[Any] = []

    def work(k: int) -> None:
        x = cr.input("x", ("n",))
        results.append((k, cr.compile(cr.sin(x) * float(k))(x=[1.0])))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 4
    for k, got in results:
        np.testing.assert_allclose(got, np.sin([1.0]) * k, rtol=1e-6)


OPTIONS: dict[str, dict[str, Any]] = {
    "backend": {"backend": "tpu"},
    "backend as number": {"backend": 3},
    "threads": {"threads": 0},
    "threads as text": {"threads": "2"},
    "threads as bool": {"threads": True},
    "precision": {"precision": "float16"},
    "training": {"training": 1},
    "seed": {"seed": -1},
    "large seed": {"seed": 2**64},
    "no int": {"seed": 1.0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_are_not_built_are_refused(name: str) -> None:
    with pytest.raises(cr.errors.CompileError):
        cr.compile(doubled()[1], **OPTIONS[name])


def test_built_options() -> None:
    fn = cr.compile(doubled()[1], backend="cpu", threads=1, precision=None, training=True, seed=7)
    np.testing.assert_array_equal(fn(x=X), X * 2)
    assert repr(fn) == "<compiled function of x, backend 'cpu'>"


def test_only_tensors_compile() -> None:
    for thing in (3.0, [doubled()[1], None], "x"):
        with pytest.raises(cr.errors.DTypeError, match="expected a Tensor"):
            cr.compile(thing)


def test_outputs_without_inputs() -> None:
    for backend in BACKENDS:
        np.testing.assert_array_equal(cr.compile(cr.arange(3) * 2, backend=backend)(), [0, 2, 4])
        constant = cr.compile(cr.constant(X), backend=backend)
        assert constant.inputs == []
        np.testing.assert_array_equal(constant(), X)


def test_a_mask_is_no_index() -> None:
    """Cast to integers, as an index must be, it would take rows 0 and 1."""
    x = cr.input("x", ("n", 3))
    with pytest.raises(cr.errors.DTypeError, match="mask") as error:
        x[x > 0]
    assert "cr.where" in str(error.value)


def test_a_seed_may_be_numpys() -> None:
    x = cr.random.normal((3,))
    ours, theirs = (
        cr.compile(x, "reference", seed=seed)() for seed in (2**64 - 1, np.uint64(2**64 - 1))
    )
    np.testing.assert_array_equal(ours, theirs)
    for bad in (-1, 2**64, 1.0, True, np.int64(-1), "1"):
        with pytest.raises(cr.errors.CompileError, match="a seed is an int"):
            cr.compile(x, "reference", seed=bad)


def test_an_int_that_no_integer_type_holds() -> None:
    for dtype in ("float32", "float64", "bfloat16"):
        x = cr.input("x", (2,), dtype=dtype)
        got = cr.compile(x + 2**70, "reference")(x=np.zeros(2, x.dtype.numpy))
        assert got.astype(float).tolist() == [2.0**70] * 2
