"""Random graphs: native code means what the reference means, in values and two derivatives.

A graph is grown from a seed, the test's id: `grow(np.random.default_rng(seed))` grows it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.evaluate import evaluate

Array = np.ndarray[Any, Any]
Rng = np.random.Generator

SIZES = (1, 2, 19, 35)  # one, few, more than a vector, a tail of three; `n` in the graphs
DIMS: tuple[int | str, ...] = (3, 5, "n", 17, 1)
STEPS, MAX_RANK = 12, 4

UNARY: tuple[Callable[[Any], Any], ...] = (
    cr.exp, cr.tanh, cr.sigmoid, cr.relu, cr.abs, cr.square, cr.softplus, cr.log_sigmoid, cr.sin,
    cr.cos, cr.erf, cr.expm1, lambda t: cr.sqrt(cr.abs(t) + 0.5), lambda t: cr.log(cr.abs(t) + 0.5),
    lambda t: t * 0.5, lambda t: 1 - t, lambda t: -t, lambda t: t**2,
)  # fmt: skip
BINARY: tuple[Callable[[Any, Any], Any], ...] = (
    lambda t, u: t + u,
    lambda t, u: t - u,
    lambda t, u: t * u,
    lambda t, u: t / (cr.abs(u) + 1),
    lambda t, u: cr.where(t > u, t, u * 0.3),
    cr.maximum,
    cr.minimum,
    lambda t, u: cr.tanh(t @ u),
)
SLICES = (slice(None), slice(1, None), slice(None, -1), slice(None, None, 2), slice(None, None, -1))


def pick(rng: Rng, things: Sequence[Any]) -> Any:
    return things[int(rng.integers(len(things)))]


def fold(rng: Rng, t: Any) -> Any:
    count = int(rng.integers(1, t.ndim + 1))
    axes = tuple(int(a) for a in rng.choice(t.ndim, count, replace=False))
    return pick(rng, [cr.sum, cr.mean, cr.max, cr.min])(
        t, axis=axes, keepdims=bool(rng.integers(2))
    )


def chosen(rng: Rng, t: Any) -> Any:
    """Elements by an index array, which repeats one."""
    return cr.take(t, np.array([0, 0], "int32"), axis=int(rng.integers(t.ndim)))


SHAPED: tuple[Callable[[Rng, Any], Any], ...] = (
    fold,
    fold,
    lambda rng, t: cr.permute_dims(t, [int(p) for p in rng.permutation(t.ndim)]),
    lambda rng, t: cr.reshape(t, (-1,)),
    lambda rng, t: cr.softmax(t, axis=int(rng.integers(t.ndim))),
    lambda rng, t: cr.log_softmax(t, axis=int(rng.integers(t.ndim))),
    lambda rng, t: t[tuple(pick(rng, SLICES) for _ in range(t.ndim))],
    chosen,
)


def step(rng: Rng, pool: list[Any]) -> Any:
    t, u = pick(rng, pool), pick(rng, pool)
    kind = rng.integers(3)
    if kind == 2 and t.ndim:
        return pick(rng, SHAPED)(rng, t)
    return pick(rng, UNARY)(t) if kind == 0 else pick(rng, BINARY)(t, u)


def grow(rng: Rng, dtype: str = "float64") -> tuple[list[Any], list[Any]]:
    """Inputs, and the last few tensors made of them by random steps that fit."""
    inputs = [
        cr.input(
            f"x{i}", tuple(pick(rng, DIMS) for _ in range(rng.integers(MAX_RANK))), dtype=dtype
        )
        for i in range(4)
    ]
    pool = list(inputs)
    for _ in range(STEPS):
        try:
            made = step(rng, pool)
        except (cr.errors.ShapeError, cr.errors.DTypeError):
            continue  # the two do not fit together
        if 0 not in made.shape and made.ndim <= MAX_RANK:
            pool.append(made)
    return inputs, pool[-3:]


def with_gradients(inputs: list[Any], outputs: list[Any], order: int) -> list[Any]:
    """A scalar of the outputs, the outputs, and the scalar's gradient, or that of one of it."""
    loss = sum((cr.sum(cr.sin(o)) for o in outputs[1:]), start=cr.sum(cr.sin(outputs[0])))
    found = cr.grad(loss, inputs, unused="zeros")
    for _ in range(order - 1):
        slope = sum((cr.sum(cr.sin(g)) for g in found[1:]), start=cr.sum(cr.sin(found[0])))
        found = cr.grad(slope, inputs, unused="zeros")
    return [loss, *outputs, *found]


def feeds_of(fn: cr.Function, inputs: list[Any], n: int, rng: Rng) -> dict[str, Array]:
    shapes = {x.name: tuple(d if isinstance(d, int) else n for d in x.shape) for x in inputs}
    return {name: rng.standard_normal(shapes[name]) for name in fn.inputs}


def results(fn: cr.Function, feeds: dict[str, Array]) -> list[Array] | None:
    """The outputs; None where a slice or a fold has no meaning at this size."""
    try:
        return list(fn(**feeds))
    except cr.errors.FeedError:
        return None


def compiled(outputs: list[Any]) -> cr.Function | None:
    """The function; None where a size stands in no input that the outputs depend on."""
    try:
        return cr.compile(outputs)
    except cr.errors.CompileError as error:
        if "can't be known" not in error.what:
            raise
        return None


def check(seed: int, order: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, last = grow(rng)
    outputs = with_gradients(inputs, last, order)
    native = compiled(outputs)
    if native is None:
        return
    reference = cr.compile(outputs, backend="reference")
    for n in SIZES:
        feeds = feeds_of(native, inputs, n, rng)
        got, want = results(native, feeds), results(reference, feeds)
        assert (got is None) == (want is None), f"seed {seed}, n = {n}: only one of them refuses"
        for i, (a, b) in enumerate(zip(got or [], want or [], strict=True)):
            scale = np.abs(b).max(initial=0.0)
            if not np.isfinite(scale) or scale > 1e6:
                continue  # exp of exp of ...: what is lost there says nothing
            # some 1e5 roundings of 1e-16 each, of the largest element and of numbers near 1 before
            np.testing.assert_allclose(
                a,
                b,
                rtol=1e-9,
                atol=1e-9 * scale + 1e-11,
                err_msg=f"seed {seed}, n = {n}, output {i}",
            )


@pytest.mark.parametrize("seed", range(80))
def test_values_and_gradients_in_float64(seed: int) -> None:
    check(seed, order=1)


@pytest.mark.parametrize("seed", range(1000, 1030))
def test_second_derivatives(seed: int) -> None:
    check(seed, order=2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10_000, 12_000))
def test_many(seed: int) -> None:
    check(seed, order=1 + seed % 2)


@pytest.mark.parametrize("seed", range(2000, 2030))
def test_float32_is_as_near_as_numpy(seed: int) -> None:
    """Native float32 is about as far from float64 as NumPy's float32 of the same graph is."""
    wide, _ = graph_in("float64", seed)
    narrow, inputs = graph_in("float32", seed)
    native = compiled(narrow)
    if native is None:
        return
    numpy32, truth = (cr.compile(outputs, backend="reference") for outputs in (narrow, wide))
    rng = np.random.default_rng(seed)
    for n in SIZES:
        feeds = {k: v.astype("f4") for k, v in feeds_of(native, inputs, n, rng).items()}
        got = results(native, feeds)
        if got is None:
            continue
        for i, (a, b, c) in enumerate(zip(got, numpy32(**feeds), truth(**feeds), strict=True)):
            scale = np.abs(c).max(initial=0.0)
            if not np.isfinite(scale) or scale > 1e6 or not np.isfinite(b).all():
                continue
            # NumPy's own error tells how ill the graph is conditioned; 2**-17 is 64 roundings
            allowed = 16 * np.abs(b - c).max(initial=0.0) + 2.0**-17 * (1 + scale)
            assert np.abs(a - c).max(initial=0.0) <= allowed, f"seed {seed}, n = {n}, output {i}"


def graph_in(dtype: str, seed: int) -> tuple[list[Any], list[Any]]:
    inputs, last = grow(np.random.default_rng(seed), dtype)
    return with_gradients(inputs, last, 1), inputs


LEVELS = ("x86-64-v3", "x86-64-v2")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(3000, 3010))
def test_lower_targets(seed: int, level: str, at_level: Callable[[str], None]) -> None:
    """Targets with a fused multiply-add share every bit; one without is near."""
    rng = np.random.default_rng(seed)
    inputs, last = grow(rng)
    outputs = with_gradients(inputs, last, 1)
    here = compiled(outputs)
    if here is None:
        return
    at_level(level)
    there = cr.compile(outputs)
    for n in SIZES:
        feeds = feeds_of(here, inputs, n, rng)
        for i, (a, b) in enumerate(
            zip(results(there, feeds) or [], results(here, feeds) or [], strict=True)
        ):
            if level == "x86-64-v3":
                np.testing.assert_array_equal(a, b, err_msg=f"seed {seed}, n = {n}, output {i}")
            elif np.isfinite(b).all() and np.abs(b).max(initial=0.0) < 1e6:
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * (1 + np.abs(b).max()))


@pytest.mark.parametrize("seed", range(4000, 4040))
def test_what_is_printed_reads_back(seed: int) -> None:
    """Values and two derivatives as text, and the text as an expression of the same value."""
    inputs, last = grow(np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    shapes = {x: tuple(d if isinstance(d, int) else 4 for d in x.shape) for x in inputs}
    feeds = {x.node: rng.standard_normal(shape) for x, shape in shapes.items()}
    for i, tensor in enumerate(with_gradients(inputs, last, 2)):
        again = cr.parse(str(tensor), inputs, like=tensor)
        assert again.shape == tensor.shape
        a, b = evaluate([tensor.node, again.node], feeds, sizes={"n": 4}, widen=True)
        if np.isfinite(a).all():  # what text says less of is the order of a few sums
            np.testing.assert_allclose(
                b, a, rtol=1e-6, atol=1e-9 * (1 + np.abs(a).max(initial=0.0)),
                err_msg=f"seed {seed}, output {i}",
            )  # fmt: skip
