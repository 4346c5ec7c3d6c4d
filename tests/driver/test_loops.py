"""Loops as calls: what is done once, what a step calls, and where what it carries lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen.steps import Call, Copy, Repeat, Step
from chainrule.loops.builder import Builder
from chainrule.nn import GRU, LSTM, RNN

Array = np.ndarray[Any, Any]
TIME, BATCH, WIDTH = 6, 5, 24
KINDS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
SEED = 11


def repeats(steps: tuple[Step, ...]) -> list[Repeat]:
    return [s for s in steps if isinstance(s, Repeat)]


def calls_of(fn: Any) -> tuple[Step, ...]:
    found: tuple[Step, ...] = fn._program.compiled.levels.calls
    return found


def derivatives(kind: str, **options: Any) -> tuple[Any, dict[str, Array]]:
    """A layer's outputs and its weights' gradients, compiled, and arguments for it."""
    x = cr.input("x", ("batch", TIME, WIDTH))
    layer = KINDS[kind](WIDTH, return_sequences=True, return_state=True, **options)
    out, state = layer(x)
    ends = [s for s in (state if isinstance(state, tuple) else (state,))]
    ends = [e for s in ends for e in (s if isinstance(s, tuple) else (s,))]
    loss = cr.sum(out * out) + sum(cr.sum(cr.sin(e)) for e in ends)
    weights = list(layer.parameters.values())
    rng = np.random.default_rng(SEED)
    feeds = {"x": rng.standard_normal((BATCH, TIME, WIDTH), "f4")}
    for w in weights:
        shape = tuple(int(d) for d in w.shape)
        feeds[w.name] = 0.3 * rng.standard_normal(shape, "f4")
    return [out, *ends, *cr.grad(loss, weights)], feeds


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_copies_nothing(kind: str, bidirectional: bool) -> None:
    """Nothing stands in a loop but kernels: one product and one map, of a GRU too, each way."""
    outputs, _ = derivatives(kind, bidirectional=bidirectional)
    fn = cr.compile(outputs, threads=1)
    loops = repeats(calls_of(fn))
    assert len(loops) == (4 if bidirectional else 2)
    for loop in loops:
        assert all(isinstance(step, Call) for step in loop.steps), loop
        assert len(loop.steps) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_factor_is_packed_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each loop, for all its steps, which then read it where it lies: the same bits."""
    outputs, feeds = derivatives(kind)
    fn = cr.compile(outputs, threads=1)
    calls = calls_of(fn)
    for loop in repeats(calls):
        before = calls[calls.index(loop) - 1]
        assert isinstance(before, Call) and before.program.name.endswith("_once")
    once = fn(**feeds)
    monkeypatch.setattr(Builder, "is_fixed", lambda self, node: False)
    monkeypatch.setenv("CHAINRULE_CACHE", "off")
    each = cr.compile(outputs, threads=1)
    assert not any("_once" in c.program.name for c in calls_of(each) if isinstance(c, Call))
    for a, b in zip(once, each(**feeds), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_native_code_is_the_reference(kind: str, threads: int) -> None:
    """Outputs, last states and gradients, both ways at once."""
    outputs, feeds = derivatives(kind, bidirectional=True)
    want = cr.compile(outputs, backend="reference")(**feeds)
    got = cr.compile(outputs, threads=threads)(**feeds)
    for a, b in zip(got, want, strict=True):
        # float32: some hundred terms of size 1 a sum, over six steps
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def body(state: Any, now: cr.Tensor) -> Any:
    a, b = state
    return (b, cr.tanh(a * now + b)), (b, cr.sin(a))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("wanted", ["ends", "stacks", "both", "gradients"])
def test_what_is_carried_is_where_it_is_looked_for(wanted: str, steps: int, reverse: bool) -> None:
    """Carried values that change places, are stacked as they are, read outside or given out."""
    x = cr.input("x", ("time", 3), dtype="float64")
    first = [cr.input(n, (3,), dtype="float64") for n in "ab"]
    ends, stacks = cr.scan(body, tuple(first), x, reverse=reverse)
    inside = [cr.exp(s) for s in stacks]  # so that the stacks lie in the arena
    loss = sum(cr.sum(t * t) for t in (*ends, *inside))
    outputs = {
        "ends": [*ends],
        "stacks": [*inside],
        "both": [*ends, *stacks, *inside],
        "gradients": [*cr.grad(loss, [x, *first]), *inside],
    }[wanted]
    rng = np.random.default_rng(SEED)
    feeds = {"x": rng.standard_normal((steps, 3)), **{n: rng.standard_normal(3) for n in "ab"}}
    want = cr.compile(outputs, backend="reference")(**feeds)
    for got, expected in zip(cr.compile(outputs)(**feeds), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_what_a_step_keeps_lies_where_another_value_lay() -> None:
    """An LSTM's h is kept once for its output and its weights' gradient, and so are its c."""
    x = cr.input("x", ("batch", TIME, WIDTH))
    layer = LSTM(WIDTH, return_sequences=True)
    loss = cr.sum(cr.square(layer(x)))
    step = cr.training_step(loss, cr.optim.SGD(0.1), threads=1)
    arena = step.report().reserved(batch=64)["arena"]
    row = 64 * WIDTH * 4
    # of every step the gates' inputs, in whose place they lie themselves, and then their
    # derivatives; tanh c, h, c, and dh by time and by batch; and some rows of one step
    assert arena <= (4 + 1 + 2 + 2) * TIME * row + 10 * row


def test_parts_are_written_where_the_whole_lies() -> None:
    x = cr.input("x", ("batch", 3))
    a, b = cr.sin(x), cr.cos(x)
    fn = cr.compile(cr.concat([a, b, a * b], axis=1))
    (kernel,) = fn.report().kernels
    assert kernel.form == "map" and kernel.ops[-1] == "concat"
    v = np.random.default_rng(SEED).standard_normal((7, 3), "f4")
    want = [np.sin(v), np.cos(v), np.sin(v) * np.cos(v)]
    np.testing.assert_allclose(fn(x=v), np.concatenate(want, axis=1), rtol=1e-6, atol=1e-7)


def test_what_is_put_together_is_summed_beside() -> None:
    """A map that puts its values together stays one: their sum is another kernel's."""
    x = cr.input("x", (3, 5))
    t = cr.tanh(x)
    v = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    want = np.tanh(v.astype(np.float64))
    whole = np.concatenate([want, want / 2], axis=1)
    fn = cr.compile(cr.sum(cr.sin(cr.concat([t, t * 0.5], axis=1))) + cr.sum(cr.sin(t)))
    np.testing.assert_allclose(fn(x=v), np.sin(whole).sum() + np.sin(want).sum(), rtol=1e-5)


@pytest.mark.parametrize("rows", [0, "n"])
def test_nothing_put_together_is_read_like_everything_else(rows: int | str) -> None:
    """Of no rows, two parts and what is made of them have one shape."""
    t = cr.tanh(cr.input("x", (rows, 4)))
    fn = cr.compile(cr.sin(cr.concat([t, t * 0.5], axis=0)))
    assert fn(x=np.ones((0, 4), np.float32)).shape == (0, 4)


def test_slices_of_one_product_meet_in_one_map() -> None:
    x, w = cr.input("x", ("batch", 3)), cr.input("w", (3, 8))
    z = x @ w
    fn = cr.compile(cr.sigmoid(z[:, :4]) * cr.tanh(z[:, 4:]))
    assert [k.form for k in fn.report().kernels] == ["contract", "map"]


def test_copies_are_left_where_one_value_is_wanted_twice() -> None:
    """A carried value that is also given out lies in both places."""
    x, h = cr.input("x", ("time", 3)), cr.input("h", (3,))

    def cell(state: cr.Tensor, now: cr.Tensor) -> Any:
        state = cr.tanh(state + now)
        return state, (state, state)

    last, (one, other) = cr.scan(cell, h, x)
    fn = cr.compile([last, one, other])
    (loop,) = repeats(calls_of(fn))
    assert sum(isinstance(s, Copy) for s in loop.steps) <= 2
    v = np.random.default_rng(SEED).standard_normal((4, 3), "f4")
    got = fn(x=v, h=np.zeros(3, "f4"))
    np.testing.assert_array_equal(got[1], got[2])
    np.testing.assert_array_equal(got[0], got[1][-1])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_slice_is_overwritten_after_its_last_reader(reverse: bool) -> None:
    """Values of a stack's size, made early or late in a step, beside slices that are given out."""
    x, u = cr.input("x", ("time", 3, 4)), cr.input("u", (4, 4))

    def early(h: cr.Tensor, v: cr.Tensor) -> Any:
        made = cr.sin(v)
        return cr.tanh(made @ u + v + h), (made, v)

    def late(h: cr.Tensor, v: cr.Tensor) -> Any:
        h = cr.tanh(h @ u + v)
        return h, cr.flip(h) * v

    def through(h: cr.Tensor, v: cr.Tensor) -> Any:
        h = cr.tanh(h @ u)
        return h + 0.1, (cr.cos(h), v)

    def parts(h: cr.Tensor, v: cr.Tensor) -> Any:
        z = v + h @ u
        made = cr.concat([cr.sin(z[:, 2:]), cr.cos(z[:, :2] * v[:, 2:])], axis=1)
        return cr.tanh(z), made

    v = np.random.default_rng(SEED).standard_normal((5, 3, 4), "f4")
    feeds = {"x": v, "u": np.random.default_rng(SEED + 1).standard_normal((4, 4), "f4")}
    for step in (early, late, through, parts):
        stack = cr.exp(x)  # in the arena, and read by the loop alone
        h, ys = cr.scan(step, cr.zeros((3, 4)), stack, reverse=reverse)
        outputs = [h, *[cr.sum(y * y, axis=2) for y in (ys if isinstance(ys, tuple) else (ys,))]]
        want = cr.compile(outputs, backend="reference")(**feeds)
        for got, expected in zip(cr.compile(outputs)(**feeds), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
