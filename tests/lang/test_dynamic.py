"""Slices that begin where integers say: NumPy's and JAX's meaning, gradients, caches, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ChainruleError, FeedError
from chainrule.ir.size import substitute

BACKENDS = ["cpu", "reference"]


def place(starts: list[int], part: tuple[int, ...], whole: tuple[int, ...]) -> tuple[slice, ...]:
    """Where a part lies: counted from the end below 0, then moved to where it fits."""
    firsts = [s + n if s < 0 else s for s, n in zip(starts, whole, strict=True)]
    at = [min(max(f, 0), n - p) for f, p, n in zip(firsts, part, whole, strict=True)]
    return tuple(slice(a, a + p) for a, p in zip(at, part, strict=True))


def case(seed: int) -> tuple[tuple[int, ...], tuple[int, ...], list[int]]:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    whole = tuple(int(n) for n in rng.integers(1, 40 if rank == 1 else 7, rank))
    part = tuple(int(rng.integers(0, n + 1)) for n in whole)
    return whole, part, [int(s) for s in rng.integers(-12, 14, rank)]


@pytest.mark.parametrize("seed", range(16))
def test_it_is_numpys_slice_wherever_it_starts(seed: int) -> None:
    whole, part, starts = case(seed)
    rng = np.random.default_rng(seed)
    x, u = cr.input("x", whole), cr.input("u", part)
    at = [cr.input(f"s{i}", (), dtype=t) for i, t in zip(range(len(whole)), _TYPES, strict=False)]
    y, z = cr.dynamic_slice(x, at, part), cr.dynamic_update_slice(cr.exp(x), cr.sin(u), at)
    feeds: dict[str, Any] = {f"s{i}": s for i, s in enumerate(starts)}
    feeds |= {"x": rng.normal(size=whole).astype("f4"), "u": rng.normal(size=part).astype("f4")}
    native, reference = (cr.compile([y, z, cr.exp(x), cr.sin(u)], b)(**feeds) for b in BACKENDS)
    inside = place(starts, part, whole)
    for got in (native, reference):
        np.testing.assert_array_equal(got[0], feeds["x"][inside], f"seed {seed}")
        want = got[2].copy()
        want[inside] = got[3]
        np.testing.assert_array_equal(got[1], want, f"seed {seed}")


_TYPES = ("int32", "int64", "int8")


@pytest.mark.parametrize("seed", range(6))
def test_it_is_jaxs(seed: int) -> None:
    lax = pytest.importorskip("jax").lax
    whole, part, starts = case(100 + seed)
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=whole).astype("f4"), rng.normal(size=part).astype("f4")
    x, u = cr.constant(a), cr.constant(b)
    s = cr.input("s", (len(whole),), dtype="int32")
    fn = cr.compile([cr.dynamic_slice(x, s, part), cr.dynamic_update_slice(x, u, s)])
    got = fn(s=np.array(starts, "i4"))
    np.testing.assert_array_equal(got[0], lax.dynamic_slice(a, starts, part), f"seed {seed}")
    np.testing.assert_array_equal(got[1], lax.dynamic_update_slice(a, b, starts), f"seed {seed}")


@pytest.mark.parametrize("start", [-(2**63), -(2**31) - 1, 2**31, 2**63 - 1])
def test_the_ends_of_int64(start: int) -> None:
    x, s = cr.input("x", (5, 3)), cr.input("s", (), dtype="int64")
    given = np.arange(15, dtype="f4").reshape(5, 3)
    inside = given[:2] if start < 0 else given[3:]
    for backend in BACKENDS:
        fn = cr.compile(cr.dynamic_slice(x, [s, 0], (2, 3)), backend)
        np.testing.assert_array_equal(fn(x=given, s=start), inside)
        fixed = cr.compile(cr.dynamic_slice(x, [start, 0], (2, 3)), backend)
        np.testing.assert_array_equal(fixed(x=given), inside)


def test_symbolic_sizes() -> None:
    x, s = cr.input("x", ("n", 4)), cr.input("s", (), dtype="int32")
    u = cr.input("u", ("m", 4))
    for backend in BACKENDS:
        fn = cr.compile(
            [cr.dynamic_slice(x, [s, 0], (2, 4)), cr.dynamic_update_slice(x, u, [s, 0])], backend
        )
        for n, m, start in ((5, 1, 3), (2, 2, 1), (30, 7, -8)):
            a, b = np.random.default_rng(n).normal(size=(n, 4)).astype("f4"), np.ones((m, 4), "f4")
            part, whole = fn(x=a, u=b, s=start)
            np.testing.assert_array_equal(part, a[place([start, 0], (2, 4), (n, 4))])
            want = a.copy()
            want[place([start, 0], (m, 4), (n, 4))] = 1
            np.testing.assert_array_equal(whole, want)
        for n, m in ((1, 1), (3, 4)):  # neither 2 rows nor 4 fit
            with pytest.raises(FeedError):
                fn(x=np.ones((n, 4), "f4"), u=np.ones((m, 4), "f4"), s=0)


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "float64"])
def test_every_element_type(dtype: str) -> None:
    x, u = cr.input("x", (19,), dtype=dtype), cr.input("u", (4,), dtype=dtype)
    s = cr.input("s", (), dtype="int32")
    given = (np.arange(19) % 5).astype(dtype)
    fn = cr.compile([cr.dynamic_slice(x, s, 7), cr.dynamic_update_slice(x, u, s)])
    part, whole = fn(x=given, u=np.ones(4, dtype), s=6)
    np.testing.assert_array_equal(part, given[6:13])
    given[6:10] = 1
    np.testing.assert_array_equal(whole, given)


def test_views_are_sliced_where_they_lie() -> None:
    x, s = cr.input("x", (4, 6)), cr.input("s", (), dtype="int32")
    given = np.arange(24, dtype="f4").reshape(4, 6)
    fn = cr.compile(cr.dynamic_slice(x.T[1:5], [s, 1], (2, 3)))
    np.testing.assert_array_equal(fn(x=given, s=2), given.T[1:5][2:4, 1:4])


def test_gradients() -> None:
    x, u = cr.parameter("x", (5, 4)), cr.parameter("u", (2, 3))
    s = cr.input("s", (), dtype="int32")
    y = cr.dynamic_update_slice(cr.sin(x), u * u, [s, 1])
    loss = cr.sum(cr.dynamic_slice(y, [1, s], (3, 2)) ** 3) + cr.sum(y * y)
    rng = np.random.default_rng(2)
    for start in (-9, 0, 2, 7):
        feeds = {"x": rng.normal(size=(5, 4)), "u": rng.normal(size=(2, 3)), "s": start}
        cr.check_gradients(loss, [x, u], feeds)
        slope = cr.grad(loss, x)
        cr.check_gradients(cr.sum(slope * slope), [x], feeds)


def test_it_prints_and_reads_back() -> None:
    x, i = cr.input("x", ("batch", 5)), cr.input("i", (), dtype="int32")
    y = cr.dynamic_slice(x, [i, 1], (2, 3))
    assert str(y) == "dynamic_slice(x, (i, 1), (2, 3))"
    slope = cr.grad(cr.sum(cr.square(y)), x)
    assert "dynamic_update_slice(zeros((batch, 5)), " in str(slope)
    again = cr.parse(str(slope), [x, i])
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 5)).astype("f4"), "i": 1}
    np.testing.assert_array_equal(cr.compile(again)(**feeds), cr.compile(slope)(**feeds))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_that_grows_by_a_row_a_step(backend: str) -> None:
    """As attention keeps keys: a state that is written at a place of its own, in place."""
    cache, place_ = cr.state("cache", (6, 3)), cr.state("place", (), dtype="int32")
    x, w = cr.input("x", (1, 3)), cr.parameter("w", (3,), init="ones")
    loss = cr.sum(cr.square(cr.dynamic_slice(cache, [place_ - 1, 0], (1, 3)) * w - x))
    step = cr.training_step(
        loss,
        cr.optim.SGD(1e-30),  # w stays 1
        outputs=cache,
        updates={cache: cr.dynamic_update_slice(cache, x, [place_, 0]), place_: place_ + 1},
        backend=backend,
    )
    rows = np.arange(24, dtype="f4").reshape(8, 1, 3)
    for i in range(8):
        before = rows[min(i, 6) - 1, 0] if 0 < i < 7 else rows[i - 1, 0] if i else np.zeros(3)
        assert step(x=rows[i]) == pytest.approx(float(((before - rows[i, 0]) ** 2).sum()))
    want = rows[:6, 0].copy()
    want[5] = rows[7, 0]  # what would be beyond the end is written at the end
    np.testing.assert_array_equal(step.predict(), want)


def test_a_cache_is_written_in_place() -> None:
    cache, at = cr.state("cache", (64, 8)), cr.input("at", (), dtype="int32")
    x, w = cr.input("x", (1, 8)), cr.parameter("w", (8,))
    step = cr.training_step(
        cr.sum(x * w),
        cr.optim.SGD(0.1),
        updates={cache: cr.dynamic_update_slice(cache, x, [at, 0])},
    )
    (line,) = [k for k in step.show("kernels").splitlines() if "64, 8]" in k and "writes" in k]
    assert line.endswith("into cache")
    (kernel,) = [k for k in step.report().kernels if k.writes == ("cache",)]
    assert kernel.bytes == 2 * 8 * 4, "a row is read, and written"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_what_a_loop_carries_is_written_in_place(seed: int, threads: int) -> None:
    """Parts of any size put where integers say, too small and too large ones too, as NumPy does."""
    rng = np.random.default_rng(seed)
    sizes = tuple(int(n) for n in rng.integers(1, 6, 3))
    part = tuple(int(rng.integers(1, n + 1)) for n in sizes)
    x, at = cr.input("x", sizes), cr.input("at", ("steps", 3), dtype="int32")
    rows = cr.input("rows", ("steps", *part))
    final, seen = cr.scan(
        lambda h, now: (
            cr.dynamic_update_slice(h, now[0] + h[:1, :1, :1], now[1]),
            cr.sum(h),
        ),
        x,
        (rows, at),
    )
    feeds: dict[str, Any] = {
        "x": rng.normal(size=sizes).astype("f4"),
        "at": rng.integers(-7, 8, (5, 3)).astype("i4"),
        "rows": rng.normal(size=(5, *part)).astype("f4"),
    }
    fn = cr.compile([final, seen], threads=threads)
    (kernel,) = [k for k in fn.report().kernels if k.ops == ("dynamic_update_slice",)]
    assert substitute(kernel.bytes, {"steps": 5}) == 5 * 2 * 4 * math.prod(part), "a part a step"
    h, sums = feeds["x"].copy(), []
    for row, starts in zip(feeds["rows"], feeds["at"], strict=True):
        sums.append(h.sum())
        h[place(starts.tolist(), part, sizes)] = row + h[0, 0, 0]
    got = fn(**feeds)
    np.testing.assert_array_equal(got[0], h)
    # float32: sums of up to 125 numbers, in another order than NumPy's
    np.testing.assert_allclose(got[1], sums, rtol=1e-4, atol=1e-4)


X = cr.input("x", ("batch", 5))
I, J = cr.input("i", (2,), dtype="int32"), cr.input("j", (), dtype="uint64")
WRONG: dict[str, Callable[[], Any]] = {
    "a start that is no integer": lambda: cr.dynamic_slice(X, [1.5, 0], (1, 1)),
    "a start that is a bool": lambda: cr.dynamic_slice(X, [True, 0], (1, 1)),
    "a start beyond int64": lambda: cr.dynamic_slice(X, [2**70, 0], (1, 1)),
    "a start of uint64": lambda: cr.dynamic_slice(X, [J, 0], (1, 1)),
    "a start that is a vector": lambda: cr.dynamic_slice(X, [I, 0], (1, 1)),
    "too few starts": lambda: cr.dynamic_slice(X, [1], (1, 1)),
    "too few sizes": lambda: cr.dynamic_slice(X, [1, 1], (1,)),
    "a size above the whole": lambda: cr.dynamic_slice(X, [0, 0], (1, 6)),
    "a negative size": lambda: cr.dynamic_slice(X, [0, 0], (1, -1)),
    "an update above the whole": lambda: cr.dynamic_update_slice(X, cr.zeros((1, 6)), [0, 0]),
    "an update of another type": lambda: cr.dynamic_update_slice(
        X, cr.zeros((1, 5), dtype="float64"), [0, 0]
    ),
    "an update of another rank": lambda: cr.dynamic_update_slice(X, 1.0, [0, 0]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(ChainruleError):
        WRONG[name]()
