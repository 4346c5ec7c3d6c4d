"""A program's buffers and calls, with a step written in Python where native code would stand."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chainrule_runtime import (
    Check,
    FeedError,
    Lock,
    Manifest,
    NonFiniteError,
    Program,
    RuntimeFault,
    Storage,
    Tensor,
)

RUNTIME = Path(__file__).parents[2] / "runtime"
BATCH = {"terms": [[1, ["batch"]]]}
ROWS = {"terms": [[12, ["batch"]]]}
STEP = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64)
)
X, Y, COUNT, DOUBLE, TOTAL, WORK, TABLE = range(7)
BIG = 5000


def view(address: int, dtype: Any, *shape: int) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


def manifest(**changes: Any) -> Manifest:
    """double = 2x through working memory, total = sum(x), count += 1; labels y pick of 3."""
    facts: dict[str, Any] = {
        "sizes": ("batch",),
        "feeds": (Tensor("x", "float32", (BATCH, 3), X), Tensor("y", "int32", (BATCH,), Y)),
        "kept": (Tensor("count", "int32", (), COUNT),),
        "constants": (
            (Tensor("constant", "float32", (2,), TABLE), np.array([2.0, 0.0], np.float32)),
        ),
        "outputs": (
            Tensor("double", "float32", (BATCH, 3), DOUBLE),
            Tensor("total", "float32", (), TOTAL),
            Tensor("x", "float32", (BATCH, 3), X),
            Tensor("count", "int32", (), COUNT),
        ),
        "arena": ((64,), (ROWS, 16)),
        "temporaries": ((WORK, 1),),
        "checks": (Check(1, "labels", "y", 3), Check(2, "total", None, None)),
    }
    return Manifest(**{**facts, **changes})


@pytest.fixture
def count() -> np.ndarray:
    return Storage([("count", np.dtype(np.int32), ())]).arrays["count"]


def make(step: Callable[..., int], count: np.ndarray, **changes: Any) -> Program:
    native = STEP(step)
    address = ctypes.cast(native, ctypes.c_void_p).value
    assert address is not None
    return Program(manifest(**changes), address, kept={"count": count}, keep_alive=native)


def step(table: Any, sizes: Any) -> int:
    n = sizes[0]
    x, y = view(table[X], np.float32, n, 3), view(table[Y], np.int32, n)
    if not ((y >= 0) & (y < 3)).all():
        return 1
    work = view(table[WORK], np.float32, n, 3)
    work[...] = x * view(table[TABLE], np.float32, 2)[0]
    view(table[DOUBLE], np.float32, n, 3)[...] = work
    view(table[TOTAL], np.float32, 1)[0] = x.sum()
    if not np.isfinite(x.sum()):
        return 2
    view(table[COUNT], np.int32, 1)[0] += 1
    return 0


def rows(n: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
    return {"x": x, "y": np.zeros(n, np.int32)}


def test_calls_of_any_size_give_new_arrays(count: np.ndarray) -> None:
    program = make(step, count)
    kept = []
    for calls, n in enumerate([4, 1, BIG, 4, 0, 7], 1):
        given = rows(n)
        double, total, x, seen = program(given)
        np.testing.assert_array_equal(double, 2 * given["x"])
        np.testing.assert_array_equal(x, given["x"])
        assert total.shape == () and total == given["x"].sum() and seen == calls == count
        kept.append((double, x, 2 * given["x"]))
        assert not np.shares_memory(x, given["x"]) and not np.shares_memory(seen, count)
    for double, x, wanted in kept:  # a later call does not reach what an earlier one gave
        np.testing.assert_array_equal(double, wanted)
        np.testing.assert_array_equal(2 * x, wanted)


def test_memory_begins_at_multiples_of_64(count: np.ndarray) -> None:
    seen: list[int] = []

    def look(table: Any, sizes: Any) -> int:
        seen.extend([table[WORK], table[COUNT]])
        return step(table, sizes)

    program = make(look, count)
    for n in (1, 100, 10, 1000):
        program(rows(n))
    assert all(address % 64 == 0 for address in seen)
    assert len(set(seen[::2])) == 3  # it grew for 100 and for 1000, and not for 10


def test_labels_out_of_range(count: np.ndarray) -> None:
    program = make(step, count)
    for bad in (3, -1):
        given = rows(4)
        given["y"][2] = bad
        with pytest.raises(FeedError, match=rf"y holds {bad}, .* 0 to 2") as error:
            program(given)
        assert "[2]" in str(error.value) and count == 0
    program(rows(4))
    assert count == 1


def test_what_is_not_finite(count: np.ndarray) -> None:
    given = rows(4)
    given["x"][1, 1] = np.nan
    with pytest.raises(NonFiniteError, match="total is nan"):
        make(step, count)(given)
    assert count == 0


def test_a_code_nobody_knows(count: np.ndarray) -> None:
    with pytest.raises(RuntimeFault, match="code 9"):
        make(lambda table, sizes: 9, count)(rows(1))


def test_wrong_feeds_never_reach_the_code(count: np.ndarray) -> None:
    def never(table: Any, sizes: Any) -> int:
        raise AssertionError

    program = make(never, count, nonempty=(BATCH,))
    good = rows(4)
    for given in ({}, {"x": good["x"]}, {**good, "z": 1}, {**good, "y": good["y"][:3]}, rows(0)):
        with pytest.raises(FeedError):
            program(given)


def test_a_feed_in_kept_memory_is_copied(count: np.ndarray) -> None:
    arrays = Storage(
        [("count", np.dtype(np.int32), ()), ("x", np.dtype(np.float32), (4, 3))]
    ).arrays
    seen: list[int] = []

    def look(table: Any, sizes: Any) -> int:
        seen.append(table[X])
        return step(table, sizes)

    native = STEP(look)
    address = ctypes.cast(native, ctypes.c_void_p).value
    assert address is not None
    feeds = (Tensor("x", "float32", (BATCH, 3), X), Tensor("y", "int32", (BATCH,), Y))
    kept = (Tensor("count", "int32", (), COUNT), Tensor("w", "float32", (4, 3), 7))
    told = manifest(feeds=feeds, kept=kept)
    program = Program(told, address, kept={"count": arrays["count"], "w": arrays["x"]})
    program({"x": arrays["x"], "y": np.zeros(4, np.int32)})
    program({"x": arrays["x"][1:3], "y": np.zeros(2, np.int32)})
    inside = range(arrays["x"].ctypes.data, arrays["x"].ctypes.data + arrays["x"].nbytes)
    assert not [a for a in seen if a in inside]


def test_an_output_of_impossible_shape(count: np.ndarray) -> None:
    less = {"terms": [[1, ["batch"]], [-3, []]]}
    outputs = (Tensor("rest", "float32", (less, 3), DOUBLE),)
    with pytest.raises(FeedError, match=r"its shape would be \(-1, 3\)"):
        make(step, count, outputs=outputs)(rows(2))


def test_many_sizes_do_not_pile_up(count: np.ndarray) -> None:
    program = make(step, count)
    for n in range(1, 200):
        program(rows(n))
    assert len(program._plans) <= 64 and count == 199


def test_two_threads(count: np.ndarray) -> None:
    program, wrong = make(step, count), []

    def work(n: int) -> None:
        given = rows(n)
        for _ in range(200):
            double, total, _, _ = program(given)
            if not np.array_equal(double, 2 * given["x"]) or total != given["x"].sum():
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (3, 1000)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and count == 400


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_works_even_while_a_call_runs(count: np.ndarray) -> None:
    inside, go = threading.Event(), threading.Event()

    def slow(table: Any, sizes: Any) -> int:
        if sizes[0] == 2:
            inside.set()
            go.wait(10)
        return step(table, sizes)

    program = make(slow, count)
    thread = threading.Thread(target=program, args=(rows(2),))
    thread.start()
    assert inside.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        double = program(rows(3))[0]
        os._exit(0 if np.array_equal(double, 2 * rows(3)["x"]) else 1)
    go.set()
    thread.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_runtime_stands_alone() -> None:
    code = "import chainrule_runtime, sys; print(sorted(m.split('.')[0] for m in sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(RUNTIME)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'chainrule'" not in out.stdout and "llvmlite" not in out.stdout


def test_no_signal_leaves_the_lock_held(count: np.ndarray) -> None:
    """What a handler raises comes through anywhere in a call; the next call must not wait."""

    class Alarm(Exception):
        pass

    armed = False

    def ring(*_: object) -> None:
        if armed:
            raise Alarm

    def spin(seconds: float) -> None:
        nonlocal armed
        try:
            armed = True
            # again and again: an exception in a weak reference's callback goes no further
            signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
            while True:
                with lock.guard:
                    pass
        finally:
            armed = False

    lock = Lock()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for i in range(1500):
            with pytest.raises(Alarm):
                spin(2e-5 + i * 1e-7)
            free: list[bool] = []
            thread = threading.Thread(target=lambda: free.append(lock._mutex.acquire(False)))  # noqa: B023
            thread.start()
            thread.join()
            assert free == [True]
            lock.renew()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_handler_is_refused_what_its_thread_holds(count: np.ndarray) -> None:
    program = make(lambda table, sizes: 0, count)
    with program.lock.guard, pytest.raises(RuntimeFault, match="handler"):
        program(rows(2))
    program(rows(2))


def test_more_memory_than_there_is(count: np.ndarray) -> None:
    for size in (2**62, 2**63, 2**80):
        with pytest.raises(RuntimeFault, match=f"no room for {size} bytes"):
            make(step, count, arena=((size,), ()))(rows(2))
