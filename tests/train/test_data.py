"""Data that comes in minibatches, from generators, lists and files: the same bits as arrays."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import FeedError
from chainrule.train.data import is_mapped, table
from chainrule.train.prefetch import Prefetch

pytestmark = pytest.mark.usefixtures("compiled_once")

RNG = np.random.default_rng(3)
X = RNG.normal(size=(60, 5)).astype(np.float32)
Y = RNG.integers(0, 4, 60)


def make(**options: Any) -> cr.Model:
    def net(x: cr.Tensor) -> cr.Tensor:
        return cr.tanh(x @ cr.parameter("w", (5, 6))) @ cr.parameter("v", (6, 4))

    return cr.Model(net, optimizer="adam", metrics=["accuracy"], threads=1, **options)


def state(model: cr.Model) -> dict[str, bytes]:
    return {n: a.tobytes() for n, a in model.step.state_dict().items()}


def batches(size: int = 20) -> list[tuple[Any, ...]]:
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, 60, size)]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name == "chainrule-prefetch"]


@pytest.mark.parametrize("form", ["list", "generator", "again", "steps"])
def test_minibatches_are_arrays_in_order(form: str) -> None:
    class Again:
        def __iter__(self) -> Iterator[tuple[Any, ...]]:
            return iter(batches())

    one, other = make(), make()
    epochs = 1 if form == "generator" else 3
    a = one.fit(X, Y, epochs=epochs, batch_size=20, shuffle=False)
    given: Any = {
        "list": batches(),
        "generator": (b for b in batches()),
        "again": Again(),
        "steps": iter(batches() * 4),
    }[form]
    b = other.fit(given, epochs=epochs, steps_per_epoch=3 if form == "steps" else None)
    assert a.history == b.history and state(one) == state(other)
    if form == "steps":
        assert len(list(given)) == 3  # no more was taken than was asked for


def test_minibatches_may_differ_in_size() -> None:
    one, other = make(), make()
    uneven = [(X[:7], Y[:7]), (X[7:60], Y[7:60])]
    a = one.fit(uneven, epochs=2).history
    losses = [other.partial_fit(*b) for b in uneven]
    assert a["loss"][0] == pytest.approx((losses[0] * 7 + losses[1] * 53) / 60, rel=1e-12)


def test_lists_and_weights() -> None:
    one, other = make(), make()
    w = RNG.uniform(0, 2, 60).astype(np.float32)
    one.fit(X.tolist(), Y.tolist(), batch_size=20, shuffle=False, sample_weight=w.tolist())
    other.fit([(x, y, w[i * 20 : i * 20 + 20]) for i, (x, y) in enumerate(batches())])
    assert state(one) == state(other)
    with pytest.raises(FeedError, match="had none"):
        make().fit([(X, Y), (X, Y, w)])


@pytest.mark.parametrize("kind", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_file_is_read_by_minibatches(tmp_path: Path, kind: str, shuffle: bool) -> None:
    values = (X * 50).astype(kind)
    path = tmp_path / "x.npy"
    np.save(path, values)
    mapped = np.load(path, mmap_mode="r")
    assert is_mapped(mapped) and is_mapped(mapped[3:]) and not is_mapped(values)
    one, other = make(), make()
    a = one.fit(values, Y, epochs=2, shuffle=shuffle)
    b = other.fit(mapped, Y, epochs=2, shuffle=shuffle)
    assert a.history == b.history and state(one) == state(other)
    np.testing.assert_array_equal(one.predict(values), other.predict(mapped))
    assert one.evaluate(values, Y) == other.evaluate(mapped, Y)


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_a_large_file_is_never_copied_whole(tmp_path: Path, kind: str) -> None:
    import tracemalloc

    rows = 200_000
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=kind, shape=(rows, 5))
    labels = np.zeros(rows, np.int32)
    model = make()
    model.fit(X, Y)
    gc.collect()
    tracemalloc.start()
    model.fit(mapped, labels, batch_size=4000, shuffle=False, validation_data=None)
    model.evaluate(mapped[:1000], labels[:1000])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < rows * 5 * 4 * 0.7  # the whole as float32 would be 1


def test_what_a_generator_raises_comes_through() -> None:
    def broken() -> Iterator[Any]:
        yield from batches()
        raise OSError("the disk is gone")

    one, other = make(), make()
    with pytest.raises(OSError, match="the disk is gone") as caught:
        one.fit(broken())
    assert "in step 3 of training, epoch 0" in "".join(caught.value.__notes__)
    other.fit(batches())
    assert one.step.steps == 3 and state(one) == state(other)


def test_what_is_wrong_with_a_minibatch_comes_with_its_step() -> None:
    model = make()
    with pytest.raises(FeedError, match=r"(?s)not of shape|shape \(20, 3\).*in step 2 of training"):
        model.fit([*batches()[:1], (X[:20, :3], Y[:20])])
    assert model.step.steps == 1
    with pytest.raises(FeedError, match="holds 9"):
        model.fit([(X[:20], np.full(20, 9))])
    with pytest.raises(FeedError, match="x has 20, y has 19"):
        model.fit([(X[:20], Y[:19])])


def test_data_that_ends() -> None:
    for given, options, text in [
        (iter(batches()), {"epochs": 2}, "used up after one epoch"),
        (iter(batches()), {"epochs": 2, "steps_per_epoch": 2}, "ended after 1 minibatches"),
        (iter([]), {}, "no minibatch came"),
        (batches(), {"steps_per_epoch": 0}, "steps_per_epoch"),
        (batches(), {"sample_weight": np.ones(60)}, "bring their weights"),
    ]:
        with pytest.raises(FeedError, match=text):
            make().fit(given, **options)


def test_an_epoch_may_be_part_of_a_list() -> None:
    one, other = make(), make()
    one.fit(batches(), epochs=2, steps_per_epoch=2)
    other.fit(batches()[:2], epochs=2)
    assert state(one) == state(other)


def test_the_next_minibatch_is_made_while_a_step_is_at_work() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    ahead = Prefetch(items(), lambda i: i * i, None, True)
    ahead.start()
    try:
        assert next(ahead) == 0
        until = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(made) == 4  # the one taken, two that wait, and one in hand
        assert list(ahead) == [i * i for i in range(1, 10)] and list(ahead) == []
    finally:
        ahead.close()


def test_closed_early_it_ends_and_closes_what_it_opened() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    ahead = Prefetch(items(), lambda i: i, None, True)
    ahead.start()
    next(ahead)
    ahead.close()
    assert closed == [True]


def test_ctrl_c_while_the_thread_begins_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come when the thread runs and its beginning has not come back."""
    begin = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        begin(thread)
        raise KeyboardInterrupt

    model = make()
    model.fit(X, Y)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.fit([(X, Y)] * 1000, epochs=10**6)
    assert not [t for t in threading.enumerate() if t.name == "chainrule-prefetch"]


def test_what_was_not_begun_can_be_closed() -> None:
    Prefetch(iter([1]), lambda i: i, None, True).close()


def test_a_users_generator_stays_open() -> None:
    closed = []

    def items() -> Iterator[Any]:
        try:
            while True:
                yield from batches()
        finally:
            closed.append(True)

    given = items()
    make().fit(given, steps_per_epoch=2)
    assert not closed and len(next(given)) == 2


def test_tables() -> None:
    data = table({"a": X, "b": X[:, 0]}, Y)
    assert data.rows == 60 and list(data.feeds) == ["a", "b", "y"]
    assert np.shares_memory(data.part(slice(3, 9)).inputs["a"], X)
    for x, y, text in [
        (np.ma.masked_array(X), Y, "masked"),
        ([[1, 2], [3]], Y, "can't be read as an array"),
        ({}, Y, "by name"),
        (X, "abc", "rows|numbers"),
        (np.zeros(3, complex), Y[:3], "complex"),
    ]:
        with pytest.raises(FeedError, match=text):
            table(x, y)


def test_an_error_in_a_minibatch_names_the_users_line() -> None:
    """A thread makes them, on whose stack there is no line of the user's."""
    with pytest.raises(FeedError, match="x has 60, y has 5") as caught:
        make().fit([(X, Y), (X, Y[:5])])
    assert caught.value.where is not None and caught.value.where.filename == __file__
