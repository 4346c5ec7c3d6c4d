"""Memory: what the report says a step works in is what it takes, and a step takes no more."""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.size import TYPICAL, evaluate
from chainrule_runtime import memory

ROWS = (1, 7, 64, 300)


def mlp(**options: Any) -> cr.TrainingStep:
    h, y = cr.input("x", ("batch", 20)), cr.input("y", ("batch",), dtype="int32")
    for i in range(3):
        w = cr.parameter(f"w{i}", (h.shape[1], 33 + i))
        h = cr.layer_norm(cr.tanh(h @ w + cr.parameter(f"b{i}", (33 + i,))), None, None)
    loss = cr.losses.cross_entropy(h @ cr.parameter("out", (35, 5)), y)
    return cr.training_step(loss, cr.optim.Adam(1e-3), **options)


def recurrent(**options: Any) -> cr.TrainingStep:
    """A scan, whose body has places of its own, and a gather."""
    xs, u = cr.input("xs", (6, "batch", 4)), cr.parameter("u", (8, 8))
    w = cr.parameter("w", (4, 8))

    def cell(h: Any, x: Any) -> Any:
        h = cr.tanh(x @ w + h @ u)
        return h, h

    final, hs = cr.scan(cell, cr.zeros((xs.shape[1], 8)), xs)
    return cr.training_step(cr.mean(final**2) + cr.mean(hs), cr.optim.SGD(0.1, 0.9), **options)


def feeds(step: cr.TrainingStep, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    if step.report().manifest.feeds[0].name == "xs":
        return {"xs": rng.standard_normal((6, rows, 4), dtype=np.float32)}
    x = rng.standard_normal((rows, 20), dtype=np.float32)
    return {"x": x, "y": rng.integers(0, 5, rows).astype(np.int32)}


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each block of memory that the runtime takes, as it takes it."""
    taken: list[int] = []

    def counted(size: int) -> memory.Array:
        taken.append(size)
        return aligned(size)

    aligned = memory.aligned
    monkeypatch.setattr(memory, "aligned", counted)
    return taken


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", [mlp, recurrent])
def test_the_report_says_what_is_taken(make: Any, threads: int, blocks: list[int]) -> None:
    step = make(threads=threads)
    report = step.report()
    assert blocks[0] == report.reserved(batch=1)["state"]
    largest = 0
    for rows in ROWS:
        blocks.clear()
        step(**feeds(step, rows))
        said = report.reserved(batch=rows)
        assert blocks == [said["arena"] + said["workspace"]], f"{rows} rows"
        assert blocks[0] > largest
        largest = blocks[0]
    blocks.clear()
    for rows in reversed(ROWS):
        step(**feeds(step, rows))
    assert blocks == [], "a smaller batch fits where a larger one was"


def test_polynomials_are_the_figures_but_for_rounding() -> None:
    """Each slot is rounded up to 64 bytes, and is as large as its largest value."""
    step = mlp(threads=1)
    report = step.report()
    for rows in ROWS:
        said = report.reserved(batch=rows)
        written = evaluate(report.memory["arena"], {"batch": rows})
        assert written <= said["arena"]
        if rows == TYPICAL:  # where the polynomial is that of the largest
            assert said["arena"] <= written + 64 * report.slots
    assert report.memory["parameters and state"] <= report.reserved(batch=1)["state"]


def test_a_size_that_is_missing_is_said() -> None:
    report = mlp().report()
    with pytest.raises(cr.errors.CompileError, match="the sizes are batch, not none"):
        report.reserved()
    with pytest.raises(cr.errors.CompileError, match="not rows"):
        report.reserved(rows=3)
    with pytest.raises(cr.errors.CompileError, match="the size batch is an int from 0 on, not -2"):
        report.reserved(batch=-2)


def test_nothing_as_large_as_a_weight_is_on_its_way() -> None:
    """Gradients go into their updates, each before the next, and so do AdamW's decayed weights."""
    h, y = cr.input("x", ("batch", 40)), cr.input("y", ("batch",), dtype="int32")
    for i in range(6):
        h = cr.relu(h @ cr.parameter(f"w{i}", (40, 40)))
    loss = cr.losses.cross_entropy(h, y)
    report = cr.training_step(loss, cr.optim.AdamW(1e-3), threads=1).report()
    # of one row: an activation a layer, two of what follows from them, the logits', a few numbers
    assert report.reserved(batch=1)["arena"] <= 64 * 8 + 3 * (6 + 4) * 64 < 40 * 40 * 4
    alive = report.reserved(batch=100)["arena"] / (100 * 40 * 4)
    assert alive < 6 + 3, "no gradient of a layer waits for those of the others"


class _Heap(ctypes.Structure):
    """`struct mallinfo2` of glibc; `uordblks` are bytes in use, `hblkhd` those mapped apart."""

    _fields_ = [
        (n, ctypes.c_size_t)
        for n in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def _heap() -> tuple[int, int]:
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        pytest.skip("mallinfo2 is glibc's, from 2.33")
    ask.restype = _Heap
    found = ask()
    return found.uordblks, found.hblkhd


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_makes_no_objects(threads: int) -> None:
    step = mlp(threads=threads)
    data = feeds(step, 64)
    gc.collect()
    tracemalloc.start()
    for _ in range(500):  # CPython's own list of dicts to use again fills up, 80 of them
        step(**data)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(500):
        step(**data)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert now - before < 500
    assert peak - before < 2_000, "a call's own: the loss as a float, the dict of what is fed"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_leaves_the_heap_as_it_was(threads: int) -> None:
    """Of 2,000 steps not one may keep even the least block that malloc gives, 16 bytes."""
    step = mlp(threads=threads)
    data = feeds(step, 64)
    for _ in range(500):
        step(**data)
    gc.collect()
    before = _heap()
    for _ in range(2000):
        step(**data)
    after = _heap()
    assert after[1] == before[1]
    assert after[0] - before[0] < 16 * 2000


def test_an_epoch_allocates_by_its_steps_alone() -> None:
    """A run takes its log of losses, 4 bytes a step, and nothing else that grows with it."""
    step = mlp(threads=1)
    data = feeds(step, 6400)
    peaks = []
    step.run(**data, batch_size=64, shuffle=False)
    for epochs in (1, 20):
        gc.collect()
        tracemalloc.start()
        step.run(**data, batch_size=64, epochs=epochs, shuffle=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 1,900 more steps: the log, its copy as it is handed out, and the sum that turns -0 to 0
    assert peaks[1] - peaks[0] < 1900 * 4 * 4 + 4_000
